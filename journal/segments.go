package journal

import (
	"encoding/binary"
	"fmt"
	"time"
)

// segmentState is where a segment is in its life.
type segmentState uint8

const (
	segmentOpen      segmentState = iota // operations on it are under way, or will be
	segmentSealed                        // complete, synced and closed
	segmentCondemned                     // an append or sync failed: never written again in this life
	segmentFilling                       // the cleaner's or of a copy: synced, and being entered into the map
)

// segmentInfo is what a lane knows of one of its segments. Owner: the shard.
type segmentInfo struct {
	index    uint32
	life     uint32
	previous uint32 // life of the segment that it continues
	firstLSN LSN
	lastLSN  LSN    // of the last batch written to it
	used     uint32 // blocks, header and descriptors included
	live     int32  // data blocks that the map names, or may name where it is not loaded
	frozen   int32  // live as of the checkpoint under way, which stores it
	state    segmentState
	pins     int32 // reads under way; a pinned segment is not recycled
	dirty    bool  // differs from what the last checkpoint stored
	storing  bool  // the checkpoint under way stores it
	doomed   bool  // without live blocks in the checkpoint under way
	dead     bool  // and that checkpoint is durable: free once unpinned
	hollow   bool  // closed, and without live blocks

	// former: recovered, and so behind the place where the lane's log goes on. Its
	// LSNs say nothing: a volume that went on without the slot may give the same to
	// other records.
	former bool

	held   int32 // blocks of a copy that were not yet entered into the map, or given up
	closed bool  // of a copy, which appends no more to it

	stuckUntil time.Duration // could not be cleaned: not to be tried before
}

// isBehind reports whether a lane that is past lsn has nothing to write anew of
// what the segment holds.
func (s *segmentInfo) isBehind(lsn LSN) bool { return s.former || s.lastLSN <= lsn }

// segmentTable holds a lane's segments.
type segmentTable struct {
	byIndex map[uint32]*segmentInfo // never ranged over
	order   []*segmentInfo          // by age in the log
	live    int64                   // blocks, of all
	hollow  int                     // that are closed, and without live blocks
	doomed  int                     // of those, that the checkpoint under way, or a durable one, frees
}

func newSegmentTable() *segmentTable {
	return &segmentTable{byIndex: make(map[uint32]*segmentInfo)}
}

func (t *segmentTable) add(s *segmentInfo) {
	s.dirty = true
	t.byIndex[s.index] = s
	t.order = append(t.order, s)
	t.noteHollow(s)
}

// of returns the segment that an entry's place lies in, or nil when that life
// of the segment has ended.
func (t *segmentTable) of(e Entry) *segmentInfo {
	if s := t.byIndex[e.Segment]; s != nil && s.life == e.Life {
		return s
	}
	return nil
}

// addLive changes the live count of the entry's segment. A place without a
// segment is a map that names freed space: the store is inconsistent.
func (t *segmentTable) addLive(e Entry, delta int32) {
	s := t.of(e)
	if s == nil {
		panic(fmt.Sprintf("journal: block map names segment %d life %d, which is not in the table", e.Segment, e.Life))
	}
	s.live += delta
	t.live += int64(delta)
	s.dirty = true
	t.noteHollow(s)
	if s.live < 0 {
		panic(fmt.Sprintf("journal: segment %d life %d: live count %d", s.index, s.life, s.live))
	}
}

// noteHollow counts the segment if a checkpoint could free it: when its live count
// or its state has changed.
func (t *segmentTable) noteHollow(s *segmentInfo) {
	set(&s.hollow, &t.hollow, s.live == 0 && s.state != segmentOpen && s.state != segmentFilling)
}

func (t *segmentTable) setDoomed(s *segmentInfo, doomed bool) { set(&s.doomed, &t.doomed, doomed) }

// set changes a flag and the number of segments that have it.
func set(flag *bool, count *int, to bool) {
	switch {
	case to && !*flag:
		*count++
	case !to && *flag:
		*count--
	}
	*flag = to
}

// empty returns how many segments another checkpoint would free.
func (t *segmentTable) empty() int { return t.hollow - t.doomed }

// overwritten takes back the count of an entry that turns out, once its page is
// loaded, to have been replaced. before tells that this was before the
// checkpoint under way began, whose counts then have to say so as well: its
// pages do not name the place.
func (t *segmentTable) overwritten(e Entry, before bool) {
	t.addLive(e, -1)
	if s := t.of(e); before {
		s.frozen--
		s.storing = true
	}
}

// removeDead takes the dead, unpinned segments out of the table and returns
// their indexes.
func (t *segmentTable) removeDead() (free []uint32) {
	kept := t.order[:0]
	for _, s := range t.order {
		if s.dead && s.pins == 0 {
			delete(t.byIndex, s.index)
			set(&s.hollow, &t.hollow, false)
			t.setDoomed(s, false)
			free = append(free, s.index)
			continue
		}
		kept = append(kept, s)
	}
	clear(t.order[len(kept):])
	t.order = kept
	return free
}

// A stored segment: life (4), previous (4), first LSN (8), last LSN (8), used
// (4), live (4), state (1), little-endian.
const segmentStored = 33

// encode appends the stored form, with the live count of the moment it is for.
func (s *segmentInfo) encode(b []byte, live int32) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, s.life)
	b = le.AppendUint32(b, s.previous)
	b = le.AppendUint64(b, uint64(s.firstLSN))
	b = le.AppendUint64(b, uint64(s.lastLSN))
	b = le.AppendUint32(b, s.used)
	b = le.AppendUint32(b, uint32(live))
	return append(b, byte(s.state))
}

func decodeSegment(index uint32, b []byte) (*segmentInfo, error) {
	if len(b) != segmentStored {
		return nil, fmt.Errorf("segment %d in the table: %d bytes, expected %d: %w", index, len(b), segmentStored, ErrNotThis)
	}
	le := binary.LittleEndian
	return &segmentInfo{
		index:    index,
		life:     le.Uint32(b),
		previous: le.Uint32(b[4:]),
		firstLSN: LSN(le.Uint64(b[8:])),
		lastLSN:  LSN(le.Uint64(b[16:])),
		used:     le.Uint32(b[24:]),
		live:     int32(le.Uint32(b[28:])),
		state:    segmentState(b[32]),
	}, nil
}
