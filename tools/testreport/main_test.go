package main

import (
	"strings"
	"testing"
)

// run feeds events to a report and returns what it printed and its verdict.
func run(t *testing.T, events string) (string, bool) {
	t.Helper()
	var out strings.Builder
	r := &report{out: &out, said: map[name]*strings.Builder{}}
	if err := r.read(strings.NewReader(events)); err != nil {
		t.Fatal(err)
	}
	good := r.close()
	return out.String(), good
}

func TestSkipsAreListedWithTheirReasons(t *testing.T) {
	out, good := run(t, `
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: no mkfs.xfs here\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`)
	if !good || !strings.Contains(out, "p TestA: a_test.go:3: no mkfs.xfs here\n") ||
		!strings.Contains(out, "ok  \tp\t0.1s\n") || !strings.Contains(out, "1 passed, 0 failed, 1 skipped") {
		t.Errorf("good=%v, printed:\n%s", good, out)
	}
}

func TestRunsThatAreNotGood(t *testing.T) {
	for what, events := range map[string]string{
		"a failed test":       `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n" + `{"Action":"fail","Package":"p","Test":"TestB"}`,
		"a broken package":    `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n" + `{"Action":"fail","Package":"q"}`,
		"a test without end":  `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n" + `{"Action":"output","Package":"p","Test":"TestB","Output":"panic\n"}`,
		"no test at all":      `{"Action":"pass","Package":"p"}`,
		"no events, but text": "go: cannot find main module",
	} {
		if out, good := run(t, events); good {
			t.Errorf("%s: counted as good:\n%s", what, out)
		}
	}
}

func TestFailuresSpeak(t *testing.T) {
	out, _ := run(t, `
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: block 7 is mixed\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
`)
	if !strings.Contains(out, "block 7 is mixed") {
		t.Errorf("the failure's words are missing:\n%s", out)
	}
}
