package nbd

import (
	"sync"
	"sync/atomic"
)

// headroom is kept free in front of each payload for the headers of the
// reply, so that header and payload leave as one piece. A whole block keeps
// the payload block-aligned.
const headroom = 4096

// classBytes are the payload sizes that buffers come in.
var classBytes = [...]int{
	4 << 10, 16 << 10, 64 << 10, 256 << 10,
	1 << 20, 2 << 20, 4 << 20, 8 << 20, 16 << 20, maxPayload,
}

// class is an index into classBytes.
type class int

// classFor returns the smallest class that holds n bytes; n is at most
// maxPayload.
func classFor(n int) class {
	for i, size := range classBytes {
		if n <= size {
			return class(i)
		}
	}
	panic("nbd: reply above the maximum payload")
}

// cost is what a buffer of the class counts for on a connection's quota.
func (k class) cost() uint64 { return uint64(headroom + classBytes[k]) }

// buffer is the memory of one reply with a payload. Exactly one place holds
// it at a time: the command, then the outbox, then the pool.
type buffer struct {
	mem   []byte // headroom, then the payload
	class class
	front int // where in the headroom the next header goes
}

// payload returns the n bytes that follow the headroom.
func (b *buffer) payload(n int) []byte { return b.mem[headroom : headroom+n] }

// bufferPool keeps free buffers by class. What lies unused is given up to the
// garbage collector.
type bufferPool struct {
	free [len(classBytes)]sync.Pool
	out  atomic.Int64 // buffers taken and not returned
}

func (p *bufferPool) take(k class) *buffer {
	p.out.Add(1)
	if b, ok := p.free[k].Get().(*buffer); ok {
		b.front = 0
		return b
	}
	return &buffer{mem: make([]byte, headroom+classBytes[k]), class: k}
}

func (p *bufferPool) put(b *buffer) {
	p.out.Add(-1)
	p.free[b.class].Put(b)
}
