// Package cache is the block cache of one shard: a fixed set of 4-KiB frames,
// an index from block address to frame, and CLOCK eviction. Writes and reads
// fill it; it is what makes a block that was written a moment ago, and whose
// bytes went to the disk past the page cache, readable without a disk.
//
// It promises nothing on a crash: its memory is anonymous, and whatever it
// holds is also in the log or in the arena.
//
// # Ownership
//
// A Cache belongs to its shard's owner. It has no lock and no atomic; every
// method is called by whoever owns the shard at that moment. A slice that a
// method returned stays valid until the owner's next call of Insert, Detach,
// Attach, Drop or DropRange, any of which may give the frame to another block.
//
// A frame is in one of four states:
//
//	vacant      in the vacant list, or never used
//	resident    indexed; not looked up since CLOCK's hand last passed
//	referenced  indexed and looked up since: the hand spares it once
//	detached    out of the cache: a disk read is filling it
//
// A detached frame may be filled by another goroutine or by the kernel; it is
// neither indexed nor evictable until it comes back by Attach or Release. How
// many are out at a time is bounded by the caller.
//
// # Memory
//
// Frames and index live together in memory that is mapped and left untouched,
// and frames are handed out for the first time in ascending order. So a cache
// of several GiB costs no resident memory until it is used, and then what it
// holds. Nothing is allocated after New.
//
//	mem ┌──────────────────────────────────────┬──────────────┬─────────────┐
//	    │ frames: n × 4096 bytes               │ entries:     │ buckets:    │
//	    │ (page-aligned, fit for direct I/O)   │ n × 16 bytes │ 2^k × 4     │
//	    └──────────────────────────────────────┴──────────────┴─────────────┘
//
// All zeros is the empty cache, as fresh mappings are.
package cache

import (
	"fmt"
	"math/bits"
	"unsafe"
)

// FrameSize is the size of a frame and of a block in bytes.
const FrameSize = 4096

// Frame names one frame of a cache that Detach handed out.
type Frame uint32

// Cache holds up to Cap blocks. See the package comment for who may call it.
type Cache struct {
	frames  []byte
	entries []entry
	buckets []link
	shift   uint8 // 64 − log2(len(buckets)): the hash's top bits choose

	length   int   // indexed frames
	detached int   // frames that are out
	vacant   link  // list of frames that were used and given back
	fresh    int   // frames from here on were never used: their pages are untouched
	hand     Frame // where CLOCK looks next
}

// entry is what the cache knows of a frame. 16 bytes: four share a cache line,
// and address, chain and reference bit of a lookup are on the same one.
type entry struct {
	lba   uint64 // valid while indexed
	next  link   // the next frame in the bucket's chain, or in the vacant list
	state frameState
}

// link is a frame's number plus one, so that untouched memory reads as 'none'.
type link uint32

// frameState is one of the four states that the package comment explains.
type frameState uint32

const (
	vacant frameState = iota
	resident
	referenced
	detached
)

// New builds an empty cache in mem, which must be page-aligned, all zeros and
// the cache's alone; it panics when mem is misaligned. About 0.5 % of mem goes
// to the index. Memory for less than one frame, or none, gives a cache that
// never holds anything.
func New(mem []byte) *Cache {
	l := layoutOf(len(mem))
	if l.frames == 0 {
		return &Cache{}
	}
	if uintptr(unsafe.Pointer(&mem[0]))%FrameSize != 0 {
		panic("cache: memory is not page-aligned")
	}
	return &Cache{
		frames:  mem[:l.entriesAt:l.entriesAt],
		entries: unsafe.Slice((*entry)(unsafe.Pointer(&mem[l.entriesAt])), l.frames),
		buckets: unsafe.Slice((*link)(unsafe.Pointer(&mem[l.bucketsAt])), l.buckets),
		shift:   uint8(64 - bits.TrailingZeros(uint(l.buckets))),
	}
}

// Cap returns how many blocks the cache can hold.
func (c *Cache) Cap() int { return len(c.entries) }

// Len returns how many blocks it holds.
func (c *Cache) Len() int { return c.length }

// Detached returns how many frames are out; 0 once every read has come back.
func (c *Cache) Detached() int { return c.detached }

// Lookup returns the block at lba, to be read only, and marks it as used.
func (c *Cache) Lookup(lba uint64) ([]byte, bool) {
	f, ok := c.find(lba)
	if !ok {
		return nil, false
	}
	c.entries[f].state = referenced
	return c.Bytes(f), true
}

// Insert returns the frame for the block at lba, which the caller must fill
// completely before its next call: the frame that holds the block already, or
// else one that was vacant or evicted. It returns nil when every frame is
// detached or the cache has none.
func (c *Cache) Insert(lba uint64) []byte {
	if f, ok := c.find(lba); ok {
		c.entries[f].state = referenced
		return c.Bytes(f)
	}
	f, ok := c.take()
	if !ok {
		return nil
	}
	c.index(lba, f)
	return c.Bytes(f)
}

// Drop forgets the block at lba, if it is there.
func (c *Cache) Drop(lba uint64) {
	if f, ok := c.find(lba); ok {
		c.unindex(f)
		c.giveBack(f)
	}
}

// DropRange forgets n blocks from lba on. It costs a lookup a block, or one
// pass over the used frames where that is less.
func (c *Cache) DropRange(lba uint64, n int) {
	if n <= c.fresh {
		for i := range uint64(max(n, 0)) {
			c.Drop(lba + i)
		}
		return
	}
	for f := range Frame(c.fresh) {
		// The difference wraps for addresses below lba, and so exceeds n.
		if e := &c.entries[f]; e.indexed() && e.lba-lba < uint64(n) {
			c.unindex(f)
			c.giveBack(f)
		}
	}
}

// Detach takes a frame out of the cache for a disk read, evicting a block when
// none is vacant. It reports false when every frame is out or the cache has
// none. The frame must come back by Attach or Release.
func (c *Cache) Detach() (Frame, bool) {
	f, ok := c.take()
	if !ok {
		return 0, false
	}
	c.entries[f].state = detached
	c.detached++
	return f, true
}

// Attach indexes a detached frame, now filled, as the block at lba. When the
// block is there already, the frame is released instead and Attach reports
// false: what is resident was inserted while the read was under way, so it is
// at least as new. (A newer block that was inserted and evicted again leaves
// no trace here: the shard must not attach what a write has overtaken.)
func (c *Cache) Attach(lba uint64, f Frame) bool {
	c.reclaim(f)
	if _, ok := c.find(lba); ok {
		c.giveBack(f)
		return false
	}
	c.index(lba, f)
	return true
}

// Release gives a detached frame back unused.
func (c *Cache) Release(f Frame) {
	c.reclaim(f)
	c.giveBack(f)
}

// Bytes returns a detached frame's 4096 bytes, page-aligned. They stay the
// caller's until Attach or Release.
func (c *Cache) Bytes(f Frame) []byte {
	at := int(f) * FrameSize
	return c.frames[at : at+FrameSize : at+FrameSize]
}

// reclaim ends a frame's time outside. A frame that was not out would be in
// two hands at once, and one block's bytes would be served as another's.
func (c *Cache) reclaim(f Frame) {
	if s := c.entries[f].state; s != detached {
		panic(fmt.Sprintf("cache: frame %d came back in state %d, want %d (detached)", f, s, detached))
	}
	c.detached--
}

func (e *entry) indexed() bool { return e.state == resident || e.state == referenced }
