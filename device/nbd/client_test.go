package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"trivet/device/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come.
// noDeadline takes a deadline back.
var noDeadline time.Time

const patience = time.Minute

// start serves a backend on a unix socket until the test ends, and then checks
// that no buffer was lost.
func start(tb testing.TB, b nbd.Backend, opts nbd.Options) (*nbd.Server, string) {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		tb.Fatal(err)
	}
	s := nbd.New(b, opts)
	startServing(tb, s, l)
	return s, path
}

// startServing runs Serve until the test ends.
func startServing(tb testing.TB, s *nbd.Server, l net.Listener) {
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			tb.Errorf("Close: %v", err)
		}
		if err := <-served; err != nil {
			tb.Errorf("Serve: %v", err)
		}
		if stats := s.Stats(); stats.BuffersOut != 0 || stats.LentBytes != 0 || stats.Connections != 0 {
			tb.Errorf("after Close: %+v", stats)
		}
	})
}

// client speaks the protocol byte by byte.
type client struct {
	tb testing.TB
	net.Conn
	structured bool
}

func dial(tb testing.TB, path string) *client {
	tb.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		tb.Fatal(err)
	}
	return &client{tb: tb, Conn: nc}
}

// wire joins values in network byte order.
func wire(values ...any) []byte {
	var out []byte
	for _, v := range values {
		switch v := v.(type) {
		case string:
			out = append(out, v...)
		case []byte:
			out = append(out, v...)
		default:
			var err error
			if out, err = binary.Append(out, binary.BigEndian, v); err != nil {
				panic(err)
			}
		}
	}
	return out
}

func (c *client) send(values ...any) {
	c.tb.Helper()
	if _, err := c.Write(wire(values...)); err != nil {
		c.tb.Fatalf("send: %v", err)
	}
}

func (c *client) recv(n int) []byte {
	c.tb.Helper()
	b := make([]byte, n)
	if m, err := io.ReadFull(c, b); err != nil {
		c.tb.Fatalf("receive %d bytes: got %d: %v", n, m, err)
	}
	return b
}

// expect receives exactly these bytes.
func (c *client) expect(values ...any) {
	c.tb.Helper()
	want := wire(values...)
	if got := c.recv(len(want)); !bytes.Equal(got, want) {
		c.tb.Fatalf("received\n%x, want\n%x", got, want)
	}
}

// expectEnd checks that the server closes without another byte.
func (c *client) expectEnd() {
	c.tb.Helper()
	var b [64]byte
	n, err := c.Read(b[:])
	var timeout net.Error
	if n != 0 || err == nil || (errors.As(err, &timeout) && timeout.Timeout()) {
		c.tb.Fatalf("want the end of the connection, got %x, %v", b[:n], err)
	}
}

// greet goes through the first exchange.
func (c *client) greet(flags uint32) {
	c.tb.Helper()
	c.expect("NBDMAGIC", "IHAVEOPT", uint16(3))
	c.send(flags)
}

func (c *client) option(id uint32, data ...any) {
	c.tb.Helper()
	body := wire(data...)
	c.send("IHAVEOPT", id, uint32(len(body)), body)
}

// expectReply receives one option reply of a kind and returns its data.
func (c *client) expectReply(id, kind uint32) []byte {
	c.tb.Helper()
	c.expect(uint64(0x3e889045565a9), id, kind)
	return c.recv(int(binary.BigEndian.Uint32(c.recv(4))))
}

const (
	repAck     = 1
	repServer  = 2
	repInfo    = 3
	repMeta    = 4
	errUnsup   = 1<<31 + 1
	errPolicy  = 1<<31 + 2
	errInvalid = 1<<31 + 3
	errUnknown = 1<<31 + 6
	errTooBig  = 1<<31 + 9

	optExportName = 1
	optAbort      = 2
	optList       = 3
	optStartTLS   = 5
	optInfo       = 6
	optGo         = 7
	optStructured = 8
	optListMeta   = 9
	optSetMeta    = 10
)

// enter negotiates and enters transmission on the default export.
func (c *client) enter(structured bool) *client {
	c.tb.Helper()
	c.greet(3)
	if structured {
		c.structured = true
		c.option(optStructured)
		c.expectReply(optStructured, repAck)
		c.option(optSetMeta, uint32(0), uint32(1), uint32(15), "base:allocation")
		c.expectReply(optSetMeta, repMeta)
		c.expectReply(optSetMeta, repAck)
	}
	c.option(optGo, uint32(0), uint16(0))
	c.expectReply(optGo, repInfo)
	c.expectReply(optGo, repAck)
	return c
}

const (
	cmdRead = iota
	cmdWrite
	cmdDisc
	cmdFlush
	cmdTrim
	cmdCache
	cmdWriteZeroes
	cmdBlockStatus

	flagFUA      = 1
	flagNoHole   = 2
	flagDF       = 4
	flagReqOne   = 8
	flagFastZero = 16

	eio       = 5
	einval    = 22
	enospc    = 28
	eoverflow = 75
	eshutdown = 108
)

