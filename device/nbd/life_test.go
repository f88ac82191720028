package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"trivet/device"
	"trivet/device/nbd"
)

// TestOutOfOrder: requests of one connection run concurrently, and each reply
// leaves when its request is complete.
func TestOutOfOrder(t *testing.T) {
	bothKinds(t, func(t *testing.T, structured bool) {
		f := newFake(1 << 20)
		f.hold()
		_, path := start(t, f, nbd.Options{})
		c := dial(t, path).enter(structured)
		in := exchanges{}
		const n = 20
		var held []*device.Request
		for i := range uint64(n) {
			r := req{kind: cmdRead, cookie: 1000 + i, offset: i * 4096, length: 4096}
			in.add(r)
			c.request(r)
			held = append(held, <-f.held)
		}
		for i := n - 1; i >= 0; i-- {
			f.finish(held[i])
			if e := c.receive(in); e.cookie != uint64(1000+i) {
				t.Fatalf("reply to %d, want %d", e.cookie, 1000+i)
			}
		}
	})
}

// TestRandom runs several pipelining clients against a device that completes
// elsewhere and out of order, and compares with a model.
func TestRandom(t *testing.T) {
	const clients, span = 4, 2 << 20
	for _, async := range []bool{false, true} {
		f := newFake(clients * span)
		if async {
			f.startAsync(t, 7)
		}
		_, path := start(t, f, nbd.Options{})
		var all sync.WaitGroup
		for i := range clients {
			c := dial(t, path).enter(i%2 == 0)
			all.Go(func() { randomClient(c, uint64(i)*span, span, uint64(i)) })
		}
		all.Wait()
	}
}

// randomClient works on its own span of the device, in rounds: the requests of
// a round do not overlap, so their order does not matter.
func randomClient(c *client, base, span, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 5))
	model := make([]byte, span)
	for range 12 {
		in, batch := exchanges{}, []byte(nil)
		for at := uint64(0); at < span && len(in) < 200; {
			at += rng.Uint64N(20000)
			n := min(1+rng.Uint64N(1<<rng.Uint64N(19)), span-min(at, span))
			if n == 0 {
				break
			}
			r := randomRequest(rng, uint64(len(in)), at, n, model)
			r.offset += base
			in.add(r)
			batch = append(batch, r.wire()...)
			at += n
		}
		var sender sync.WaitGroup
		sender.Go(func() {
			if _, err := c.Write(batch); err != nil {
				c.tb.Errorf("send: %v", err)
			}
		})
		for len(in) > 0 {
			e := c.receive(in)
			at := e.offset - base
			if e.errno != 0 {
				c.tb.Errorf("command %d: error %d", e.kind, e.errno)
			}
			if e.kind == cmdRead && !bytes.Equal(e.data, model[at:at+uint64(e.length)]) {
				c.tb.Errorf("read of %d bytes at %d differs", e.length, at)
			}
		}
		sender.Wait()
	}
}

// randomRequest makes a request for a range and applies it to the model.
func randomRequest(rng *rand.Rand, cookie, at, n uint64, model []byte) req {
	r := req{cookie: cookie, offset: at, length: uint32(n)}
	r.kind = []uint16{cmdRead, cmdRead, cmdWrite, cmdWrite, cmdTrim, cmdWriteZeroes, cmdCache}[rng.IntN(7)]
	switch r.kind {
	case cmdWrite:
		r.payload = bytes.Repeat([]byte{byte(rng.Uint32())}, int(n))
		copy(model[at:], r.payload)
	case cmdTrim, cmdWriteZeroes:
		clear(model[at : at+n])
	}
	return r
}

// TestSharedCompleter: a completion that runs on another connection's reader
// sends the reply, though that reader is not the one whose client waits.
func TestSharedCompleter(t *testing.T) {
	f := newFake(1 << 20)
	f.hold()
	_, path := start(t, f, nbd.Options{})
	first, second := dial(t, path).enter(false), dial(t, path).enter(false)
	relay := &relay{fake: f}
	_, path = start(t, relay, nbd.Options{})
	third := dial(t, path).enter(false)
	first.request(req{kind: cmdFlush, cookie: 1})
	second.request(req{kind: cmdFlush, cookie: 2})
	r1, r2 := <-f.held, <-f.held
	relay.finish = []*device.Request{r1, r2}
	third.must(req{kind: cmdFlush})
	first.expect(uint32(0x67446698), uint32(0), uint64(1))
	second.expect(uint32(0x67446698), uint32(0), uint64(2))
}

