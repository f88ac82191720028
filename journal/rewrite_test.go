package journal

import (
	"errors"
	"fmt"
	"slices"
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
		r := l.vouched()
		faulty, reached := disk.FailNth(l.disk, n, syscall.EIO)
		l.files = faulty
		rewriter := Rewriter{Prepare: func() (*Open, error) { return l.open() }}
		var err error
		batches, err = rewriter.Rewrite(r)
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

// looseEnd leaves some durable records and n batches behind them that nothing
// vouches for, and kills the lane.
func looseEnd(w *world, n int) *testLane {
	random := func() LBA { return LBA(w.rng.IntN(40)*RegionBlocks + w.rng.IntN(200)) }
	for range 3 {
		w.add(KindWrite, random(), 2)
		w.settle()
	}
	for range n {
		w.add(KindWrite, random(), 2)
		for range 2 {
			w.now += batchDelay + 1
			for w.pump(); w.run(); {
			}
		}
	}
	w.crash(false)
	return w.lanes[0]
}

// vouched recovers the lane, as a start does.
func (l *testLane) vouched() *Recovery {
	l.w.t.Helper()
	r, err := l.recover()
	if err == nil {
		err = r.Vouch(r.Known[0].Since(r.Began))
	}
	if err != nil || r.Damage != nil {
		l.w.t.Fatal(err, r.Damage)
	}
	l.freeUnused(r)
	return r
}

// noHeader is a file on which durable writes fail: a segment gets no header.
type noHeader struct{ disk.File }

func (f noHeader) Write(bufs [][]byte, offset int64, durable bool) error {
	if durable {
		return errInjected
	}
	return f.File.Write(bufs, offset, durable)
}

// TestRewriteTwice cuts the power before the header is written, which also takes
// a part of the end of the log. The next start writes what is left to the same
// segment in the same life, which the pool gives it. What the first one has
// written there must not come back behind it.
func TestRewriteTwice(t *testing.T) {
	both := 0
	for seed := range uint64(300) {
		w := startWorld(t, smallWorld(seed, 1))
		l := looseEnd(w, 5)
		r := l.vouched()
		segment, life := l.segments, l.life+1
		l.segments++
		f, err := l.files.Create(segmentFile(segment), int64(w.cfg.segmentBlocks)*BlockSize)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		attempt := func(r *Recovery, wrap func(disk.File) disk.File) (int, error) {
			again := Rewriter{Prepare: func() (*Open, error) {
				f, err := l.files.Open(segmentFile(segment))
				l.free = slices.DeleteFunc(l.free, func(s uint32) bool { return s == segment })
				return &Open{Index: segment, Life: life, Blocks: w.cfg.segmentBlocks, File: wrap(f)}, err
			}}
			return again.Rewrite(r)
		}
		if _, err := attempt(r, func(f disk.File) disk.File { return noHeader{f} }); !errors.Is(err, errInjected) {
			continue // nothing was loose
		}
		l.stop(true)
		r = l.vouched()
		n, err := attempt(r, func(f disk.File) disk.File { return f })
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			continue
		}
		both++
		l.stop(true)
		if again := l.vouched(); again.Stamp != r.Stamp {
			t.Errorf("seed %d: %v was served, the next start finds %v", seed, r.Stamp, again.Stamp)
		}
	}
	if both == 0 {
		t.Error("nothing was written twice")
	}
}

// TestRewrittenHeaderRots: the segment that was written anew loses its header.
// The old place still holds as much, but not what came after.
func TestRewrittenHeaderRots(t *testing.T) {
	for seed := range uint64(6) {
		cfg := smallWorld(seed, 1)
		cfg.checkpointBytes, cfg.mapBytes, cfg.rare, cfg.still = 1<<40, 1<<20, true, true
		w := startWorld(t, cfg)
		l := looseEnd(w, 4)
		all := w.recoverAll()
		anew := all[0].segment.segment
		w.activate(all)
		for range 2 {
			w.add(KindWrite, LBA(w.rng.IntN(40)*RegionBlocks), 3)
			l.lane.Want(w.window.Last())
			for w.pump(); w.run(); {
			}
		}
		last := l.lane.Durable()
		w.crash(true)
		if err := l.disk.Corrupt(segmentFile(anew), 40); err != nil {
			t.Fatal(err)
		}
		r, err := l.recover()
		if err == nil {
			err = r.Vouch(r.Known[0].Since(r.Began))
		}
		if err != nil {
			t.Fatal(err)
		}
		if last != w.window.Last() || r.Stamp.LSN < last && r.Damage == nil {
			t.Errorf("seed %d: durable up to %d, recovered up to %v without damage", seed, last, r.Stamp)
		}
	}
}

// TestRewriteLeavesVouched: a batch of which a block is rotten, and which a peer
// vouches for, stays where it is, to be repaired. Its lane takes part.
func TestRewriteLeavesVouched(t *testing.T) {
	w := startWorld(t, smallWorld(1, 1))
	l := looseEnd(w, 4)
	whole := l.vouched()
	rotten := slices.IndexFunc(whole.batches, func(b replayed) bool { return b.lastLSN > whole.vouched })
	if rotten < 0 {
		t.Fatal("nothing is loose")
	}
	data := int64(whole.batches[rotten].offset+1) * BlockSize
	if err := l.disk.Corrupt(segmentFile(whole.segment.segment), data+9); err != nil {
		t.Fatal(err)
	}
	r, err := l.recover()
	if err == nil {
		err = r.Vouch(whole.Stamp.LSN)
	}
	if err != nil || len(r.Rotten) != 1 || r.Stamp != whole.Stamp {
		t.Fatalf("%v; rotten %v, up to %v, expected %v", err, r.Rotten, r.Stamp, whole.Stamp)
	}
	l.freeUnused(r)
	l.rewrite(r)
	if r.segment.segment != whole.segment.segment {
		t.Error("what is vouched for was written anew")
	}
}
