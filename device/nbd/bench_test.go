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
				b.Run(name, func(b *testing.B) { benchmarkLoop(b, structured, kind, depth) })
			}
		}
	}
}

func benchmarkLoop(b *testing.B, structured bool, kind uint16, depth int) {
	f := newFake(1 << 20)
	f.mark(0, 1<<20, true)
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
