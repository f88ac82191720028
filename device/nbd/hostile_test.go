package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"trivet/device"
	"trivet/device/nbd"
)

// bystander is a well-behaved client; alive checks that it is still served.
type bystander struct{ *client }

func newBystander(t *testing.T, path string) bystander { return bystander{dial(t, path).enter(true)} }

func (b bystander) alive() {
	b.tb.Helper()
	b.must(req{kind: cmdWrite, offset: 1<<20 - 77, payload: []byte("alive")})
	if got := b.must(req{kind: cmdRead, offset: 1<<20 - 77, length: 5}); string(got.data) != "alive" {
		b.tb.Fatalf("bystander read %q", got.data)
	}
}

// TestHostileHandshake sends what no client should; each time the connection
// is closed, and nobody else is harmed.
func TestHostileHandshake(t *testing.T) {
	_, path := start(t, newFake(1<<20), nbd.Options{})
	b := newBystander(t, path)
	for name, data := range map[string][]byte{
		"unknown client flags":  wire(uint32(4)),
		"all client flags":      wire(uint32(1<<32 - 1)),
		"wrong option magic":    wire(uint32(3), "IHAVEOPS", uint32(7), uint32(0)),
		"option of 4 GiB":       wire(uint32(3), "IHAVEOPT", uint32(optInfo), uint32(1<<32-1)),
		"option of 4 MiB + 1":   wire(uint32(3), "IHAVEOPT", uint32(99), uint32(4<<20+1)),
		"export name of 4 GiB":  wire(uint32(3), "IHAVEOPT", uint32(optExportName), uint32(1<<32-1)),
		"export name of 100 KB": wire(uint32(3), "IHAVEOPT", uint32(optExportName), uint32(100<<10), make([]byte, 100<<10)),
		"an old request":        wire(uint32(3), req{kind: cmdRead, length: 1}.wire()),
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, path)
			c.expect("NBDMAGIC", "IHAVEOPT", uint16(3))
			c.send(data)
			c.expectEnd()
		})
		b.alive()
	}
}

func TestTooBigOption(t *testing.T) {
	_, path := start(t, newFake(1<<20), nbd.Options{})
	c := dial(t, path)
	c.greet(3)
	for _, n := range []int{64<<10 + 1, 4 << 20} {
		for _, id := range []uint32{optInfo, optSetMeta, 12345} {
			c.option(id, make([]byte, n))
			c.expectReply(id, errTooBig)
		}
	}
	c.option(12345, make([]byte, 64<<10))
	c.expectReply(12345, errUnsup)
	c.option(optGo, uint32(0), uint16(0))
	c.expectReply(optGo, repInfo)
	c.expectReply(optGo, repAck)
}

// TestHostileTransmission: out of step means the end, after the requests before
// were answered.
func TestHostileTransmission(t *testing.T) {
	_, path := start(t, newFake(1<<20), nbd.Options{})
	b := newBystander(t, path)
	before := req{kind: cmdWrite, cookie: 1, length: 3, payload: []byte("abc")}.wire()
	answered := wire(uint32(0x67446698), uint32(0), uint64(1))
	einvalFor2 := wire(uint32(0x67446698), uint32(einval), uint64(2))
	noSpaceFor2 := wire(uint32(0x67446698), uint32(enospc), uint64(2))
	for name, tc := range map[string]struct{ send, want []byte }{
		"wrong magic":              {wire(before, make([]byte, 28)), answered},
		"historic magic":           {wire(before, uint32(0x12560953), make([]byte, 24)), answered},
		"extended request":         {wire(before, uint32(0x21e41c71), make([]byte, 28)), answered},
		"write of 4 GiB":           {wire(before, req{kind: cmdWrite, cookie: 2, length: 1<<32 - 1}.wire()), wire(answered, noSpaceFor2)},
		"write of 65 MiB":          {wire(before, req{kind: cmdWrite, flags: 64, cookie: 2, length: 65 << 20}.wire()), wire(answered, einvalFor2)},
		"garbage after disconnect": {wire(before, req{kind: cmdDisc}.wire(), "garbage"), answered},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, path).enter(false)
			c.send(tc.send)
			c.expect(tc.want)
			c.expectEnd()
		})
		b.alive()
	}
}

