package journal

import (
	"errors"
	"fmt"
	"maps"
	"syscall"
	"testing"

	"trivet/disk"
)

// diverge runs three lanes, then lets slot 0 fall behind the others, with trims
// and writes that it never sees, and records that only it has.
func diverge(t *testing.T, seed uint64) *world {
	w := startWorld(t, smallWorld(seed, 3))
	for range 200 {
		w.step()
	}
	w.settle()
	behind := w.lanes[0]
	w.lanes = w.lanes[1:]
	behind.stop(true)
	for range 200 {
		w.step()
	}
	for g := range Region(4) { // whole regions become empty while slot 0 is away
		for !w.add(KindTrim, g.First(), RegionBlocks) {
			w.settle()
		}
	}
	w.checkAll()
	w.crash(true)
	w.lanes = append([]*testLane{behind}, w.lanes...)
	behind.known = 0
	return w
}

// TestCopyCrash copies a lane that fell behind, and crashes after every
// operation of the copy: before Finish has returned the lane is as it was, or
// incomplete; afterwards it equals its source.
func TestCopyCrash(t *testing.T) {
	for seed := range seeds(3) {
		for n := 0; ; n++ {
			if !copyAndCrash(t, seed, n) {
				t.Logf("seed %d: crashed after each of %d operations", seed, n)
				break
			}
		}
	}
}

func copyAndCrash(t *testing.T, seed uint64, n int) (crashed bool) {
	t.Run(fmt.Sprintf("seed %d operation %d", seed, n), func(t *testing.T) {
		w := diverge(t, seed)
		all := w.recoverAll()
		target, before := w.lanes[0], w.lanes[0].pairs()
		stamp := all[0].Stamp
		faulty, _ := disk.FailNth(target.disk, uint64(n), syscall.EIO)
		target.files = faulty
		err := w.copyLane(0, all, Behind)
		crashed = err != nil
		if err != nil && !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		target.stop(true)
		after := w.recoverLane(target, all)
		switch {
		case !crashed:
			w.mustEqual(target, after, all[1])
		case !maps.Equal(before, target.pairs()):
			t.Fatal("an unfinished copy changed the store")
		case after.Stamp != stamp:
			t.Fatalf("an unfinished copy moved the lane from %+v to %+v", stamp, after.Stamp)
		case after.Damage != nil || len(after.Rotten) > 0:
			t.Fatalf("an unfinished copy is called damage %v, rotten %v", after.Damage, after.Rotten)
		default:
			if err := w.check(target, after.Lane.segments, after.Stamp.LSN, recovered(after), nil); err != nil {
				t.Fatal(err)
			}
		}
	})
	return crashed
}

// recoverLane recovers one lane, vouched for by all.
func (w *world) recoverLane(l *testLane, all []*Recovery) *Recovery {
	r, err := l.recover()
	if err != nil {
		w.t.Fatal(err)
	}
	lsn := r.Known[l.id.Slot].Since(r.Began)
	if err := r.Vouch(lsn); err != nil {
		w.t.Fatal(err)
	}
	l.freeUnused(r)
	return r
}

// copyLane makes lane i what lane 1 is.
func (w *world) copyLane(i int, all []*Recovery, doubt Doubt) error {
	c := w.copier(w.lanes[i], all[i])
	for _, g := range regionsOf(all[i], all[1]) {
		if err := c.Copy(g, all[1], doubt); err != nil {
			return err
		}
	}
	return c.Finish(all[1].Stamp)
}

func (w *world) mustEqual(l *testLane, r, source *Recovery) {
	w.t.Helper()
	if r.Stamp.LSN != source.Stamp.LSN || r.Incomplete || r.Damage != nil || len(r.Rotten) > 0 {
		w.t.Fatalf("copied up to %+v, incomplete %v, damage %v, rotten %v; the source is at %+v", r.Stamp, r.Incomplete, r.Damage, r.Rotten, source.Stamp)
	}
	if err := w.check(l, r.Lane.segments, source.Stamp.LSN, recovered(r), nil); err != nil {
		w.t.Fatal(err)
	}
	for g := range Region(w.cfg.regions) {
		a, errA := r.page(g)
		b, errB := source.page(g)
		if errA != nil || errB != nil || a.stamp != b.stamp {
			w.t.Fatalf("region %d: stamp %+v, expected %+v (%v, %v)", g, a.stamp, b.stamp, errA, errB)
		}
	}
}

