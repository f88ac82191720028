package nbd_test

import (
	"bytes"
	"runtime"
	"sync"
	"testing"
	"time"

	"trivet/device"
	"trivet/device/nbd"
)

// lazy is a backend that does nothing of what was posted until Run is called,
// as a device may.
type lazy struct {
	*fake
	mu     sync.Mutex // guards posted
	posted []*device.Request
}

func (l *lazy) Post(r *device.Request) {
	if r.Op == device.Write { // the payload is consumed now
		r.Data = append([]byte(nil), r.Data...)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.posted = append(l.posted, r)
}

func (l *lazy) Run() {
	l.mu.Lock()
	posted := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, r := range posted {
		l.fake.Post(r)
	}
}

// TestPostedIsRun holds that nothing that was posted is left lying: not before
// the reader waits for a quota, for the rest of a payload or for the client,
// not when replies are sent before the batch is through, and not when the
// client leaves. There is one connection, so nobody else runs it.
func TestPostedIsRun(t *testing.T) {
	const size = 48 << 20
	for name, requests := range map[string]func() []req{
		"more commands than the quota": func() (all []req) {
			for range 5000 {
				all = append(all, req{kind: cmdFlush})
			}
			return all
		},
		"more bytes to reply than the quota": func() (all []req) {
			for i := range uint64(80) {
				all = append(all, req{kind: cmdRead, offset: i % 40 << 20, length: 1 << 20})
			}
			return all
		},
		"replies that are sent early": func() (all []req) {
			for i := range uint64(64) {
				all = append(all, req{kind: cmdRead, offset: i << 15, length: 32 << 10}, req{kind: cmdFlush})
			}
			return all
		},
		"more bytes to write than the quota": func() (all []req) {
			for i := range uint64(40) {
				all = append(all, req{kind: cmdWrite, flags: flagFUA, offset: i<<20 + 777, length: 1 << 20, payload: make([]byte, 1<<20)})
			}
			return all
		},
		"a write of the maximum": func() []req {
			return []req{{kind: cmdFlush}, {kind: cmdWrite, offset: 12345, length: 32 << 20, payload: make([]byte, 32<<20)}, {kind: cmdFlush}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bothKinds(t, func(t *testing.T, structured bool) {
				_, path := start(t, &lazy{fake: newFake(size)}, nbd.Options{})
				c := dial(t, path).enter(structured)
				in := exchanges{}
				var batch bytes.Buffer
				for i, r := range requests() {
					r.cookie = uint64(i)
					in.add(r)
					batch.Write(r.wire())
				}
				var sender sync.WaitGroup
				sender.Go(func() {
					if _, err := c.Write(batch.Bytes()); err != nil {
						t.Errorf("send: %v", err)
					}
				})
				for len(in) > 0 {
					if e := c.receive(in); e.errno != 0 {
						t.Errorf("command %d: error %d", e.kind, e.errno)
					}
				}
				sender.Wait()
			})
		})
	}
}

// TestPostedIsRunAtTheEnd: what was posted in the batch with which a client
// leaves, in order or out of step, is run, or the connection would not end.
func TestPostedIsRunAtTheEnd(t *testing.T) {
	write := req{kind: cmdWrite, cookie: 1, offset: 4096, length: 4, payload: []byte("kept")}
	long := req{kind: cmdWrite, cookie: 2, offset: 1 << 20, length: 1 << 20, payload: make([]byte, 300<<10)} // the rest never comes
	for name, last := range map[string][]byte{
		"in order":            req{kind: cmdDisc}.wire(),
		"without a word":      nil,
		"out of step":         bytes.Repeat([]byte{0xff}, 28),
		"in a long payload":   long.wire(),
		"behind unknown ones": append(req{kind: 99, cookie: 3}.wire(), req{kind: cmdDisc}.wire()...),
	} {
		t.Run(name, func(t *testing.T) {
			l := &lazy{fake: newFake(2 << 20)}
			server, path := start(t, l, nbd.Options{})
			c := dial(t, path).enter(false)
			c.send(write.wire(), last)
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			for begin := time.Now(); server.Stats().Connections > 0; runtime.Gosched() {
				if time.Since(begin) > patience {
					t.Fatal("the connection does not end")
				}
			}
			if !bytes.Equal(l.content[4096:4100], write.payload) {
				t.Error("the write was not carried out")
			}
		})
	}
}
