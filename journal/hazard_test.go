package journal

import (
	"encoding/binary"
	"errors"
	"testing"

	"trivet/disk"
)

// Hazards that random runs meet too rarely, or that two rules guard against, so
// that each has to be tested without the other.

// rewriteBlock changes a block of a lane's segment, seals it again as a
// descriptor, and makes it durable.
func (l *testLane) rewriteBlock(segment uint32, block int64, change func([]byte)) {
	l.w.t.Helper()
	f, err := l.files.Open(segmentFile(segment))
	if err != nil {
		l.w.t.Fatal(err)
	}
	defer f.Close()
	b := disk.Alloc(BlockSize)
	if err := f.Read([][]byte{b}, block*BlockSize); err != nil {
		l.w.t.Fatal(err)
	}
	change(b)
	sealBlock(b, 124)
	if err := f.Write([][]byte{b}, block*BlockSize, true); err != nil {
		l.w.t.Fatal(err)
	}
}

// threeBatches returns a killed lane with a segment of header, three batches of
// one block (descriptors at 1, 3 and 5) and a mark at 7.
func threeBatches(t *testing.T) (*world, *testLane) {
	w := startWorld(t, smallWorld(1, 1))
	for i := range LBA(3) {
		w.add(KindWrite, i, 1)
		w.lanes[0].lane.Want(w.window.Last())
		w.pump()
		for w.run() {
		}
	}
	w.idle()
	w.crash(false)
	return w, w.lanes[0]
}

// mustEnd recovers the lane, which ends at lsn without a complaint, or with
// one when something there is known to have been durable.
func (l *testLane) mustEnd(lsn LSN, damaged bool) {
	l.w.t.Helper()
	r, err := l.recover()
	if err != nil {
		l.w.t.Fatal(err)
	}
	if err := r.Vouch(r.Known[0].Since(r.Began)); err != nil {
		l.w.t.Fatal(err)
	}
	if r.Stamp.LSN != lsn || (r.Damage != nil) != damaged {
		l.w.t.Fatalf("recovers up to %d with damage %v, expected %d, damage %v", r.Stamp.LSN, r.Damage, lsn, damaged)
	}
}

// TestPlace: a descriptor of another place is never one of this place (12).
func TestPlace(t *testing.T) {
	d, block := goldenDescriptor()
	for i, change := range []func(*position){
		func(p *position) { p.volume[3]++ },
		func(p *position) { p.lane.Slot-- },
		func(p *position) { p.lane.Shard++ },
		func(p *position) { p.segment++ },
		func(p *position) { p.life++ },
		func(p *position) { p.offset++ },
	} {
		want := d.position
		change(&want)
		if err := decodeDescriptor(block, want, new(descriptor)); !errors.Is(err, ErrNotThis) {
			t.Errorf("field %d: %v", i, err)
		}
	}
}

// TestChain: a descriptor of this very place that does not follow the one
// before it ends the log (12): a life can be given twice when its header was
// torn.
func TestChain(t *testing.T) {
	_, l := threeBatches(t)
	l.mustEnd(3, false)
	l.rewriteBlock(0, 1, func(b []byte) { b[40]++ }) // another epoch: another checksum
	l.mustEnd(1, true)
}

// TestEarlierLife cuts a recycled segment where an earlier life goes on with
// descriptors that parse and fit the chain in everything but the life (12).
func TestEarlierLife(t *testing.T) {
	_, l := threeBatches(t)
	l.rewriteBlock(0, 5, func(b []byte) { binary.LittleEndian.PutUint32(b[52:], 77) })
	l.rewriteBlock(0, 7, func(b []byte) { clear(b) }) // its mark
	l.mustEnd(2, false)
}

