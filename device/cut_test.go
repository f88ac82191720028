package device_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"trivet/device"
	"trivet/device/nbd"
	"trivet/shard"
)

const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6

	blockSize = 4096
	blocks    = 48 // that the clients fight for
	longBytes = 600 << 10
)

// client speaks as much of the protocol as this needs.
type client struct {
	t *testing.T
	net.Conn
	cookie uint64
}

// connect enters transmission.
func connect(t *testing.T, network, address string) *client {
	t.Helper()
	nc, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	c := &client{t: t, Conn: nc}
	c.recv(18)
	hello := binary.BigEndian.AppendUint32(nil, 3)
	hello = append(hello, "IHAVEOPT"...)
	hello = append(hello, 0, 0, 0, 7, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0)
	c.send(hello)
	for kind := uint32(0); kind != 1; {
		head := c.recv(20)
		kind = binary.BigEndian.Uint32(head[12:])
		c.recv(int(binary.BigEndian.Uint32(head[16:])))
	}
	return c
}

func (c *client) send(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

func (c *client) recv(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		c.t.Fatalf("receive: %v", err)
	}
	return b
}

// ask makes a request, of which payload may be a part.
func (c *client) ask(kind uint16, at uint64, length int, payload []byte) []byte {
	c.cookie++
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, c.cookie)
	b = binary.BigEndian.AppendUint64(b, at)
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	return append(b, payload...)
}

// answer awaits a reply, with a payload of n bytes.
func (c *client) answer(n int) []byte {
	c.t.Helper()
	head := c.recv(16)
	if errno := binary.BigEndian.Uint32(head[4:]); errno != 0 {
		c.t.Fatalf("error %d", errno)
	}
	return c.recv(n)
}

// must makes a request that succeeds.
func (c *client) must(kind uint16, at uint64, length int, payload []byte) []byte {
	c.t.Helper()
	c.send(c.ask(kind, at, length, payload))
	if kind == cmdRead {
		return c.answer(length)
	}
	return c.answer(0)
}

// content is what a block is given in a round: old is the dead client's.
func content(round int, old bool) []byte {
	b := bytes.Repeat(binary.BigEndian.AppendUint64(nil, uint64(round)<<1|1), blockSize/8)
	if old {
		copy(b, "old")
	}
	return b
}

// arenaOf is a served device whose clients are cut off.
type arena struct {
	t        *testing.T
	r        *rand.Rand
	level    *atomic.Int32
	device   *device.Device
	network  string
	address  string
	standing []*client // connected all the time
	settled  []byte    // what the blocks held when the last successor had been answered
}

