package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Async is a queue of reads and writes that the kernel carries out on its own,
// so that many are under way without a thread for each, and none keeps a
// processor of the Go runtime while it waits: Linux AIO (io_submit(2)), which
// is asynchronous in earnest for direct I/O. Any number of goroutines submit, and
// none of them ever waits; one reaps. The kernel tells of completions through an
// eventfd, on which the reaper waits as on a socket.
type Async struct {
	context uintptr
	event   *os.File
	slots   []asyncOp
	free    chan uint32 // of slots; capacity len(slots)
}

// asyncOp is an operation under way. The kernel reads it, so it must stay
// where it is from its submission until it was reaped.
type asyncOp struct {
	block iocb
	iovec [MaxAsyncBuffers]unix.Iovec
	// handed orders what was filled in before what Reap reads. The kernel does
	// so, too, but the race detector does not know.
	handed atomic.Bool
	file   *realFile
	want   int64
	user   any
}

// MaxAsyncBuffers is the most buffers of one asynchronous operation.
const MaxAsyncBuffers = 64

// iocb is the kernel's struct iocb of linux/aio_abi.h on little-endian.
type iocb struct {
	data   uint64
	_      uint32 // key: the kernel's
	rwf    int32  // RWF_ flags
	opcode uint16
	_      int16 // priority
	fd     uint32
	buffer uint64 // of the I/O vector
	bytes  uint64 // its length, in buffers
	offset int64
	_      uint64 // reserved
	flags  uint32 // iocbResfd
	resfd  uint32 // eventfd
}

// ioEvent is the kernel's struct io_event.
type ioEvent struct {
	data   uint64
	_      uint64 // address of the iocb
	result int64
	_      int64
}

// The kernel's IOCB_CMD_ numbers, and IOCB_FLAG_RESFD.
const (
	opPreadv  = 7
	opPwritev = 8
	iocbResfd = 1
)

// NewAsync makes a queue of at most depth operations. The error is the
// kernel's, which may have none to give: then use File.Read and File.Write.
func NewAsync(depth int) (*Async, error) {
	a := &Async{slots: make([]asyncOp, depth), free: make(chan uint32, depth)}
	event, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	a.event = os.NewFile(uintptr(event), "eventfd")
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, uintptr(depth), uintptr(unsafe.Pointer(&a.context)), 0); errno != 0 {
		return nil, errors.Join(fmt.Errorf("io_setup: %w", errno), a.event.Close())
	}
	for i := range a.slots {
		a.slots[i].block = iocb{data: uint64(i), flags: iocbResfd, resfd: uint32(event)}
		a.free <- uint32(i)
	}
	return a, nil
}

// slot takes a free slot for an operation on the file, which stays open until
// the slot is taken back. It returns nil when there is none, or the file is not
// one for it.
func (a *Async) slot(file File, bufs [][]byte, fits func(*realFile) bool) *asyncOp {
	b, ok := file.(behindFile)
	if !ok || len(bufs) > MaxAsyncBuffers {
		return nil
	}
	f := b.behind()
	if f == nil || !f.direct || !fits(f) {
		return nil
	}
	select {
	case index := <-a.free:
		if f.acquire() != nil {
			a.free <- index
			return nil
		}
		s := &a.slots[index]
		s.file = f
		return s
	default:
		return nil
	}
}

// fill makes the slot an operation that fails with EAGAIN where submitting it
// would have to wait.
func (s *asyncOp) fill(opcode uint16, bufs [][]byte, off int64, user any) {
	s.user, s.want = user, total(bufs)
	for i, buf := range bufs {
		s.iovec[i].Base = unsafe.SliceData(buf)
		s.iovec[i].SetLen(len(buf))
	}
	s.block.opcode, s.block.fd, s.block.offset, s.block.rwf = opcode, uint32(s.file.fd), off, unix.RWF_NOWAIT
	s.block.buffer, s.block.bytes = uint64(uintptr(unsafe.Pointer(&s.iovec))), uint64(len(bufs))
}

