//go:build invariants

package shard

import (
	"testing"

	"trivet/disk"
	"trivet/journal"
)

// TestFailedPartialLeavesTurns: a write of a part of a block that fails at once holds
// no place: what is written after it does not wait for it.
func TestFailedPartialLeavesTurns(t *testing.T) {
	r := newRetireRig(t)
	r.arena.Watch(nil)
	r.settle(-1)
	w := &Part{Op: Write, LBA: 3, Length: journal.BlockSize, Done: func(*Part) {}}
	r.arena.Alloc(1, w.Pages[:1])
	w.Fill(r.arena, disk.Alloc(journal.BlockSize))
	r.Submit(w)
	r.arena.Bytes(w.Pages[0])[7] ^= 1 // rot in memory

	var partial error
	failed := &Part{Op: Write, LBA: 3, Skip: 0, Length: 512, Done: func(p *Part) { partial = p.Err }}
	r.arena.Alloc(1, failed.Pages[:1])
	failed.Fill(r.arena, make([]byte, 512))
	r.Submit(failed)
	t.Logf("partial: %v; held after Done: %v", partial, failed.held)

	done := false
	whole := &Part{Op: Write, LBA: 3, Length: journal.BlockSize, Done: func(p *Part) { done = true; t.Logf("whole: %v", p.Err) }}
	r.arena.Alloc(1, whole.Pages[:1])
	whole.Fill(r.arena, disk.Alloc(journal.BlockSize))
	r.Submit(whole)
	r.settle(-1)
	if !done {
		t.Error("a whole write of the block, which would heal it, waits behind a part that has failed")
	}
	r.Inspect(func(v *View) { t.Logf("first: %d, behind: %d", len(v.core.turns.first), v.core.turns.behind.len) })
}
