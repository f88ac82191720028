// Package nbd serves a device over the Network Block Device protocol: fixed
// newstyle negotiation, simple and structured replies, and base:allocation, as
// proto.md of NetworkBlockDevice/nbd describes them.
//
// # What it promises
//
// A reply leaves after the device completed the request, never before; a reply
// to FLUSH or to a command with FUA therefore means what the device's own
// completion means. The server keeps no data: a crash loses replies, and
// clients resend. Any offset and length is served. Requests of a connection run
// concurrently, and are answered as they complete.
//
// Nothing that a client does costs more than bounded memory and one connection:
// see the quotas in conn.go. When a client is merely wrong it is answered with
// the protocol's error; when it is out of step, its connection is closed.
//
// # Who runs what
//
//	             ┌───────────── reader goroutine ─────────────┐
//	socket ──►  input (256 KiB) ──► parse ──► Backend.Post ────┐
//	                                                          │ Done, inline
//	                                          any goroutine ──┤ or elsewhere
//	socket ◄── outgoing ◄────── outbox ◄──────────────────────┘
//	             │ whoever comes first: reader, completion, writer goroutine
//
// All requests that one read brought are submitted, on the reader's goroutine,
// before the replies of those that completed meanwhile leave in one write. A
// hand-off to another goroutine costs more than a small request, so none is
// made unless the socket is full. Each of a connection's goroutines ends with
// the connection, and Close waits for all of them.
//
// # On the wire, after the handshake
//
//	request            simple reply       structured reply chunk
//	 0 u32 25609513     0 u32 67446698     0 u32 668e33ef
//	 4 u16 flags        4 u32 error        4 u16 flags (1: last)
//	 6 u16 command      8 u64 cookie       6 u16 type
//	 8 u64 cookie      16 payload          8 u64 cookie
//	16 u64 offset                         16 u32 length
//	24 u32 length                         20 payload
//	28 payload
package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"trivet/device"
)

// Backend is the device that a server serves.
type Backend interface {
	// Info describes the device. It is asked once for each connection.
	Info() device.Info
	// Post starts a request and never blocks. It may do nothing until Run is
	// called, which follows when every request was posted that has arrived. See
	// device.Request for who owns what until Done.
	Post(*device.Request)
	Run()
	// Withdraw fails what waits on behalf of a client that is gone. Resume lets what
	// waits go on that was held back while a client's presence was unsure. See
	// device.Peer.
	Withdraw(client uint64)
	Resume()
}

// DefaultConns is how many connections are served at once, unless Options say
// otherwise. A kernel attaches with a few, a tool with up to 16.
const DefaultConns = 64

// Options of a server. The zero value of each field means its default.
type Options struct {
	// Log receives warnings about clients, coalesced by kind. Default: none.
	Log *slog.Logger
	// MaxConns is how many connections are served at once; more take the places of
	// idle ones, or are refused. Default: DefaultConns.
	MaxConns int
	// MemoryBytes bounds the buffers of all connections together, at least
	// MinMemoryBytes. Default: enough for all that MaxConns connections can use.
	MemoryBytes uint64
	// IdleTimeout is how long a connection has nothing in flight until its place may
	// be given away. Default: 30 s.
	IdleTimeout time.Duration
	// HandshakeTimeout is how long a client may take until it has entered
	// transmission. Default: 10 s.
	HandshakeTimeout time.Duration
	// MessageTimeout is how long a client may pause within a request. Between
	// requests it may be silent for ever. A pause is noticed after three
	// quarters of it at the earliest. Default: 60 s.
	MessageTimeout time.Duration
	// ReplyTimeout is how long a client may leave a reply unread, once its
	// socket is full. Default: 30 s.
	ReplyTimeout time.Duration
}

// withDefaults fills in what was left out.
func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxConns == 0 {
		o.MaxConns = DefaultConns
	}
	if o.MemoryBytes == 0 {
		o.MemoryBytes = MinMemoryBytes(o.MaxConns) + uint64(o.MaxConns)*(maxReplyBytes+maxWriteBytes)
	}
	o.MemoryBytes = max(o.MemoryBytes, MinMemoryBytes(o.MaxConns))
	setDefault(&o.IdleTimeout, 30*time.Second)
	setDefault(&o.HandshakeTimeout, 10*time.Second)
	setDefault(&o.MessageTimeout, 60*time.Second)
	setDefault(&o.ReplyTimeout, 30*time.Second)
	return o
}

// shared is what is left for loans when every connection has its share: at least
// enough for the longest request.
func (o *Options) shared() uint64 {
	return o.MemoryBytes - ownShares(o.MaxConns)
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}

// Server serves one device to any number of listeners.
type Server struct {
	backend Backend
	opts    Options
	quiet   quietLog
	pool    bufferPool
	loans   loans
	refused atomic.Uint64
	closing atomic.Bool // set under mu, before anything is closed

	peers   atomic.Pointer[[]*conn] // in transmission, or at its end; written under mu
	pulse   pulse
	busy    chan struct{} // capacity 1: there is a client
	left    chan struct{} // capacity 1: a connection is gone
	peeking sync.Mutex    // held while what a client left behind is looked through

	mu         sync.Mutex // guards what follows, and every conn.stage
	listeners  map[net.Listener]struct{}
	conns      map[*conn]struct{}
	handshakes int // by stage
	placed     int
	pulsing    bool
	accepted   uint64
	running    sync.WaitGroup // calls of Serve, and connections
	stop       chan struct{}  // closed when closing is set
}

