package shard

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"trivet/arena"
	"trivet/cache"
	"trivet/journal"
)

// countingHost is an idle host that counts how often it is handed over to.
type countingHost struct {
	idleHost
	handed int
}

func (h *countingHost) HandOver() { h.handed++ }

// idleShard makes a shard without lanes: what needs none completes at once.
func idleShard(t *testing.T, host Host) *Shard {
	t.Helper()
	a, err := arena.Open(arena.Options{Dir: t.TempDir(), FallbackDir: t.TempDir(), SizeBytes: 8 << 20, Shards: 1})
	if err != nil {
		t.Fatal(err)
	}
	memory, err := cache.Reserve(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(a.Close(), memory.Close()); err != nil {
			t.Error(err)
		}
	})
	return New(Config{
		Generation: 1, Arena: a, Cache: cache.New(memory.Carve(1)[0]), Window: journal.NewWindow(1, a.Pages()+1024, a.Pages()),
		Slots: make([]Slot, 1), Quorum: 1, StallAfter: time.Second, FailAfter: 20 * time.Second,
	}, make([]*journal.Recovery, 1), host)
}

// TestPostWaitsForRun: what was posted is done by Run, in order, not before.
func TestPostWaitsForRun(t *testing.T) {
	host := &countingHost{}
	s := idleShard(t, host)
	var done []int
	for i := range 100 {
		s.Post(&Part{Op: Flush, Done: func(*Part) { done = append(done, i) }})
	}
	if len(done) > 0 {
		t.Fatalf("%d parts were done before Run", len(done))
	}
	s.Run()
	for i := range 100 {
		if len(done) != 100 || done[i] != i {
			t.Fatalf("done, in this order: %v", done)
		}
	}
	if s.Run(); host.handed > 0 {
		t.Error("100 parts were too many for one goroutine")
	}
}

// TestOwnerHandsOver: the goroutine that runs a busy shard goes back to its own
// work after a bounded number of events, and hands over what is left (hazard 23).
func TestOwnerHandsOver(t *testing.T) {
	host := &countingHost{}
	s := idleShard(t, host)
	done := 0
	const posted = 3 * turnsInRow * turnEvents
	for range posted {
		s.Post(&Part{Op: Flush, Done: func(*Part) { done++ }})
	}
	for round := 1; round <= 3; round++ {
		s.Run()
		if done != round*turnsInRow*turnEvents {
			t.Errorf("%d parts are done after %d runs, expected %d each", done, round, turnsInRow*turnEvents)
		}
	}
	if host.handed != 2 {
		t.Errorf("handed over %d times, expected 2", host.handed)
	}
	// A part whose completion brings the next one, for ever.
	host.handed, done = 0, 0
	p := &Part{Op: Flush}
	p.Done = func(p *Part) {
		done++
		s.Post(p)
	}
	s.Submit(p)
	if done != turnsInRow || host.handed != 1 {
		t.Errorf("%d completions and %d hand-overs, expected %d and 1", done, host.handed, turnsInRow)
	}
}

// TestManySubmitters: many goroutines post in batches of any size and run the
// shard, completions post again, and every part is done exactly once.
func TestManySubmitters(t *testing.T) {
	host := NewSystemHost(time.Now())
	s := idleShard(t, host)
	host.Start(s)
	defer host.Close()
	const submitters, rounds = 16, 300
	var done atomic.Int64
	var clients, parts sync.WaitGroup
	for c := range submitters {
		clients.Go(func() {
			for round := range rounds {
				for range 1 + (c*7+round)%13 {
					parts.Add(1)
					again := round%3 == 0
					s.Post(&Part{Op: Flush, Done: func(p *Part) {
						done.Add(1)
						if again {
							again = false
							s.Submit(p)
							return
						}
						parts.Done()
					}})
				}
				if s.Run(); round%5 == 0 {
					s.Tick()
				}
			}
		})
	}
	clients.Wait()
	parts.Wait() // or the test hangs, for a part was lost
	want := int64(0)
	for c := range submitters {
		for round := range rounds {
			n := int64(1 + (c*7+round)%13)
			if want += n; round%3 == 0 {
				want += n
			}
		}
	}
	if done.Load() != want {
		t.Errorf("%d completions, expected %d", done.Load(), want)
	}
	idle := make(chan struct{})
	s.Inspect(func(v *View) {
		if n := v.Inflight(nil, 10); len(n) > 0 {
			t.Errorf("in flight at the end: %v", n)
		}
		close(idle)
	})
	<-idle
}
