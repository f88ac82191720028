package main

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"
)

// TestProgress: the line comes when work takes long, is written again at its
// pace, and leaves nothing behind; who is not at a terminal is not told.
func TestProgress(t *testing.T) {
	_, side := openTerminal(t)
	if newProgress(side).out == nil {
		t.Error("a terminal is not told")
	}
	if newProgress(new(bytes.Buffer)).out != nil {
		t.Error("what is no terminal is told")
	}
	now := noon
	var out bytes.Buffer
	p := progressOn(&out, func() time.Time { return now })
	expect := func(want string) {
		t.Helper()
		if got := out.String(); got != want {
			t.Errorf("after %v: %q, expected %q", now.Sub(noon), got, want)
		}
		out.Reset()
	}
	tell := func(n int) { p.tell(func() string { return fmt.Sprint("line ", n) }) }
	now = now.Add(progressAfter - 1)
	tell(1)
	p.clear()
	expect("")
	now = now.Add(1)
	tell(2)
	tell(3)
	expect("\rline 2" + clearLine)
	now = now.Add(progressEvery)
	tell(4)
	expect("\rline 4" + clearLine)
	p.clear()
	p.clear()
	expect("\r" + clearLine)
	tell(5)
	expect("\rline 5" + clearLine)
}

// TestCheckTellsHowFarItIs: what a check reads and verifies is in its line, and
// what it finds takes the place of the line.
func TestCheckTellsHowFarItIs(t *testing.T) {
	now := noon
	var out bytes.Buffer
	c := &volumeCheck{out: &out, progress: progressOn(&out, func() time.Time { return now })}
	c.read(1 << 20)
	now = now.Add(time.Minute)
	c.verified(1, 512<<10)
	c.read(1 << 20)
	c.found(2, "here", io.ErrUnexpectedEOF)
	want := "\r2 MiB read, 512 KiB of data verified" + clearLine + "\r" + clearLine + "slot 2: here: unexpected EOF\n"
	if out.String() != want {
		t.Errorf("%q, expected %q", &out, want)
	}
}
