package journal

import (
	"errors"
	"sync/atomic"
	"time"

	"trivet/disk"
)

// Executor carries out what a lane decides. Its methods are called by the
// shard's owner inside a step, so they must not block, wait or call back; the
// result is reported later by calling the operation's Done.
type Executor interface {
	// IO appends or syncs: see IO.Execute. The operations of one lane are
	// executed, and reported, in order.
	IO(*IO)
	// Prepare makes a segment ready to be appended to.
	Prepare(*Prepare)
	// Load reads map pages from the slot's metadata.
	Load(*Load)
	// Commit stores a checkpoint in the slot's metadata.
	Commit(*Commit)
	// Clean carries out a piece of cleaning.
	Clean(*Clean)
	// Fill appends blocks that were copied from a peer.
	Fill(*Fill)
	// Recycle returns segments to the slot; the slice is the callee's.
	Recycle(segments []uint32)
}

// Open is a segment that a lane appends to, with a file handle of its own, so
// that an error of a sync is reported to this lane whoever else syncs the file.
type Open struct {
	Index  uint32
	Life   uint32
	Blocks uint32 // size of the segment
	File   disk.File
	Base   int64 // byte offset of the segment in the file
	// Fresh: nothing was ever written here, so the filesystem has still to
	// turn the blocks from allocated to written, in its own journal.
	Fresh bool

	next   uint32 // offset of the next batch, in blocks; 0 before the header
	zeroed uint32 // blocks up to here were written with zeros ahead
	chain  uint32 // CRC of the last descriptor
}

// IO is an append, a sync, or the close of a segment's handle.
type IO struct {
	Lane    LaneID
	Segment *Open
	Bufs    [][]byte      // empty: no append
	Offset  int64         // bytes in the file
	Zero    int64         // append: first write zeros to that many bytes from Offset on
	Durable bool          // append: durable on return; otherwise: sync the file
	Close   bool          // the last operation on this handle: close it, too
	Issued  time.Duration // when it was handed over
	Err     error         // set by the executor
	Done    func()        // called by the executor, once

	first, last LSN // records of the append; last is 0 for a mark
	generation  Generation
	through     LSN    // everything up to it is durable when this succeeds
	named       LSN    // own durable mark that becomes durable with it
	place       uint32 // block offset of the first data block
	after       replayPosition
	busy        bool
	failed      *bool  // shared by the lane's operations; see Execute
	block       []byte // the descriptor
	header      []byte // the segment header, for a first append
}

// ErrSkipped: an earlier operation of the lane failed, so this one was not
// carried out.
var ErrSkipped = errors.New("skipped after a failure")

// Execute appends or syncs and sets Err; closing the handle is left to the
// executor. After a failure everything that was handed over before the lane
// learnt of it fails as well: otherwise the next segment would be begun, and
// its header would vouch for a sync that failed. It is called from one
// goroutine at a time for all operations of a lane, in their order.
func (io *IO) Execute() {
	switch {
	case len(io.Bufs) == 0 && !io.Durable: // the lane lets go of the handle that failed
		*io.failed = false
		return
	case *io.failed:
		io.Err = ErrSkipped
		return
	case len(io.Bufs) > 0:
		io.Err = io.write()
	default:
		io.Err = io.Segment.File.Sync()
	}
	*io.failed = io.Err != nil
}

// Skipped tells that an earlier operation of the lane has failed, and the lane has
// not learnt of it: this one is not carried out.
func (io *IO) Skipped() bool { return *io.failed }

// Start hands an append to the kernel instead of executing it, if it is a
// single durable write and the kernel takes it: write returns false when it has
// done nothing. End must follow. The rules of Execute hold.
func (io *IO) Start(write func(f disk.File, bufs [][]byte, off int64) bool) bool {
	if len(io.Bufs) == 0 || !io.Durable || io.Zero > 0 || *io.failed {
		return false
	}
	return write(io.Segment.File, io.Bufs, io.Offset)
}

// End sets the result of an append that Start began.
func (io *IO) End(err error) {
	io.Err = err
	*io.failed = err != nil
}

func (io *IO) write() error {
	f := io.Segment.File
	if io.Zero > 0 {
		if err := f.Zero(io.Offset, io.Zero); err != nil {
			return err
		}
	}
	return f.Write(io.Bufs, io.Offset, io.Durable)
}

// Prepare asks for a segment.
type Prepare struct {
	Lane LaneID
	Zero bool  // write zeros first, so that small durable appends are cheap
	Got  *Open // set by the executor
	Err  error
	Done func()

	busy   bool
	issued time.Duration
}

// Load asks for the stored pages of regions.
type Load struct {
	Lane   LaneID
	Keys   [][]byte
	Values [][]byte // set by the executor; nil for an absent page
	Err    error
	Done   func()

	regions []Region
	busy    bool
	issued  time.Duration
}

// Pair is a key and value of a slot's metadata; a nil Value deletes.
type Pair struct {
	Key, Value []byte
}

// Commit asks for an atomic, durable change of the slot's metadata.
type Commit struct {
	Lane  LaneID
	Pairs []Pair
	Err   error
	Done  func()

	busy bool
}

// Read asks for data blocks of one slot's log. Every block is checked against
// its checksum by the executor, and told of by itself.
type Read struct {
	Slot   SlotID
	Blocks []ReadBlock
	Done   func() // called by the executor, once

	// Pending is the executor's: pieces of the read that are under way.
	Pending atomic.Int32
}

// ReadBlock is one block of a Read.
type ReadBlock struct {
	Entry Entry
	Buf   []byte // BlockSize bytes, aligned
	Err   error  // set by the executor; wraps ErrChecksum for a mismatch
}

// ErrLost: no slot could read a block when this one was copied.
var ErrLost = errors.New("the block is lost: no slot could read it")

// ErrChecksum: a block is not what was written to its place.
var ErrChecksum = errors.New("checksum mismatch")
