package journal

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"trivet/disk"
	"trivet/inject"
	"trivet/meta"
)

// TestFailNth runs one scenario again and again, and each time the next disk
// operation fails: appends, syncs, both halves of durable appends, the making
// and opening of segments. One failure never ends a lane, nor loses what it
// said to be durable.
func TestFailNth(t *testing.T) {
	for seed := range seeds(3) {
		for _, crashEarly := range []bool{false, true} {
			for n := uint64(0); ; n++ {
				if reached := failNth(t, seed, n, crashEarly); !reached {
					t.Logf("seed %d: %d operations failed in turn", seed, n)
					break
				}
			}
		}
	}
}

func failNth(t *testing.T, seed, n uint64, crashEarly bool) (hit bool) {
	t.Run(fmt.Sprintf("seed %d operation %d early %v", seed, n, crashEarly), func(t *testing.T) {
		w := startWorld(t, smallWorld(seed, 1))
		l := w.lanes[0]
		faulty, reached := disk.FailNth(l.disk, n, syscall.EIO)
		l.files = faulty
		w.log("operation %d fails", n)
		for range 120 {
			w.step()
			if hit = reached(); hit && crashEarly && w.rng.IntN(3) == 0 {
				break
			}
		}
		if !crashEarly {
			w.checkAll()
			hit = reached()
		}
		l.mustLive()
		w.restart(true)
	})
	return hit
}

func (l *testLane) mustLive() {
	l.w.t.Helper()
	if err := l.lane.Fault(); err != nil {
		l.w.t.Fatalf("slot %d gave up: %v", l.id.Slot, err)
	}
}

var errInjected = errors.New("injected")

// TestFailNthMeta is TestFailNth for loads and commits, whose outcome may be
// unknown: they fail before or after they were applied.
func TestFailNthMeta(t *testing.T) {
	for seed := range seeds(4) {
		for n := 0; ; n++ {
			if !failNthMeta(t, seed, n) {
				t.Logf("seed %d: %d calls failed in turn", seed, n)
				break
			}
		}
	}
}

func failNthMeta(t *testing.T, seed uint64, n int) (hit bool) {
	t.Run(fmt.Sprintf("seed %d call %d", seed, n), func(t *testing.T) {
		w := startWorld(t, smallWorld(seed, 1))
		calls := 0
		w.lanes[0].store.Inject(func(meta.Op) error {
			if calls++; calls == n+1 {
				hit = true
				return errInjected
			}
			return nil
		})
		for range 200 {
			w.step()
		}
		w.lanes[0].mustLive()
		if w.rng.IntN(2) == 0 {
			w.checkAll()
		}
		w.restart(true)
	})
	return hit
}

// TestFailingDisk lets a part of all operations fail while the lane runs and is
// killed or loses power: it recovers or gives up, and what it called durable is
// there. After a kill that is also what recovery has found in the page cache,
// where a sync that failed has left it for good.
func TestFailingDisk(t *testing.T) {
	gaveUp, failed := 0, uint64(0)
	for seed := range seeds(100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := startWorld(t, smallWorld(seed, 1+2*int(seed%2)))
			for range 3 {
				l := w.lanes[0]
				set := l.failSome(t, seed, 0.02+0.3*w.rng.Float64())
				for range 150 {
					w.step()
				}
				if w.rng.IntN(2) == 0 {
					w.settle()
				}
				if l.lane.Fault() != nil {
					gaveUp++
				}
				for _, r := range set.List() {
					failed += r.Hits
				}
				w.restart(w.rng.IntN(2) == 0)
			}
		})
	}
	if gaveUp == 0 || failed == 0 {
		t.Errorf("%d lanes gave up, %d operations failed: nothing was tested", gaveUp, failed)
	}
	t.Logf("%d operations failed, %d lanes gave up", failed, gaveUp)
}

// failSome makes operations on segments fail with a probability.
func (l *testLane) failSome(t *testing.T, seed uint64, probability float64) *inject.Set {
	set := inject.NewSet(seed, func() time.Time { return time.Time{} })
	for _, text := range []string{"log.append error=EIO", "log.append torn", "log.sync error=EIO", "segment.alloc error=ENOSPC"} {
		r := inject.MustParse(text)
		r.P = probability
		if _, err := set.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	l.files = disk.Faulty(l.disk, set, 0, disk.FaultyOptions{})
	return set
}

// TestFailedTooLate lets a sync fail after the records were released: the lane
// cannot write them again and says so.
func TestFailedTooLate(t *testing.T) {
	w := startWorld(t, smallWorld(1, 1))
	l := w.lanes[0]
	w.add(KindWrite, 0, 4)
	w.now += batchDelay
	for w.pump(); l.lane.Written() == 0; w.pump() {
		w.now += batchDelay
		w.run()
	}
	w.window.Retire()
	l.lane.Want(1)
	w.pump()
	io := l.ios[0]
	l.ios = l.ios[1:]
	io.Err = errInjected
	io.Done()
	w.pump()
	if err := l.lane.Fault(); !errors.Is(err, ErrGone) || !errors.Is(err, errInjected) {
		t.Fatalf("fault %v", err)
	}
}

// TestNoSegment lets no new segment be had: what was written is made durable
// all the same, and the lane waits without asking to be called at once.
func TestNoSegment(t *testing.T) {
	w := startWorld(t, smallWorld(1, 1))
	l := w.lanes[0]
	w.now = time.Second
	w.add(KindWrite, 0, 6)
	w.idle()
	l.prepareErr = func() error { return syscall.ENOSPC }
	w.lanes[0].lane.ready = nil
	for i := range LBA(3) {
		w.add(KindWrite, 10+6*i, 6)
	}
	for range 2 * batchDelay / time.Millisecond {
		w.now += time.Millisecond
		for w.pump(); w.run(); {
		}
	}
	written := l.lane.Written()
	l.lane.Want(w.window.Last())
	for w.pump(); w.run(); {
	}
	if written < 2 || written == w.window.Last() || l.lane.Durable() != written {
		t.Fatalf("%d of %d are written, %d durable", written, w.window.Last(), l.lane.Durable())
	}
	if l.wake <= w.now+1 {
		t.Fatalf("asks to be called again at %v, it is %v", l.wake, w.now)
	}
}
