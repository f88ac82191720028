package replica

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"trivet/disk"
	"trivet/journal"
)

// lane carries out one lane's appends and syncs, one at a time and in order. A
// small durable append is handed to the kernel by whoever runs the shard: a
// goroutine that blocks in a system call keeps a processor of the Go runtime
// for 20 µs and more, and has to be woken twice. Everything else, and what the
// kernel would have to wait for, goes to the lane's goroutine.
type lane struct {
	slot  *Slot
	async *disk.Async      // nil: the kernel has none for us
	work  chan *journal.IO // to the lane's goroutine; closed by the engine

	posted  atomic.Bool // something may wait for a kick
	mu      sync.Mutex  // guards what follows; held for no I/O
	busy    bool
	closed  bool          // work is closed: a hung append that comes back is dropped
	waiting []*journal.IO // oldest first; the journal bounds a lane's operations
}

// startLane runs what the kernel was not given.
func (e *Engine) startLane(l *lane) {
	e.done.Go(func() {
		for op := range l.work {
			l.slot.RunIO(op)
			l.next()
		}
	})
}

// enter lets the operation wait for those before it and for the next kick.
func (l *lane) enter(op *journal.IO) {
	l.mu.Lock()
	l.waiting = append(l.waiting, op)
	l.mu.Unlock()
	l.posted.Store(true)
}

// kick begins the oldest operation unless one is under way.
func (l *lane) kick() {
	if !l.posted.Load() || !l.posted.Swap(false) {
		return
	}
	l.mu.Lock()
	if l.busy {
		l.mu.Unlock()
		return
	}
	l.busy = true
	l.mu.Unlock()
	l.next()
}

// begin gives the operation to the kernel or to the goroutine.
func (l *lane) begin(op *journal.IO) {
	if l.async != nil && op.Start(func(f disk.File, bufs [][]byte, off int64) bool {
		return l.async.Write(f, bufs, off, op)
	}) {
		return
	}
	l.hand(op)
}

// hand gives the operation to the lane's goroutine, which is idle. It never
// blocks.
func (l *lane) hand(op *journal.IO) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.work <- op
	}
}

// close ends the lane's goroutine. Nothing is under way, but for what hangs.
func (l *lane) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	close(l.work)
}

// next begins the oldest operation that waits; the one before it was reported.
// The caller has the lane's turn, and gives it up when nothing waits, or when
// the lane was closed while the one before hung.
func (l *lane) next() {
	l.mu.Lock()
	if l.closed || len(l.waiting) == 0 {
		l.busy = false
		l.mu.Unlock()
		return
	}
	op := l.waiting[0]
	l.waiting = append(l.waiting[:0], l.waiting[1:]...)
	l.mu.Unlock()
	l.begin(op)
}

// reaped takes what the kernel did of an append. A part of it, or nothing, for
// it would have had to wait or the filesystem cannot, is no failure: it is
// written again from the start.
func (l *lane) reaped(op *journal.IO, err error) {
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, io.ErrUnexpectedEOF) {
		l.hand(op)
		return
	}
	if err != nil {
		err = fmt.Errorf("slot %d segment %d: append: %w", l.slot.ID, op.Segment.Index, err)
	}
	op.End(err)
	op.Done()
	l.next()
}
