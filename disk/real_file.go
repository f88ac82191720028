package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// realFile is an open file of the host.
type realFile struct {
	handle
	name   string
	size   int64 // bytes; files do not grow
	direct bool  // past the page cache

	// Only the owner touches these: the one that writes, syncs and closes.
	scratch []unix.Iovec // see vector.move
	noDsync bool         // the filesystem refused RWF_DSYNC once
}

func newRealFile(fd int, name string, size int64, direct bool) *realFile {
	return &realFile{handle: handle{fd: fd}, name: name, size: size, direct: direct}
}

// Write implements File.
func (f *realFile) Write(bufs [][]byte, off int64, durable bool) error {
	if err := checkWrite(bufs, off, f.size); err != nil {
		return fmt.Errorf("write %s: %w", f.name, err)
	}
	if err := f.acquire(); err != nil {
		return fmt.Errorf("write %s: %w", f.name, err)
	}
	defer f.release()
	if err := f.write(bufs, off, durable); err != nil {
		return fmt.Errorf("write %s: %w", f.name, err)
	}
	return nil
}

// write falls back to a separate sync where RWF_DSYNC is not to be had, which
// makes more durable than was asked for.
func (f *realFile) write(bufs [][]byte, off int64, durable bool) (err error) {
	v := vector{trap: unix.SYS_PWRITEV2, fd: f.fd}
	if durable && !f.noDsync {
		v.flags = unix.RWF_DSYNC
	}
	f.scratch, err = v.move(bufs, off, f.scratch)
	if v.flags != 0 && errors.Is(err, unix.EOPNOTSUPP) {
		f.noDsync, v.flags = true, 0
		f.scratch, err = v.move(bufs, off, f.scratch)
	}
	if err == nil && durable && v.flags == 0 {
		err = f.fdatasync()
	}
	return err
}

// vectors are the scratch lists of reads, of which any number can be under way.
var vectors = sync.Pool{New: func() any { return new([]unix.Iovec) }}

// Read implements File.
func (f *realFile) Read(bufs [][]byte, off int64) error {
	if err := checkRead(bufs, off, f.size); err != nil {
		return fmt.Errorf("read %s: %w", f.name, err)
	}
	if err := f.acquire(); err != nil {
		return fmt.Errorf("read %s: %w", f.name, err)
	}
	defer f.release()
	scratch := vectors.Get().(*[]unix.Iovec)
	defer vectors.Put(scratch)
	var err error
	*scratch, err = vector{trap: unix.SYS_PREADV2, fd: f.fd}.move(bufs, off, *scratch)
	if err != nil {
		return fmt.Errorf("read %s: %w", f.name, err)
	}
	return nil
}

// Sync implements File.
func (f *realFile) Sync() error {
	if err := f.acquire(); err != nil {
		return fmt.Errorf("sync %s: %w", f.name, err)
	}
	defer f.release()
	if err := f.fdatasync(); err != nil {
		return fmt.Errorf("sync %s: %w", f.name, err)
	}
	return nil
}

// fdatasync repeats interrupted calls only: any other error stands, because
// the kernel forgets it once it was reported.
func (f *realFile) fdatasync() error {
	return retried(func() error { return unix.Fdatasync(f.fd) })
}

// zeros is what Zero writes; nothing else ever does, so the kernel backs it
// with its page of zeros or, at most, once.
var zeros = sync.OnceValue(func() []byte { return Alloc(256 << 10) })

// Zero implements File.
func (f *realFile) Zero(off, length int64) error {
	if err := checkZero(off, length, f.size); err != nil {
		return fmt.Errorf("zero %s: %w", f.name, err)
	}
	if err := f.acquire(); err != nil {
		return fmt.Errorf("zero %s: %w", f.name, err)
	}
	defer f.release()
	if err := f.zero(off, length); err != nil {
		return fmt.Errorf("zero %s: %w", f.name, err)
	}
	return nil
}

// zero writes up to 4 MiB a call, so that a slow disk is not asked for a whole
// segment in one breath.
func (f *realFile) zero(off, length int64) (err error) {
	var bufs [16][]byte
	v := vector{trap: unix.SYS_PWRITEV2, fd: f.fd}
	for length > 0 && err == nil {
		var n int64
		count := 0
		for ; count < len(bufs) && n < length; count++ {
			bufs[count] = zeros()[:min(int64(len(zeros())), length-n)]
			n += int64(len(bufs[count]))
		}
		f.scratch, err = v.move(bufs[:count], off, f.scratch)
		off, length = off+n, length-n
	}
	return err
}

// Deallocate implements File.
func (f *realFile) Deallocate(off, length int64) error {
	err := f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	if err != nil {
		return fmt.Errorf("deallocate %s: %w", f.name, err)
	}
	return nil
}

// Allocate implements File. Where the filesystem has no fallocate, nothing was
// deallocated either.
func (f *realFile) Allocate(off, length int64) error {
	err := f.fallocate(0, off, length)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("allocate %s: %w", f.name, err)
	}
	return nil
}

func (f *realFile) fallocate(mode uint32, off, length int64) error {
	if err := checkZero(off, length, f.size); err != nil {
		return err
	}
	if err := f.acquire(); err != nil {
		return err
	}
	defer f.release()
	return retried(func() error { return unix.Fallocate(f.fd, mode, off, length) })
}

// preallocate gives a new file its size and blocks, durably. Filesystems
// without fallocate get written zeros: a sparse file could fail for lack of
// space at any later write.
func (f *realFile) preallocate() error {
	if f.size > 0 {
		err := retried(func() error { return unix.Fallocate(f.fd, 0, 0, f.size) })
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = f.zero(0, f.size)
		}
		if err != nil {
			return fmt.Errorf("allocate: %w", err)
		}
	}
	return retried(func() error { return unix.Fsync(f.fd) })
}

// Size implements File.
func (f *realFile) Size() (int64, error) { return f.size, nil }

// Close implements File. It does not wait: the last read under way closes the
// descriptor.
func (f *realFile) Close() error {
	if err := f.handle.close(); err != nil {
		return fmt.Errorf("close %s: %w", f.name, err)
	}
	return nil
}

// handle is a file descriptor that is closed when its last user has left, so
// that no read can meet a descriptor that was closed and given to another file.
type handle struct {
	fd    int
	state atomic.Int64 // the number of users; closing is added by close
}

const closing = 1 << 62

func (h *handle) acquire() error {
	for {
		state := h.state.Load()
		if state&closing != 0 {
			return fs.ErrClosed
		}
		if h.state.CompareAndSwap(state, state+1) {
			return nil
		}
	}
}

func (h *handle) release() {
	if h.state.Add(-1) == closing {
		unix.Close(h.fd)
	}
}

// close returns fs.ErrClosed the second time.
func (h *handle) close() error {
	switch old := h.state.Or(closing); {
	case old&closing != 0:
		return fs.ErrClosed
	case old == 0:
		return unix.Close(h.fd)
	}
	return nil
}
