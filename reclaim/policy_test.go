package reclaim_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"trivet/journal"
	"trivet/reclaim"
)

// log is a model of a lane: which segment holds which blocks, with segments of
// the lane's writes and of the cleaner's, and checkpoints that free empty ones.
type log struct {
	policy   reclaim.Policy
	table    journal.Table
	place    []int32 // by block: its segment, -1 for none
	segments []segment
	free     []int32
	open     int32
	written  int64 // by the client
	copied   int64
	longest  int // segments held at most
}

type segment struct {
	life, used, live int64
	cold             bool
	last             int64 // when the youngest block was written
	blocks           []int32
	held             bool
}

const descriptorShare = 250 // blocks of data to a descriptor, about

func newLog(share, segmentBlocks int64) *log {
	l := &log{table: journal.Table{Share: share, SegmentBlocks: segmentBlocks}, place: make([]int32, share)}
	for i := range l.place {
		l.place[i] = -1
	}
	l.open = l.begin()
	return l
}

func (l *log) begin() int32 {
	if len(l.free) == 0 {
		l.segments = append(l.segments, segment{})
		l.free = append(l.free, int32(len(l.segments)-1))
	}
	i := l.free[len(l.free)-1]
	l.free = l.free[:len(l.free)-1]
	l.segments[i] = segment{life: l.written + l.copied, held: true, blocks: l.segments[i].blocks[:0]}
	return i
}

func (l *log) add(s, block int32) {
	g := &l.segments[s]
	if len(g.blocks)%descriptorShare == 0 {
		g.used++
	}
	if old := l.place[block]; old >= 0 {
		l.segments[old].live--
	} else {
		l.table.Live++
	}
	l.place[block] = s
	g.blocks = append(g.blocks, block)
	g.used++
	g.live++
}

func (l *log) full(s int32) bool { return l.segments[s].used >= l.table.SegmentBlocks-1 }

// halfWay is the pressure around which a busy client and the cleaner meet.
const halfWay = 500

// write is a client's write. It waits for the cleaner as one does that is slowed
// to its pace.
func (l *log) write(block int32) {
	l.add(l.open, block)
	l.written++
	l.table.Last = journal.LSN(l.written)
	l.segments[l.open].last = l.written
	if !l.full(l.open) {
		return
	}
	l.open = l.begin()
	for l.look(); l.policy.Pressure(l.table) > halfWay && l.clean(); {
	}
}

// look fills the table as a lane does.
func (l *log) look() {
	l.table.Sealed, l.table.Segments = l.table.Sealed[:0], 2 // one is prepared, one is being filled by the cleaner
	empty := 0
	for i, s := range l.segments {
		if !s.held {
			continue
		}
		l.table.Segments++
		if s.live == 0 && int32(i) != l.open {
			empty++
		} else if int32(i) != l.open {
			l.table.Sealed = append(l.table.Sealed, journal.SegmentUse{Index: uint32(i), Life: uint32(s.life), Used: uint32(s.used), Live: uint32(s.live), Last: journal.LSN(s.last), Cold: s.cold})
		}
	}
	l.longest = max(l.longest, l.table.Segments)
	l.table.Empty = empty
	if empty >= max(4, l.table.Segments/44) {
		l.checkpoint()
		l.look()
	}
}

func (l *log) checkpoint() {
	for i := range l.segments {
		if s := &l.segments[i]; s.held && s.live == 0 && int32(i) != l.open {
			s.held = false
			l.free = append(l.free, int32(i))
		}
	}
}

// clean does what the policy says, once.
func (l *log) clean() bool {
	l.look()
	victims := l.policy.Choose(l.table)
	if len(victims) == 0 {
		return false
	}
	cold := l.begin()
	l.segments[cold].cold = true
	for _, v := range victims {
		l.segments[cold].last = max(l.segments[cold].last, int64(v.Last))
		for _, block := range l.segments[v.Index].blocks {
			if l.place[block] == int32(v.Index) && !l.full(cold) {
				l.add(cold, block)
				l.copied++
			}
		}
	}
	l.look()
	return true
}

