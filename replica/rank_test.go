package replica

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"trivet/disk"
	"trivet/journal"
)

// standIn describes a slot's lane to rank and checkQuorum.
type standIn struct {
	started, promised journal.Generation
	stamp             journal.Stamp
	suspect           [journal.MaxSlots]journal.LSN
	absent            bool
	incomplete        bool
	filling           bool // it takes the place of one that was lost
	replacement       bool // and is not filled any more
	sole              bool // its peers were replaced at once
	older             bool // of version 1
	wentBack          bool
}

// superblock is that of a stand-in.
func (s *standIn) superblock() journal.Superblock {
	super := journal.Superblock{Promised: journal.GenerationID{Number: s.promised}, Original: !s.filling && !s.replacement}
	if s.started > 0 {
		super.History = journal.History{{GenerationID: journal.GenerationID{Number: s.started}, Started: true, LSNs: []journal.LSN{1}}}
	}
	if s.filling {
		super.Filling = 1
	}
	if s.sole {
		super.Sole = 7
	}
	if s.older {
		super = *decoded(superblock1(0, s.started, s.promised))
	}
	return super
}

// superblock1 is a copy of a superblock as version 1 wrote it, of a slot of
// smallGeometry.
func superblock1(slot byte, started, promised journal.Generation) []byte {
	b := disk.Alloc(journal.BlockSize)
	le := binary.LittleEndian
	copy(b, "TrivetSb")
	le.PutUint16(b[8:], 1)
	b[10], b[11] = slot, byte(smallGeometry.Replicas)
	le.PutUint16(b[12:], uint16(smallGeometry.Shards))
	le.PutUint64(b[32:], 1)
	le.PutUint64(b[40:], smallGeometry.SizeBytes)
	le.PutUint32(b[48:], smallGeometry.SegmentBlocks)
	le.PutUint64(b[56:], uint64(promised))
	le.PutUint64(b[64:], uint64(started))
	copy(b[80:], smallGeometry.Name)
	le.PutUint32(b[journal.BlockSize-4:], journal.Checksum(b[:journal.BlockSize-4]))
	return b
}

// decoded reads a copy of a superblock that is right.
func decoded(b []byte) *journal.Superblock {
	s, err := journal.DecodeSuperblock(b)
	if err != nil {
		panic(err)
	}
	return s
}

// group makes a group of one shard, as it is after recovery.
func group(slots [3]standIn) *Group {
	g := &Group{
		Geometry: Geometry{Replicas: 3, Shards: 1}, Slots: make([]*Slot, 3), Absent: make([]error, 3),
		Lanes: [][]*journal.Recovery{make([]*journal.Recovery, 3)}, wentBack: make([]bool, 3), Members: journal.Members{Number: 7},
	}
	g.opt.Log = func(int, string, error) {}
	for i, s := range slots {
		if s.absent {
			continue
		}
		g.Slots[i] = &Slot{ID: journal.SlotID(i), super: s.superblock()}
		g.wentBack[i] = s.wentBack
		g.Lanes[0][i] = &journal.Recovery{Stamp: s.stamp, Suspect: s.suspect, Incomplete: s.incomplete}
	}
	return g
}

func at(g journal.Generation, l journal.LSN) journal.Stamp {
	return journal.Stamp{Generation: g, LSN: l}
}

func TestRank(t *testing.T) {
	for name, c := range map[string]struct {
		slots [3]standIn
		best  int
	}{
		"the ghost: a later generation ranks above more records of an earlier one": {
			[3]standIn{{started: 5, stamp: at(5, 101)}, {started: 6, stamp: at(5, 90)}, {started: 6, stamp: at(5, 95)}}, 2,
		},
		"within a generation the most records": {
			[3]standIn{{started: 5, stamp: at(5, 7)}, {started: 5, stamp: at(5, 9)}, {started: 5, stamp: at(5, 8)}}, 1,
		},
		"a slot that its peers suspect ranks by what came before": {
			[3]standIn{{started: 5, stamp: at(5, 9)}, {started: 5, stamp: at(5, 20)}, {started: 5, stamp: at(5, 8), suspect: [3]journal.LSN{0, 5, 0}}}, 0,
		},
		"a suspicion of a generation before the slot was brought together is settled": {
			[3]standIn{{started: 6, stamp: at(5, 30), suspect: [3]journal.LSN{0, 5, 0}}, {started: 6, stamp: at(6, 40)}, {absent: true}}, 1,
		},
		"a blank one ranks below everything": {
			[3]standIn{{started: 0, stamp: at(0, 0)}, {started: 5, stamp: at(5, 1)}, {started: 5, stamp: at(5, 0)}}, 1,
		},
		"an unfinished copy ranks below everything": {
			[3]standIn{{started: 5, stamp: at(5, 99), incomplete: true}, {started: 5, stamp: at(5, 1)}, {started: 5, stamp: at(5, 2)}}, 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := group(c.slots)
			if err := g.checkQuorum(); err != nil {
				t.Fatal(err)
			}
			if _, best := g.rank(0); best != c.best {
				t.Errorf("slot %d is the best, expected %d", best, c.best)
			}
		})
	}
}

