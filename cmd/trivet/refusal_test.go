package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
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
