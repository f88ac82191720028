package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Quotas of one connection. A client that exceeds one waits in its socket.
const (
	// maxCommands bounds the requests in flight, counted until their reply has
	// left, and with them the bytes of replies without payload.
	maxCommands = 1024
	// maxReplyBytes bounds the memory of replies with payload. It is reserved
	// before a request is submitted, and one read of the maximum always fits.
	maxReplyBytes = 34 << 20
	// maxWriteBytes bounds the payload that the device has taken and not
	// completed: what waits at its door on behalf of this client. Behind it come
	// reads and flushes that need not wait, so it is many times what is in flight
	// while nothing waits. plainWriteBytes of it may be borrowed like any memory,
	// the rest only of what nobody else may need.
	maxWriteBytes   = 24 << 20
	plainWriteBytes = 4 << 20
	// commandBytes is what a request costs, here and as a part in the device.
	commandBytes = 3 << 9
	// earlySendBytes of replies in the making are sent before the batch is
	// through: the client gets on with them, and they are still in the cache.
	earlySendBytes = 256 << 10
)

// usage counts commands and bytes, ever rising. What is in use is the
// difference between what was taken and what came back, so that the reader can
// take without a lock.
type usage struct {
	commands   uint64
	replyBytes uint64
	writeBytes uint64
}

// conn is one client's connection. Its reader goroutine parses requests and
// submits them; completions arrive on any goroutine and queue their replies;
// one goroutine at a time sends (see send.go).
type conn struct {
	srv     *Server
	number  uint64 // of all that the server has accepted; the device's Client
	nc      net.Conn
	raw     syscall.RawConn
	session session
	manners
	stage stage      // guarded by Server.mu
	peer  string     // who the client is, as far as the system tells
	turn  sync.Mutex // held by the reader while it submits, from before it asks whether its client is there
	probe func(fd uintptr)

	// Of the reader alone.
	probed   bool                               // what probe has found
	inBatch  bool                               // turn is held
	head     protocol.TransmissionRequestHeader // that was received last
	headCame time.Time                          // of a message that is not complete; zero: with the last bytes
	unread   uint64                             // bytes of a payload that was given up
	lent     uint64                             // for the input
	in       input
	payload  payload  // the long write whose payload is being received
	free     *command // commands to use next
	taken    usage
	seen     usage // returned, when the reader last looked
	unsent   int   // bytes read for replies since the batch began

	claim claim // for a loan, while waiting for one

	room     chan struct{} // capacity 1: something came back, or was lent
	mu       sync.Mutex    // guards what follows
	waiting  bool          // the reader waits on room
	batching bool          // the reader is submitting and will send what completes meanwhile
	issued   uint64        // commands taken, as of the last batch
	finished uint64        // commands whose reply was queued
	returned usage
	freed    *command // commands that completed
	pending  outbox   // replies that nobody is sending yet
	writing  bool     // somebody owns out
	dead     bool     // replies cannot leave any more; they are dropped
	held     *Held    // the request that the reader has no room for
	active   time.Time

	// The memory that taken may stand for: ownBytes and what was lent. Only the
	// reader raises it; it is lowered while the reader is not in a batch.
	limit       uint64
	lentSince   time.Time // when limit was ownBytes last
	issuedBytes uint64    // memory taken, as of the last batch

	out  outgoing      // belongs to whoever set writing
	kick chan struct{} // hands out to the writer goroutine; closed by the reader at the end
	done chan struct{} // closed when the writer goroutine has ended
}

// newConn wraps an accepted socket.
func newConn(s *Server, nc net.Conn) (*conn, error) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%w: %T", errNotSocket, nc)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("raw connection: %w", err)
	}
	c := &conn{
		srv: s, nc: nc, raw: raw,
		in:   input{nc: nc, closing: &s.closing, pulse: &s.pulse},
		kick: make(chan struct{}, 1), done: make(chan struct{}),
		room: make(chan struct{}, 1), limit: ownBytes, peer: peerOf(nc, raw), active: time.Now(),
	}
	c.through = make(chan struct{})
	c.probe = func(fd uintptr) { c.probed = peerHungUp(fd) }
	c.claim.wake = c.nudge
	c.out.write = c.out.writeOnce
	return c, nil
}

// errNotSocket is wrapped when a listener hands out connections without a file
// descriptor.
var errNotSocket = errors.New("not a socket")

