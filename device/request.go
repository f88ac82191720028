package device

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// Op is what a request asks the device to do.
type Op uint8

// The operations that a front-end can submit.
const (
	Read Op = iota
	Write
	Flush
	Trim        // the range becomes a hole; it reads as zeros
	WriteZeroes // the range reads as zeros; a hole unless NoHole is set
	Cache       // read the range into memory, return nothing
	BlockStatus // fill Extents, move no data
)

// String names the operation as status, metrics and logs print it.
func (o Op) String() string {
	names := [...]string{"read", "write", "flush", "trim", "write-zeroes", "cache", "block-status"}
	if int(o) < len(names) {
		return names[o]
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Flags modify a request.
type Flags uint8

// The flags of a request.
const (
	// FUA completes the request only once it is durable on a quorum, with
	// everything that was written before it. Valid on Write, Trim, WriteZeroes.
	FUA Flags = 1 << iota
	// NoHole keeps a zeroed range allocated: BlockStatus reports zeros, not a
	// hole. Valid on WriteZeroes.
	NoHole
	// WantExtents asks a Read to describe in Extents what it read, so that a
	// front-end can answer with holes.
	WantExtents
	// FastZero asks a WriteZeroes to fail with ErrUnsupported rather than to write
	// blocks: the ends of a range that covers blocks in part.
	FastZero
	// ReqOne asks BlockStatus for the first extent alone.
	ReqOne
)

// Extent describes a run of bytes with one allocation status.
type Extent struct {
	Length uint64 // bytes
	Hole   bool   // nothing is stored for the range
	Zero   bool   // the range reads as zeros
}

// The errors with which a request completes. Front-ends map them to their
// protocol; anything else in Request.Err is an I/O error.
var (
	ErrIO       = errors.New("input/output error")
	ErrNoSpace  = errors.New("no space left on the slots")
	ErrInvalid  = errors.New("invalid request")
	ErrShutdown = errors.New("device is shutting down")
	ErrDeadline = errors.New("deadline exceeded")
	// ErrUnsupported: it cannot be done as fast as was asked.
	ErrUnsupported = errors.New("not supported")
	// ErrWithdrawn: its client hung up before it was begun. Nobody hears of it.
	ErrWithdrawn = errors.New("withdrawn")
)

// Presence is whether a client is there to hear the answer.
type Presence uint8

// The answers of a Peer.
const (
	Here   Presence = iota
	Gone            // what was not begun is not begun any more
	Unsure          // it may have hung up; Device.Withdraw or Device.Resume follows
)

// Peer is who sent a request. What has waited is begun only if its peer is still
// there.
type Peer interface {
	// Ask reports on the client as it is now. It may be called on any goroutine
	// and with locks of the device held, and must not block or call the device.
	Ask() Presence
}

// Request is one operation on the device. The front-end owns it until Submit
// and again from the call of Done on; in between it belongs to the device and
// must not be touched, reused or freed.
type Request struct {
	Op     Op
	Flags  Flags
	Offset uint64 // bytes, any alignment
	Length uint32 // bytes, any alignment; 0 only for Flush

	// Data is the destination of a Read (Length bytes; the device writes it
	// before it calls Done, and never after) or the payload of a Write (Length
	// bytes; the device has consumed it when Submit returns, so a front-end may
	// reuse the memory at once).
	Data []byte

	// Extents is filled for BlockStatus and for Read with WantExtents: it
	// covers the range from Offset on, without gaps, neighbours differ, and the
	// lengths add up to Length (or to less for BlockStatus with ReqOne). The
	// device appends to Extents[:0], so a reused request does not allocate.
	Extents []Extent

	// Done is called exactly once, after Err was set: on the goroutine that
	// called Submit, before Submit returns, or later on any other. It must not
	// block and may call Submit.
	Done func(*Request)

	// Err is nil when the request succeeded.
	Err error

	// Tag is the front-end's own.
	Tag uint64

	// Client names who asks: writes that have to wait for room are let in by
	// turns among clients, and in order within each. 0 for those without a name.
	Client uint64

	// Peer is asked before what has waited is begun; nil for those that never hang
	// up.
	Peer Peer
	// Left is set once the Peer is gone; nil together with Peer.
	Left *atomic.Bool

	// Since is when the request came, from which on its deadline runs. Zero: when
	// it is submitted.
	Since time.Time

	device state
}

// Info is what a front-end needs to know of a device before it serves it.
type Info struct {
	Name      string // the volume's name; also served under the empty name
	SizeBytes uint64
	// Deadline is by when a request completes after it came; 0: never.
	Deadline time.Duration
}
