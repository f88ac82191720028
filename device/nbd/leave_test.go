package nbd_test

import (
	"bytes"
	"fmt"
	"net"
	"path/filepath"
	"testing"

	"trivet/device"
	"trivet/device/nbd"
)

// TestTakesLeave: a client that sends DISC and closes without a look at its replies
// has what it asked before carried out; one that just closes, only what was begun.
func TestTakesLeave(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		for _, disc := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/disc=%v", network, disc), func(t *testing.T) {
				f := newFake(64 << 20)
				f.hold()
				address := filepath.Join(t.TempDir(), "s")
				if network == "tcp" {
					address = "127.0.0.1:0"
				}
				l, err := net.Listen(network, address)
				if err != nil {
					t.Fatal(err)
				}
				s := nbd.New(f, nbd.Options{})
				startServing(t, s, l)
				connect := func() *client {
					nc, err := net.Dial(network, l.Addr().String())
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { nc.Close() })
					return &client{tb: t, Conn: nc}
				}
				other, c := connect().enter(false), connect().enter(false)
				const size, quota = 256 << 10, 24 << 20
				fill := req{kind: cmdWrite, length: 24 << 20, payload: bytes.Repeat([]byte{1}, 24<<20)}
				c.request(fill)
				await(t, "the quota is used up", func() bool { return len(f.held) == quota/size })
				last := req{kind: cmdWrite, offset: quota, payload: []byte("farewell"), length: 8}.wire()
				if disc {
					last = append(last, req{kind: cmdDisc}.wire()...)
				}
				c.send(last)
				c.Close()
				if !disc {
					await(t, "it is found out", func() bool { return f.gone.Load() == 1 })
				}
				for range quota / size {
					f.release(t)
				}
				if disc {
					if got := f.release(t); got.offset != quota {
						t.Errorf("%+v", got)
					}
				}
				await(t, "it is gone", func() bool { return s.Stats().Connections == 1 })
				if len(f.held) > 0 {
					t.Errorf("%+v was begun", <-f.held)
				}
				want := make([]byte, 8)
				if disc {
					copy(want, "farewell")
				}
				if got := f.bytes(quota, 8); !bytes.Equal(got, want) {
					t.Errorf("it left %q, expected %q", got, want)
				}
				other.request(req{kind: cmdFlush, cookie: 9})
				f.release(t)
				other.expect(uint32(0x67446698), uint32(0), uint64(9))
			})
		}
	}
}

// TestAsk: who hangs up is gone for the device, or stays, once the reader has looked;
// until then it is unsure.
func TestAsk(t *testing.T) {
	f := newFake(1 << 20)
	f.hold()
	_, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(false)
	c.request(req{kind: cmdFlush})
	r := <-f.held
	if got := r.Peer.Ask(); got != device.Here || r.Left.Load() {
		t.Errorf("it is there, and the answer is %d", got)
	}
	c.Close()
	await(t, "it is gone", func() bool {
		if r.Peer.Ask() == device.Here {
			t.Fatal("it has hung up, and the answer is that it is there")
		}
		return r.Peer.Ask() == device.Gone && r.Left.Load()
	})
	f.finish(r)
}
