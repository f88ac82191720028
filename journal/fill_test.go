package journal

import (
	"fmt"
	"slices"
	"testing"

	"trivet/disk"
)

// testFill does what a shard does with a lane that returns, as simply as can be,
// one region at a time.
type testFill struct {
	w              *world
	target, source *testLane
	behind         LSN
	cursor         Region
	job            *Lacking // under way
	writes         []FillBlock
	index          []int
	stage          int
	copied         int
}

// startFill activates all lanes, of which lane 0 does not count, and begins to fill
// it with what lane 1 has.
func (w *world) startFill(all []*Recovery) *testFill {
	regions := make(RegionSet)
	for _, r := range all {
		r.Lane.AddRegions(regions)
	}
	w.activate(all)
	f := &testFill{w: w, target: w.lanes[0], source: w.lanes[1], behind: w.window.Last()}
	f.target.lane.Lack(regions)
	w.added = func(r *Record) {
		if f.job != nil && r.Count > 0 && f.job.Region == r.LBA.Region() {
			f.job.Overtake(r.LBA.Index(), int(r.Count), r.LSN)
		}
	}
	return f
}

// step moves the copy on. It returns false when nothing is lacking any more.
func (f *testFill) step() bool {
	l := f.target.lane
	switch f.stage {
	case 0:
		return f.choose()
	case 1: // read: whatever comes meanwhile overtakes
		f.read()
		f.stage = 2
		l.Fill(f.writes, false, f.w.now)
	case 2:
		if l.IsFilling() {
			return true
		}
		if err := l.FillError(); err != nil {
			f.w.t.Fatal(err)
		}
		for i, b := range f.writes {
			f.job.Give(f.index[i], b.To)
		}
		f.copied += len(f.writes)
		f.stage = 3
	case 3:
		if !l.Accept(f.job) {
			break
		}
		for _, b := range f.writes {
			l.Release(b.To)
		}
		f.stage, f.job, f.writes, f.index = 0, nil, nil, nil
	}
	f.w.pump()
	return true
}

func (f *testFill) choose() bool {
	l := f.target.lane
	g, ok := l.NextLacking(f.cursor)
	if !ok {
		f.cursor = 0
		return l.Lacks() > 0
	}
	k := new(Lacking)
	if !f.source.lane.HasWritten(f.behind) || !l.Compare(k, f.source.lane, g, false) {
		f.w.pump()
		return true
	}
	f.cursor, f.job, f.stage = g+1, k, 1
	for lsn := max(f.behind+1, f.w.window.First()); lsn <= f.w.window.Last(); lsn++ {
		f.w.added(f.w.window.At(lsn))
	}
	for i, e, ok := k.Next(0); ok; i, e, ok = k.Next(i + 1) {
		if e.Content == Data {
			f.index = append(f.index, i)
			f.writes = append(f.writes, FillBlock{LBA: g.First() + LBA(i), CRC: e.CRC, Buf: disk.Alloc(BlockSize), To: e})
			if !f.source.lane.Pin(e) {
				f.w.t.Fatalf("block %d: %+v was recycled", i, e)
			}
		}
	}
	return true
}

func (f *testFill) read() {
	for _, b := range f.writes {
		if err := (testSource{f.source}).ReadSegment(b.To.Segment, b.Buf, uint32(b.To.Block)); err != nil {
			f.w.t.Fatal(err)
		}
		if crc := Checksum(b.Buf); crc != b.CRC {
			f.w.t.Fatalf("block %d: checksum %08x, expected %08x", b.LBA, crc, b.CRC)
		}
		f.source.lane.Unpin(b.To)
	}
}

// complete makes the lane count.
func (f *testFill) complete() {
	l := f.target.lane
	l.Fill(nil, true, f.w.now)
	f.w.added = nil
	f.w.settle()
	l.Complete()
	f.w.settle()
	if !l.IsComplete() {
		f.w.t.Fatal("the lane is not complete")
	}
}

// peersTogether makes the lanes equal that count.
func (w *world) peersTogether(all []*Recovery) {
	lanes := w.lanes
	w.lanes = lanes[1:]
	w.bringTogether(all[1:])
	w.lanes = lanes
}

