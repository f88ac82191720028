package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"trivet/replica"
)

// TestOneLine: errors that were joined are one line.
func TestOneLine(t *testing.T) {
	err := fmt.Errorf("serve: %w", errors.Join(errors.New("first"), fmt.Errorf("second: %w", errors.Join(errors.New("a"), errors.New("b")))))
	if text := oneLine(err); text != "serve: first; second: a; b" {
		t.Errorf("%q", text)
	}
}

// TestRefusalIsOneLine: what a volume is refused for, with several slots at
// fault, is the last line on standard error and the only one that is no log.
func TestRefusalIsOneLine(t *testing.T) {
	volume := filepath.Join(tempDir(t), "vol")
	server := startChild(t, "serve", volume, "--size", "16M")
	server.uri(t)
	server.signal(t, syscall.SIGTERM)
	if code := server.wait(t); code != exitOK {
		t.Fatalf("SIGTERM: exit %d", code)
	}
	for _, slot := range []string{"slot-0", "slot-2"} {
		path := filepath.Join(volume, slot)
		if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	again := startChild(t, "serve", volume)
	if code := again.wait(t); code != exitFailure {
		t.Errorf("exit %d", code)
	}
	var refusals []string
	for line := range strings.Lines(again.stderr.String()) {
		if !strings.HasPrefix(line, "time=") {
			refusals = append(refusals, line)
		}
	}
	if len(refusals) != 1 || lastLine(again.stderr.String())+"\n" != refusals[0] {
		t.Fatalf("%d lines are no log: %q", len(refusals), refusals)
	}
	for _, text := range []string{"trivet: serve " + volume, "too few slots", "slot-0", "slot-2", "--survivor"} {
		if !strings.Contains(refusals[0], text) {
			t.Errorf("%q does not say %q", refusals[0], text)
		}
	}
}

// TestLimits: what no volume can have is refused before anything is made.
func TestLimits(t *testing.T) {
	parent := tempDir(t)
	dir := filepath.Join(parent, "v")
	for _, args := range [][]string{
		{"--size", "1M"},
		{"--size", "17000K"},
		{"--size", "2P"},
		{"--size", "16M", "--name", strings.Repeat("n", replica.MaxNameBytes+1)},
		{"--size", "16M", "--name", "a\tb"},
	} {
		var out bytes.Buffer
		if status := run(t.Context(), append([]string{"serve", dir}, args...), &out, &out); status != exitUsage {
			t.Errorf("%q: exit %d, %s", args, status, &out)
		}
		if n := strings.Count(out.String(), "\n"); n != 1 || !strings.Contains(out.String(), args[len(args)-2]+" ") && !strings.Contains(out.String(), args[len(args)-2]+":") {
			t.Errorf("%q: %d lines: %q", args, n, &out)
		}
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestLongDirectory: a directory may have any name. The volume's is what fits.
func TestLongDirectory(t *testing.T) {
	parent := tempDir(t)
	dir := filepath.Join(parent, strings.Repeat("d", replica.MaxNameBytes-1)+"é\tlonger than a name")
	control := filepath.Join(parent, "control.sock")
	server := startChild(t, "serve", dir, "--size", "16M", "--control", control, "--listen", "unix://"+filepath.Join(parent, "nbd.sock"))
	server.uri(t)
	var out bytes.Buffer
	if status := run(t.Context(), []string{"status", "--json", "--control", control}, &out, &out); status != exitOK {
		t.Fatalf("exit %d: %s", status, &out)
	}
	if name := fmt.Sprintf("%q", strings.Repeat("d", replica.MaxNameBytes-1)); !strings.Contains(out.String(), name) {
		t.Errorf("the volume is not named %s:\n%s", name, &out)
	}
	server.signal(t, syscall.SIGTERM)
	if code := server.wait(t); code != exitOK {
		t.Errorf("SIGTERM: exit %d", code)
	}
}
