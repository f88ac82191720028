package nbd

import (
	"fmt"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// maxDrained is the longest payload that is received only to refuse it. A
// longer one is taken for an attack, or for noise: the connection is closed.
const maxDrained = 2 * maxPayload

// payload is the rest of a write that is received in chunks, or drained.
type payload struct {
	head protocol.TransmissionRequestHeader
	cmd  *command // the whole; failed already if the payload is only drained
	at   uint64   // offset on the device of the next byte
	left uint64   // bytes to come; 0 when there is no such write

	since time.Time // when the header came: one deadline for all chunks
}

// receiveWrite consumes a write that lies in one chunk and is complete, or
// begins to receive a longer one.
func (c *conn) receiveWrite(h *protocol.TransmissionRequestHeader) (need int, err error) {
	errno, reason := c.session.check(h)
	if errno == 0 {
		c.grow()
	}
	if errno != 0 || h.Length > c.chunkLeft(h.Offset) {
		return 0, c.beginPayload(h, errno, reason)
	}
	n := requestBytes + int(h.Length)
	if len(c.in.bytes()) < n {
		c.headCame = c.since()
		return n, nil
	}
	if h.Length == 0 {
		c.in.consume(n)
		return 0, c.answer(h, 0, "")
	}
	if err := c.admit(0, uint64(h.Length)); err != nil {
		return 0, err
	}
	cmd := c.command(h)
	cmd.charged = uint64(h.Length)
	cmd.request.Data = c.in.bytes()[requestBytes:n]
	cmd.request.Since = c.since()
	c.headCame = time.Time{}
	c.srv.backend.Post(&cmd.request)
	c.in.consume(n)
	return 0, nil
}

// chunkLeft is how many bytes there are from an offset to the end of its chunk.
func (c *conn) chunkLeft(offset uint64) uint32 {
	chunk := uint64(chunkBytes)
	if c.lent == 0 {
		chunk = leastChunk
	}
	return uint32(chunk - offset%chunk)
}

// grow makes room for whole chunks in the input, if there is memory that nobody may
// need; it does without otherwise.
func (c *conn) grow() {
	if c.lent != 0 || !c.srv.loans.take(inputBytes-leastInput, leastShared) {
		return
	}
	c.lent = inputBytes - leastInput
	mem := make([]byte, inputBytes)
	c.in.w = copy(mem, c.in.bytes())
	c.in.r, c.in.mem = 0, mem
}

// shrink gives back what was lent for the input, which must fit without.
func (c *conn) shrink() {
	if c.lent == 0 {
		return
	}
	mem := make([]byte, leastInput)
	c.in.w = copy(mem, c.in.bytes())
	c.in.r, c.in.mem = 0, mem
	c.srv.loans.give(c.lent)
	c.lent = 0
}

// yieldInput shrinks the input when it is not needed and others wait for memory.
func (c *conn) yieldInput() {
	if c.lent > 0 && c.in.r == c.in.w && c.payload.left == 0 && c.srv.loans.scarce.Load() {
		c.shrink()
	}
}

// beginPayload begins to receive the payload of a write that takes several
// chunks or, with an error, to drain it.
func (c *conn) beginPayload(h *protocol.TransmissionRequestHeader, errno uint32, reason string) error {
	c.in.consume(requestBytes)
	if h.Length > maxDrained {
		if err := c.answer(h, errno, reason); err != nil {
			return err
		}
		return fmt.Errorf("%w: write with a payload of %d bytes, at most %d are drained", errOutOfStep, h.Length, maxDrained)
	}
	c.unread = uint64(h.Length) // while it waits, what follows is payload
	if err := c.admit(0, 0); err != nil {
		return err
	}
	c.unread = 0
	cmd := c.command(h)
	cmd.fail(errno, reason)
	cmd.parts = 1
	c.payload = payload{head: *h, cmd: cmd, at: h.Offset, left: uint64(h.Length), since: c.since()}
	c.headCame = time.Time{}
	if h.Length == 0 {
		c.endPayload()
	}
	return nil
}

// receivePayload consumes the next chunk of the payload, if it is complete.
func (c *conn) receivePayload() (need int, err error) {
	p := &c.payload
	have := len(c.in.bytes())
	if c.failed(p.cmd) {
		if have == 0 {
			return 1, nil
		}
		c.advancePayload(int(min(p.left, uint64(have))))
		return 0, nil
	}
	n := int(min(p.left, uint64(c.chunkLeft(p.at))))
	if have < n {
		return n, nil
	}
	if err := c.admit(0, uint64(n)); err != nil {
		return 0, err
	}
	c.submitPart(n)
	c.advancePayload(n)
	return 0, nil
}

// failed tells whether the rest of a long write is not worth writing, because
// an earlier part has failed.
func (c *conn) failed(whole *command) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return whole.errno != 0
}

// submitPart submits the next n bytes of the payload. Each part of a FUA write
// is a FUA write: the parts may lie in different regions, and the reply to the
// whole vouches for all of them.
func (c *conn) submitPart(n int) {
	p := &c.payload
	h := p.head
	h.Offset, h.Length = p.at, uint32(n)
	part := c.command(&h)
	part.whole, part.charged = p.cmd, uint64(n)
	part.request.Data = c.in.bytes()[:n]
	part.request.Since = p.since
	c.mu.Lock()
	p.cmd.parts++
	c.mu.Unlock()
	c.srv.backend.Post(&part.request)
}

// advancePayload consumes n bytes of the payload.
func (c *conn) advancePayload(n int) {
	p := &c.payload
	c.in.consume(n)
	p.at += uint64(n)
	p.left -= uint64(n)
	if p.left == 0 {
		c.endPayload()
	}
}

// endPayload lets the write complete when its last part does.
func (c *conn) endPayload() {
	c.mu.Lock()
	defer c.mu.Unlock()
	whole := c.payload.cmd
	c.payload = payload{}
	c.finishPart(whole)
}

// abandonPayload ends a write whose payload will not come any more. It is not
// answered: a kernel whose server goes away in the middle sends it again to the
// next one, but would pass an error on to its filesystem.
func (c *conn) abandonPayload() {
	if c.payload.cmd == nil {
		return
	}
	c.unread = c.payload.left
	c.mu.Lock()
	c.payload.cmd.abandoned = true
	c.mu.Unlock()
	c.endPayload()
}
