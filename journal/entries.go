package journal

import (
	"math/bits"
	"slices"
)

// Content is what the map says of a block.
type Content uint8

// The contents of a block.
const (
	Hole Content = iota // never written, or trimmed: reads as zeros
	Data                // in the log, at a place
	Zero                // reads as zeros, and stays allocated
	Lost                // no slot could read it: an error until it is written
)

// Entry is the map's entry of one block: what it holds and, for Data, where in
// the slot's log and with which CRC32C. A place names the segment's life, so
// that it never means what a recycled segment holds later. A Lost block has no
// place, and the CRC32C that its content should have.
type Entry struct {
	Segment uint32
	Life    uint32
	CRC     uint32
	Block   uint16 // offset in the segment, in blocks
	Content Content
}

// samePlace tells whether two entries name the same bytes on disk.
func (e Entry) samePlace(o Entry) bool {
	return e.Content == o.Content && e.Segment == o.Segment && e.Life == o.Life && e.Block == o.Block
}

// SameContent reports whether two lanes' entries say that a block holds the same.
func (e Entry) SameContent(o Entry) bool {
	return e.Content == o.Content && (e.Content != Data && e.Content != Lost || e.CRC == o.CRC)
}

// hasData reports whether the block should be made of data: it is, or it is lost.
func (e Entry) hasData() bool { return e.Content == Data || e.Content == Lost }

// entrySet is a set of a region's entries, by index.
type entrySet [RegionBlocks / 64]uint64

func (s *entrySet) add(i int)      { s[i/64] |= 1 << (i % 64) }
func (s *entrySet) remove(i int)   { s[i/64] &^= 1 << (i % 64) }
func (s *entrySet) has(i int) bool { return s[i/64]&(1<<(i%64)) != 0 }

func (s *entrySet) len() (n int) {
	for _, word := range s {
		n += bits.OnesCount64(word)
	}
	return n
}

// rank returns how many members are below i.
func (s *entrySet) rank(i int) (n int) {
	for _, word := range s[:i/64] {
		n += bits.OnesCount64(word)
	}
	return n + bits.OnesCount64(s[i/64]&(1<<(i%64)-1))
}

// next returns the first member from i on; RegionBlocks when there is none.
func (s *entrySet) next(i int) int {
	for ; i < RegionBlocks; i = (i/64 + 1) * 64 {
		if word := s[i/64] >> (i % 64); word != 0 {
			return i + bits.TrailingZeros64(word)
		}
	}
	return RegionBlocks
}

// entryTable holds the entries of one region. Holes take no room: most regions of
// a large thin volume have a few blocks each.
type entryTable struct {
	held   entrySet // those that are not holes
	packed []Entry  // these, by index
}

const entryBytes = 16

func (t *entryTable) at(i int) Entry {
	if !t.held.has(i) {
		return Entry{}
	}
	return t.packed[t.held.rank(i)]
}

func (t *entryTable) put(i int, e Entry) {
	at, held := t.held.rank(i), t.held.has(i)
	switch {
	case e.Content != Hole && held:
		t.packed[at] = e
	case e.Content != Hole:
		t.packed = slices.Insert(t.packed, at, e)
		t.held.add(i)
	case held:
		t.packed = slices.Delete(t.packed, at, at+1)
		t.held.remove(i)
		if cap(t.packed) >= 4*len(t.packed)+8 {
			t.packed = slices.Clone(t.packed)
		}
	}
}

func (t *entryTable) clone() entryTable {
	return entryTable{held: t.held, packed: slices.Clone(t.packed)}
}

// all returns the entries with the holes among them.
func (t *entryTable) all() (entries [RegionBlocks]Entry) {
	for i := t.held.next(0); i < RegionBlocks; i = t.held.next(i + 1) {
		entries[i] = t.at(i)
	}
	return entries
}