// serve opens a device with clients on a listener.
func serve(t *testing.T, network string, standing int, seed uint64) *arena {
	t.Helper()
	shm, err := os.MkdirTemp("/dev/shm", "trivet-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(shm) })
	d, err := device.Open(context.Background(), device.Options{
		Dir: t.TempDir(), Name: "test", Size: 64 << 20, Shards: 2, ArenaDir: shm, Memory: 16 << 20,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	address := filepath.Join(t.TempDir(), "s")
	if network == "tcp" {
		address = "127.0.0.1:0"
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	server, served := nbd.New(d, nbd.Options{}), make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	a := &arena{t: t, r: rand.New(rand.NewPCG(seed, 29)), level: d.Press(), device: d, network: network, address: l.Addr().String()}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("in flight: %+v", d.Inflight())
		}
		a.level.Store(0)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := errors.Join(server.Close(ctx), <-served, d.Close(ctx)); err != nil {
			t.Error(err)
		}
		if stats := server.Stats(); stats.BuffersOut != 0 || stats.LentBytes != 0 || stats.Connections != 0 {
			t.Errorf("after Close: %+v", stats)
		}
		if d.Waiting() != 0 || d.Leaked() != 0 {
			t.Errorf("after Close: %d parts wait, %d pages of the arena are in use", d.Waiting(), d.Leaked())
		}
	})
	for range standing {
		a.standing = append(a.standing, connect(t, network, a.address))
	}
	return a
}

// startLoad keeps two connections busy elsewhere until the test ends.
func (a *arena) startLoad() {
	stop := make(chan struct{})
	var done sync.WaitGroup
	for i := range uint64(2) {
		c := connect(a.t, a.network, a.address)
		done.Go(func() {
			r := rand.New(rand.NewPCG(i, 68))
			data := make([]byte, 32<<10)
			for {
				select {
				case <-stop:
					return
				default:
				}
				at := uint64(32<<20) + uint64(r.IntN(512))*uint64(len(data))
				if r.IntN(2) == 0 {
					c.must(cmdRead, at, len(data), nil)
				} else {
					c.must(cmdWrite, at, len(data), data)
				}
			}
		})
	}
	a.t.Cleanup(func() {
		a.level.Store(0)
		close(stop)
		done.Wait()
	})
}

// round lets one client ask for something and hang up, and another one write the
// same block.
func (a *arena) round(n int) {
	if a.settled != nil && len(a.standing) > 0 {
		a.check(n, a.standing[0])
	}
	at := a.r.IntN(blocks)
	offset := uint64(at) * blockSize
	var dead *client
	if len(a.standing) > 0 { // a kernel's connection that breaks
		dead = a.standing[0]
		a.standing = a.standing[1:]
	} else {
		dead = connect(a.t, a.network, a.address)
	}
	parked := a.r.IntN(3) == 0
	if parked {
		a.level.Store(shard.Full)
	}
	a.lastWords(n, dead, offset)
	dead.hangUp()

	heir := a.heir()
	what := [...]uint16{cmdWrite, cmdWriteZeroes, cmdTrim}[a.r.IntN(3)]
	fresh, payload := make([]byte, blockSize), []byte(nil)
	if what == cmdWrite {
		fresh = content(n, false)
		payload = fresh
	}
	heir.send(heir.ask(what, offset, blockSize, payload))
	if what == cmdWrite {
		a.level.Store(0)
	}
	heir.answer(0)
	a.settled = heir.must(cmdRead, 0, blocks*blockSize, nil)
	if !bytes.Equal(a.settled[offset:offset+blockSize], fresh) {
		a.t.Fatalf("round %d: block %d does not hold what was written last", n, at)
	}
	a.level.Store(0)
	heir.must(cmdFlush, 0, 0, nil)
	a.check(n, heir)
	if len(a.standing) > 0 {
		a.standing = append(a.standing, connect(a.t, a.network, a.address))
	} else {
		heir.Close()
	}
}

// lastWords is what a client asks before it hangs up, without a look at the
// replies: many writes, the first half of a long one, or a trim.
func (a *arena) lastWords(n int, dead *client, offset uint64) {
	old := content(n, true)
	var words []byte
	for range a.r.IntN(30) {
		words = append(words, dead.ask(cmdWrite, uint64(16<<20+a.r.IntN(1000)*blockSize), blockSize, old)...)
	}
	switch a.r.IntN(4) {
	case 0:
		words = append(words, dead.ask(cmdWrite, offset, longBytes, bytes.Repeat(old, longBytes/2/blockSize))...)
	case 1:
		words = append(words, dead.ask(cmdWriteZeroes, 0, blocks*blockSize, nil)...)
	case 2:
		words = append(words, dead.ask(cmdWrite, offset+100, blockSize/2, old[:blockSize/2])...)
	default:
		words = append(words, dead.ask(cmdWrite, offset, blockSize, old)...)
	}
	dead.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)) // its quota may be used up
	if _, err := dead.Write(words); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		a.t.Fatal(err)
	}
}

// hangUp closes the connection. Over TCP that says nothing to the server while the
// client's kernel has data to send, which come first: those are let go, or dropped
// where the server does not take them.
func (c *client) hangUp() {
	c.t.Helper()
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok {
		c.Close()
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		c.t.Fatal(err)
	}
	unsent := 1
	for begin := time.Now(); unsent > 0 && time.Since(begin) < 100*time.Millisecond; runtime.Gosched() {
		if err := errors.Join(raw.Control(func(fd uintptr) { unsent, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }), err); err != nil {
			c.t.Fatal(err)
		}
	}
	if unsent > 0 {
		tcp.SetLinger(0)
	}
	c.Close()
}

// heir is who writes next: on a new connection, or on one that was let in long ago.
func (a *arena) heir() *client {
	if len(a.standing) > 0 {
		return a.standing[a.r.IntN(len(a.standing))]
	}
	return connect(a.t, a.network, a.address)
}

// check holds that nothing has changed since the last successor was answered.
func (a *arena) check(n int, c *client) {
	a.t.Helper()
	got := c.must(cmdRead, 0, blocks*blockSize, nil)
	for at := 0; at < len(got); at += blockSize {
		if now, then := got[at:at+blockSize], a.settled[at:at+blockSize]; !bytes.Equal(now, then) {
			a.t.Fatalf("round %d: block %d has changed (old: %v) after the client was gone who asked for that",
				n, at/blockSize, bytes.Contains(now, []byte("old")))
		}
	}
}

// TestCut cuts connections under load, with the server alive: what a client has
// asked and the device has not begun is not begun behind what comes after it
// (hazards 29, 68).
func TestCut(t *testing.T) {
	rounds := 25
	if os.Getenv("TRIVET_LONG") != "" {
		rounds = 1000
	}
	for _, network := range []string{"unix", "tcp"} {
		for _, standing := range []int{0, 4} {
			for _, load := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/standing=%d/load=%v", network, standing, load), func(t *testing.T) {
					t.Parallel()
					a := serve(t, network, standing, uint64(standing))
					if load {
						a.startLoad()
					}
					for n := range rounds {
						a.round(n)
					}
				})
			}
		}
	}
}
