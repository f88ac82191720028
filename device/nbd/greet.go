package nbd

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

const (
	// maxOption is the longest option data that is looked at.
	maxOption = 64 << 10
	// maxSkippedOption is the longest option data that is read over to stay in
	// step; beyond, the connection is closed.
	maxSkippedOption = 4 << 20
)

// negotiate runs the handshake on the connection, within the time that one may
// take. What the client sent ahead stays in the input.
func (c *conn) negotiate() error {
	if err := c.nc.SetDeadline(time.Now().Add(c.srv.opts.HandshakeTimeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	c.in.stall, c.in.mem = 0, make([]byte, leastInput)
	h := &handshake{export: c.srv.backend.Info(), place: func() error { return c.srv.place(c) }}
	if err := c.haggle(h); err != nil {
		return err
	}
	if b := c.in.bytes(); len(c.in.mem) > leastInput && len(b) <= leastInput {
		mem := make([]byte, leastInput)
		c.in.w = copy(mem, b)
		c.in.r, c.in.mem = 0, mem
	}
	c.session = h.session()
	c.in.oldest, c.in.drained = c.session.deadline, time.Now()
	c.in.stall = c.srv.opts.MessageTimeout
	if err := c.nc.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	return nil
}

// haggle greets the client and answers its options until one of them ends the
// negotiation.
func (c *conn) haggle(h *handshake) error {
	if _, err := c.nc.Write(greeting()); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	flags, err := c.take(4)
	if err != nil {
		return fmt.Errorf("client flags: %w", err)
	}
	if err := h.clientFlags(binary.BigEndian.Uint32(flags)); err != nil {
		return err
	}
	for {
		next, err := c.answerOption(h)
		switch {
		case err != nil:
			return err
		case next == transmit:
			return nil
		case next == hangUp:
			return errDisconnect
		}
	}
}

// answerOption reads one option and answers it.
func (c *conn) answerOption(h *handshake) (outcome, error) {
	head, err := c.take(optionHeaderBytes)
	if err != nil {
		return hangUp, err
	}
	magic := binary.BigEndian.Uint64(head)
	id, length := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
	if magic != protocol.NEGOTIATION_MAGIC_OPTION {
		return hangUp, fmt.Errorf("%w: option magic %#x, want %#x", errOutOfStep, magic, protocol.NEGOTIATION_MAGIC_OPTION)
	}
	out, next, err := c.optionReplies(h, id, length)
	if err != nil {
		return hangUp, err
	}
	if _, err := c.nc.Write(out); err != nil {
		return hangUp, fmt.Errorf("answer option %d: %w", id, err)
	}
	return next, nil
}

// optionReplies takes an option's data off the socket, whatever its length,
// and makes the replies.
func (c *conn) optionReplies(h *handshake, id, length uint32) ([]byte, outcome, error) {
	switch {
	case length > maxSkippedOption:
		return nil, hangUp, fmt.Errorf("%w: option %d with %d bytes of data, at most %d are read over", errOutOfStep, id, length, maxSkippedOption)
	case length > maxOption:
		if err := c.skip(int(length)); err != nil {
			return nil, hangUp, err
		}
		out, next := h.tooBig(id, nil)
		return out, next, nil
	}
	data, err := c.take(int(length))
	if err != nil {
		return nil, hangUp, fmt.Errorf("option %d: %w", id, err)
	}
	out, next := h.option(id, data, nil)
	return out, next, nil
}

// take returns the next n bytes, valid until the next read.
func (c *conn) take(n int) ([]byte, error) {
	if n > len(c.in.mem) { // the data of an option
		mem := make([]byte, maxOption)
		c.in.w = copy(mem, c.in.bytes())
		c.in.r, c.in.mem = 0, mem
	}
	if err := c.in.fill(n, false); err != nil {
		return nil, err
	}
	b := c.in.bytes()[:n]
	c.in.consume(n)
	return b, nil
}

// skip reads over n bytes.
func (c *conn) skip(n int) error {
	for n > 0 {
		b, err := c.take(min(n, maxOption))
		if err != nil {
			return fmt.Errorf("skip option data: %w", err)
		}
		n -= len(b)
	}
	return nil
}
