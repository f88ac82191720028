//go:build invariants

package shard

import (
	"errors"
	"testing"
	"time"

	"trivet/journal"
)

// badSlot is a slot none of whose blocks can be read.
type badSlot struct {
	*queueSlot
	reads []*journal.Read
}

func (s *badSlot) Read(r *journal.Read) { s.reads = append(s.reads, r) }

func (s *badSlot) fail() {
	for len(s.reads) > 0 {
		r := s.reads[0]
		s.reads = s.reads[1:]
		for i := range r.Blocks {
			r.Blocks[i].Err = journal.ErrChecksum
		}
		r.Done()
	}
}

// TestContradicted: two slots cannot read a block, and the third, which should have
// the same, has a hole there. That is not what is read, nor what the others are
// repaired with (hazard 46).
func TestContradicted(t *testing.T) {
	r := newRetireRig(t)
	r.settle(-1)
	r.write(3, false)
	r.settle(-1)
	if n := r.arena.Live(); n > 0 {
		t.Fatalf("%d pages are left in the arena", n)
	}
	var bad [2]*badSlot
	r.Inspect(func(v *View) {
		for i := range bad {
			bad[i] = &badSlot{queueSlot: r.slots[i]}
			v.core.slots[i] = bad[i]
		}
		empty, err := journal.Recover(journal.Config{ID: journal.LaneID{Slot: 2}, SegmentBlocks: 512, CheckpointBytes: 1 << 40, MapBytes: 1 << 20, ShareBlocks: 1 << 20, Regions: 16}, nothing{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		v.core.engage(2, empty, r.slots[2])
	})
	var read error
	done := false
	r.Submit(&Part{Op: Read, LBA: 3, Length: journal.BlockSize, Data: make([]byte, journal.BlockSize), Prefer: 1, Done: func(p *Part) { read, done = p.Err, true }})
	for range 10 {
		r.host.now += time.Millisecond
		r.Tick()
		for i, b := range bad {
			b.fail()
			r.slots[i].serve()
		}
		r.slots[2].serve()
	}
	if !done || !errors.Is(read, ErrIO) {
		t.Errorf("read: done %v, %v; expected an I/O error", done, read)
	}
	r.Inspect(func(v *View) {
		if n := v.Counters().Repairs; n > 0 {
			t.Errorf("%d blocks were repaired with something else", n)
		}
	})
}
