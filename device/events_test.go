package device

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"trivet/journal"
	"trivet/shard"
)

// said tells whether an event of the slot holds all of the texts.
func (v *volume) said(slot int, texts ...string) bool {
	for _, e := range v.Events() {
		all := e.Slot == slot
		for _, text := range texts {
			all = all && strings.Contains(e.What, text)
		}
		if all {
			return true
		}
	}
	return false
}

// counted returns how many errors of a kind were counted on a slot.
func (v *volume) counted(slot int, kind string) (n uint64) {
	for _, c := range v.Snapshot().Errors {
		if c.Slot == slot && c.Errno == kind {
			n += c.Count
		}
	}
	return n
}

// expectDropped holds that the status says why a slot was dropped, that the
// error was counted under its name, and that an event tells of it.
func (v *volume) expectDropped(slot int, why error, kind string) {
	v.t.Helper()
	s := v.Snapshot().Slots[slot]
	if s.Live || !errors.Is(s.Reason, why) {
		v.t.Errorf("slot %d: live %v, reason %v, expected %v", slot, s.Live, s.Reason, why)
	}
	if v.counted(slot, kind) == 0 {
		v.t.Errorf("slot %d: no %s among the errors counted: %v", slot, kind, v.Snapshot().Errors)
	}
	if !v.said(slot, "faulted", why.Error()) {
		v.t.Errorf("slot %d: no event says that it is faulted with %q: %v", slot, why, v.Events())
	}
}

// TestErrorMadeGood: an error that cost nothing, because what was not durable
// was written again elsewhere, is told and counted all the same.
func TestErrorMadeGood(t *testing.T) {
	v := newVolume(t, nil)
	id := v.rule("log.sync slot=1 count=1 error=EIO")
	for start := time.Now(); !v.said(1, "tried again", syscall.EIO.Error()); {
		v.must(v.write(0, pattern(1, 4096), 0))
		v.must(v.flush())
		if time.Since(start) > 10*time.Second {
			t.Fatalf("the rule was hit %d times, and no event tells of it: %v", v.faults.Hits(id), v.Events())
		}
	}
	if n := v.counted(1, "EIO"); n != 1 {
		t.Errorf("%d errors are counted, expected 1", n)
	}
	if !v.live()[1] {
		t.Error("the slot was dropped for an error that was made good")
	}
}

// TestDroppedForSilence: a slot that hung is not a slot with some other error.
func TestDroppedForSilence(t *testing.T) {
	v := newVolume(t, nil)
	v.rule("log.append slot=2 hang")
	for start := time.Now(); v.live()[2]; {
		v.must(v.write(0, pattern(1, 4096), 0))
		v.must(v.flush())
		if time.Since(start) > 3*stallAfter {
			t.Fatal("the slot still takes part")
		}
	}
	v.must(v.flush()) // every shard has been told
	v.expectDropped(2, shard.ErrStalled, "STALLED")
	if n := v.counted(2, "OTHER"); n != 0 {
		t.Errorf("%d errors have no name", n)
	}
}

// TestDroppedForErrors: the event that says so is not lost among those of the
// tries before it, which have the same error.
func TestDroppedForErrors(t *testing.T) {
	v := newVolume(t, nil)
	v.rule("log.append slot=0 error=EIO")
	for start := time.Now(); v.live()[0]; {
		v.must(v.write(0, pattern(1, 4096), 0))
		v.must(v.flush())
		if time.Since(start) > 10*time.Second {
			t.Fatal("the slot still takes part")
		}
	}
	v.must(v.flush())
	v.expectDropped(0, syscall.EIO, "EIO")
	if !v.said(0, "tried again", syscall.EIO.Error()) {
		t.Error("no event tells of the tries")
	}
}

// TestRepeatedErrors: a kind of error is logged at once for each thing that is
// said of it, then once an interval, whichever block it is; all are counted.
func TestRepeatedErrors(t *testing.T) {
	e := &events{log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for i := range 1000 {
		e.note(1, fmt.Sprintf("read of block %d", i), fmt.Errorf("read: %w", syscall.EIO))
	}
	e.note(1, "slot is faulted", syscall.EIO)
	e.note(2, "read of block 7", syscall.EIO)
	e.note(1, "read of block 8", journal.ErrChecksum)
	if got := e.last(); len(got) != 4 {
		t.Errorf("%d events, expected 4: %v", len(got), got)
	}
	if got := e.counts(); len(got) != 3 || got[0].Count != 1001 || got[0].Errno != "EIO" || got[2].Errno != "CHECKSUM" {
		t.Errorf("counted: %v", got)
	}
	for i := range 2 * maxSayings { // what is remembered stays bounded
		e.note(1, strings.Repeat("x", i), syscall.EIO)
	}
	if n := len(e.errors[0].said); n != maxSayings {
		t.Errorf("%d texts are remembered, expected %d", n, maxSayings)
	}
}