// TestCopyThenServe goes on with a lane that was copied, with crashes.
func TestCopyThenServe(t *testing.T) {
	for seed := range seeds(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := diverge(t, 100+seed)
			all := w.recoverAll()
			if err := w.copyLane(0, all, []Doubt{Behind, Distrust, Patchy}[seed%3]); err != nil {
				t.Fatal(err)
			}
			w.mustEqual(w.lanes[0], all[0], all[1])
			if seed%3 == 0 {
				w.crash(true)
				all = w.recoverAll()
			}
			w.activate(all)
			for range 200 {
				w.step()
			}
			w.restart(true)
			w.checkAll()
		})
	}
}

// TestCopySettlesMarks: what was known durable of the slot that a copy replaces
// vouches for nothing afterwards, also when the volume crashes before it served.
// What is known durable since then does.
func TestCopySettlesMarks(t *testing.T) {
	w := diverge(t, 3)
	all := w.recoverAll()
	behind := w.lanes[0]
	if err := w.copyLane(0, all, Behind); err != nil {
		t.Fatal(err)
	}
	behind.stop(true)
	for _, c := range []struct {
		generation Generation
		damaged    bool
	}{{w.gen, false}, {w.gen + 1, true}} {
		r, err := behind.recover()
		if err != nil {
			t.Fatal(err)
		}
		var known Known
		known.add(Stamp{c.generation, r.Stamp.LSN + 7})
		if err := r.Vouch(known.Since(r.Began)); err != nil {
			t.Fatal(err)
		}
		if (r.Damage != nil) != c.damaged {
			t.Errorf("a mark of generation %d, copied in %d: damage %v", c.generation, w.gen+1, r.Damage)
		}
	}
}

// TestKnown: a later generation's marks count besides an earlier one's higher.
func TestKnown(t *testing.T) {
	var k Known
	for _, mark := range []Stamp{{5, 0}, {5, 90}, {5, 105}, {4, 100}, {7, 101}, {6, 99}, {7, 100}} {
		k.add(mark)
	}
	for since, want := range map[Generation]LSN{0: 105, 5: 105, 6: 101, 7: 101, 8: 0} {
		if got := k.Since(since); got != want {
			t.Errorf("since generation %d: %d, expected %d", since, got, want)
		}
	}
	if len(k) != 2 {
		t.Errorf("%v are kept, two of them matter", k)
	}
}

// TestCopyWithoutData copies nothing but trims onto a lane whose log is broken
// in the middle, or ends in a torn batch. What lies behind the break must not
// be replayed over the copy.
func TestCopyWithoutData(t *testing.T) {
	for block := int64(1); block < 12; block++ {
		t.Run(fmt.Sprint("rot at block ", block), func(t *testing.T) {
			cfg := smallWorld(7, 3)
			cfg.checkpointBytes, cfg.mapBytes, cfg.rare = 1<<40, 1<<20, true
			w := startWorld(t, cfg)
			w.add(KindWrite, 0, 2)
			w.settle()
			for i := range LBA(20) {
				w.add(KindWrite, 10+i, 3)
				w.settle()
			}
			behind := w.lanes[0]
			w.lanes = w.lanes[1:]
			behind.stop(true)
			w.add(KindTrim, 0, RegionBlocks)
			w.settle()
			w.crash(true)
			w.lanes = append([]*testLane{behind}, w.lanes...)
			if err := behind.disk.Corrupt(segmentFile(0), block*BlockSize+130); err != nil {
				t.Fatal(err)
			}
			all := w.recoverAll()
			if err := w.copyLane(0, all, Behind); err != nil {
				t.Fatal(err)
			}
			all[0].Rotten = nil // found before the copy
			w.mustEqual(behind, all[0], all[1])
			behind.stop(true)
			again := w.recoverAll()
			w.mustEqual(behind, again[0], again[1])
		})
	}
}