// recoverFill recovers all lanes after a crash in the middle of a copy: the two that
// count are brought together, and what they lost never happened.
func (w *world) recoverFill() []*Recovery {
	all := w.recoverAll()
	for i, r := range all[1:] {
		w.checkRecovered(w.lanes[i+1], r, 0)
	}
	w.peersTogether(all)
	kept := all[1].Stamp.LSN
	w.least = all[0].Stamp.LSN
	for i := kept; i < LSN(len(w.history)); i++ {
		w.history[i] = testRecord{kind: KindNote}
	}
	if !all[0].Incomplete {
		w.t.Fatal("a lane counts that was not filled")
	}
	return all
}

// TestFill fills a lane under load, with the cleaner at work, and with crashes in
// between, after which the copy goes on or a start ends it. In the end all lanes
// hold what was written (hazards 43 to 45).
func TestFill(t *testing.T) {
	var crashes, copied int
	for seed := range seeds(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := diverge(t, 300+seed)
			all := w.recoverAll()
			if err := w.copier(w.lanes[0], all[0]).Discount(); err != nil {
				t.Fatal(err)
			}
			w.peersTogether(all)
			for crashed := true; crashed; {
				f := w.startFill(all)
				for crashed = false; f.step() && !crashed; {
					for range w.rng.IntN(12) {
						w.step()
						w.noFaults()
					}
					crashed = w.rng.IntN(60) == 0
				}
				copied += f.copied
				if !crashed {
					f.complete()
					continue
				}
				crashes++
				w.added = nil
				w.crash(w.rng.IntN(2) == 0)
				all = w.recoverFill()
				if w.rng.IntN(4) == 0 { // a start copies what is left
					if err := w.copyLane(0, all, Behind); err != nil {
						t.Fatal(err)
					}
					w.mustEqual(w.lanes[0], all[0], all[1])
					w.activate(all)
					crashed = false
				}
			}
			for range 100 {
				w.step()
			}
			w.checkAll()
			w.restart(true)
			w.checkAll()
		})
	}
	t.Logf("%d blocks copied, %d crashes", copied, crashes)
	if crashes == 0 || copied == 0 {
		t.Error("that proves nothing")
	}
}

// runAhead has lane 0 alone write what is then lost to the volume, which goes on
// without it: the lane has higher LSNs than its peers. It returns the lane as it
// comes back.
func (w *world) runAhead() *Recovery {
	all := w.lanes
	for _, peer := range all[1:] {
		peer.stop(true)
	}
	kept := len(w.history)
	w.lanes = all[:1]
	for range 400 {
		w.step()
		w.noFaults()
	}
	w.settle()
	all[0].stop(true)
	ahead := w.recoverAll()[0]
	w.lanes, w.history = all[1:], w.history[:kept]
	w.activate(w.recoverAll())
	w.lanes = all
	c := w.copier(all[0], ahead)
	c.Generation = w.gen
	if err := c.Discount(); err != nil {
		w.t.Fatal(err)
	}
	return ahead
}

// TestFillAhead fills a lane that has records which its volume went on without, and
// whose numbers were given again. What they lie in is freed once the map names none
// of it, before the volume has come as far as those numbers, and the lane falls idle.
func TestFillAhead(t *testing.T) {
	freed := 0
	for seed := range seeds(20) {
		w := startWorld(t, smallWorld(500+seed, 3))
		for range 100 {
			w.step()
		}
		w.settle()
		ahead := w.runAhead()
		regions := make(RegionSet)
		ahead.Lane.AddRegions(regions)
		w.lanes[1].lane.AddRegions(regions)
		w.engage(w.lanes[0], ahead)
		w.lanes[0].lane.Lack(regions)
		before := slices.Clone(w.lanes[0].lane.segments.order)
		f := &testFill{w: w, target: w.lanes[0], source: w.lanes[1], behind: w.window.Last()}
		for f.step() {
			w.run()
		}
		f.complete()
		w.idle()
		l := w.lanes[0].lane
		if n := l.segments.empty(); n > 0 {
			t.Errorf("seed %d: at LSN %d %d segments name nothing, and are not freed", seed, l.Written(), n)
		}
		for _, s := range before {
			if s.lastLSN > l.Written() && s.dead {
				freed++
			}
		}
		w.checkAll()
		w.restart(true)
		w.checkAll()
	}
	if freed == 0 {
		t.Error("that proves nothing")
	}
}
