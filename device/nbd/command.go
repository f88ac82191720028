package nbd

import (
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"trivet/device"
)

// session is what the handshake agreed on.
type session struct {
	sizeBytes  uint64
	deadline   time.Duration // of a request; 0: it has none
	structured bool          // structured replies
	allocation bool          // base:allocation may be queried
}

// grammar says what each command may carry and what it asks of the device.
var grammar = [...]struct {
	op        device.Op
	flags     uint16 // command flags that may be set
	pastEnd   uint32 // the error for a range that reaches past the end
	supported bool
}{
	cmdRead:        {device.Read, flagFUA | flagDF, errnoInvalid, true},
	cmdWrite:       {device.Write, flagFUA, errnoNoSpace, true},
	cmdFlush:       {device.Flush, flagFUA, errnoInvalid, true},
	cmdTrim:        {device.Trim, flagFUA, errnoInvalid, true},
	cmdCache:       {device.Cache, flagFUA, errnoInvalid, true},
	cmdWriteZeroes: {device.WriteZeroes, flagFUA | flagNoHole | flagFastZero, errnoNoSpace, true},
	cmdBlockStatus: {device.BlockStatus, flagFUA | flagReqOne, errnoInvalid, true},
}

// check returns the protocol's error for a request that must not reach the
// device, and a reason for people; 0 when it may. proto.md, "Error values".
func (s *session) check(h *protocol.TransmissionRequestHeader) (errno uint32, reason string) {
	if int(h.Type) >= len(grammar) || !grammar[h.Type].supported {
		return errnoInvalid, "unknown command"
	}
	rule := &grammar[h.Type]
	switch {
	case h.CommandFlags&^rule.flags != 0:
		return errnoInvalid, "flag not valid for this command"
	case h.CommandFlags&flagDF != 0 && !s.structured:
		return errnoInvalid, "DF without structured replies"
	case h.Type == cmdBlockStatus && !s.allocation:
		return errnoInvalid, "no metadata context was selected"
	case h.Type == cmdFlush && (h.Offset != 0 || h.Length != 0):
		return errnoInvalid, "flush carries no range"
	case h.Offset > s.sizeBytes || uint64(h.Length) > s.sizeBytes-h.Offset:
		return rule.pastEnd, "range reaches past the end of the export"
	case h.Length > maxPayload && h.Type == cmdWrite:
		return errnoInvalid, "payload above the advertised maximum"
	case h.Length > maxPayload && h.Type == cmdRead:
		return s.tooLongRead(), "read above the advertised maximum"
	}
	return 0, ""
}

// tooLongRead is EOVERFLOW only where proto.md allows it: where the client
// could have expected a fragmented reply.
func (s *session) tooLongRead() uint32 {
	if s.structured {
		return errnoOverflow
	}
	return errnoInvalid
}

// deviceFlags translates the flags of a request that passed check.
func (s *session) deviceFlags(h *protocol.TransmissionRequestHeader) device.Flags {
	var f device.Flags
	switch h.Type {
	case cmdWrite, cmdTrim, cmdWriteZeroes:
		if h.CommandFlags&flagFUA != 0 {
			f |= device.FUA
		}
		if h.CommandFlags&flagNoHole != 0 {
			f |= device.NoHole
		}
		if h.CommandFlags&flagFastZero != 0 {
			f |= device.FastZero
		}
	case cmdRead:
		if s.structured && h.CommandFlags&flagDF == 0 {
			f |= device.WantExtents
		}
	case cmdBlockStatus:
		if h.CommandFlags&flagReqOne != 0 {
			f |= device.ReqOne
		}
	}
	return f
}

// deviceLength is how much of the range the device is asked for. A status
// reply may be shorter than its request, and a cache hint may be followed in
// part; the clamps keep one small request from making much work or memory.
func deviceLength(h *protocol.TransmissionRequestHeader) uint32 {
	switch h.Type {
	case cmdBlockStatus:
		return min(h.Length, maxStatus)
	case cmdCache:
		return min(h.Length, maxPayload)
	}
	return h.Length
}

// Limits on block status: a request is answered for its first 64 MiB at most,
// and with at most one extent a block.
const (
	maxStatus   = 64 << 20
	extentBytes = 24 // of a device.Extent
)

// maxExtents bounds the extents of a range of n bytes whose ends are ragged.
func maxExtents(n uint32) int { return int(n/preferredBlock) + 2 }

// command is one request of a client, or one part of a long write, on its way
// through the device. It belongs to its connection's pool, to the reader until
// Submit, to the device until Done.
type command struct {
	request device.Request
	conn    *conn
	next    *command // in a list of free commands

	cookie uint64
	kind   uint16
	errno  uint32 // the first error; 0 while there is none
	reason string

	reply    *buffer // where a read's payload goes
	reserved uint64  // bytes of the reply quota that this command holds
	charged  uint64  // bytes of the write quota, until the device has completed it

	// A write longer than a chunk is a command without a request of its own
	// (the whole) and one command for each chunk (a part, which names it).
	// parts counts those not completed, and one for the payload that the
	// reader still awaits. Guarded by conn.mu.
	whole     *command
	parts     int
	abandoned bool // the payload will not be complete: no reply
}

// newCommand makes a command whose Done needs no allocation later on.
func newCommand(c *conn) *command {
	cmd := &command{conn: c}
	cmd.request.Client, cmd.request.Peer, cmd.request.Left = c.number, c, &c.left
	cmd.request.Done = func(*device.Request) { c.completed(cmd) }
	return cmd
}

// prepare fills the command for a request of the client's.
func (cmd *command) prepare(h *protocol.TransmissionRequestHeader, s *session) {
	cmd.cookie, cmd.kind = h.Handle, h.Type
	cmd.errno, cmd.reason = 0, ""
	r := &cmd.request
	r.Offset, r.Length = h.Offset, deviceLength(h)
	r.Data, r.Extents, r.Err = nil, r.Extents[:0], nil
	if int(h.Type) < len(grammar) {
		r.Op = grammar[h.Type].op
		r.Flags = s.deviceFlags(h)
	}
}

// fail records the first error.
func (cmd *command) fail(errno uint32, reason string) {
	if cmd.errno == 0 {
		cmd.errno, cmd.reason = errno, reason
	}
}

// forget drops what a free command should not keep alive.
func (cmd *command) forget() {
	cmd.request.Data = nil
	cmd.whole = nil
	cmd.abandoned = false
	cmd.reserved = 0
	if cap(cmd.request.Extents) > keptExtents {
		cmd.request.Extents = nil
	}
}

// keptExtents is how many extents a free command may keep room for (6 KiB).
const keptExtents = 256
