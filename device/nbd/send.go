package nbd

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sending, in turns:
//
//  1. Completions append replies to conn.pending, under conn.mu.
//  2. Whoever finds conn.writing false and something pending sets it, takes the
//     outbox, and writes as much as the socket takes without waiting: the
//     reader at the end of its batch, or, while the reader is idle, a completion
//     on another goroutine that is the last one expected. So at depth 1 a reply
//     costs no hand-off.
//  3. What is left, or arrived meanwhile, goes with the flag to the writer
//     goroutine, which may wait. So do replies that more are to follow.
//
// At most one goroutine is in 2 or 3, so replies never mix, and a completion
// never waits for a client.

// outbox is replies in the order in which they leave. The order among replies
// is free; the chunks of one reply stay in order, because they are either all
// in small or all neighbours in segments.
type outbox struct {
	small    []byte    // replies without payload, and status chunks
	segments []segment // the rest
	bytes    int       // in segments
	commands uint64    // whose replies these are
}

// segment is a piece of a reply.
type segment struct {
	data    []byte
	release *buffer // goes back to the pool once data was sent; may be nil
}

// add appends a piece whose memory is released with a later one.
func (o *outbox) add(data []byte) {
	o.segments = append(o.segments, segment{data: data})
	o.bytes += len(data)
}

func (o *outbox) empty() bool { return o.commands == 0 }

// reset empties the outbox and keeps its memory, unless a burst made it large.
func (o *outbox) reset() {
	if cap(o.small) > keptSmallBytes {
		o.small = nil
	}
	clear(o.segments)
	*o = outbox{small: o.small[:0], segments: o.segments[:0]}
}

const (
	// keptSmallBytes holds the replies to maxCommands writes.
	keptSmallBytes = maxCommands * chunkHeaderBytes
	// maxPieces is how many pieces one system call writes.
	maxPieces = 256
)

// outgoing is what is being sent. It belongs to whoever set conn.writing.
type outgoing struct {
	box       outbox
	smallSent int
	next      int // the first segment that is not wholly sent

	wait     bool // for the socket to take more
	progress int  // bytes that the last write took
	err      error
	write    func(fd uintptr) bool // writeOnce, made once

	pieces [maxPieces]unix.Iovec
}

// sent tells that nothing of the box is left.
func (o *outgoing) sent() bool {
	return o.smallSent == len(o.box.small) && o.next == len(o.box.segments)
}

// writeOnce writes pieces of the box. It returns false to be called again when
// the socket takes more.
func (o *outgoing) writeOnce(fd uintptr) bool {
	n := o.gather()
	defer clear(o.pieces[:n])
	for {
		r, _, errno := syscall.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&o.pieces[0])), uintptr(n))
		switch {
		case errno == syscall.EINTR:
			continue
		case errno == syscall.EAGAIN:
			return !o.wait
		case errno != 0:
			o.err = fmt.Errorf("send: %w", errno)
		default:
			o.progress = int(r)
		}
		return true
	}
}

// gather lists what is left of the box, as far as one call takes it.
func (o *outgoing) gather() int {
	n := 0
	if small := o.box.small[o.smallSent:]; len(small) > 0 {
		o.pieces[0] = piece(small)
		n = 1
	}
	for i := o.next; i < len(o.box.segments) && n < maxPieces; i++ {
		if data := o.box.segments[i].data; len(data) > 0 {
			o.pieces[n] = piece(data)
			n++
		}
	}
	return n
}

func piece(b []byte) unix.Iovec {
	return unix.Iovec{Base: &b[0], Len: uint64(len(b))}
}

// advance drops the n bytes that were written, returns buffers to the pool and
// tells how many bytes of the reply quota they were.
func (o *outgoing) advance(n int, pool *bufferPool) (returned uint64) {
	small := min(n, len(o.box.small)-o.smallSent)
	o.smallSent += small
	n -= small
	for o.next < len(o.box.segments) {
		s := &o.box.segments[o.next]
		if n < len(s.data) {
			s.data = s.data[n:]
			break
		}
		n -= len(s.data)
		returned += s.free(pool)
		o.next++
	}
	return returned
}

// free returns the segment's buffer, and what that was of the reply quota.
func (s *segment) free(pool *bufferPool) uint64 {
	if s.release == nil {
		return 0
	}
	cost := s.release.class.cost()
	pool.put(s.release)
	s.release = nil
	return cost
}

// beginBatch makes completions leave their replies to the reader, which may submit
// from now on. It fails when the client is gone.
func (c *conn) beginBatch() error {
	c.turn.Lock()
	c.posting.Store(true)
	c.inBatch = true
	if c.doubtful() {
		if err := c.decide(); err != nil {
			return err
		}
	}
	c.mu.Lock()
	c.unsent, c.batching = 0, true
	c.mu.Unlock()
	return nil
}

