package nbd_test

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"trivet/device"
	"trivet/device/nbd"
)

// await waits for a condition of the server's.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for begin := time.Now(); !holds(); {
		if time.Since(begin) > patience {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// TestIdleMakesRoom: when places are short, an idle connection is ended for a new
// one, the one that is silent for longest; never one with requests in flight.
func TestIdleMakesRoom(t *testing.T) {
	f := newFake(1 << 20)
	f.hold()
	s, path := start(t, f, nbd.Options{MaxConns: 3, IdleTimeout: 10 * time.Millisecond})
	flush := func(c *client) *device.Request {
		c.request(req{kind: cmdFlush, cookie: 7})
		return <-f.held
	}
	done := func(c *client, r *device.Request) {
		f.finish(r)
		c.expect(uint32(0x67446698), uint32(0), uint64(7))
	}
	busy, idle, later := dial(t, path).enter(false), dial(t, path).enter(false), dial(t, path).enter(false)
	underWay := flush(busy)
	done(idle, flush(idle))
	done(later, flush(later))
	newcomer := dial(t, path)
	newcomer.greet(3)
	for kind := []byte(nil); !bytes.Equal(kind, wire(uint32(repInfo))); {
		newcomer.option(optGo, uint32(0), uint16(0))
		newcomer.expect(uint64(0x3e889045565a9), uint32(optGo))
		kind = newcomer.recv(4)
		newcomer.recv(int(binary.BigEndian.Uint32(newcomer.recv(4))))
	}
	newcomer.expectReply(optGo, repAck)
	idle.expectEnd()
	second, third := flush(later), flush(newcomer)
	soon := time.Now()
	await(t, "they have been at it for a while", func() bool { return time.Since(soon) > 50*time.Millisecond })
	dial(t, path).refused() // nobody is idle
	done(later, second)
	done(newcomer, third)
	done(busy, underWay)
	if stats := s.Stats(); stats.Connections != 3 {
		t.Errorf("%+v", stats)
	}
}

// TestHalfOpen: clients that connect and do not shake hands keep nobody out, and
// cost a bounded number of connections. One line says so.
func TestHalfOpen(t *testing.T) {
	var logged lockedBuffer
	s, path := start(t, newFake(1<<20), nbd.Options{MaxConns: 2, Log: slog.New(slog.NewTextHandler(&logged, nil))})
	b := newBystander(t, path)
	var hostile []net.Conn
	for range 200 {
		nc, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		hostile = append(hostile, nc)
	}
	newBystander(t, path).alive()
	b.alive()
	if stats := s.Stats(); stats.Handshakes > 32 || stats.Connections != 2 {
		t.Errorf("%d clients do nothing: %+v", len(hostile), stats)
	}
	if n := strings.Count(logged.String(), "ended to make room"); n != 1 {
		t.Errorf("%d lines in the log:\n%s", n, logged.String())
	}
}

// TestManyInLittleMemory: how many connections there may be does not depend on the
// memory: with the least, all of them read and write at once.
func TestManyInLittleMemory(t *testing.T) {
	const conns = 64
	f := newFake(64 << 20)
	f.startAsync(t, 10)
	_, path := start(t, f, nbd.Options{MaxConns: conns, MemoryBytes: 1})
	var all []*client
	for range conns {
		all = append(all, dial(t, path).enter(false))
	}
	done := make(chan bool, conns)
	for i, c := range all {
		at := uint64(i) << 20
		go func() {
			defer func() { done <- true }()
			data := bytes.Repeat([]byte{byte(i + 1)}, 1<<20)
			c.must(req{kind: cmdWrite, offset: at, length: 1 << 20, payload: data})
			if got := c.must(req{kind: cmdRead, offset: at, length: 1 << 20}); !bytes.Equal(got.data, data) {
				t.Errorf("client %d reads something else", i)
			}
		}()
	}
	for range all {
		<-done
	}
}

// TestOneArrival: the chunks of a long write have one deadline, from when its header
// came, also when they had to wait for room; what lies behind it has its own. What
// waits for room is listed.
func TestOneArrival(t *testing.T) {
	f := newFake(64 << 20)
	f.hold()
	s, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(false)
	before := time.Now()
	c.request(req{kind: cmdWrite, cookie: 1, length: 32 << 20, payload: make([]byte, 32<<20)[:24<<20+256<<10]})
	await(t, "it waits for room", func() bool { return len(s.Held()) == 1 })
	sent := time.Now()
	if h := s.Held()[0]; h.Op != "write" || h.Offset != 0 || h.Length != 32<<20 || h.Age > sent.Sub(before) {
		t.Errorf("waits for room: %+v", h)
	}
	go func() {
		rest := append(make([]byte, 8<<20-256<<10), req{kind: cmdFlush, cookie: 2}.wire()...)
		if _, err := c.Write(rest); err != nil {
			t.Errorf("send: %v", err)
		}
	}()
	var since time.Time
	for n := range 32 << 20 / (256 << 10) {
		r := <-f.held
		if n == 0 {
			since = r.Since
		}
		if r.Op != device.Write || !r.Since.Equal(since) || since.Before(before) || since.After(sent) {
			t.Fatalf("chunk %d: %v since %v, the first came at %v", n, r.Op, r.Since, since)
		}
		f.finish(r)
	}
	c.expect(uint32(0x67446698), uint32(0), uint64(1))
	if r := <-f.held; r.Op != device.Flush || r.Since.Before(since) {
		t.Errorf("%v since %v, the write came at %v", r.Op, r.Since, since)
	} else {
		f.finish(r)
	}
	c.expect(uint32(0x67446698), uint32(0), uint64(2))
	if held := s.Held(); len(held) > 0 {
		t.Errorf("all is done, and waits: %+v", held)
	}
}

// TestReadsPassWrites: reads and flushes that lie behind many writes that wait are
// asked of the device all the same (hazard 33).
func TestReadsPassWrites(t *testing.T) {
	f := newFake(64 << 20)
	f.hold()
	_, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(false)
	const writes, size = 64, 256 << 10
	for i := range uint64(writes) {
		c.request(req{kind: cmdWrite, cookie: i, offset: i * size, length: size, payload: make([]byte, size)})
	}
	c.request(req{kind: cmdRead, cookie: 100, length: 4096})
	c.request(req{kind: cmdFlush, cookie: 101})
	var waiting []*device.Request
	for range writes {
		waiting = append(waiting, <-f.held)
	}
	f.release(t)
	c.expect(uint32(0x67446698), uint32(0), uint64(100), make([]byte, 4096))
	f.release(t)
	c.expect(uint32(0x67446698), uint32(0), uint64(101))
	for i, r := range waiting {
		f.finish(r)
		c.expect(uint32(0x67446698), uint32(0), uint64(i))
	}
}

// TestUnreadIsCut: a connection that was not read for as long as a request may take
// is cut: what lies in its socket is too old to be begun (hazard 68).
func TestUnreadIsCut(t *testing.T) {
	f := newFake(64 << 20)
	f.info.Deadline = 200 * time.Millisecond
	f.hold()
	s, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(false)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(bytes.Repeat(req{kind: cmdWrite, length: 1 << 20, payload: make([]byte, 1<<20)}.wire(), 40))
		sent <- err
	}()
	await(t, "the quota is used up", func() bool { return len(f.held) == 24<<20/(256<<10) })
	full := time.Now()
	await(t, "the deadline has passed", func() bool { return time.Since(full) > 2*f.info.Deadline })
	for range 24 << 20 / (256 << 10) {
		f.release(t)
	}
	begun := make(chan bool)
	go func() { // what was read before
		defer close(begun)
		for r := range f.held {
			if time.Since(r.Since) < f.info.Deadline {
				t.Errorf("a write that was read %v ago counts as %v old", time.Since(full), time.Since(r.Since))
			}
			f.finish(r)
		}
	}()
	c.expectHangUp()
	if err := <-sent; err == nil {
		t.Error("all that was sent was taken")
	}
	await(t, "it is gone", func() bool { return s.Stats().Connections == 0 })
	close(f.held)
	<-begun
}
