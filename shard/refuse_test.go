package shard

import (
	"errors"
	"testing"
	"time"

	"trivet/arena"
	"trivet/cache"
	"trivet/journal"
)

// TestRefused holds that a write which fails before it was logged gives its
// pages back, and that deadlines which do not ascend are all met.
func TestRefused(t *testing.T) {
	a, err := arena.Open(arena.Options{Dir: t.TempDir(), FallbackDir: t.TempDir(), SizeBytes: 8 << 20, Shards: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	memory, err := cache.Reserve(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	host := &idleHost{}
	s := New(Config{
		Generation: 1, Arena: a, Cache: cache.New(memory.Carve(1)[0]), Window: journal.NewWindow(1, a.Pages()+1024, a.Pages()),
		Slots: make([]Slot, 1), Quorum: 1, StallAfter: time.Second, FailAfter: 20 * time.Second,
	}, make([]*journal.Recovery, 1), host)
	c := &s.core
	// Writes that wait for a map page that never comes; the second one's
	// deadline is the earlier.
	var failed []int
	for i, deadline := range []time.Duration{20 * time.Second, 10 * time.Second} {
		p := &Part{Op: Write, Skip: 1, Length: 7, Deadline: deadline}
		p.Done = func(p *Part) {
			if !errors.Is(p.Err, ErrDeadline) {
				t.Errorf("write %d: %v", i, p.Err)
			}
			failed = append(failed, i)
		}
		if !a.Alloc(1, p.Pages[:1]) {
			t.Fatal("no page")
		}
		c.soonest = 10 * time.Second
		c.queued.push(p)
	}
	c.freeOps = nil // every disk read is taken
	host.now = 11 * time.Second
	s.Tick()
	if len(failed) != 1 || failed[0] != 1 {
		t.Fatalf("failed after 11 s: %v, expected the second", failed)
	}
	host.now = 21 * time.Second
	s.Tick()
	if len(failed) != 2 || a.Live() != 0 {
		t.Errorf("%v have failed, %d pages are left in the arena", failed, a.Live())
	}
}