// TestImitatedVersion: a block behind the end that looks like a newer format is
// not one unless it continues the log (12).
func TestImitatedVersion(t *testing.T) {
	_, l := threeBatches(t)
	newer := func(b []byte) { binary.LittleEndian.PutUint16(b[8:], descriptorVersion+1) }
	var copied []byte
	l.rewriteBlock(0, 3, func(b []byte) { copied = append(copied, b...) })
	l.rewriteBlock(0, 8, func(b []byte) { copy(b, copied); newer(b) })
	l.mustEnd(3, false)
	l.rewriteBlock(0, 5, newer)
	if _, err := l.recover(); !errors.Is(err, ErrVersion) {
		t.Fatalf("a log that a newer version continues: %v", err)
	}
}

// TestPlaceNamesLife: a place in an earlier life of a segment is no place (17).
func TestPlaceNamesLife(t *testing.T) {
	table := newSegmentTable()
	table.add(&segmentInfo{index: 4, life: 9})
	if table.of(Entry{Segment: 4, Life: 8, Content: Data}) != nil {
		t.Error("segment 4 in life 9 is found for life 8")
	}
	a := Entry{Segment: 4, Life: 8, Block: 3, Content: Data, CRC: 1}
	b := a
	b.Life = 9
	if a.samePlace(b) {
		t.Error("the same block in two lives is the same place")
	}
	l := newLane(Config{})
	l.segments = table
	if l.Pin(a) || !l.Pin(b) {
		t.Error("a life that has ended is pinned, or the present one is not")
	}
}

// TestHeaderLost: the header of the segment that replay begins in is restored
// from the segment table, without a loss.
func TestHeaderLost(t *testing.T) {
	w := startWorld(t, smallWorld(1, 1))
	l := w.lanes[0]
	w.add(KindWrite, 0, 1)
	l.lane.RequestCheckpoint()
	w.settle()
	w.add(KindWrite, 1, 1)
	w.settle()
	w.crash(true)
	if err := l.disk.Corrupt(segmentFile(0), 33); err != nil {
		t.Fatal(err)
	}
	l.mustEnd(2, false)
}

// TestStepNeverLoads: with no page in memory, writes and lookups finish without
// waiting for the store (18): nothing but the executor's answer is needed for a
// record to be durable, and a lookup of it is known at once.
func TestStepNeverLoads(t *testing.T) {
	cfg := smallWorld(1, 1)
	cfg.mapBytes = 0 // the least
	w := startWorld(t, cfg)
	for g := range Region(w.cfg.regions) {
		w.add(KindWrite, g.First()+1, 2)
		w.settle()
	}
	w.restart(true)
	l := w.lanes[0]
	w.add(KindWrite, 2, 1)
	l.lane.Want(w.window.Last())
	w.pump()
	for len(l.ios) > 0 || l.prepare != nil {
		for len(l.ios) > 0 {
			l.runIO().Done()
			w.pump()
		}
		if l.prepare != nil {
			l.runPrepare().Done()
			w.pump()
		}
	}
	if l.lane.Durable() != w.window.Last() {
		t.Fatal("a write waits for a page")
	}
	if _, known := l.lane.Lookup(2); !known {
		t.Error("what was just written is not known")
	}
	if _, known := l.lane.Lookup(1); known {
		t.Error("what is in the store alone is known")
	}
	w.checkAll()
}

// TestPeersVouch: rot in a lane's last batch, with no mark of its own behind it,
// is known for rot by the marks of its peers (13).
func TestPeersVouch(t *testing.T) {
	w := startWorld(t, smallWorld(1, 3))
	l := w.lanes[0]
	w.add(KindWrite, 0, 1)
	for _, l := range w.lanes {
		l.lane.Want(1)
	}
	for w.pump(); w.run(); {
	}
	w.now += 2 * markDelay
	w.pump()
	l.ios = nil // its own mark is never written
	for w.run() {
	}
	w.crash(true)
	if err := l.disk.Corrupt(segmentFile(0), 2*BlockSize); err != nil {
		t.Fatal(err)
	}
	all := w.recoverAll()
	if all[0].Stamp.LSN != 1 || len(all[0].Rotten) != 1 || all[0].Rotten[0].LBA != 0 {
		t.Fatalf("recovered up to %d, rotten %v, damage %v", all[0].Stamp.LSN, all[0].Rotten, all[0].Damage)
	}
}
