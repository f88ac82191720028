package journal

import (
	"encoding/binary"
	"fmt"
	"testing"

	"trivet/disk"
)

// TestRot flips bytes all over a lane's segments after a flush and the mark
// that follows it. Recovery, with what all lanes know, never silently loses a
// record that was durable: it has all of them, with blocks at fault named or
// found by their checksum, or it reports damage.
func TestRot(t *testing.T) {
	for seed := range seeds(4) {
		cfg := smallWorld(seed, 3-2*int(seed%2)) // with peers, and alone
		cfg.checkpointBytes, cfg.mapBytes, cfg.rare, cfg.still = 1<<40, 1<<20, true, true
		w := startWorld(t, cfg)
		for range 260 {
			w.step()
		}
		w.settle()
		w.crash(true)
		outcomes := make(map[string]int)
		for lane := range w.lanes {
			w.rotLane(w.lanes[lane], outcomes)
		}
		t.Logf("seed %d: %v", seed, outcomes)
		if outcomes["damage"] == 0 || outcomes["rotten"] == 0 || outcomes["nothing"] == 0 {
			t.Errorf("seed %d: outcomes %v: something was not tested", seed, outcomes)
		}
	}
}

// rotLane flips one byte in each block of the lane's log in turn.
func (w *world) rotLane(l *testLane, outcomes map[string]int) {
	before := l.disk
	defer func() { l.disk, l.files = before, before }()
	names, err := before.List("log")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, name := range names {
		for block := range int64(w.cfg.segmentBlocks) {
			off := block*BlockSize + w.rng.Int64N(200)
			if w.rng.IntN(2) == 0 {
				off = block*BlockSize + w.rng.Int64N(BlockSize)
			}
			l.disk = before.CrashClone(1)
			l.files = l.disk
			if err := l.disk.Corrupt("log/"+name, off); err != nil {
				w.t.Fatal(err)
			}
			outcomes[w.recoverRotten(l, fmt.Sprintf("%s byte %d", name, off))]++
		}
	}
}

// recoverRotten recovers all lanes, of which l may be damaged.
func (w *world) recoverRotten(l *testLane, what string) string {
	last := LSN(len(w.history))
	for i, r := range w.recoverAll() {
		other := w.lanes[i]
		if other != l && (r.Damage != nil || len(r.Rotten) > 0 || r.Stamp.LSN < last) {
			w.t.Fatalf("slot %d, %s: slot %d recovers up to %d of %d, damage %v, rotten %v",
				l.id.Slot, what, i, r.Stamp.LSN, last, r.Damage, r.Rotten)
		}
		if other != l {
			continue
		}
		return w.judge(l, r, what)
	}
	return ""
}

func (w *world) judge(l *testLane, r *Recovery, what string) string {
	last := LSN(len(w.history))
	if r.Stamp.LSN < last {
		if r.Damage == nil {
			w.t.Fatalf("slot %d, %s: recovers up to %d of %d durable, and does not say so", l.id.Slot, what, r.Stamp.LSN, last)
		}
		if err := w.check(l, r.Lane.segments, r.Stamp.LSN, recovered(r), append(r.Rotten, w.unreadable(l, r)...)); err != nil {
			w.t.Fatalf("slot %d, %s: %v", l.id.Slot, what, err)
		}
		return "damage"
	}
	bad := w.unreadable(l, r)
	if err := w.check(l, r.Lane.segments, last, recovered(r), append(bad, r.Rotten...)); err != nil {
		w.t.Fatalf("slot %d, %s: %v", l.id.Slot, what, err)
	}
	switch {
	case len(r.Rotten) > 0:
		return "rotten"
	case len(bad) > 0:
		return "found by reading"
	case r.Damage != nil:
		return "damage without loss"
	}
	return "nothing"
}

// unreadable returns the blocks whose checksum does not match, as a scrub
// finds them.
func (w *world) unreadable(l *testLane, r *Recovery) (bad []Rot) {
	block := disk.Alloc(BlockSize)
	for g := range Region(w.cfg.regions) {
		all, err := recovered(r)(g)
		if err != nil {
			w.t.Fatal(err)
		}
		for i, e := range all {
			if e.Content != Data {
				continue
			}
			if err := (testSource{l}).ReadSegment(e.Segment, block, uint32(e.Block)); err != nil {
				w.t.Fatal(err)
			}
			if Checksum(block) != e.CRC {
				bad = append(bad, Rot{LBA: g.First() + LBA(i), Entry: e})
			}
		}
	}
	return bad
}

// imitate fills a block with a copy of a descriptor or header of some lane, as
// it is or as a newer version would look.
func (w *world) imitate(block []byte) {
	l := w.lanes[w.rng.IntN(len(w.lanes))]
	for range 20 {
		if l.segments == 0 {
			return
		}
		found := disk.Alloc(BlockSize)
		if err := (testSource{l}).ReadSegment(uint32(w.rng.IntN(int(l.segments))), found, uint32(w.rng.IntN(int(w.cfg.segmentBlocks)))); err != nil {
			w.t.Fatal(err)
		}
		if magic := binary.LittleEndian.Uint64(found); magic != descriptorMagic && magic != headerMagic {
			continue
		}
		copy(block, found)
		if w.rng.IntN(2) == 0 {
			binary.LittleEndian.PutUint16(block[8:], 2)
			block[100]++
		}
		w.imitations[w.content] = Checksum(block)
		return
	}
}

// TestImitation is TestModel with guest data that are copies of real
// descriptors and headers, in segments that are recycled: none of it is ever
// taken for a part of the log, nor for a newer version of it.
func TestImitation(t *testing.T) {
	for seed := range seeds(30) {
		cfg := smallWorld(seed, 1+2*int(seed%2))
		cfg.imitate = true
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runModel(t, cfg, 6, 300) })
	}
}