func TestQuorum(t *testing.T) {
	for name, c := range map[string]struct {
		slots [3]standIn
		opens bool
	}{
		"three that took part":                              {[3]standIn{{started: 1}, {started: 1}, {started: 1}}, true},
		"two that took part":                                {[3]standIn{{started: 1}, {absent: true}, {started: 1}}, true},
		"a new volume":                                      {[3]standIn{}, true},
		"one is missing of a new volume":                    {[3]standIn{{}, {absent: true}, {}}, true},
		"two are missing of a new volume":                   {[3]standIn{{}, {absent: true}, {absent: true}}, false},
		"one took part, one is being filled":                {[3]standIn{{started: 5}, {filling: true}, {absent: true}}, false},
		"one took part, two are being filled":               {[3]standIn{{started: 5}, {filling: true}, {filling: true}}, false},
		"one that lost its metadata is being filled":        {[3]standIn{{started: 5}, {started: 5, filling: true}, {absent: true}}, false},
		"the same on an operator's word":                    {[3]standIn{{started: 5, sole: true}, {filling: true}, {filling: true}}, true},
		"the same, and the survivor is away":                {[3]standIn{{absent: true}, {filling: true, promised: 6}, {filling: true, promised: 6}}, false},
		"the same, the survivor's place is empty":           {[3]standIn{{filling: true}, {filling: true, promised: 6}, {filling: true, promised: 6}}, false},
		"one is in the middle of a copy":                    {[3]standIn{{started: 5}, {started: 5, incomplete: true}, {absent: true}}, false},
		"the first start was cut short":                     {[3]standIn{{started: 1, promised: 1}, {promised: 1}, {promised: 1}}, true},
		"so was the second":                                 {[3]standIn{{started: 2, promised: 2}, {promised: 2}, {promised: 1}}, true},
		"one took part, the others are replaced and blank":  {[3]standIn{{started: 1, promised: 1}, {replacement: true, promised: 1}, {replacement: true, promised: 1}}, false},
		"two originals went back to before the first start": {[3]standIn{{started: 5}, {wentBack: true}, {wentBack: true}}, false},
		"two that took part, one of them went back":         {[3]standIn{{started: 5}, {started: 3, wentBack: true}, {absent: true}}, false},
		"a new volume of an older version":                  {[3]standIn{{older: true, promised: 1}, {older: true}, {older: true}}, true},
		"two older ones that never took part":               {[3]standIn{{older: true, promised: 1}, {older: true, promised: 1}, {absent: true}}, false},
		"three older ones that were promised more":          {[3]standIn{{older: true, promised: 6}, {older: true, promised: 6}, {older: true}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := group(c.slots).checkQuorum()
			if c.opens && err != nil || !c.opens && !errors.Is(err, ErrQuorum) {
				t.Errorf("opens: %v (%v), expected %v", err == nil, err, c.opens)
			}
		})
	}
}

func TestMembership(t *testing.T) {
	m := NewMembership([]bool{true, true, true}, 2)
	steps := []struct {
		slot       int
		lost, drop bool
	}{
		{1, false, true},  // slow, and can be spared
		{1, true, false},  // it is gone already
		{2, false, false}, // slow, but needed
		{2, true, true},   // lost is lost
	}
	for _, s := range steps {
		if got := m.Report(s.slot, s.lost); got != s.drop {
			t.Errorf("slot %d, lost %v: dropped %v, expected %v", s.slot, s.lost, got, s.drop)
		}
	}
	if live := m.Live(); !live[0] || live[1] || live[2] {
		t.Errorf("live slots are %v", live)
	}
}

// blockedTask is a task that ends when it is told.
type blockedTask struct{ start, end chan struct{} }

func (b blockedTask) run() { b.start <- struct{}{}; <-b.end }

// TestWorkers holds that submit does not wait, whatever the workers do, and
// that what queued up runs.
func TestWorkers(t *testing.T) {
	w := newWorkers(2)
	b := blockedTask{make(chan struct{}, 10), make(chan struct{})}
	for range 10 {
		if err := w.submit(b); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		<-b.start
	}
	select {
	case <-b.start:
		t.Error("a third task runs on two workers")
	case <-time.After(10 * time.Millisecond):
	}
	close(b.end)
	for range 8 {
		<-b.start
	}
	w.close()
	if err := w.submit(b); err == nil {
		t.Error("a closed pool takes a task")
	}
}
