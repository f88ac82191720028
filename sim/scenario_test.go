package sim

import (
	"fmt"
	"strings"
	"testing"
)

// scenario runs a sequence of events that a seed rarely draws, for several
// seeds; what seeds draw otherwise does not happen.
func scenario(t *testing.T, seeds uint64, run func(w *world)) {
	t.Helper()
	dir := arenaDir(t)
	for seed := range seeds {
		w := newWorld(seed, Options{Dir: dir})
		err := w.attempt(func() {
			w.calm = true
			if err := w.open(-1); err != nil {
				w.fail("open a new volume: %v", err)
			}
			w.started = true
			w.opened()
			run(w)
			w.finish()
		})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// TestReplacedIsNotDamaged: a slot that was replaced is blank, not damaged,
// also when the server is killed or the power is cut while it is copied: what
// its peers know durable there is true of the slot before it.
func TestReplacedIsNotDamaged(t *testing.T) {
	scenario(t, 40, func(w *world) {
		c := w.clients[0]
		for range 8 {
			c.write(0, 6, false)
			c.flush()
			w.drain()
		}
		w.srv.close()
		w.crash(true)
		w.blank(1)
		w.heard = func(slot int, what string) {
			if strings.Contains(what, "damaged") {
				w.fail("slot %d was replaced: %s", slot, what)
			}
		}
		for nth := 1; nth < 100; nth += 1 + w.rng.IntN(12) { // killed in the middle of opening
			w.startLife()
			w.fuse = 0
			w.add2(fmt.Sprintf("any slot=1 nth=%d crash", nth))
			if w.survives(func() {
				if err := w.open(-1); err != nil {
					w.fail("%v", err)
				}
			}) {
				w.opened()
			}
			w.crash(w.rng.IntN(2) == 0)
		}
		w.reopen()
	})
}
