package nbd

import (
	"errors"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sys/unix"

	"trivet/device"
)

// A client that hangs up may have its say again on another connection: a kernel
// whose connection breaks sends its requests once more, on one that was let in long
// ago or on a new one. What it asked first must not come to pass behind that. So:
//
//   - Nothing is begun without asking the socket whether the peer has hung up: the
//     reader asks before each batch, the device before it begins what has waited.
//   - The reader says first that it is about to submit (posting), then asks, then
//     submits. Who reads a request on another connection looks for readers that are
//     about to submit, and waits for those whose peers have hung up. One of the two
//     sees the other, so what was sent after a hang-up enters the device behind what
//     was asked before it, if that is not dropped.
//   - A peer that has sent DISC before it hung up is to be obeyed: what it asked is
//     carried out. Whether there is one in what was not read yet is for the reader
//     alone to find out, so others only raise a doubt.
//
// A client may send DISC without awaiting its replies, hang up, and write the same
// block on a connection that was open before. These two writes have no order, as
// ever with requests that are not answered.

// stays is the presence of a client that has taken its leave: what it has asked is
// carried out although it has hung up. The others are the device's.
const stays = uint32(device.Unsure) + 1

// errGone is why a connection ends whose client left without a word.
var errGone = errors.New("client has hung up")

// manners is how a client leaves.
type manners struct {
	presence atomic.Uint32 // device.Here, device.Gone, or stays; written by the reader
	left     atomic.Bool   // presence is Gone
	doubted  atomic.Bool   // it seems to have hung up: the reader is to find out

	posting atomic.Bool   // the reader submits, or is about to; written under turn
	through chan struct{} // closed when the reader has submitted all that it will
}

// Ask is the device's question, from any goroutine, whether the client is there.
func (c *conn) Ask() device.Presence {
	switch c.presence.Load() {
	case stays:
		return device.Here
	case uint32(device.Gone):
		return device.Gone
	}
	if !c.doubted.Load() && !c.hungUp() {
		return device.Here
	}
	c.doubt()
	return device.Unsure
}

// doubt has the reader find out whether its client is there. It never blocks.
func (c *conn) doubt() {
	c.doubted.Store(true)
	c.nudge()
}

// hungUp asks the socket whether the peer has hung up. A socket that is closed here
// counts as such.
func (c *conn) hungUp() bool {
	up := true
	if err := c.raw.Control(func(fd uintptr) { up = peerHungUp(fd) }); err != nil {
		return true
	}
	return up
}

// peerHungUp asks a socket without waiting.
func peerHungUp(fd uintptr) bool {
	var now unix.Timespec
	p := unix.PollFd{Fd: int32(fd), Events: unix.POLLRDHUP}
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
		if errno != syscall.EINTR {
			return errno != 0 || n > 0
		}
	}
}

// doubtful reports, to the reader, whether it has to find out what became of its
// client. While there is no other connection nobody can take its place unnoticed.
func (c *conn) doubtful() bool {
	switch {
	case c.presence.Load() == stays:
		return false
	case c.doubted.Load():
		return true
	case len(*c.srv.peers.Load()) < 2:
		return false
	}
	return c.raw.Control(c.probe) != nil || c.probed
}

// decide finds out what a client wants that has hung up: nil when it has taken its
// leave, and what it has asked is carried out; else errGone, when what the device
// had of it and has not begun was withdrawn. It is the reader's.
func (c *conn) decide() error {
	switch c.presence.Load() {
	case stays:
		return nil
	case uint32(device.Gone):
		return errGone
	}
	if c.disconnects() {
		c.presence.Store(stays)
		c.srv.backend.Resume()
		return nil
	}
	c.gone()
	return errGone
}

// gone withdraws what the device has of the client and has not begun. The rest is
// answered, in case that it listens still.
func (c *conn) gone() {
	c.left.Store(true)
	c.presence.Store(uint32(device.Gone))
	c.srv.backend.Withdraw(c.number)
}

