package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The load of TestReclaimStall.
const (
	stallDepth = 16   // writes in flight
	stallBurst = 5000 // writes; three of them must not make space short
)

// stallSize is the size of each of its volumes. Three quarters are filled, so
// that the log may grow by a third of that before space is short.
const stallSize = 512 << 20

// TestReclaimStall hangs the cleaner under random writes of 4 KiB. While space
// is not low nobody notices; then writes wait at the door, and reads and
// flushes do not; once the cleaner is let go the writes go on by themselves.
func TestReclaimStall(t *testing.T) {
	free, _ := newStallVolume(t)
	hung, v := newStallVolume(t)
	fault := v.addFault(t, "reclaim hang")
	unhindered := stallBeside(t, free, hung)

	const size = stallSize
	w := startWriter(t, v, size)
	defer w.stop()
	parked := w.awaitStill(t, time.Minute)
	t.Logf("writes wait at the door after %v, %s on the host", parked.Round(time.Millisecond), mib(v.logBytes(t)))
	askWhileParked(t, hung, w, size, choose(3*time.Second, 60*time.Second))

	released := time.Now()
	v.removeFault(t, fault)
	recovered := w.awaitRate(t, unhindered/50)
	t.Logf("released: a fiftieth of the unhindered rate again after %v", recovered.Sub(released).Round(time.Millisecond))
	failed := w.stop()
	if !long() && len(failed) > 0 {
		t.Errorf("%d writes failed, the first: %v", len(failed), failed[0])
	}
	for _, err := range failed { // the long version outwaits the deadline
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("a write that waited too long failed with %v, expected ENOSPC", err)
		}
	}
	t.Logf("%d writes failed with ENOSPC", len(failed))
	v.stop(t)
}

