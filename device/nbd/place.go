package nbd

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A connection gets a place when it enters transmission. Before that it is among
// the handshakes, of which there are few at a time: one more ends the oldest, so
// clients that connect and say nothing keep nobody out. When all places are taken,
// a connection is ended that has been idle for a while; never one with requests in
// flight. Of those it is one of the client who has the most, and has been idle for
// longest. When there is none, the newcomer is refused, and told why.

const (
	// maxHandshakes is how many connections may be in their handshake at a time.
	maxHandshakes = 32
	// silentShare of the idle time is enough for a connection that has never asked
	// for anything.
	silentShare = 10
)

// Descriptors is how many file descriptors a server of that many connections may
// use at a time, besides its listeners.
func Descriptors(connections int) int { return connections + 2*maxHandshakes }

// errTooMany is why a connection is refused.
var errTooMany = errors.New("too many connections")

// errPushed is why a handshake is ended.
var errPushed = errors.New("too many handshakes at a time")

// errIdle is why a connection is ended that did nothing wrong.
var errIdle = errors.New("it was idle, and others want its place")

// admitConn counts a connection in, among the handshakes.
func (s *Server) admitConn(c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.conns) >= s.opts.MaxConns+2*maxHandshakes && !s.closing.Load() {
		s.mu.Unlock() // those that were ended are about to go
		select {
		case <-s.left:
		case <-s.stop:
		}
		s.mu.Lock()
	}
	if s.closing.Load() {
		return ErrClosed
	}
	if s.handshakes >= maxHandshakes {
		s.pushOut()
	}
	s.accepted++
	c.number = s.accepted
	c.stage = shaking
	s.handshakes++
	s.conns[c] = struct{}{}
	s.running.Add(1)
	return nil
}

// stage is how far a connection has come.
type stage uint8

const (
	shaking stage = iota // it counts as a handshake
	placed               // it has a place
	ended                // it counts no more, and will soon be gone
)

// pushOut ends the oldest handshake. s.mu is held.
func (s *Server) pushOut() {
	var oldest *conn
	for c := range s.conns {
		if c.stage == shaking && (oldest == nil || c.number < oldest.number) {
			oldest = c
		}
	}
	s.end(oldest, errPushed)
}

// end ends a connection, which counts no more. s.mu is held.
func (s *Server) end(c *conn, why error) {
	s.uncount(c)
	s.quiet.note(eventEnded, fmt.Errorf("%s: %w", c.peer, why))
	c.nc.Close()
}

// uncount takes a connection out of the counts of its stage. s.mu is held.
func (s *Server) uncount(c *conn) {
	switch c.stage {
	case shaking:
		s.handshakes--
	case placed:
		s.placed--
	}
	c.stage = ended
}

// place gives a connection a place that is about to enter transmission.
func (s *Server) place(c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.stage != shaking {
		return net.ErrClosed
	}
	if s.placed >= s.opts.MaxConns {
		idle := s.idlest(time.Now())
		if idle == nil {
			s.refused.Add(1)
			err := fmt.Errorf("%w: %d are open, and none is idle", errTooMany, s.placed)
			s.quiet.note(eventRefused, err)
			return err
		}
		s.end(idle, errIdle)
	}
	s.uncount(c)
	c.stage = placed
	s.placed++
	s.publish()
	select {
	case s.busy <- struct{}{}:
	default:
	}
	return nil
}

// publish makes the list of those that readers look at. s.mu is held.
func (s *Server) publish() {
	if s.placed == 1 {
		s.pulse.last.Store(int64(time.Since(s.pulse.epoch)))
	}
	peers := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		if c.stage != shaking {
			peers = append(peers, c)
		}
	}
	s.peers.Store(&peers)
}

// idlest returns the connection to be ended for another one, or nil. s.mu is held.
func (s *Server) idlest(now time.Time) *conn {
	have := map[string]int{}
	for c := range s.conns {
		if c.stage == placed {
			have[c.peer]++
		}
	}
	var best *conn
	var since time.Time
	for c := range s.conns {
		if c.stage != placed {
			continue
		}
		at, idle := c.idleSince(now, s.opts.IdleTimeout)
		if !idle {
			continue
		}
		if best == nil || have[c.peer] > have[best.peer] || have[c.peer] == have[best.peer] && at.Before(since) {
			best, since = c, at
		}
	}
	return best
}

// idleSince returns since when a connection has had nothing in flight, and whether
// that is long enough to end it.
func (c *conn) idleSince(now time.Time, enough time.Duration) (since time.Time, idle bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.issued == 0 {
		enough /= silentShare
	}
	quiet := !c.batching && !c.waiting && !c.writing && c.pending.empty() && c.returned.commands == c.issued
	return c.active, quiet && now.Sub(c.active) >= enough && c.silent()
}

// silent reports whether nothing of the client's waits to be read.
func (c *conn) silent() bool {
	n := 0
	if err := c.raw.Control(func(fd uintptr) { n = inSocket(fd) }); err != nil {
		return false
	}
	return n == 0
}

// peerOf names the client of a connection, for fairness among those that are not
// the same: the user of a unix socket, the host of a TCP one.
func peerOf(nc net.Conn, raw syscall.RawConn) string {
	if addr, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		return addr.IP.String()
	}
	name := "unix"
	_ = raw.Control(func(fd uintptr) { // without it, it is one among many
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			name = "user " + strconv.Itoa(int(cred.Uid))
		}
	})
	return name
}

// Held is a request that was received, and waits for its connection to have room.
type Held struct {
	Op     string
	Offset uint64 // bytes
	Length uint32 // bytes
	Age    time.Duration
	Waits  time.Duration // how long it has waited for room
	began  time.Time
	came   time.Time
}

// hold notes which request the reader has no room for.
func (c *conn) hold() {
	h := &c.head
	if c.payload.left > 0 {
		h = &c.payload.head
	}
	op := fmt.Sprintf("command %d", h.Type) // one that is to be refused
	if int(h.Type) < len(grammar) {
		op = grammar[h.Type].op.String()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = &Held{Op: op, Offset: h.Offset, Length: h.Length, began: time.Now(), came: c.since()}
}

func (c *conn) letGo() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = nil
}

// Held lists what waits for room on the connections: one request of each at most.
// What lies behind it was not looked at.
func (s *Server) Held() (all []Held) {
	now := time.Now()
	for _, c := range *s.peers.Load() {
		c.mu.Lock()
		if c.held != nil {
			h := *c.held
			h.Age, h.Waits = now.Sub(h.came), now.Sub(h.began)
			all = append(all, h)
		}
		c.mu.Unlock()
	}
	return all
}
