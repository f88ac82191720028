package nbd

import (
	"fmt"

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
}

// receiveWrite consumes a write that lies in one chunk and is complete, or
// begins to receive a longer one.
func (c *conn) receiveWrite(h *protocol.TransmissionRequestHeader) (need int, err error) {
	errno, reason := c.session.check(h)
	if errno != 0 || h.Length > chunkLeft(h.Offset) {
		return 0, c.beginPayload(h, errno, reason)
	}
	n := requestBytes + int(h.Length)
	if len(c.in.bytes()) < n {
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
	c.srv.backend.Post(&cmd.request)
	c.in.consume(n)
	return 0, nil
}

// chunkLeft is how many bytes there are from an offset to the end of its chunk.
func chunkLeft(offset uint64) uint32 { return uint32(chunkBytes - offset%chunkBytes) }

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
	if err := c.admit(0, 0); err != nil {
		return err
	}
	cmd := c.command(h)
	cmd.fail(errno, reason)
	cmd.parts = 1
	c.payload = payload{head: *h, cmd: cmd, at: h.Offset, left: uint64(h.Length)}
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
	n := int(min(p.left, uint64(chunkLeft(p.at))))
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
	c.mu.Lock()
	c.payload.cmd.abandoned = true
	c.mu.Unlock()
	c.endPayload()
}
