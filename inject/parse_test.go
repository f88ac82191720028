package inject_test

import (
	"encoding/json"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
	"trivet/inject"
)

func TestParseExamples(t *testing.T) {
	for text, want := range map[string]inject.Rule{
		"log.sync slot=1 nth=3 count=2 error=EIO": {
			Site: inject.LogSync, Slot: inject.Only(1), Nth: 3, Count: 2, Effect: inject.Error, Errno: syscall.EIO,
		},
		"segment.read slot=0 block=100-200 flip": {
			Site: inject.SegmentRead, Slot: inject.Only(0), Block: inject.Between(100, 200), Effect: inject.Flip,
		},
		"log.append p=0.01 delay=50ms": {
			Site: inject.LogAppend, P: 0.01, Effect: inject.Delay, Delay: 50 * time.Millisecond,
		},
		"log.sync slot=2 hang":               {Site: inject.LogSync, Slot: inject.Only(2), Effect: inject.Hang},
		"any op=write count=all for=2s hang": {Op: "write", Count: inject.All, For: 2 * time.Second, Effect: inject.Hang},
		"net.send shard=0-3 drop":            {Site: inject.NetSend, Shard: inject.Between(0, 3), Effect: inject.Drop},
	} {
		got, err := inject.Parse(text)
		if err != nil || got != want {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", text, got, err, want)
		}
		if got.String() != text {
			t.Errorf("Parse(%q) prints as %q", text, got)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		"", "   ", "disk.write hang", "log.sync", "log.sync slot=1", "log.sync hang drop", "log.sync hang hang",
		"log.sync flip", "net.send torn", "any lost", "log.sync none", "log.sync hang=1", "log.sync error", "log.sync error=",
		"log.sync error=EWHAT", "log.sync error=5", "log.sync delay=0s", "log.sync delay=-1s", "log.sync delay=50",
		"log.sync slot=-1 hang", "log.sync slot=2-1 hang", "log.sync slot=1-2-3 hang", "log.sync slot=1 slot=2 hang",
		"log.sync nth=0 hang", "log.sync nth=all hang", "log.sync count=0 hang", "log.sync p=0 hang", "log.sync p=1.1 hang",
		"log.sync p=NaN hang", "log.sync op=Write hang", "log.sync colour=red hang", "log.sync for=0s hang",
		"log.sync slot=18446744073709551616 hang", "log.sync hang " + strings.Repeat(" ", 600),
	} {
		if r, err := inject.Parse(text); !errors.Is(err, inject.ErrRule) {
			t.Errorf("Parse(%q) = %+v, %v; want ErrRule", text, r, err)
		}
	}
}

func TestValidateRefusesWhatCannotBePrinted(t *testing.T) {
	good := inject.Rule{Site: inject.LogSync, Effect: inject.Error, Errno: syscall.EIO}
	for name, spoil := range map[string]func(*inject.Rule){
		"site":          func(r *inject.Rule) { r.Site = 200 },
		"effect":        func(r *inject.Rule) { r.Effect = 200 },
		"no errno":      func(r *inject.Rule) { r.Errno = 0 },
		"errno's name":  func(r *inject.Rule) { r.Errno = 9999 },
		"second effect": func(r *inject.Rule) { r.Delay = time.Second },
		"range":         func(r *inject.Rule) { r.Slot = inject.Range{First: 1} },
		"op":            func(r *inject.Rule) { r.Op = "a b" },
	} {
		r := good
		spoil(&r)
		if err := r.Validate(); !errors.Is(err, inject.ErrRule) {
			t.Errorf("%s: Validate(%+v) = %v; want ErrRule", name, r, err)
		}
	}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}

func TestMustParsePanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("MustParse accepted nonsense")
		}
	}()
	inject.MustParse("nonsense")
}

func TestRuleIsJSONText(t *testing.T) {
	const text = `"log.sync slot=2 hang"`
	var r inject.Rule
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	if out, err := json.Marshal(r); err != nil || string(out) != text {
		t.Errorf("marshalled to %s, %v", out, err)
	}
}

func drawRange(t *rapid.T, name string) inject.Range {
	if !rapid.Bool().Draw(t, name) {
		return inject.Range{}
	}
	a, b := rapid.Uint64().Draw(t, name+".a"), rapid.Uint64().Draw(t, name+".b")
	return inject.Between(min(a, b), max(a, b))
}

func drawRule(t *rapid.T) inject.Rule {
	r := inject.Rule{
		Site:   rapid.SampledFrom([]inject.Site{inject.Any, inject.LogAppend, inject.NetRecv, inject.Reclaim}).Draw(t, "site"),
		Op:     rapid.SampledFrom([]string{"", "read", "write-zeroes"}).Draw(t, "op"),
		Slot:   drawRange(t, "slot"),
		Shard:  drawRange(t, "shard"),
		Block:  drawRange(t, "block"),
		Nth:    rapid.Uint64().Draw(t, "nth"),
		P:      rapid.Float64Range(0, 1).Draw(t, "p"),
		Count:  rapid.OneOf(rapid.Uint64(), rapid.Just(uint64(inject.All))).Draw(t, "count"),
		For:    time.Duration(rapid.Int64Min(0).Draw(t, "for")),
		Effect: rapid.SampledFrom([]inject.Effect{inject.Error, inject.Delay, inject.Hang, inject.Crash}).Draw(t, "effect"),
	}
	switch r.Effect {
	case inject.Error:
		r.Errno = rapid.SampledFrom([]syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EAGAIN, 133}).Draw(t, "errno")
	case inject.Delay:
		r.Delay = time.Duration(rapid.Int64Min(1).Draw(t, "delay"))
	}
	return r
}

func TestParseInvertsString(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRule(t)
		back, err := inject.Parse(r.String())
		if err != nil || back != r {
			t.Fatalf("%+v prints as %q, parses as %+v, %v", r, r, back, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("log.sync slot=1 nth=3 count=2 error=EIO")
	f.Add("segment.read slot=0 block=100-200 flip")
	f.Add("any p=1e-5 for=1h2m3s delay=50ms op=a")
	f.Add("net.recv shard=3 count=all reorder")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := inject.Parse(text)
		if err != nil {
			if !errors.Is(err, inject.ErrRule) {
				t.Fatalf("Parse(%q): %v does not wrap ErrRule", text, err)
			}
			return
		}
		back, err := inject.Parse(r.String())
		if err != nil || back != r || back.String() != r.String() {
			t.Fatalf("%q parses as %+v, prints as %q, parses as %+v, %v", text, r, r, back, err)
		}
	})
}
