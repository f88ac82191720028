package device

import (
	"errors"
	"testing"
	"time"

	"trivet/shard"
)

// TestLaggingSlot: the metadata store of one slot hangs, while writes change ever
// more regions of a large volume. They wait for it before their map takes more
// memory than it may, as long as for any operation; then it is dropped, no write has
// failed, and once it answers it comes back.
func TestLaggingSlot(t *testing.T) {
	v := newVolume(t, func(o *Options) { o.Size, o.ReturnAfter = 256<<30, 100*time.Millisecond })
	v.must(v.write(0, pattern(1, 4096), FUA))
	fault := v.rule("checkpoint slot=1 hang")
	waited, data := time.Duration(0), pattern(2, 4096)
	for region := uint64(1); v.live()[1]; region++ {
		if region == 200_000 {
			t.Fatal("nothing waits for slot 1")
		}
		began := time.Now()
		v.must(v.write(region<<20, data, 0))
		waited = max(waited, time.Since(began))
	}
	if waited < stallAfter/2 || waited > 2*stallAfter {
		t.Errorf("the longest wait was %v, expected about %v", waited, stallAfter)
	}
	if live := v.live(); !live[0] || !live[2] {
		t.Errorf("live are %v", live)
	}
	v.expectDropped(1, shard.ErrStalled, "STALLED")
	v.faults.Remove(fault)
	v.until("slot 1 is back", func() bool { return v.live()[1] })
	if n := v.counted(1, "STALLED"); n != 1 {
		t.Errorf("slot 1 was given up %d times: it came back with the patience of its last life used up", n)
	}
	v.expect(1<<20, data)
}

// TestLaggingTogether: when all lag alike nobody is dropped for it; who waits until
// its deadline fails, with another error than for space, and everything goes on
// once they catch up.
func TestLaggingTogether(t *testing.T) {
	v := newVolume(t, func(o *Options) { o.Size, o.Deadline = 256<<30, 6*time.Second })
	fault := v.rule("checkpoint hang")
	var err error
	for region := uint64(1); err == nil; region++ {
		if region == 200_000 {
			t.Fatal("nothing waits")
		}
		err = v.write(region<<20, pattern(2, 4096), 0)
	}
	if v.must(v.flush()); !errors.Is(err, ErrDeadline) {
		t.Errorf("a write that waited failed: %v", err)
	}
	for slot, live := range v.live() {
		if !live {
			t.Errorf("slot %d was dropped", slot)
		}
	}
	v.faults.Remove(fault)
	v.until("writes go on", func() bool { return v.write(0, pattern(3, 4096), 0) == nil })
}
