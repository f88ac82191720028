package nbd_test

import (
	"runtime"
	"testing"

	"trivet/device/nbd"
)

// TestUnknownCommandWaits: a request of a kind that does not exist comes when there is
// no room for its refusal. It waits like any other.
func TestUnknownCommandWaits(t *testing.T) {
	f := newFake(1 << 20)
	f.hold()
	srv, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(false)
	for i := range 1024 {
		c.request(req{kind: cmdRead, cookie: uint64(i), length: 512})
	}
	c.request(req{kind: 99, cookie: 5000})
	for len(srv.Held()) == 0 {
		runtime.Gosched()
	}
	for range 1024 {
		f.release(t)
	}
}
