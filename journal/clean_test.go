package journal

import (
	"syscall"
	"testing"
	"time"
)

// halfDead returns a lane with several segments of which a half is overwritten,
// and no cleaner yet.
func halfDead(t *testing.T) (*world, *testLane) {
	cfg := smallWorld(1, 1)
	cfg.still = true
	w := startWorld(t, cfg)
	l := w.lanes[0]
	for range 2 {
		for i := range LBA(12) {
			for !w.add(KindWrite, i%6*RegionBlocks+6*(i/6), 6) {
				w.settle()
			}
			if len(w.history) > 12 && i%2 == 0 {
				w.settle()
			}
		}
		w.settle()
	}
	for i := range LBA(3) { // every other one again
		w.add(KindWrite, 2*i*RegionBlocks, 6)
	}
	w.settle()
	return w, l
}

// cleanFor lets the cleaner work for so long; fails says which listings fail.
func (w *world) cleanFor(l *testLane, d time.Duration, fails func(Clean) bool) (listed, copied int) {
	for end := w.now + d; w.now < end; {
		w.pump()
		if c := l.clean; c != nil && fails(*c) {
			l.clean = nil
			listed++
			c.Err = syscall.EIO
			c.Done()
			continue
		} else if c != nil {
			if c.Victim.Used > 0 {
				listed++
			} else {
				copied++
			}
		}
		if !w.run() {
			if l.wake == 0 {
				return listed, copied
			}
			w.now = max(w.now+1, l.wake)
		}
	}
	return listed, copied
}

// inOrder is a policy that takes the oldest of the sealed segments, two at least.
type inOrder struct{ testPolicy }

func (inOrder) Choose(t Table) (all []SegmentUse) {
	for _, s := range t.Sealed {
		if s.Live < s.Used*3/4 && len(all) < 3 {
			all = append(all, s)
		}
	}
	if len(all) < 2 {
		return nil
	}
	return all
}

// TestVictimUnreadable: a segment of which the descriptors cannot be read is given
// up after some tries, whether it is the first of a round or a later one.
func TestVictimUnreadable(t *testing.T) {
	for nth := range 2 {
		w, l := halfDead(t)
		l.lane.cfg.Policy = inOrder{}
		l.lane.cleaner.look = true
		bad := inOrder{}.Choose(l.lane.table(w.now))[nth]
		listed, copied := w.cleanFor(l, 30*time.Second, func(c Clean) bool {
			return c.Victim.Used > 0 && c.Victim.Index == bad.Index && c.Victim.Life == bad.Life
		})
		t.Logf("victim %d: %d lists, %d copies in 30 s", nth, listed, copied)
		if s := l.lane.segments.byIndex[bad.Index]; s.stuckUntil == 0 {
			t.Errorf("victim %d of the round is unreadable: %d lists, %d copies in 30 s", nth, listed, copied)
		}
	}
}

// TestCleaningStops: an error of every step of reclaim for a minute, as a fault
// rule makes it, leaves nothing that is never cleaned again.
func TestCleaningStops(t *testing.T) {
	w, l := halfDead(t)
	l.lane.cfg.Policy = inOrder{}
	l.lane.cleaner.look = true
	fault := true
	w.cleanFor(l, time.Minute, func(Clean) bool { return fault })
	fault = false
	if _, copied := w.cleanFor(l, time.Minute, func(Clean) bool { return fault }); copied == 0 {
		t.Errorf("nothing was cleaned in a minute without a fault")
	}
}
