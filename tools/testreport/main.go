// Testreport reads the output of 'go test -json' on standard input, prints the
// closing line of every package, everything that a failed test said, and last
// every test that was skipped, with its reason: a skipped part that nobody is
// told of is a bug. It exits 1 when something failed or no test ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// event is one line of 'go test -json' (see 'go doc test2json').
type event struct {
	Action, Package, Test, Output string
	ImportPath                    string  // of build output
	Elapsed                       float64 // seconds
}

// name identifies a test, or a package when Test is empty.
type name struct{ pkg, test string }

// A report collects the events of one run.
type report struct {
	out                     io.Writer
	said                    map[name]*strings.Builder
	passed, failed, skipped int
	brokenPackages          int
	skips                   []string
}

func main() {
	r := &report{out: os.Stdout, said: map[name]*strings.Builder{}}
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
	if !r.close() {
		os.Exit(1)
	}
}

// read takes events until the input ends. A line that is no event is printed:
// it is the go command complaining.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				r.out.Write(line)
			} else {
				r.take(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read test events: %w", err)
		}
	}
}

// take handles one event.
func (r *report) take(e event) {
	key := name{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		r.hear(key, e.Output)
	case "pass":
		r.passed += count(e)
		delete(r.said, key)
	case "skip":
		r.skip(key, e)
	case "fail":
		r.fail(key, e)
	}
}

// count is 1 for a test of its own, 0 for a package.
func count(e event) int {
	if e.Test == "" {
		return 0
	}
	return 1
}

// hear keeps what a test says until it is known how it ends. A package's own
// words are printed, but for the ones that only repeat the tests'.
func (r *report) hear(key name, output string) {
	if key.test == "" && !chatter(output) {
		fmt.Fprint(r.out, output)
		return
	}
	if r.said[key] == nil {
		r.said[key] = &strings.Builder{}
	}
	r.said[key].WriteString(output)
}

// chatter tells the lines of a package that say nothing.
func chatter(output string) bool {
	return output == "PASS\n" || output == "FAIL\n" || strings.Contains(output, "[no test files]")
}

// skip remembers why a test was skipped.
func (r *report) skip(key name, e event) {
	if e.Test == "" {
		return // a package without tests
	}
	r.skipped++
	r.skips = append(r.skips, fmt.Sprintf("%s %s: %s", e.Package, e.Test, r.reason(key)))
	delete(r.said, key)
}

// reason is what a skipped test said, without the marks of the go command.
func (r *report) reason(key name) string {
	var reason []string
	if said := r.said[key]; said != nil {
		for line := range strings.Lines(said.String()) {
			line = strings.TrimSpace(line)
			if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "--- ") {
				reason = append(reason, line)
			}
		}
	}
	if len(reason) == 0 {
		return "no reason given"
	}
	return strings.Join(reason, " ")
}

// fail prints everything that a failed test said.
func (r *report) fail(key name, e event) {
	if e.Test == "" {
		r.brokenPackages++
	}
	r.failed += count(e)
	if said := r.said[key]; said != nil && e.Test != "" {
		fmt.Fprintf(r.out, "%s %s\n%s", e.Package, e.Test, said)
	}
	delete(r.said, key)
}

// close prints the summary and tells whether the run was good. A test that
// never ended, because its process died, is printed with what it said.
func (r *report) close() bool {
	for key, said := range r.said {
		if key.test != "" {
			fmt.Fprintf(r.out, "%s %s did not end\n%s", key.pkg, key.test, said)
			r.failed++
		}
	}
	if len(r.skips) > 0 {
		fmt.Fprintf(r.out, "\nSkipped, and why:\n")
		for _, s := range r.skips {
			fmt.Fprintf(r.out, "  %s\n", s)
		}
	}
	fmt.Fprintf(r.out, "\n%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	return r.failed == 0 && r.brokenPackages == 0 && r.passed > 0
}