// errHoards is why a connection is cut off whose memory others wait for.
var errHoards = errors.New("replies are not taken, and others wait for their memory")

// serve runs the connection until its client leaves, falls out of step or the
// server closes. When it returns, every request has completed, every reply has
// left or was dropped, and the socket is closed.
func (c *conn) serve() {
	defer c.nc.Close()
	if err := c.negotiate(); err != nil {
		close(c.through)
		c.report(eventHandshake, err)
		return
	}
	c.srv.letLeave(c)
	c.startWriter()
	err := c.transmit()
	c.part(err)
	close(c.through)
	c.drain()
	close(c.kick)
	<-c.done
	c.report(eventOutOfStep, err)
}

// report logs why a connection ended, unless that is nobody's fault.
func (c *conn) report(e event, err error) {
	switch {
	case errors.Is(err, errDisconnect), errors.Is(err, errClosing), errors.Is(err, io.EOF), errors.Is(err, errGone):
	case errors.Is(err, errStalled):
		c.srv.quiet.note(eventStalled, err)
	case errors.Is(err, errUnread):
		c.srv.quiet.note(eventUnread, err)
	case errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		// The client is gone, or the writer gave it up and has said so.
	default:
		c.srv.quiet.note(e, err)
	}
}

// transmit is the reader: parse what there is, submit it, send what completed,
// read more.
func (c *conn) transmit() error {
	for {
		c.srv.letPass(c)
		if err := c.beginBatch(); err != nil {
			return err
		}
		need, err := c.parse()
		c.endBatch()
		if err != nil {
			return err
		}
		if err := c.in.fill(need, c.payload.left > 0); err != nil {
			return err
		}
	}
}

// parse consumes requests until one is incomplete, and returns how many bytes
// are needed to go on.
func (c *conn) parse() (need int, err error) {
	for need == 0 && err == nil {
		if c.payload.left > 0 {
			need, err = c.receivePayload()
		} else {
			need, err = c.receiveRequest()
		}
		if c.unsent >= earlySendBytes {
			c.endBatch()
			err = errors.Join(err, c.beginBatch())
		}
	}
	return need, err
}

// receiveRequest consumes one request, if it is complete.
func (c *conn) receiveRequest() (need int, err error) {
	b := c.in.bytes()
	if len(b) < requestBytes {
		return requestBytes, nil
	}
	c.head = decodeRequest(b)
	h := c.head
	switch {
	case h.RequestMagic != protocol.TRANSMISSION_MAGIC_REQUEST:
		return 0, fmt.Errorf("%w: request magic %#x, want %#x", errOutOfStep, h.RequestMagic, protocol.TRANSMISSION_MAGIC_REQUEST)
	case h.Type == cmdWrite:
		return c.receiveWrite(&h)
	case h.Type == cmdDisc:
		return 0, errDisconnect
	}
	c.in.consume(requestBytes)
	errno, reason := c.session.check(&h)
	if errno != 0 || (h.Length == 0 && h.Type != cmdFlush) {
		return 0, c.answer(&h, errno, reason)
	}
	return 0, c.submit(&h)
}

// answer replies to a request that does not reach the device.
func (c *conn) answer(h *protocol.TransmissionRequestHeader, errno uint32, reason string) error {
	if err := c.admit(0, 0); err != nil {
		return err
	}
	cmd := c.command(h)
	cmd.fail(errno, reason)
	c.mu.Lock()
	c.finish(cmd)
	c.mu.Unlock()
	return nil
}

// submit hands a request without payload to the device.
func (c *conn) submit(h *protocol.TransmissionRequestHeader) error {
	reserved, charged := reservation(h), rangeBytes(h)
	if err := c.admit(reserved, charged); err != nil {
		return err
	}
	cmd := c.command(h)
	cmd.reserved, cmd.charged = reserved, charged
	cmd.request.Since = c.since()
	if h.Type == cmdRead {
		cmd.reply = c.srv.pool.take(classFor(int(h.Length)))
		cmd.request.Data = cmd.reply.payload(int(h.Length))
		c.unsent += int(h.Length)
	}
	c.srv.backend.Post(&cmd.request)
	return nil
}

