package device

import (
	"math/rand/v2"
	"testing"

	"trivet/shard"
)

// TestLiveBytes: of what a slot's log holds, the status tells how much the map
// names, to the block.
func TestLiveBytes(t *testing.T) {
	v := newVolume(t, nil)
	live := func(want uint64) {
		t.Helper()
		v.must(v.flush())
		v.until("the live bytes are told", func() bool {
			for _, s := range v.Snapshot().Slots {
				if s.LiveBytes != want {
					return false
				}
			}
			return true
		})
	}
	for range 2 {
		for i := range uint64(8) {
			v.must(v.write(i<<20, pattern(int(i), 1<<20), 0))
		}
	}
	live(8 << 20)
	for _, s := range v.Snapshot().Slots {
		if s.LogBytes <= 8<<20 {
			t.Errorf("slot %d: a log of %d bytes with %d live ones, their descriptors and what they have replaced", s.ID, s.LogBytes, s.LiveBytes)
		}
	}
	v.must(v.do(&Request{Op: Trim, Offset: 2<<20 + 1, Length: 3 << 20})) // all of it but its two ends
	live(5<<20 + 4096)
	v.reopen()
	live(5<<20 + 4096)
}

// TestPressureIsTold: while the cleaner hangs, the status tells that a volume
// that is overwritten block by block gets short of space, and which slots do.
func TestPressureIsTold(t *testing.T) {
	const blocks = 16 << 20 / blockBytes
	v := newVolume(t, func(o *Options) { o.Size = blocks * blockBytes })
	if s := v.Snapshot(); s.Pressure != 0 || s.Slots[0].Pressure != 0 {
		t.Errorf("a new volume is short of space: %+v", s)
	}
	v.rule("reclaim hang")
	for i := range uint64(16) {
		v.must(v.write(i<<20, pattern(int(i), 1<<20), 0))
	}
	at := rand.New(rand.NewPCG(1, 1))
	for i := 0; ; {
		s, short := v.Snapshot(), 0
		for _, slot := range s.Slots {
			if slot.Pressure > shard.Full/2 && slot.Pressure <= shard.Full {
				short++
			}
		}
		if s.Pressure > shard.Full/2 && s.Pressure <= shard.Full && short >= s.Quorum() {
			return
		}
		if i >= 6*blocks {
			t.Fatalf("overwritten six times, nothing was reclaimed, and there is no pressure: %+v", s)
		}
		for end := i + 64; i < end; i++ {
			v.must(v.write(at.Uint64N(blocks)*blockBytes, pattern(i, blockBytes), 0))
		}
	}
}
