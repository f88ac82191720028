package nbd_test

import (
	"fmt"
	"io"
	"testing"

	"trivet/device/nbd"
)

// BenchmarkLoop measures one connection's way through the server over a unix
// socket, with a device that completes inline. One operation is one request;
// at depth 32 that many are sent in one write and their replies awaited.
func BenchmarkLoop(b *testing.B) {
	for _, structured := range []bool{false, true} {
		for _, kind := range []uint16{cmdRead, cmdWrite} {
			for _, depth := range []int{1, 32} {
				name := fmt.Sprintf("%s/%s/depth=%d", map[bool]string{false: "simple", true: "structured"}[structured],
					map[uint16]string{cmdRead: "read", cmdWrite: "write"}[kind], depth)
				b.Run(name, func(b *testing.B) {
					f := newFake(1 << 20)
					f.mark(0, 1<<20, true)
					benchmarkLoop(b, f, structured, kind, depth)
				})
			}
		}
	}
}

// BenchmarkElsewhere is the loop with a device that completes each request on
// a goroutine of its own, one after another, as after a sync or a cold read.
func BenchmarkElsewhere(b *testing.B) {
	for _, depth := range []int{1, 4, 32} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			f := newFake(1 << 20)
			f.mark(0, 1<<20, true)
			f.startAsync(b, 1)
			benchmarkLoop(b, f, false, cmdRead, depth)
		})
	}
}

// TestNoAllocations: requests and replies of ordinary sizes cost no garbage.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	f := newFake(1 << 20)
	f.mark(0, 512<<10, true)
	_, path := start(t, f, nbd.Options{})
	for _, r := range []req{
		{kind: cmdRead, length: 4096},
		{kind: cmdRead, length: 256 << 10},
		{kind: cmdRead, offset: 600 << 10, length: 4096},      // a hole
		{kind: cmdRead, offset: 512<<10 - 4096, length: 8192}, // data and a hole
		{kind: cmdWrite, length: 4096, payload: make([]byte, 4096)},
		{kind: cmdWrite, length: 512 << 10, payload: make([]byte, 512<<10)},
		{kind: cmdFlush},
		{kind: cmdBlockStatus, length: 1 << 20},
	} {
		c := dial(t, path).enter(true)
		out, in := r.wire(), make([]byte, replyLength(r))
		round := func() {
			if _, err := c.Write(out); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, in); err != nil {
				t.Fatal(err)
			}
		}
		c.must(r)
		if got := testing.AllocsPerRun(100, round); got > 0 {
			t.Errorf("command %d, %d bytes at %d: %v allocations", r.kind, r.length, r.offset, got)
		}
	}
}

// replyLength is how many bytes answer a request of TestNoAllocations.
func replyLength(r req) int {
	switch {
	case r.kind == cmdBlockStatus:
		return 24 + 2*8
	case r.kind != cmdRead:
		return 16
	case r.offset >= 512<<10:
		return 32
	case r.offset > 0:
		return 28 + 4096 + 32
	}
	return 28 + int(r.length)
}

func benchmarkLoop(b *testing.B, f *fake, structured bool, kind uint16, depth int) {
	_, path := start(b, f, nbd.Options{})
	c := dial(b, path).enter(structured)
	c.SetDeadline(noDeadline)
	var batch []byte
	replyBytes := 16
	if kind == cmdRead {
		replyBytes += 4096
		if structured {
			replyBytes += 12
		}
	}
	for i := range depth {
		r := req{kind: kind, cookie: uint64(i), offset: uint64(i) * 4096, length: 4096}
		if kind == cmdWrite {
			r.payload = make([]byte, 4096)
		}
		batch = append(batch, r.wire()...)
	}
	replies := make([]byte, replyBytes*depth)
	b.SetBytes(4096)
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; done += depth {
		if _, err := c.Write(batch); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, replies); err != nil {
			b.Fatal(err)
		}
	}
}
