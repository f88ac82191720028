package device

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"trivet/replica"
)

// TestSlotReturns: a slot that was lost comes back by itself under load, with
// what it missed, and is then good enough to be the only one that is left.
func TestSlotReturns(t *testing.T) {
	for name, lose := range map[string]func(*volume){
		"its syncs fail":    func(v *volume) { v.rule("log.sync slot=1 error=EIO") },
		"its disk is full":  func(v *volume) { v.rule("segment.alloc slot=1 error=ENOSPC") },
		"its disk hangs":    func(v *volume) { v.rule("log.append slot=1 hang") },
		"it was not opened": func(v *volume) { v.close(); v.rule("superblock slot=1 error=EIO"); v.open() },
		"it is replaced": func(v *volume) {
			v.close()
			v.must(os.RemoveAll(filepath.Join(v.opt.Dir, "slot-1")))
			v.open()
			v.must(v.ReplaceSlot(context.Background(), 1, ""))
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, func(o *Options) { o.ReturnAfter = 100 * time.Millisecond })
			w := &scribe{volume: v, content: make(map[uint64]int)}
			w.write(300)
			v.must(v.flush())
			lose(v)
			for v.live()[1] {
				w.write(10)
				v.must(v.flush())
			}
			w.write(300)
			v.faults.Clear()
			for deadline := time.Now().Add(30 * time.Second); !v.live()[1]; {
				w.write(1)
				if time.Now().After(deadline) {
					t.Fatalf("slot 1 did not come back: %+v", v.Events())
				}
			}
			w.write(100)
			v.must(v.flush())
			v.close()
			for _, other := range []string{"slot-0", "slot-2"} {
				v.must(os.RemoveAll(filepath.Join(v.opt.Dir, other)))
			}
			v.opt.Survivor = 2
			v.open()
			w.check()
		})
	}
}

// TestReturnedIsBelieved: a slot that has come back makes a write durable with one
// peer, while the other lags: since before the slot was back, so that its log still
// suspects it, or since afterwards. Then the one is lost: what was durable is in the
// slot alone (hazard 6).
func TestReturnedIsBelieved(t *testing.T) {
	for name, before := range map[string]bool{"lags before": true, "lags after": false} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, func(o *Options) { o.ReturnAfter = 10 * time.Millisecond })
			v.must(v.write(0, pattern(1, 1<<20), FUA))
			fault := v.rule("log.sync slot=1 error=EIO")
			for v.live()[1] {
				v.must(v.write(0, pattern(2, 8192), FUA))
			}
			v.durable()
			back := func() {
				v.faults.Remove(fault)
				v.until("slot 1 is back", func() bool { return v.live()[1] })
				v.must(v.write(0, pattern(3, 8192), FUA))
			}
			if !before {
				back()
				v.durable()
			}
			lag := v.rule("log.append slot=2 for=3s hang")
			if before {
				back()
			}
			v.must(v.write(0, pattern(4, 8192), FUA))
			i := v.image(1, 2)
			if v.faults.Hits(lag) == 0 {
				t.Error("slot 2 does not lag")
			}
			i.open()
			i.expect(0, pattern(4, 8192))
			i.expect(8192, pattern(1, 1<<20)[8192:])
		})
	}
}

// scribe writes blocks at random and knows what it wrote.
type scribe struct {
	*volume
	content map[uint64]int // pattern by address
	seed    int
}

func (w *scribe) write(n int) {
	var all sync.WaitGroup
	at := make(map[uint64]bool)
	for range n {
		lba := rand.Uint64N(w.opt.Size/blockBytes/8) * 8 * blockBytes
		if at[lba] {
			continue
		}
		at[lba] = true
		w.seed++
		seed := w.seed
		w.content[lba] = seed
		all.Go(func() {
			var err error
			if seed%7 == 0 {
				err = w.do(&Request{Op: Trim, Offset: lba, Length: 2 * blockBytes})
			} else {
				err = w.volume.write(lba, pattern(seed, 2*blockBytes), 0)
			}
			if err != nil {
				w.t.Errorf("write at %d: %v", lba, err)
			}
		})
	}
	all.Wait()
}

func (w *scribe) check() {
	w.t.Helper()
	for lba, seed := range w.content {
		want := pattern(seed, 2*blockBytes)
		if seed%7 == 0 {
			clear(want)
		}
		w.expect(lba, want)
	}
}

// TestCloseEndsReturn: closing does not wait for a slot that is coming back.
func TestCloseEndsReturn(t *testing.T) {
	v := newVolume(t, func(o *Options) { o.ReturnAfter = time.Millisecond })
	v.must(v.write(0, pattern(1, 16<<20), 0))
	v.rule("log.sync slot=1 error=EIO")
	for v.live()[1] {
		v.must(errors.Join(v.write(0, pattern(2, 32<<20), 0), v.flush()))
	}
	v.faults.Clear()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	v.must(v.Device.Close(ctx))
	v.open()
	v.expect(0, pattern(2, 32<<20))
	for i, live := range v.live() {
		if !live {
			t.Errorf("slot %d does not take part after a start", i)
		}
	}
}

// faultSlot makes the syncs of slot 1 fail until it is dropped.
func (v *volume) faultSlot() {
	v.t.Helper()
	fault := v.rule("log.sync slot=1 error=EIO")
	for v.live()[1] {
		v.must(v.write(0, pattern(2, 8192), FUA))
	}
	v.faults.Remove(fault)
}