// New returns a server for the backend. It does nothing until Serve.
func New(backend Backend, opts Options) *Server {
	opts = opts.withDefaults()
	s := &Server{
		backend:   backend,
		opts:      opts,
		quiet:     quietLog{log: opts.Log},
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*conn]struct{}),
		stop:      make(chan struct{}),
		busy:      make(chan struct{}, 1),
		left:      make(chan struct{}, 1),
	}
	s.pulse.epoch = time.Now()
	s.peers.Store(new([]*conn))
	s.loans.free = opts.shared()
	return s
}

// ErrClosed is returned by Serve on a server that was closed before.
var ErrClosed = errors.New("nbd: server is closed")

// Serve accepts connections until Close, and then returns nil. It takes over
// the listener, whose connections must be unix or TCP sockets, and may be
// called for several listeners at once. Any other error is the listener's.
func (s *Server) Serve(l net.Listener) error {
	if !s.register(l) {
		l.Close()
		return ErrClosed
	}
	defer s.running.Done()
	defer s.unregister(l)
	spare := keepSpare()
	defer spare.close()
	pause := time.Duration(0)
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.startConn(nc)
		case s.closing.Load():
			return nil
		case spare.refuse(l, err):
			s.refused.Add(1)
			s.quiet.note(eventAccept, err)
		case passing(err):
			s.quiet.note(eventAccept, err)
			pause = min(2*pause+5*time.Millisecond, time.Second)
			s.rest(pause)
		default:
			return fmt.Errorf("nbd: accept: %w", err)
		}
	}
}

// passing tells whether accepting is worth another try: descriptors or memory
// ran out, or the client left before it was accepted.
func passing(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// rest waits, unless the server closes.
func (s *Server) rest(pause time.Duration) {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.stop:
	}
}

func (s *Server) register(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	s.running.Add(1)
	s.listeners[l] = struct{}{}
	if !s.pulsing {
		s.pulsing = true
		s.startPulse()
	}
	return true
}

func (s *Server) unregister(l net.Listener) {
	s.mu.Lock()
	delete(s.listeners, l)
	s.mu.Unlock()
	l.Close()
}

// startConn serves a connection on a goroutine of its own, which ends before
// Close returns.
func (s *Server) startConn(nc net.Conn) {
	c, err := newConn(s, nc)
	if err != nil {
		s.quiet.note(eventUnserved, err)
		nc.Close()
		return
	}
	if s.admitConn(c) != nil { // the server closes
		nc.Close()
		return
	}
	tune(nc)
	go func() {
		defer s.running.Done()
		defer s.forget(c)
		c.serve()
	}()
}

// tune sets what matters on TCP: no delay for small replies, and probes that
// find out about clients that are gone.
func tune(nc net.Conn) {
	if t, ok := nc.(*net.TCPConn); ok {
		// A socket that refuses these works all the same.
		_ = t.SetNoDelay(true)
		_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 6})
	}
}

func (s *Server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uncount(c)
	delete(s.conns, c)
	s.publish()
	select {
	case s.left <- struct{}{}:
	default:
	}
}

// Close stops accepting, lets requests in flight complete and their replies
// leave, closes the connections and waits for every goroutine of the server.
// When the context ends first, it closes the sockets under the clients and
// returns the context's error; the goroutines end when the device has completed
// what it was given, and a further Close waits for that.
func (s *Server) Close(ctx context.Context) error {
	s.shut()
	joined := s.startJoin()
	select {
	case <-joined:
		s.quiet.close()
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for c := range s.conns {
		c.nc.Close()
	}
	open := len(s.conns)
	s.mu.Unlock()
	return fmt.Errorf("nbd: close: %d connections were cut off: %w", open, ctx.Err())
}

// shut stops the listeners and interrupts reads.
func (s *Server) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing.Swap(true) {
		close(s.stop)
	}
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		// Fails only on a socket that is closed, whose reader ends anyway.
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

// startJoin returns a channel that is closed when every goroutine has ended.
func (s *Server) startJoin() <-chan struct{} {
	joined := make(chan struct{})
	go func() {
		s.running.Wait()
		close(joined)
	}()
	return joined
}

// Stats is a snapshot of a server.
type Stats struct {
	Connections int    // served now
	Handshakes  int    // connections that are not served yet
	Accepted    uint64 // connections served since the start
	Refused     uint64 // connections refused because there were too many
	BuffersOut  int64  // reply buffers in use; 0 once every connection is closed
	LentBytes   uint64 // lent to connections beyond their own shares; then 0 as well
}

// Stats returns what the server is doing.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{
		Connections: s.placed,
		Handshakes:  s.handshakes,
		Accepted:    s.accepted,
		Refused:     s.refused.Load(),
		BuffersOut:  s.pool.out.Load(),
		LentBytes:   s.opts.shared() - s.loans.left(),
	}
}
