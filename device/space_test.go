package device

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// TestSmallVolumesGoOn overwrites small volumes in a few hot places: what else
// they hold leaves segments that are too full to be cleaned, and yet there is
// always something to clean or to free.
func TestSmallVolumesGoOn(t *testing.T) {
	const piece = 16 << 10
	for _, c := range []struct {
		mib, fill uint64 // fill in %
		shards    int
	}{{80, 100, 2}, {128, 50, 2}, {256, 25, 2}, {128, 60, 8}} {
		t.Run(fmt.Sprintf("%d MiB, %d%% full, %d shards", c.mib, c.fill, c.shards), func(t *testing.T) {
			v := newVolume(t, func(o *Options) {
				o.Size, o.Shards, o.Replicas, o.Memory, o.Deadline = c.mib<<20, c.shards, 1, 64<<20, 5*time.Second
			})
			full := c.mib << 20 * c.fill / 100
			for at := uint64(0); at < full; at += 1 << 20 {
				v.must(v.write(at, pattern(int(at>>20), 1<<20), 0))
			}
			data := pattern(7, piece)
			var clients sync.WaitGroup
			for client := range uint64(16) {
				clients.Go(func() {
					r := rand.New(rand.NewPCG(1, client))
					for range 3 * full / piece / 16 {
						at := r.Uint64N(full / piece)
						if r.IntN(10) > 0 {
							at = r.Uint64N(full / piece / 10)
						}
						if err := v.write(at*piece, data, 0); err != nil {
							s := v.Snapshot()
							t.Errorf("%v; pressure %d, %+v", err, s.Pressure, s.Slots)
							return
						}
					}
				})
			}
			clients.Wait()
		})
	}
}

// TestCondemnedAreNotForEver: a few syncs that failed once leave segments that
// nobody cleans; writes go on all the same.
func TestCondemnedAreNotForEver(t *testing.T) {
	v := newVolume(t, func(o *Options) { o.Replicas, o.Shards, o.Deadline = 1, 2, 5*time.Second })
	for i := range uint64(8) {
		for at := range uint64(8) { // cold data in the segment that is open, of both shards
			v.must(v.write((8*i+at)<<20, pattern(int(at), 16<<10), FUA))
		}
		v.rule("log.sync error=EIO count=2")
		v.must(v.write((8*i)<<20+64<<10, pattern(int(i), 16<<10), 0))
		v.must(v.write((8*i+1)<<20+64<<10, pattern(int(i), 16<<10), 0))
		_ = v.flush() // it was made durable anew
		v.faults.Clear()
		v.must(v.flush())
	}
	for i := range 3 * 64 << 20 / (64 << 10) {
		if err := v.write(uint64(i*13%128)*64<<10, pattern(i, 64<<10), 0); err != nil {
			t.Fatalf("write %d: %v; pressure %d, %+v", i, err, v.Snapshot().Pressure, v.Snapshot().Slots)
		}
	}
}

// TestOnlyTrims: segments that never held a live block are given back when the
// log gets short of space.
func TestOnlyTrims(t *testing.T) {
	v := newVolume(t, func(o *Options) { o.Replicas, o.Shards, o.Deadline = 1, 2, 8*time.Second })
	v.must(v.write(0, pattern(1, 1<<20), 0))
	for i := range 9000 {
		v.must(v.do(&Request{Op: Trim, Offset: uint64(i%32+16) << 20, Length: 1 << 20, Flags: FUA}))
	}
	for i := range uint64(2) {
		if err := v.write(i<<20, pattern(1, 4096), 0); err != nil {
			t.Fatalf("%v: pressure %d, %+v", err, v.Snapshot().Pressure, v.Snapshot().Slots)
		}
	}
}
