package disk

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// AsyncReads is a queue of reads that the kernel carries out on its own, so
// that many are under way without a thread for each: Linux AIO (io_submit(2)),
// which is asynchronous in earnest for direct I/O. One goroutine submits, one
// reaps.
type AsyncReads struct {
	context uintptr
	slots   []asyncRead
	free    chan uint32 // of slots; capacity len(slots)
}

// asyncRead is a read under way. The kernel reads it, so it must stay where it
// is from Start until it was reaped.
type asyncRead struct {
	block iocb
	iovec [MaxAsyncBuffers]unix.Iovec
	// handed orders what Add wrote before what Reap reads. The kernel does so, too,
	// but the race detector does not know.
	handed atomic.Bool
	file   *realFile
	want   int64
	user   any
}

// MaxAsyncBuffers is the most buffers of one asynchronous read.
const MaxAsyncBuffers = 64

// iocb is the kernel's struct iocb of linux/aio_abi.h on little-endian.
type iocb struct {
	data   uint64
	_      uint32 // key: the kernel's
	_      int32  // RWF_ flags
	opcode uint16
	_      int16 // priority
	fd     uint32
	buffer uint64 // of the I/O vector
	bytes  uint64 // its length, in buffers
	offset int64
	_      uint64 // reserved
	_      uint32 // flags
	_      uint32 // eventfd
}

// ioEvent is the kernel's struct io_event.
type ioEvent struct {
	data   uint64
	_      uint64 // address of the iocb
	result int64
	_      int64
}

const opPreadv = 7

// NewAsyncReads makes a queue of at most depth reads. The error is that of
// io_setup: where the kernel has none to give, read with File.Read.
func NewAsyncReads(depth int) (*AsyncReads, error) {
	a := &AsyncReads{slots: make([]asyncRead, depth), free: make(chan uint32, depth)}
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, uintptr(depth), uintptr(unsafe.Pointer(&a.context)), 0); errno != 0 {
		return nil, fmt.Errorf("io_setup: %w", errno)
	}
	for i := range a.slots {
		a.free <- uint32(i)
	}
	return a, nil
}

// AsyncBatch gathers reads for one submission. It belongs to the goroutine
// that submits.
type AsyncBatch struct {
	queue  *AsyncReads
	blocks []*iocb
}

// Batch makes an empty batch.
func (a *AsyncReads) Batch() *AsyncBatch { return &AsyncBatch{queue: a} }

// directReader is a file that can be read behind its own back.
type directReader interface{ behind() *realFile }

func (f *realFile) behind() *realFile { return f }

// behind returns nil while any fault rule is in force, so that none is missed.
func (f *faultyFile) behind() *realFile {
	if inner, ok := f.inner.(directReader); ok && f.fs.set.Empty() {
		return inner.behind()
	}
	return nil
}

// Add puts a read of the buffers from off on into the batch; user comes back
// when it was reaped. It returns false when the file cannot be read that way,
// and when full slots mean that the batch must be submitted first, full.
func (b *AsyncBatch) Add(file File, bufs [][]byte, off int64, user any) (added, full bool) {
	d, ok := file.(directReader)
	if !ok || len(bufs) > MaxAsyncBuffers {
		return false, false
	}
	f := d.behind()
	if f == nil || checkRead(bufs, off, f.size) != nil {
		return false, false
	}
	var index uint32
	select {
	case index = <-b.queue.free:
	default:
		if len(b.blocks) > 0 {
			return false, true
		}
		index = <-b.queue.free // the reaper frees one: some are under way
	}
	if f.acquire() != nil {
		b.queue.free <- index
		return false, false
	}
	s := &b.queue.slots[index]
	s.file, s.user, s.want = f, user, total(bufs)
	for i, buf := range bufs {
		s.iovec[i].Base = unsafe.SliceData(buf)
		s.iovec[i].SetLen(len(buf))
	}
	s.block = iocb{
		data: uint64(index), opcode: opPreadv, fd: uint32(f.fd),
		buffer: uint64(uintptr(unsafe.Pointer(&s.iovec))), bytes: uint64(len(bufs)), offset: off,
	}
	b.blocks = append(b.blocks, &s.block)
	s.handed.Store(true)
	return true, false
}

// Submit hands the batch to the kernel. Those that the kernel refuses are
// given to refused, to be read in another way.
func (b *AsyncBatch) Submit(refused func(user any)) {
	for len(b.blocks) > 0 {
		n, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, b.queue.context, uintptr(len(b.blocks)), uintptr(unsafe.Pointer(unsafe.SliceData(b.blocks))))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 || n == 0 {
			refused(b.queue.take(uint32(b.blocks[0].data)))
			n = 1
		}
		b.blocks = append(b.blocks[:0], b.blocks[n:]...)
	}
}

// take frees a slot and returns its user.
func (a *AsyncReads) take(index uint32) (user any) {
	s := &a.slots[index]
	user = s.user
	s.file.release()
	s.file, s.user = nil, nil
	a.free <- index
	return user
}

// errAsyncClosed ends Reap.
var errAsyncClosed = errors.New("queue of asynchronous reads is closed")

// Reap waits for reads to end and calls fn for each, with false for one that
// failed or came up short: read it again with File.Read to learn why. It
// returns when the queue is closed.
func (a *AsyncReads) Reap(fn func(user any, ok bool)) error {
	var events [64]ioEvent
	for {
		n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, a.context, 1, uintptr(len(events)), uintptr(unsafe.Pointer(&events)), 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return fmt.Errorf("%w: %w", errAsyncClosed, errno)
		}
		for i := range int(n) {
			index := uint32(events[i].data)
			s := &a.slots[index]
			ok := s.handed.Swap(false) && events[i].result == s.want
			fn(a.take(index), ok)
		}
	}
}

// Close ends Reap. No read may be under way.
func (a *AsyncReads) Close() error {
	if _, _, errno := unix.Syscall(unix.SYS_IO_DESTROY, a.context, 0, 0); errno != 0 {
		return fmt.Errorf("io_destroy: %w", errno)
	}
	return nil
}
