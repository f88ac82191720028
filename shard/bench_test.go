package shard

import (
	"os"
	"testing"
	"time"

	"trivet/arena"
	"trivet/cache"
	"trivet/journal"
)

// idleHost is a host on which time passes and nothing else happens.
type idleHost struct{ now time.Duration }

func (h *idleHost) Now() time.Duration   { h.now += time.Microsecond; return h.now }
func (h *idleHost) WakeAt(time.Duration) {}
func (h *idleHost) HandOver()            {}

// BenchmarkShardStep is a write of one block through a shard without lanes'
// I/O: what a request costs in a turn, with everything retired at once.
func BenchmarkShardStep(b *testing.B) {
	dir, err := os.MkdirTemp("/dev/shm", "trivet-bench-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	a, err := arena.Open(arena.Options{Dir: dir, FallbackDir: dir, SizeBytes: 8 << 20, Shards: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer a.Close()
	memory, err := cache.Reserve(8 << 20)
	if err != nil {
		b.Fatal(err)
	}
	defer memory.Close()
	s := New(Config{
		Generation: 1, Arena: a, Cache: cache.New(memory.Carve(1)[0]), Window: journal.NewWindow(1, a.Pages()+1024, a.Pages()),
		Slots: make([]Slot, 1), Quorum: 1, StallAfter: time.Second, FailAfter: time.Second,
	}, make([]*journal.Recovery, 1), &idleHost{})
	done := 0
	p := &Part{Op: Write, Length: journal.BlockSize, Done: func(*Part) { done++ }}
	data := make([]byte, journal.BlockSize)
	b.ReportAllocs()
	for b.Loop() {
		if !a.Alloc(1, p.Pages[:1]) {
			b.Fatal("the arena is full")
		}
		p.LBA = journal.LBA(done % 4096)
		p.Deadline = 0
		p.Fill(a, data)
		s.Submit(p)
	}
	if done == 0 || p.Err != nil {
		b.Fatalf("%d writes, the last one: %v", done, p.Err)
	}
}