// relay completes other requests before the one it is given.
type relay struct {
	*fake
	finish []*device.Request
}

func (b *relay) Run() {}

func (b *relay) Post(r *device.Request) {
	for _, other := range b.finish {
		b.fake.finish(other)
	}
	b.fake.finish(r)
}

// TestDisconnect: what is in flight is answered before the connection closes,
// whether the client says goodbye, hangs up, or the server closes.
func TestDisconnect(t *testing.T) {
	for name, leave := range map[string]func(*client, *nbd.Server){
		"DISC":       func(c *client, _ *nbd.Server) { c.request(req{kind: cmdDisc}) },
		"half close": func(c *client, _ *nbd.Server) { c.Conn.(*net.UnixConn).CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(1 << 20)
			f.hold()
			s, path := start(t, f, nbd.Options{})
			c := dial(t, path).enter(false)
			c.request(req{kind: cmdFlush, cookie: 5})
			c.request(req{kind: cmdRead, cookie: 6, length: 4096})
			leave(c, s)
			f.release(t)
			c.expect(uint32(0x67446698), uint32(0), uint64(5))
			f.release(t)
			c.expect(uint32(0x67446698), uint32(0), uint64(6), make([]byte, 4096))
			c.expectEnd()
		})
	}
}

// TestCloseMidWrite: a write of which the server saw only a part when it closed
// is not answered, so that a client that reconnects sends it again.
func TestCloseMidWrite(t *testing.T) {
	f := newFake(4 << 20)
	f.record = true
	s, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(true)
	c.send(req{kind: cmdWrite, cookie: 3, length: 1 << 20, payload: make([]byte, 300<<10)}.wire())
	for len(f.recorded()) == 0 { // until the first part was written
		runtime.Gosched()
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
	c.expectEnd()
}

func TestCloseDrains(t *testing.T) {
	f := newFake(1 << 20)
	f.hold()
	s, path := start(t, f, nbd.Options{})
	idle, handshaking := dial(t, path).enter(true), dial(t, path)
	handshaking.expect("NBDMAGIC", "IHAVEOPT", uint16(3))
	busy := dial(t, path).enter(false)
	busy.request(req{kind: cmdRead, cookie: 6, length: 4096})
	held := <-f.held
	closed := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		closed <- s.Close(ctx)
	}()
	idle.expectEnd()
	handshaking.expectEnd()
	select {
	case err := <-closed:
		t.Fatalf("Close returned %v with a request in flight", err)
	default:
	}
	f.finish(held)
	busy.expect(uint32(0x67446698), uint32(0), uint64(6), make([]byte, 4096))
	busy.expectEnd()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("still listening")
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); !errors.Is(err, nbd.ErrClosed) {
		t.Errorf("Serve after Close: %v", err)
	}
}

// TestCloseDeadline: a device that does not complete holds up Close only until
// its context ends; the client is cut off, and a late completion is harmless.
func TestCloseDeadline(t *testing.T) {
	f := newFake(1 << 20)
	f.hold()
	s, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(false)
	c.request(req{kind: cmdRead, cookie: 6, length: 4096})
	held := <-f.held
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close: %v", err)
	}
	c.expectHangUp()
	f.finish(held)
}

// TestClientDies: the client is gone while its requests are in flight.
func TestClientDies(t *testing.T) {
	f := newFake(1 << 20)
	f.hold()
	_, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(true)
	var held []*device.Request
	for i := range uint64(50) {
		c.request(req{kind: cmdRead, cookie: i, length: 4096})
		held = append(held, <-f.held)
	}
	c.Close()
	for _, r := range held {
		f.finish(r)
	}
}

// TestListeners serves a unix socket and TCP at once.
func TestListeners(t *testing.T) {
	f := newFake(1 << 20)
	s, path := start(t, f, nbd.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	tcp := (&client{tb: t, Conn: nc}).enter(true)
	unix := dial(t, path).enter(false)
	data := bytes.Repeat([]byte("tcp!"), 1<<18)
	tcp.must(req{kind: cmdWrite, payload: data[:1<<20]})
	if got := unix.must(req{kind: cmdRead, length: 1 << 20}); !bytes.Equal(got.data, data) {
		t.Error("the other connection read something else")
	}
	if got := tcp.must(req{kind: cmdRead, length: 1 << 20}); !bytes.Equal(got.data, data) {
		t.Error("read something else")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}