// part is what the end of the reader means for requests in flight.
func (c *conn) part(err error) {
	switch {
	case errors.Is(err, errDisconnect):
		c.presence.CompareAndSwap(uint32(device.Here), stays)
		c.srv.backend.Resume()
	case errors.Is(err, errClosing), errors.Is(err, errOutOfStep), errors.Is(err, errStalled):
		// It is there, and is told what became of its requests.
	case c.presence.Load() == uint32(device.Here):
		c.gone()
	}
}

// mostPeeked is how much a client that has hung up may have sent ahead and still be
// found to have taken its leave. A unix socket holds a few hundred KiB, one of TCP
// some MiB.
const mostPeeked = 8 << 20

// disconnects reports whether there is a DISC in what was received, or lies in the
// socket. The peer sends no more, so the socket's share is final.
func (c *conn) disconnects() bool {
	s := c.srv
	s.peeking.Lock() // one at a time, for memory's sake
	defer s.peeking.Unlock()
	skip := c.unread
	if c.payload.left > 0 {
		skip = c.payload.left
	}
	received := c.in.bytes()
	rest := c.peek()
	if len(rest) > 0 {
		received = append(append(make([]byte, 0, len(received)+len(rest)), received...), rest...)
	}
	return takesLeave(received, skip)
}

// peek returns what lies in the socket, and leaves it there; nil when that cannot
// be told, or is too much.
func (c *conn) peek() (rest []byte) {
	_ = c.raw.Control(func(fd uintptr) { // fails on a closed socket, in which nothing lies
		n := inSocket(fd)
		if n == 0 || n > mostPeeked {
			return
		}
		rest = make([]byte, n)
		got, _, err := unix.Recvfrom(int(fd), rest, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		rest = rest[:max(got, 0)]
		if err != nil {
			rest = nil
		}
	})
	return rest
}

// inSocket returns how many bytes wait to be read.
func inSocket(fd uintptr) int {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// takesLeave reports whether there is a DISC among the requests in b, of which the
// first skip bytes belong to a payload.
func takesLeave(b []byte, skip uint64) bool {
	for skip <= uint64(len(b)) {
		if b = b[skip:]; len(b) < requestBytes {
			return false
		}
		h := decodeRequest(b)
		if h.RequestMagic != protocol.TRANSMISSION_MAGIC_REQUEST {
			return false
		}
		if h.Type == cmdDisc {
			return true
		}
		if skip = requestBytes; h.Type == cmdWrite {
			skip += uint64(h.Length)
		}
	}
	return false
}

// letPass lets the readers of clients that have hung up submit what they are about
// to, if anything, before what c has read is submitted. c itself must not be about
// to submit.
func (s *Server) letPass(c *conn) {
	peers := *s.peers.Load()
	if len(peers) < 2 {
		return
	}
	for _, o := range peers {
		if o != c && o.posting.Load() && o.hungUp() {
			o.submitted()
		}
	}
}

// submitted waits until the reader has submitted what it is about to.
func (c *conn) submitted() {
	c.turn.Lock()
	defer c.turn.Unlock()
}

// letLeave lets clients that have hung up leave before a new one's requests are
// taken: also those that have taken their leave. One of those may have to wait for
// room, and is not waited for beyond leaveTime.
func (s *Server) letLeave(c *conn) {
	patience := time.NewTimer(leaveTime)
	defer patience.Stop()
	for _, o := range *s.peers.Load() {
		if o == c || !o.hungUp() {
			continue
		}
		o.nudge()
		select {
		case <-o.through:
		case <-patience.C:
			return
		case <-s.stop:
			return
		}
	}
}

const (
	// leaveTime is how long a new client waits for those that leave.
	leaveTime = time.Second
	// lookEvery is how often a reader that waits for room looks whether its client
	// is still there.
	lookEvery = 100 * time.Millisecond
)