// Write starts a durable write of the buffers at off; user comes back when it
// was reaped. It returns false, and has done nothing, where that would have to
// wait, or is not to be had: use File.Write then. It never waits, whatever
// state the disk is in.
func (a *Async) Write(file File, bufs [][]byte, off int64, user any) bool {
	s := a.slot(file, bufs, func(f *realFile) bool { return checkWrite(bufs, off, f.size) == nil })
	if s == nil {
		return false
	}
	s.fill(opPwritev, bufs, off, user)
	s.block.rwf |= unix.RWF_DSYNC
	block := &s.block
	s.handed.Store(true)
	n, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, a.context, 1, uintptr(unsafe.Pointer(&block)))
	if n != 1 || errno != 0 {
		s.handed.Store(false)
		a.take(uint32(block.data))
		return false
	}
	return true
}

// behindFile is a file that can be read and written behind its own back.
type behindFile interface{ behind() *realFile }

func (f *realFile) behind() *realFile { return f }

// behind returns nil while any fault rule is in force, so that none is missed.
func (f *faultyFile) behind() *realFile {
	if inner, ok := f.inner.(behindFile); ok && f.fs.set.Empty() {
		return inner.behind()
	}
	return nil
}

// AsyncBatch gathers reads for one submission. It belongs to the goroutine
// that submits.
type AsyncBatch struct {
	queue  *Async
	blocks []*iocb
}

// Batch makes an empty batch.
func (a *Async) Batch() *AsyncBatch { return &AsyncBatch{queue: a} }

// Add puts a read of the buffers from off on into the batch; user comes back
// when it was reaped. It returns false, and has done nothing, when too much is
// under way, or the file cannot be read that way: use File.Read then.
func (b *AsyncBatch) Add(file File, bufs [][]byte, off int64, user any) bool {
	s := b.queue.slot(file, bufs, func(f *realFile) bool { return checkRead(bufs, off, f.size) == nil })
	if s == nil {
		return false
	}
	s.fill(opPreadv, bufs, off, user)
	b.blocks = append(b.blocks, &s.block)
	s.handed.Store(true)
	return true
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
func (a *Async) take(index uint32) (user any) {
	s := &a.slots[index]
	user = s.user
	s.file.release()
	s.file, s.user = nil, nil
	a.free <- index
	return user
}

// Reap waits for operations to end and calls fn for each, with the kernel's
// error, or one that wraps io.ErrUnexpectedEOF for a transfer that came up
// short. unix.EAGAIN means that nothing was done, because it would have had to
// wait. Reap returns when the queue is closed.
func (a *Async) Reap(fn func(user any, err error)) error {
	var events [64]ioEvent
	var count [8]byte
	for {
		if _, err := a.event.Read(count[:]); err != nil {
			return fmt.Errorf("wait for completions: %w", err)
		}
		for n := len(events); n == len(events); {
			r, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, a.context, 0, uintptr(len(events)), uintptr(unsafe.Pointer(&events)), 0, 0)
			if errno != 0 && errno != unix.EINTR {
				return fmt.Errorf("io_getevents: %w", errno)
			}
			if n = int(r); errno != 0 {
				n = len(events) // again
				continue
			}
			for i := range n {
				index := uint32(events[i].data)
				err := a.slots[index].outcome(events[i].result)
				fn(a.take(index), err)
			}
		}
	}
}

// outcome is what the kernel's result means.
func (s *asyncOp) outcome(result int64) error {
	switch {
	case !s.handed.Swap(false):
		panic("disk: the kernel completed what it was not given")
	case result < 0:
		return fmt.Errorf("%s at %d: %w", s.file.name, s.block.offset, unix.Errno(-result))
	case result != s.want:
		return fmt.Errorf("%s at %d: %d of %d bytes: %w", s.file.name, s.block.offset, result, s.want, io.ErrUnexpectedEOF)
	}
	return nil
}

// Close ends Reap. Nothing may be under way.
func (a *Async) Close() error {
	err := a.event.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IO_DESTROY, a.context, 0, 0); errno != 0 {
		err = errors.Join(err, fmt.Errorf("io_destroy: %w", errno))
	}
	return err
}