// TestBounds overwrites a lane until ten times its size was written, and holds
// that the log stays within its bound, at a bearable cost.
func TestBounds(t *testing.T) {
	const share, segmentBlocks = 128 << 10, 512 // half a GiB in segments of 2 MiB
	rng := rand.New(rand.NewPCG(1, 2))
	zipf := rand.NewZipf(rng, 1.2, 1, share-1)
	scattered := func(i uint64) int32 { return int32(i * 2654435761 % share) }
	for name, c := range map[string]struct {
		filled int32
		next   func(i, filled int32) int32
		most   float64
	}{
		"random, 80 % full":  {share * 8 / 10, func(_, n int32) int32 { return rng.Int32N(n) }, 2.5},
		"random, 100 % full": {share, func(_, n int32) int32 { return rng.Int32N(n) }, 2.5},
		"Zipfian":            {share, func(_, _ int32) int32 { return scattered(zipf.Uint64()) }, 1.5},
		"sequential":         {share, func(i, n int32) int32 { return i % n }, 1.5},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLog(share, segmentBlocks)
			for i := range c.filled {
				l.write(i)
			}
			l.written, l.copied = 0, 0
			for i := range int32(10 * share) {
				l.write(c.next(i, c.filled))
			}
			amplification := float64(l.written+l.copied) / float64(l.written)
			bound := 1.35*float64(l.table.Live) + 0.05*share
			space := float64(int64(l.longest)*segmentBlocks) / bound
			t.Logf("amplification %.2f, at most %d segments, %.2f of the bound", amplification, l.longest, space)
			if amplification > c.most || space > 1 || math.IsNaN(amplification) {
				t.Errorf("more than %.1f, or out of bounds", c.most)
			}
		})
	}
}

// TestLeavesSmallLogsAlone fills lanes of small volumes once, which leaves
// nothing to clean: the policy says so, and slows nobody.
func TestLeavesSmallLogsAlone(t *testing.T) {
	for _, share := range []int64{2 << 10, 8 << 10, 32 << 10} { // blocks, in segments of 2 MiB
		l := newLog(share, 512)
		for i := range int32(share) {
			l.write(i)
			if l.look(); l.policy.Pressure(l.table) > 0 || len(l.policy.Choose(l.table)) > 0 {
				t.Fatalf("%d blocks of %d written: pressure %d, %d segments to clean, with a log of %d", i+1, share,
					l.policy.Pressure(l.table), len(l.policy.Choose(l.table)), l.table.Segments)
			}
		}
	}
}

// TestWayOut: at full pressure nothing may be written, so something must be left
// to be cleaned, or to be freed by a checkpoint. The most that a log may hold
// without is: segments too full to be chosen, one that is not (one for one makes
// no space), the open one and the one that is prepared.
func TestWayOut(t *testing.T) {
	const size = 512
	for share := int64(1); share <= 512; share *= 2 {
		for live := int64(1); live <= share; live++ {
			table := journal.Table{Share: share * size, Live: live * size, SegmentBlocks: size, Last: 1000}
			left := table.Live - 1
			table.Sealed = append(table.Sealed, journal.SegmentUse{Index: 0, Used: size, Live: 1, Last: 1})
			for left > 0 {
				n := min(left, size*9/10+1)
				left -= n
				table.Sealed = append(table.Sealed, journal.SegmentUse{Index: uint32(len(table.Sealed)), Used: size, Live: uint32(n), Last: 1})
				if n <= size*9/10 {
					table.Sealed[len(table.Sealed)-1].Live = size*9/10 + 1 // let it be too full as well
				}
			}
			table.Segments = len(table.Sealed) + 2
			var p reclaim.Policy
			if pressure := p.Pressure(table); pressure >= 1000 && len(p.Choose(table)) == 0 {
				t.Errorf("share %d, live %d segments: pressure %d with %d segments, and nothing to do", share, live, pressure, table.Segments)
			}
		}
	}
}