// reservation is the memory that a request's reply may need.
func reservation(h *protocol.TransmissionRequestHeader) uint64 {
	n := deviceLength(h)
	extents := maxExtents(n)
	switch h.Type {
	case cmdRead:
		return classFor(int(n)).cost() + uint64(extentBytes*extents)
	case cmdBlockStatus:
		return classFor(statusChunkBytes+descriptorBytes*extents).cost() + uint64(extentBytes*extents)
	}
	return 0
}

// rangeBytes is what a trim or a hint may hold in the device that has to wait: 1 KiB
// for each part under way.
func rangeBytes(h *protocol.TransmissionRequestHeader) uint64 {
	switch h.Type {
	case cmdTrim, cmdWriteZeroes:
		return (min(uint64(h.Length)>>20, 61) + 3) << 10
	case cmdCache:
		return (min(uint64(deviceLength(h))>>18, 61) + 3) << 10
	}
	return 0
}

// command takes a free command for a request. admit has made sure that there
// are not too many.
func (c *conn) command(h *protocol.TransmissionRequestHeader) *command {
	if c.free == nil {
		c.mu.Lock()
		c.free, c.freed = c.freed, nil
		c.mu.Unlock()
	}
	cmd := c.free
	if cmd == nil {
		cmd = newCommand(c)
	} else {
		c.free, cmd.next = cmd.next, nil
	}
	cmd.prepare(h, &c.session)
	return cmd
}

// admit takes one command, and bytes of the quotas, waiting for them if need
// be. While it waits the socket is not read.
func (c *conn) admit(replyBytes, writeBytes uint64) error {
	n := usage{1, replyBytes, writeBytes}
	if !c.inQuota(n, maxWriteBytes) || !c.inMemory(n) {
		if !c.extend(n) {
			if err := c.awaitRoom(n); err != nil {
				return err
			}
		}
	}
	c.taken.commands += n.commands
	c.taken.replyBytes += n.replyBytes
	c.taken.writeBytes += n.writeBytes
	return nil
}

// inQuota tells whether the connection's quotas have room, as far as the reader
// knows, with one of that many bytes for payload.
func (c *conn) inQuota(n usage, payload uint64) bool {
	return c.taken.commands-c.seen.commands+n.commands <= maxCommands &&
		c.taken.replyBytes-c.seen.replyBytes+n.replyBytes <= maxReplyBytes &&
		c.taken.writeBytes-c.seen.writeBytes+n.writeBytes <= payload
}

// awaitRoom sends what is ready and waits until there is room, in the quotas
// first, for nothing is lent to who cannot use it.
func (c *conn) awaitRoom(n usage) error {
	c.endBatch()
	c.hold()
	defer c.letGo()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for !c.extend(n) {
		if c.inQuota(n, plainWriteBytes) {
			if err := c.awaitLoan(n, look); err != nil {
				return err
			}
			break
		}
		if err := c.wait(look.C, func() bool { return c.inQuota(n, plainWriteBytes) }); err != nil {
			return err
		}
	}
	c.notRead()
	return c.beginBatch()
}

// wait waits until something was returned, or a little while, unless there is
// enough. It ends the connection of a client that is not there any more.
func (c *conn) wait(look <-chan time.Time, enough func() bool) error {
	c.mu.Lock()
	c.seen = c.returned
	c.waiting = !enough()
	waits := c.waiting
	c.mu.Unlock()
	if !waits {
		return nil
	}
	looked := false
	select {
	case <-c.room:
	case <-look:
		looked = true
	}
	c.mu.Lock()
	c.waiting = false
	c.seen = c.returned
	c.mu.Unlock()
	c.notRead()
	if c.doubted.Load() || looked && c.hungUp() {
		return c.decide()
	}
	return nil
}

// nudge ends a wait, or the next one. It never blocks.
func (c *conn) nudge() {
	select {
	case c.room <- struct{}{}:
	default:
	}
}

// drain waits until every command has completed and every reply has left or
// was dropped.
func (c *conn) drain() {
	c.abandonPayload()
	c.endBatch()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		c.mu.Lock()
		over := c.returned.commands == c.taken.commands && !c.writing
		c.mu.Unlock()
		if over {
			break
		}
		// It has ended anyway: what its client wants is for the device to hear.
		_ = c.wait(look.C, func() bool { return c.returned.commands == c.taken.commands && !c.writing })
	}
	c.shrink()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.srv.loans.give(c.limit - ownBytes)
	c.limit = ownBytes
}