// TestHalfMessages: the client falls silent within a message, or leaves.
func TestHalfMessages(t *testing.T) {
	_, path := start(t, newFake(2<<20), nbd.Options{MessageTimeout: 50 * time.Millisecond})
	b := newBystander(t, path)
	long := req{kind: cmdWrite, cookie: 2, payload: make([]byte, 1<<20), length: 1 << 20, offset: 1 << 20}.wire()
	for name, data := range map[string][]byte{
		"one byte":             long[:1],
		"half a header":        long[:27],
		"header alone":         long[:28],
		"first chunk":          long[:28+256<<10],
		"half a payload":       long[:600<<10],
		"half a small payload": req{kind: cmdWrite, length: 4096, payload: make([]byte, 4000)}.wire(),
		"half a refused one":   req{kind: cmdWrite, offset: 1 << 40, length: 4096, payload: make([]byte, 4000)}.wire(),
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, path).enter(false)
			c.send(data)
			c.expectHangUp()

			c = dial(t, path).enter(false)
			c.send(data)
			c.Close()
		})
		b.alive()
	}
}

// expectHangUp checks that the server closes, whatever it says before.
func (c *client) expectHangUp() {
	c.tb.Helper()
	if _, err := io.Copy(io.Discard, c.Conn); err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			c.tb.Fatalf("still connected: %v", err)
		}
	}
}

// TestIdleClient: silence between requests is nobody's fault.
func TestIdleClient(t *testing.T) {
	_, path := start(t, newFake(1<<20), nbd.Options{MessageTimeout: 20 * time.Millisecond, ReplyTimeout: 20 * time.Millisecond})
	idle := dial(t, path).enter(false)
	half := idle.Conn
	w := req{kind: cmdWrite, cookie: 1, length: 4, payload: []byte("abcd")}.wire()
	if _, err := half.Write(w[:20]); err != nil { // arms the deadline
		t.Fatal(err)
	}
	idle.send(w[20:])
	idle.expect(uint32(0x67446698), uint32(0), uint64(1))
	stalled := dial(t, path).enter(false) // stalls after the idle one went idle
	stalled.send(w[:5])
	stalled.expectHangUp()
	idle.must(req{kind: cmdFlush})
}

func TestHandshakeTimeout(t *testing.T) {
	_, path := start(t, newFake(1<<20), nbd.Options{HandshakeTimeout: 50 * time.Millisecond})
	for _, data := range []string{"", "\x00", "\x00\x00\x00\x03IHAVEOPT", "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x09abc"} {
		c := dial(t, path)
		c.expect("NBDMAGIC", "IHAVEOPT", uint16(3))
		c.send(data)
		c.expectEnd()
	}
}

// TestNeverReads: a client that sends requests and reads no reply costs no
// more than its quota, and is closed.
func TestNeverReads(t *testing.T) {
	for name, tc := range map[string]struct {
		req   req
		limit int // requests that may reach the device
	}{
		"large reads": {req{kind: cmdRead, length: 1 << 20}, 34 + 2},
		"small reads": {req{kind: cmdRead, length: 4096}, 1024 + 256},
		"statuses":    {req{kind: cmdBlockStatus, length: 64 << 20}, 1 << 30},
		"flushes":     {req{kind: cmdFlush}, 1 << 30},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(64 << 20)
			f.mark(0, 64<<20, true)
			f.record = true
			s, path := start(t, f, nbd.Options{ReplyTimeout: 100 * time.Millisecond})
			b := newBystander(t, path)
			c := dial(t, path).enter(true)
			flood := bytes.Repeat(tc.req.wire(), 1000)
			var err error
			for err == nil {
				_, err = c.Write(flood)
			}
			if n := len(f.recorded()); n > tc.limit {
				t.Errorf("%d requests were submitted, at most %d should have been", n, tc.limit)
			}
			if out := s.Stats().BuffersOut; out > 1024 {
				t.Errorf("%d buffers in use", out)
			}
			b.alive()
		})
	}
}