// hangReads keeps slot 1 from getting what it missed.
func (v *volume) hangReads() (release func()) {
	one, other := v.rule("segment.read slot=0 hang"), v.rule("segment.read slot=2 hang")
	return func() { v.faults.Remove(one); v.faults.Remove(other) }
}

func (v *volume) returning(slot int) bool { return v.Snapshot().Slots[slot].Returning }

// TestReturnWaitsForPeers: a slot was dropped that is one of two that hold what was
// made durable, for the third lags. It is left as it is until that has caught up:
// when the other one is lost, nothing is.
func TestReturnWaitsForPeers(t *testing.T) {
	v := newVolume(t, func(o *Options) { o.ReturnAfter = 5 * time.Millisecond })
	v.must(v.write(0, pattern(1, 1<<20), FUA))
	v.durable()
	v.rule("log.append slot=2 for=5s hang")
	v.must(v.write(16384, pattern(3, 8192), FUA)) // by 0 and 1
	fault := v.rule("log.sync slot=1 error=EIO")
	pending := v.start(&Request{Op: Write, Flags: FUA, Length: 4096, Data: pattern(4, 4096)})
	v.until("slot 1 is dropped", func() bool { return !v.live()[1] })
	v.faults.Remove(fault)
	v.until("slot 1 was tried", func() bool { return v.said(1, "cannot come back yet", "durable") })
	i := v.image(1, 2)
	i.open()
	i.expect(16384, pattern(3, 8192))
	v.must(<-pending)
	v.until("slot 1 is back", func() bool { return v.live()[1] })
}

// TestOneLeftWhileReturning: while a slot comes back another one is lost, and the
// server ends. The third has everything, and the slot, which has not, bears witness
// to that: no operator has to say so.
func TestOneLeftWhileReturning(t *testing.T) {
	for name, blank := range map[string]bool{"dropped": false, "blank": true} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, func(o *Options) { o.ReturnAfter = 5 * time.Millisecond })
			v.must(v.write(0, pattern(1, 8<<20), FUA))
			v.reopen() // nothing is in memory
			release := v.hangReads()
			if blank {
				v.must(v.ReplaceSlot(context.Background(), 1, ""))
			} else {
				v.faultSlot()
			}
			v.until("slot 1 is fed", func() bool { return v.returning(1) })
			v.must(v.write(0, pattern(3, 8192), FUA))
			v.opt.ReturnAfter = time.Hour
			release() // or the volume is never closed
			v.close()
			v.must(os.RemoveAll(filepath.Join(v.opt.Dir, "slot-0")))
			v.open()
			v.expect(0, pattern(3, 8192))
			v.expect(8192, pattern(1, 8<<20)[8192:])
		})
	}
}

// TestCopiedAndIdle: a blank slot gets nothing of a shard that was never written,
// but a segment, which is freed after a while. The volume can be closed then.
func TestCopiedAndIdle(t *testing.T) {
	v := newVolume(t, nil)
	v.must(v.write(v.inShard(0), pattern(1, 8192), FUA))
	v.close()
	v.must(os.RemoveAll(filepath.Join(v.opt.Dir, "slot-1")))
	v.open()
	v.replace(1)
	for start := time.Now(); time.Since(start) < 6*time.Second; {
		v.must(v.write(v.inShard(0), pattern(3, 8192), FUA))
	}
}

// TestCloseWithHungReturn: a slot hangs while it is opened again, and the volume is
// closed. That cannot end, but what was acknowledged is made durable first.
func TestCloseWithHungReturn(t *testing.T) {
	v := newVolume(t, func(o *Options) { o.ReturnAfter = 5 * time.Millisecond })
	v.must(v.write(0, pattern(1, 8192), FUA))
	hang := v.rule("superblock slot=1 op=read hang")
	v.faultSlot()
	v.hits(hang, 1)
	v.rule("log.append slot=2 delay=500ms")
	v.must(v.write(0, pattern(3, 8192), 0))
	before := v.Snapshot().Slots[2].Checkpoint
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := v.Device.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close: %v", err)
	}
	if v.Snapshot().Slots[2].Checkpoint == before {
		t.Error("no checkpoint was stored")
	}
	i := v.image(0, 2)
	i.open()
	i.expect(0, pattern(3, 8192))
	v.faults.Clear()
	v.must(v.returns.join(context.Background()))
	v.must(v.abandon())
	v.Device = nil
}

// TestNothingIsMade: a slot's directory is gone, because its disk was unmounted, or
// it is empty. No slot is made there, and no directory.
func TestNothingIsMade(t *testing.T) {
	gone, empty := filepath.Join(t.TempDir(), "disk", "slot-1"), t.TempDir()
	for _, dir := range []string{gone, empty} {
		d := &Device{layout: &layout{dirs: []string{"", dir}}, group: &replica.Group{Geometry: replica.Geometry{Shards: 1, SegmentBlocks: 512}}}
		r := returns{device: d}
		if s, err := r.reopenSlot(1); s != nil || !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("a slot was made in %s: %v", dir, err)
		}
	}
	if _, err := os.Stat(filepath.Dir(gone)); !os.IsNotExist(err) {
		t.Errorf("a directory was made: %v", err)
	}
	if made, err := os.ReadDir(empty); err != nil || len(made) > 0 {
		t.Errorf("%v was made: %v", made, err)
	}
}
