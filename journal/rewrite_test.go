package journal

import (
	"fmt"
	"syscall"
	"testing"

	"trivet/disk"
)

// TestRewriteFailNth kills a lane, fails one operation after another of writing
// the end of its log anew, and cuts the power: what was durable is there.
func TestRewriteFailNth(t *testing.T) {
	wrote := 0
	for seed := range seeds(12) {
		for n := uint64(0); ; n++ {
			batches, reached := rewriteFailing(t, seed, n)
			wrote += batches
			if !reached {
				break
			}
		}
	}
	if wrote == 0 {
		t.Error("nothing was ever written anew")
	}
}

func rewriteFailing(t *testing.T, seed, n uint64) (batches int, hit bool) {
	t.Run(fmt.Sprintf("seed %d operation %d", seed, n), func(t *testing.T) {
		w := startWorld(t, smallWorld(seed, 1))
		l := w.lanes[0]
		for range 40 + w.rng.IntN(100) {
			w.step()
		}
		w.crash(false)
		r, err := l.recover()
		if err != nil {
			t.Fatal(err)
		}
		known := r.Known[0].Since(r.Began)
		if err := r.Vouch(known); err != nil {
			t.Fatal(err)
		}
		l.freeUnused(r)
		faulty, reached := disk.FailNth(l.disk, n, syscall.EIO)
		l.files = faulty
		rewriter := Rewriter{Prepare: func() (*Open, error) { return l.open() }}
		batches, err = rewriter.Rewrite(r, known)
		if hit = reached(); hit != (err != nil) {
			t.Fatalf("operation %d failed: %v, and the error is %v", n, hit, err)
		}
		if l.stop(true); !hit {
			l.known = r.Stamp.LSN
		}
		all := w.recoverAll()
		w.checkRecovered(l, all[0], 0)
		w.activate(all)
		for range 60 {
			w.step()
		}
		w.checkAll()
		w.restart(true)
	})
	return batches, hit
}