// newStallVolume serves a volume that is three quarters full.
func newStallVolume(t *testing.T) (*client, *volume) {
	t.Helper()
	v := newReclaimed(t, fmt.Sprint(stallSize), "auto", "--memory", "128M")
	v.start(t)
	c, err := dial(t.Context(), v.socket(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	fill(t, c, 0, stallSize/4*3)
	if err := c.do(cmdFlush, 0, 0, 0, nil); err != nil {
		t.Fatal(err)
	}
	return c, v
}

// stallBeside writes at random on two volumes in turns, of which one's cleaner
// hangs, and returns the median of the other's rates, in writes a second.
func stallBeside(t *testing.T, freely, hanging *client) float64 {
	t.Helper()
	var free, hung []float64
	var freeTimes, hungTimes timings
	for turn := range uint64(3) {
		free = append(free, burst(t, freely, 2*turn, &freeTimes))
		hung = append(hung, burst(t, hanging, 2*turn+1, &hungTimes))
	}
	t.Logf("writes/s: unhindered %.0f (%v)", free, &freeTimes)
	t.Logf("with the cleaner hanging %.0f (%v); ratio of the medians %.2f", hung, &hungTimes, median(hung)/median(free))
	if median(hung) < median(free)/2 {
		t.Errorf("space is not low, and a hanging cleaner takes writes from %.0f/s to %.0f/s", median(free), median(hung))
	}
	return median(free)
}

// burst writes blocks at random and returns how many a second.
func burst(t *testing.T, c *client, seed uint64, took *timings) float64 {
	t.Helper()
	var failed atomic.Value
	var workers sync.WaitGroup
	start := time.Now()
	for i := range uint64(stallDepth) {
		workers.Go(func() {
			random, data := rand.New(rand.NewPCG(seed, i)), make([]byte, blockSize)
			for range stallBurst / stallDepth {
				at := time.Now()
				if err := writeAtRandom(c, random, data, stallSize/4*3); err != nil {
					failed.Store(err)
					return
				}
				took.add(time.Since(at))
			}
		})
	}
	workers.Wait()
	if err := failed.Load(); err != nil {
		t.Fatal(err)
	}
	return stallBurst / time.Since(start).Seconds()
}

// writeAtRandom writes one block somewhere in the first span bytes.
func writeAtRandom(c *client, random *rand.Rand, data []byte, span int64) error {
	for i := 0; i < len(data); i += 256 {
		data[i] = byte(random.Uint32())
	}
	return c.write(data, uint64(random.Int64N(span/blockSize))*blockSize, 0)
}

// A writer writes at random until it is stopped, on a connection of its own.
type writer struct {
	c       *client
	cancel  context.CancelFunc
	workers sync.WaitGroup
	written atomic.Int64 // blocks

	mu     sync.Mutex // guards failed
	failed []error
}

// startWriter begins to write the first span bytes.
func startWriter(t *testing.T, v *volume, span int64) *writer {
	t.Helper()
	c, err := dial(t.Context(), v.socket(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := &writer{c: c, cancel: cancel}
	for i := range uint64(stallDepth) {
		w.workers.Go(func() {
			random, data := rand.New(rand.NewPCG(77, i)), make([]byte, blockSize)
			for ctx.Err() == nil {
				if err := writeAtRandom(c, random, data, span); err == nil {
					w.written.Add(1)
				} else if !w.fail(err) {
					return
				}
			}
		})
	}
	return w
}

// fail notes an error and tells whether to go on.
func (w *writer) fail(err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = append(w.failed, err)
	return !errors.Is(err, errBroken) && len(w.failed) < 10_000
}

// awaitStill waits until no write has been acknowledged for two seconds, and
// returns how long it took until the last one was.
func (w *writer) awaitStill(t *testing.T, limit time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	last, changed := w.written.Load(), start
	for time.Since(changed) < 2*time.Second {
		if err := pause(t.Context(), 20*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if now := w.written.Load(); now != last {
			last, changed = now, time.Now()
		}
		if time.Since(start) > limit {
			t.Fatalf("the cleaner has been hanging for %v, and writes still do not wait at the door", limit)
		}
	}
	return changed.Sub(start)
}

// awaitRate waits until the writer does that many writes a second again.
func (w *writer) awaitRate(t *testing.T, rate float64) time.Time {
	t.Helper()
	before, at := w.written.Load(), time.Now()
	eventually(t, 30*time.Second, func() error {
		if err := pause(t.Context(), 200*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		now := w.written.Load()
		got := float64(now-before) / time.Since(at).Seconds()
		before, at = now, time.Now()
		if got < rate {
			return errors.New("writes do not go on although the cleaner was let go")
		}
		return nil
	})
	return time.Now()
}

// stop ends the writer and returns what failed. It may be called twice.
func (w *writer) stop() []error {
	w.cancel()
	w.workers.Wait()
	w.c.close()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// askWhileParked reads, flushes and trims while the writers wait at the door.
func askWhileParked(t *testing.T, c *client, w *writer, size int64, d time.Duration) {
	t.Helper()
	const limit = time.Second // generous: two cores, and other tests beside this one
	before, random := w.written.Load(), rand.New(rand.NewPCG(5, 5))
	var reads, flushes timings
	buf := make([]byte, blockSize)
	for start := time.Now(); time.Since(start) < d; {
		at := time.Now()
		if err := c.read(buf, uint64(random.Int64N(size/blockSize))*blockSize); err != nil {
			t.Fatalf("read while writes wait: %v", err)
		}
		reads.add(time.Since(at))
		at = time.Now()
		if err := c.do(cmdFlush, 0, 0, 0, nil); err != nil {
			t.Fatalf("flush while writes wait: %v", err)
		}
		flushes.add(time.Since(at))
		if err := pause(t.Context(), time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("while writes wait: reads %v; flushes %v; %d writes got in", &reads, &flushes, w.written.Load()-before)
	if reads.at(1) > limit || flushes.at(1) > limit {
		t.Errorf("a read took %v, a flush %v, while writes wait; at most %v is right", reads.at(1), flushes.at(1), limit)
	}
}
