package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
)

const (
	// chunkBytes is the unit in which long writes are handed to the device.
	// Chunks end at its multiples, so that most of them lie in one region.
	chunkBytes = 256 << 10

	// inputBytes lets a whole chunk lie behind its header, and many short writes be
	// parsed from one read.
	inputBytes = chunkBytes + 4<<10

	// leastChunk and leastInput are the same of a connection that has sent no write
	// yet, or for whose writes there is no more memory.
	leastChunk = 32 << 10
	leastInput = leastChunk + 4<<10

	// exactBytes is the length from which on a read stops at the end of what
	// is awaited. The next chunk then starts at the front of the buffer and
	// never has to be moved.
	exactBytes = 64 << 10

	// movedBytes are moved to the front of the buffer for the sake of a longer
	// read, even if what is awaited would fit behind them.
	movedBytes = 4 << 10
)

// The ways in which a connection ends that are not I/O errors.
var (
	errStalled    = errors.New("nothing came for the rest of a message")
	errClosing    = errors.New("server is closing")
	errDisconnect = errors.New("client disconnected")
	errOutOfStep  = errors.New("client is out of step")
)

// input is what was received and not yet consumed. It belongs to the
// connection's reader.
type input struct {
	nc      net.Conn
	closing *atomic.Bool
	stall   time.Duration // the longest pause within a message; 0 while the handshake's own deadline stands

	mem  []byte
	r, w int // mem[r:w] is unconsumed

	deadline time.Time // of reads, as last set; zero when there is none

	// See arrival.go.
	pulse   *pulse
	total   uint64        // bytes read so far
	came    time.Time     // when the last bytes came that were read
	drained time.Time     // when all was read that had come
	marks   marks         // of what was not read yet
	oldest  time.Duration // at which a connection is cut; 0: never
}

// bytes is what can be parsed now.
func (in *input) bytes() []byte { return in.mem[in.r:in.w] }

// consume drops the first n bytes.
func (in *input) consume(n int) {
	in.r += n
	if in.r == in.w {
		in.r, in.w = 0, 0
	}
}

// fill reads until at least n bytes can be parsed. inside tells that the
// client has begun a message and must go on with it; else it may be silent
// for ever.
func (in *input) fill(n int, inside bool) error {
	if in.r > 0 && (len(in.mem)-in.r < n || in.w-in.r <= movedBytes) {
		in.w = copy(in.mem, in.bytes())
		in.r = 0
	}
	limit := len(in.mem)
	if n >= exactBytes {
		limit = in.r + n
	}
	for in.w-in.r < n {
		m, err := in.read(in.mem[in.w:limit], inside || in.w > in.r)
		in.w += m
		if err != nil {
			return err
		}
	}
	return nil
}

// read reads once, with the deadline that the situation asks for.
func (in *input) read(p []byte, inside bool) (int, error) {
	for {
		if err := in.arm(inside); err != nil {
			return 0, err
		}
		n, err := in.nc.Read(p)
		switch {
		case n > 0:
			return n, in.stamp(n, len(p))
		case err == nil:
			continue
		case errors.Is(err, io.EOF) && !inside:
			return 0, io.EOF
		case errors.Is(err, io.EOF):
			return 0, io.ErrUnexpectedEOF
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return 0, fmt.Errorf("receive: %w", err)
		case (inside || in.stall == 0) && !in.closing.Load():
			return 0, errStalled
		}
		// An idle client met the deadline of its last message, or Close
		// interrupted the read, which arm tells apart.
		if err := in.setDeadline(time.Time{}); err != nil {
			return 0, err
		}
	}
}

// arm sets a deadline for the rest of a message. A deadline costs more than a
// short read, so one that still has most of its time to run is left, and none
// is taken back when the message is complete.
func (in *input) arm(inside bool) error {
	if inside && in.stall > 0 {
		if now := time.Now(); in.deadline.Sub(now) < in.stall-in.stall/4 {
			return in.setDeadline(now.Add(in.stall))
		}
	}
	if in.closing.Load() {
		return errClosing
	}
	return nil
}

// setDeadline sets the deadline of reads. Close stores closing before it sets
// a deadline in the past; so whichever comes last here, it is noticed.
func (in *input) setDeadline(t time.Time) error {
	in.deadline = t
	if err := in.nc.SetReadDeadline(t); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	if in.closing.Load() {
		return errClosing
	}
	return nil
}
