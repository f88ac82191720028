package disk

import (
	"fmt"
	"io"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxVector is the kernel's IOV_MAX.
	maxVector = 1024
	// maxRetries bounds how often in a row a call is repeated that was
	// interrupted or told to try again without having moved a byte.
	maxRetries = 1000
)

// vector is a system call that moves buffers to or from a file: preadv2 or
// pwritev2, with their flags.
type vector struct {
	trap  uintptr // unix.SYS_PREADV2 or SYS_PWRITEV2
	fd    int
	flags uintptr // unix.RWF_…
}

// move transfers all buffers, in as many calls as it takes. It builds the
// kernel's list in scratch and returns that, grown to what was needed (at most
// maxVector) and cleared, for the next time: the steady state allocates
// nothing.
func (v vector) move(bufs [][]byte, off int64, scratch []unix.Iovec) ([]unix.Iovec, error) {
	for len(bufs) > 0 {
		n := min(len(bufs), maxVector)
		var bytes int64
		scratch, bytes = gather(scratch[:0], bufs[:n])
		err := v.drain(scratch, off)
		clear(scratch) // a parked scratch must not keep the caller's memory alive
		if err != nil {
			return scratch, err
		}
		bufs, off = bufs[n:], off+bytes
	}
	return scratch, nil
}

// gather appends the buffers that are not empty to list.
func gather(list []unix.Iovec, bufs [][]byte) (_ []unix.Iovec, bytes int64) {
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		list = append(list, unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))})
		bytes += int64(len(b))
	}
	return list, bytes
}

// drain transfers one list, going on after short transfers.
func (v vector) drain(list []unix.Iovec, off int64) error {
	for retries := 0; len(list) > 0; {
		n, errno := v.call(list, off)
		switch {
		case errno == 0 && n > 0:
			list, off, retries = advance(list, n), off+int64(n), 0
		case errno == 0 && v.trap == unix.SYS_PREADV2:
			return fmt.Errorf("at %d: %w", off, io.ErrUnexpectedEOF)
		case errno == 0:
			return fmt.Errorf("at %d: %w", off, io.ErrShortWrite)
		case (errno == unix.EINTR || errno == unix.EAGAIN) && retries < maxRetries:
			retries++
			runtime.Gosched()
		default:
			return fmt.Errorf("at %d: %w", off, errno)
		}
	}
	return nil
}

// call does one system call. The offset is passed whole in the first of its two
// words, as 64-bit Linux takes it; Trivet runs nowhere else.
func (v vector) call(list []unix.Iovec, off int64) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(v.trap, uintptr(v.fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(list))), uintptr(len(list)), uintptr(off), 0, v.flags)
	return int(n), errno
}

// advance drops the first n bytes of a list.
func advance(list []unix.Iovec, n int) []unix.Iovec {
	for n > 0 && uint64(n) >= list[0].Len {
		n -= int(list[0].Len)
		list = list[1:]
	}
	if n > 0 {
		list[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(list[0].Base), n))
		list[0].Len -= uint64(n)
	}
	return list
}