// req is a request of the client's.
type req struct {
	flags, kind uint16
	cookie      uint64
	offset      uint64
	length      uint32
	payload     []byte
}

func (r req) wire() []byte {
	return wire(uint32(0x25609513), r.flags, r.kind, r.cookie, r.offset, r.length, r.payload)
}

func (c *client) request(r req) {
	c.tb.Helper()
	c.send(r.wire())
}

// reply is what came back for one request.
type reply struct {
	errno  uint32
	data   []byte // of a read, put together
	chunks []chunk
}

// chunk is one structured chunk, without its payload when that is data.
type chunk struct {
	kind    uint16
	at      uint64
	n       int
	extents []uint32 // of a status: length, state, ...
}

// exchange is a request and what came back for it so far.
type exchange struct {
	req
	reply
}

// exchanges are the requests in flight, by cookie.
type exchanges map[uint64]*exchange

func (x exchanges) add(r req) {
	e := &exchange{req: r}
	if r.kind == cmdRead && r.length <= 32<<20 {
		e.data = bytes.Repeat([]byte{0xEE}, int(r.length))
	}
	x[r.cookie] = e
}

// receive receives messages until one of the exchanges is complete, which it
// takes out.
func (c *client) receive(in exchanges) *exchange {
	c.tb.Helper()
	for {
		magic := binary.BigEndian.Uint32(c.recv(4))
		var e *exchange
		var done bool
		switch {
		case magic == 0x67446698:
			e, done = c.receiveSimple(in), true
		case magic == 0x668e33ef && c.structured:
			e, done = c.receiveChunk(in)
		default:
			c.tb.Fatalf("reply magic %#x", magic)
		}
		if done {
			delete(in, e.cookie)
			return e
		}
	}
}

func (c *client) receiveSimple(in exchanges) *exchange {
	c.tb.Helper()
	h := c.recv(12)
	e := in[binary.BigEndian.Uint64(h[4:])]
	if e == nil {
		c.tb.Fatalf("reply to %#x, which is not in flight", h[4:])
	}
	e.errno = binary.BigEndian.Uint32(h)
	if c.structured && (e.kind == cmdRead || e.kind == cmdBlockStatus) {
		c.tb.Fatalf("simple reply to command %d after structured replies were negotiated", e.kind)
	}
	if e.errno == 0 && e.kind == cmdRead {
		copy(e.data, c.recv(int(e.length)))
	}
	return e
}

func (c *client) receiveChunk(in exchanges) (e *exchange, done bool) {
	c.tb.Helper()
	h := c.recv(16)
	flags, kind := binary.BigEndian.Uint16(h), binary.BigEndian.Uint16(h[2:])
	if e = in[binary.BigEndian.Uint64(h[4:])]; e == nil {
		c.tb.Fatalf("chunk for %#x, which is not in flight", h[4:12])
	}
	e.take(c.tb, e.req, kind, c.recv(int(binary.BigEndian.Uint32(h[12:]))))
	return e, flags&1 != 0
}

// take adds a chunk to the reply.
func (out *reply) take(tb testing.TB, r req, kind uint16, body []byte) {
	tb.Helper()
	k := chunk{kind: kind}
	switch kind {
	case 0:
	case 1:
		k.at, k.n = binary.BigEndian.Uint64(body), len(body)-8
		copy(out.data[k.at-r.offset:], body[8:])
	case 2:
		k.at, k.n = binary.BigEndian.Uint64(body), int(binary.BigEndian.Uint32(body[8:]))
		clear(out.data[k.at-r.offset : k.at-r.offset+uint64(k.n)])
	case 5:
		if id := binary.BigEndian.Uint32(body); id != 1 {
			tb.Fatalf("metadata context %d", id)
		}
		for b := body[4:]; len(b) > 0; b = b[4:] {
			k.extents = append(k.extents, binary.BigEndian.Uint32(b))
		}
	case 1<<15 | 1:
		out.errno = binary.BigEndian.Uint32(body)
		if n := int(binary.BigEndian.Uint16(body[4:])); n != len(body)-6 {
			tb.Fatalf("error message of %d bytes in %d", n, len(body)-6)
		}
	default:
		tb.Fatalf("chunk of type %d", kind)
	}
	out.chunks = append(out.chunks, k)
}

// do sends a request and awaits its reply.
func (c *client) do(r req) reply {
	c.tb.Helper()
	if r.cookie == 0 {
		r.cookie = 0xfeedface00000000 | uint64(r.kind)
	}
	if r.kind == cmdWrite && r.length == 0 {
		r.length = uint32(len(r.payload))
	}
	c.request(r)
	return c.await(r)
}

// await receives the reply to a request that is the only one in flight.
func (c *client) await(r req) reply {
	c.tb.Helper()
	in := exchanges{}
	in.add(r)
	return c.receive(in).reply
}

// must does a request that has to succeed.
func (c *client) must(r req) reply {
	c.tb.Helper()
	out := c.do(r)
	if out.errno != 0 {
		c.tb.Fatalf("command %d at %d+%d: error %d", r.kind, r.offset, r.length, out.errno)
	}
	return out
}
