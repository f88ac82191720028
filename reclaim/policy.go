//trivet:pure

package reclaim

import (
	"math"
	"slices"

	"trivet/journal"
)

// Policy is when and what to clean. It keeps a lane's log within a bound that
// follows what the lane holds: the live blocks, a third more, and a twentieth
// of its part of the volume. The zero value is the default.
type Policy struct {
	// Constantly makes the cleaner never rest: for tests, and to have the log
	// sorted by address.
	Constantly bool
}

// The bounds of a lane's log, in thousandths of its live blocks and of its part
// of the volume, and in segments beyond the live ones. A lane of a small volume
// cannot do with less: at full pressure something must be left to be cleaned or
// freed, though all segments but one are too full to be chosen, and a few cannot be
// cleaned at all.
const (
	hardLive, hardShare, hardSegments = 1338, 46, 15
	softLive, softShare, softSegments = 1318, 41, 11
)

// bound is a number of segments for what the lane holds.
func bound(t journal.Table, live, share, segments int64) int {
	blocks := (t.Live*live + t.Share*share) / 1000
	least := (t.Live+t.SegmentBlocks-1)/t.SegmentBlocks + segments
	return int(max(blocks/t.SegmentBlocks, least))
}

// emptyPart: a checkpoint frees segments once an n-th part of the log is empty.
// As many count as though they were always there, so that what waits for the
// next checkpoint changes nothing.
const emptyPart, leastEmpty = 36, 5

// length is how long the log is, with the segments that wait for a checkpoint at
// their most.
func length(t journal.Table) int {
	usual := max(t.Segments/emptyPart, leastEmpty)
	return t.Segments + max(usual-t.Empty, 0)
}

// Pressure rises from 0 at the soft bound to journal.FullPressure at the hard one.
func (p Policy) Pressure(t journal.Table) int {
	soft, hard := bound(t, softLive, softShare, softSegments), bound(t, hardLive, hardShare, hardSegments)
	return journal.PressureBetween(int64(length(t)), int64(soft), int64(hard))
}

// Always implements journal.Policy.
func (p Policy) Always() bool { return p.Constantly }

// Choose returns as many segments as fill one when their live blocks are
// copied, once the log is longer than its soft bound: those first that give the
// most space for the least copying, older ones before younger.
//
// The benefit of a segment is what it frees over what cleaning it costs, as in
// Rosenblum and Ousterhout, 'The design and implementation of a log-structured
// file system' (1992), section 3.6: free space times age, over the cost of reading
// the segment and writing what is live.
func (p Policy) Choose(t journal.Table) []journal.SegmentUse {
	if length(t) < bound(t, softLive, softShare, softSegments) {
		return nil
	}
	var all []candidate
	for _, s := range t.Sealed {
		if int64(s.Live) > t.SegmentBlocks*9/10 {
			continue // hardly anything to gain
		}
		u := float64(s.Live) / float64(t.SegmentBlocks)
		age := math.Cbrt(float64(t.Last - s.Last + 1))
		all = append(all, candidate{s, (1 - u) * age / (1 + u)})
	}
	slices.SortStableFunc(all, func(a, b candidate) int {
		switch {
		case a.benefit > b.benefit:
			return -1
		case a.benefit < b.benefit:
			return 1
		}
		return 0
	})
	if chosen := fill(t, all, true); len(chosen) > 1 {
		return chosen
	}
	if chosen := fill(t, all, false); len(chosen) > 1 {
		return chosen
	}
	return nil // one for one makes no space
}

// candidate is a segment that may be cleaned.
type candidate struct {
	use     journal.SegmentUse
	benefit float64
}

// fill returns the best candidates whose live blocks fill a segment; with alike
// only those whose data are about as old as the best one's, for they will die
// together.
func fill(t journal.Table, all []candidate, alike bool) (chosen []journal.SegmentUse) {
	live := int64(0)
	for _, c := range all {
		if len(chosen) == maxVictims || live >= t.SegmentBlocks*63/64 {
			break
		}
		if alike && len(chosen) > 0 && apart(t.Last-c.use.Last, t.Last-chosen[0].Last) {
			continue
		}
		chosen = append(chosen, c.use)
		live += int64(c.use.Live)
	}
	return chosen
}

// apart tells whether data of these ages should not be copied into one segment.
func apart(a, b journal.LSN) bool { return a > 4*b || b > 4*a }

// maxVictims bounds what one piece of cleaning reads.
const maxVictims = 16
