package shard

import (
	"errors"
	"sync/atomic"
	"time"

	"trivet/arena"
	"trivet/journal"
)

// MaxPartBlocks is the most blocks that a Read or Write part touches: parts
// with data do not cross a multiple of 64 blocks (256 KiB).
const MaxPartBlocks = 64

// Op is what a part asks for.
type Op uint8

// The operations of a part.
const (
	Read Op = iota
	Write
	Flush
	Trim   // whole blocks
	Zero   // whole blocks; they stay allocated
	Status // describe, move no data
	Cache  // a Read without a destination
)

// String names the operation for people.
func (o Op) String() string {
	return [...]string{"read", "write", "flush", "trim", "zero", "status", "cache"}[o]
}

// The errors of a part.
var (
	// ErrIO: no slot could read the data, or no quorum could make it durable.
	ErrIO = errors.New("input/output error")
	// ErrDeadline: the part took longer than it may.
	ErrDeadline = errors.New("deadline exceeded")
	// ErrStopped: too few slots are left; nothing is written until an operator
	// has seen to it and the volume was opened again.
	ErrStopped = errors.New("device is stopped: no quorum of slots")
)

// ErrStalled: a slot has had an operation of a lane for too long.
var ErrStalled = errors.New("no answer")

// Part is the piece of a request that lies in one region of one shard (a
// Flush: the share of the whole shard). It belongs to the submitter until
// Submit and again from Done on.
type Part struct {
	Op     Op
	FUA    bool
	Status bool        // a Read also fills Extents
	LBA    journal.LBA // first block
	Skip   int         // bytes of the first block before the data
	Length int         // bytes; Trim, Zero and Status: whole blocks
	Data   []byte      // Read: destination of Length bytes, nil for Cache
	// Pages and CRCs are a Write's payload, one for each block, put there by
	// Fill; Trim and Zero hold one page for their record.
	Pages [MaxPartBlocks]arena.Page
	CRCs  [MaxPartBlocks]uint32
	// Extents is appended to by Status.
	Extents []Extent
	// Prefer is the slot that a Read asks first, plus one; 0 leaves it to the shard.
	Prefer   int
	Deadline time.Duration // on the shard's clock
	// Left is set once nobody waits for the part any more: it is not logged then.
	// nil: somebody always does.
	Left *atomic.Bool
	Done func(*Part) // called once, not under the shard's ownership
	Err  error

	event  event
	queue  *partList // where it waits; nil while it runs
	older  *Part
	newer  *Part
	target journal.LSN   // durable before it completes
	since  time.Duration // when it began to wait for that, or for a map page
	stuck  int           // slot plus one whose map page it waits for since then
	avoid  uint8         // slots that have let it wait for too long, one bit each
	merged uint8         // bit 0, 1: first and last block were completed from older data
	held   bool          // it is one of turns.first
	op     *readOp       // the disk read it waits for
}

// Extent is a run of blocks with one status.
type Extent struct {
	Blocks  int
	Content journal.Content
}

// blocks returns the number of blocks that the part touches.
func (p *Part) blocks() int {
	return (p.Skip + p.Length + journal.BlockSize - 1) / journal.BlockSize
}

// span returns which bytes of block i the part covers, and where they are in
// its data.
func (p *Part) span(i int) (from, to, at int) {
	from, to = 0, journal.BlockSize
	at = i*journal.BlockSize - p.Skip
	if i == 0 {
		from, at = p.Skip, 0
	}
	if end := p.Skip + p.Length - i*journal.BlockSize; end < to {
		to = end
	}
	return from, to, at
}

// Fill puts data into the part's pages and computes the checksums of whole
// blocks. It runs outside of the shard; the pages were allocated by the caller.
func (p *Part) Fill(a *arena.Arena, data []byte) {
	for i := range p.blocks() {
		from, to, at := p.span(i)
		page := a.Bytes(p.Pages[i])
		copy(page[from:to], data[at:])
		if to-from == journal.BlockSize {
			p.CRCs[i] = journal.Checksum(page)
		}
	}
}

// addExtent notes n blocks of one content.
func (p *Part) addExtent(n int, c journal.Content) {
	if last := len(p.Extents) - 1; last >= 0 && p.Extents[last].Content == c {
		p.Extents[last].Blocks += n
		return
	}
	p.Extents = append(p.Extents, Extent{n, c})
}

// partList is an intrusive queue of parts, oldest first. A part is in one at
// most.
type partList struct {
	oldest, newest *Part
	len            int
}

func (l *partList) push(p *Part) {
	p.queue, p.older, p.newer = l, l.newest, nil
	if l.newest != nil {
		l.newest.newer = p
	} else {
		l.oldest = p
	}
	l.newest = p
	l.len++
}

func (l *partList) remove(p *Part) {
	if p.older != nil {
		p.older.newer = p.newer
	} else {
		l.oldest = p.newer
	}
	if p.newer != nil {
		p.newer.older = p.older
	} else {
		l.newest = p.older
	}
	p.queue, p.older, p.newer = nil, nil, nil
	l.len--
}

// pop removes and returns the oldest part, or nil.
func (l *partList) pop() *Part {
	p := l.oldest
	if p != nil {
		l.remove(p)
	}
	return p
}