// TestReplyQuota: replies that are not made yet count as well, and one read of
// the maximum always fits.
func TestReplyQuota(t *testing.T) {
	f := newFake(64 << 20)
	f.hold()
	_, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(false)
	in := exchanges{}
	for i := range uint64(50) {
		r := req{kind: cmdRead, cookie: i, length: 1 << 20}
		if i%20 == 0 {
			r.length = 32 << 20
		}
		in.add(r)
		c.request(r)
	}
	for len(in) > 0 {
		f.release(t)
		c.receive(in)
	}
	if peak := f.peak[device.Read]; peak > 34<<20 || peak < 32<<20 {
		t.Errorf("%d bytes of reads were in flight", peak)
	}
}

// TestWriteQuota: what the device has not completed of a client's writes is
// bounded, and other clients pass.
func TestWriteQuota(t *testing.T) {
	f := newFake(64 << 20)
	f.hold()
	_, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(false)
	const writes, size = 16, 3 << 20
	var sender sync.WaitGroup
	sender.Go(func() {
		for i := range uint64(writes) {
			r := req{kind: cmdWrite, cookie: i, offset: i * size, length: size, payload: make([]byte, size)}
			if _, err := c.Write(r.wire()); err != nil {
				t.Errorf("send: %v", err)
			}
		}
	})
	for range writes * size / (256 << 10) {
		f.release(t)
	}
	sender.Wait()
	in := exchanges{}
	for i := range uint64(writes) {
		in.add(req{kind: cmdWrite, cookie: i})
	}
	for len(in) > 0 {
		if e := c.receive(in); e.errno != 0 {
			t.Errorf("write: error %d", e.errno)
		}
	}
	if peak := f.peak[device.Write]; peak > 24<<20 {
		t.Errorf("%d bytes of writes were in flight", peak)
	}
}

// lockedBuffer is a log that tests can read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// refused expects that there is no place, and that the client is told why.
func (c *client) refused() {
	c.tb.Helper()
	c.greet(3)
	c.option(optGo, uint32(0), uint16(0))
	if why := string(c.expectReply(optGo, errPolicy)); !strings.Contains(why, "too many connections") {
		c.tb.Errorf("refused for: %q", why)
	}
	c.option(optAbort)
	c.expectReply(optAbort, repAck)
	c.expectEnd()
}

// TestTooManyClients: those over the limit are refused, in words while the protocol
// has any, with one line in the log for all of them, and a place that falls free is
// used.
func TestTooManyClients(t *testing.T) {
	var logged lockedBuffer
	s, path := start(t, newFake(1<<20), nbd.Options{MaxConns: 2, Log: slog.New(slog.NewTextHandler(&logged, nil))})
	first, second := newBystander(t, path), newBystander(t, path)
	for range 19 {
		dial(t, path).refused()
	}
	old := dial(t, path)
	old.greet(3)
	old.option(optExportName)
	old.expectEnd()
	if stats := s.Stats(); stats.Refused != 20 || stats.Connections != 2 {
		t.Errorf("%+v", stats)
	}
	if n := strings.Count(logged.String(), "too many clients"); n != 1 {
		t.Errorf("%d lines in the log:\n%s", n, logged.String())
	}
	first.alive()
	first.request(req{kind: cmdDisc})
	first.expectEnd()
	second.alive()
	newBystander(t, path).alive()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
	if !strings.Contains(logged.String(), "repeated=") {
		t.Errorf("the repetitions were not counted:\n%s", logged.String())
	}
}