// endBatch has the batch carried out, and sends what of it has completed, as
// far as that needs no waiting.
func (c *conn) endBatch() {
	if c.inBatch {
		c.inBatch = false
		c.posting.Store(false)
		c.turn.Unlock()
	}
	c.srv.backend.Run()
	c.yieldInput()
	c.mu.Lock()
	c.batching = false
	c.active = c.in.came
	c.issued, c.issuedBytes = c.taken.commands, c.taken.bytes()
	c.seen = c.returned
	c.repay()
	c.sendWithoutWaiting()
}

// sendFromCompletion sends what a completion queued, or has it sent. c.mu is
// held, and released.
func (c *conn) sendFromCompletion() {
	switch {
	case c.batching || c.writing || c.pending.empty():
		c.mu.Unlock()
	case c.finished != c.issued:
		// More completions are to come, and while the writer goroutine wakes
		// some do, so that it sends several at once. Sending each from here
		// took three times as long at depth 32, and held up the completer.
		c.writing = true
		c.mu.Unlock()
		c.kick <- struct{}{}
	default:
		c.sendWithoutWaiting()
	}
}

// sendWithoutWaiting makes the caller the sender, if there is none, for one
// round. c.mu is held, and released.
func (c *conn) sendWithoutWaiting() {
	if c.writing || c.pending.empty() {
		c.mu.Unlock()
		return
	}
	c.writing = true
	c.load()
	c.mu.Unlock()

	c.out.wait = false
	returned := c.writeSome()

	c.mu.Lock()
	c.returned.replyBytes += returned
	if c.out.sent() {
		c.unload()
	}
	if c.out.sent() && c.pending.empty() {
		c.writing = false
		c.regained()
		c.mu.Unlock()
		return
	}
	c.regained()
	c.mu.Unlock()
	c.kick <- struct{}{} // never blocks: it goes with the flag
}

// load moves the pending replies to the outgoing ones, which are empty.
// c.mu is held, and the caller is the sender.
func (c *conn) load() { c.pending, c.out.box = c.out.box, c.pending }

// unload accounts for replies that have left. c.mu is held, and the caller is
// the sender.
func (c *conn) unload() {
	c.returned.commands += c.out.box.commands
	c.out.box.reset()
	c.out.smallSent, c.out.next = 0, 0
}

// writeSome makes one attempt to write; with out.wait it takes until the
// socket has taken something. It returns bytes of the reply quota.
func (c *conn) writeSome() uint64 {
	o := &c.out
	o.progress = 0
	if err := c.raw.Write(o.write); err != nil {
		o.err = fmt.Errorf("send: %w", err)
	}
	return o.advance(o.progress, &c.srv.pool)
}

// startWriter starts the goroutine that sends when sending needs waiting.
func (c *conn) startWriter() {
	go func() {
		defer close(c.done)
		for range c.kick {
			if err := c.sendAll(); err != nil {
				c.giveUp(err)
			}
		}
	}()
}

// sendAll sends until nothing is pending. The caller is the sender, and is not
// any more when it returns nil.
func (c *conn) sendAll() error {
	c.out.wait = true
	for {
		if err := c.sendLoaded(); err != nil {
			return err
		}
		c.mu.Lock()
		c.unload()
		c.regained()
		if c.pending.empty() {
			c.writing = false
			c.mu.Unlock()
			return nil
		}
		c.load()
		c.mu.Unlock()
	}
}

// sendLoaded sends the outgoing replies. A client that takes nothing for the
// time of a stall is given up.
func (c *conn) sendLoaded() error {
	for !c.out.sent() {
		if err := c.nc.SetWriteDeadline(time.Now().Add(c.srv.opts.ReplyTimeout)); err != nil {
			return fmt.Errorf("set deadline: %w", err)
		}
		returned := c.writeSome()
		if c.out.err != nil {
			return c.out.err
		}
		if returned > 0 {
			c.mu.Lock()
			c.returned.replyBytes += returned
			c.regained()
			c.mu.Unlock()
		}
	}
	return c.nc.SetWriteDeadline(time.Time{})
}

// giveUp ends a connection whose client does not take its replies: these, and
// those to come, are dropped, and the reader is woken by the socket, which is closed
// unless the client has done that. The caller is the sender.
func (c *conn) giveUp(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.srv.quiet.note(eventStalled, err)
	}
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		c.nc.Close()
	}
	c.doubt() // it may have asked for something before it hung up
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
	for i := range c.out.box.segments {
		c.returned.replyBytes += c.out.box.segments[i].free(&c.srv.pool)
	}
	c.unload()
	c.drop()
	c.writing = false
	c.regained()
}

// drop forgets the pending replies of a connection that was given up. c.mu is
// held.
func (c *conn) drop() {
	for i := range c.pending.segments {
		c.returned.replyBytes += c.pending.segments[i].free(&c.srv.pool)
	}
	c.returned.commands += c.pending.commands
	c.pending.reset()
}

// regained lets others have what came back, or the reader if it waits for
// that. c.mu is held.
func (c *conn) regained() {
	if !c.batching {
		c.repay()
	}
	if c.waiting {
		c.nudge()
	}
}
