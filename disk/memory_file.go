package disk

import (
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// memoryFile is a handle of a MemoryFS.
type memoryFile struct {
	fs     *MemoryFS
	name   string
	data   *memoryData // guarded by fs.mu
	closed bool        // guarded by fs.mu
	told   int         // of the data's failures; guarded by fs.mu
}

// failed returns the error of a sync that failed since the handle was opened,
// on whatever handle, unless this one was told already. That is what Linux does
// (errseq_t): lanes that share a file have handles of their own and so each
// learns that what it has written is lost. Needs fs.mu.
func (f *memoryFile) failed() error {
	if f.told == f.data.failures {
		return nil
	}
	f.told = f.data.failures
	return unix.EIO
}

// usable returns why the handle no longer works; needs fs.mu.
func (f *memoryFile) usable() error {
	if f.fs.gone != nil {
		return f.fs.gone
	}
	if f.closed {
		return fs.ErrClosed
	}
	return nil
}

// Write implements File.
func (f *memoryFile) Write(bufs [][]byte, off int64, durable bool) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.usable()
	if err == nil {
		err = checkWrite(bufs, off, f.data.size)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", f.name, err)
	}
	for _, b := range bufs {
		f.data.write(b, off, durable)
		off += int64(len(b))
	}
	if durable {
		if err := f.failed(); err != nil {
			return fmt.Errorf("write %s: an earlier sync: %w", f.name, err)
		}
	}
	return nil
}

// Read implements File.
func (f *memoryFile) Read(bufs [][]byte, off int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.usable()
	if err == nil {
		err = checkRead(bufs, off, f.data.size)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", f.name, err)
	}
	for _, b := range bufs {
		f.data.read(b, off)
		off += int64(len(b))
	}
	return nil
}

// Sync implements File.
func (f *memoryFile) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.usable(); err != nil {
		return fmt.Errorf("sync %s: %w", f.name, err)
	}
	f.data.sync()
	if err := f.failed(); err != nil {
		return fmt.Errorf("sync %s: an earlier one: %w", f.name, err)
	}
	return nil
}

// loseUnsynced implements loser.
func (f *memoryFile) loseUnsynced() {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.usable() == nil { // after a crash the data is the successor's
		f.data.lose()
		f.told++ // by the error that this one gets now
	}
}

// Zero implements File.
func (f *memoryFile) Zero(off, length int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.checkRange("zero", off, length); err != nil {
		return err
	}
	f.data.zero(off, length)
	return nil
}

// Deallocate implements File.
func (f *memoryFile) Deallocate(off, length int64) error { return f.Zero(off, length) }

// Allocate implements File. A file has had all of its space since Create.
func (f *memoryFile) Allocate(off, length int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return f.checkRange("allocate", off, length)
}

// checkRange returns why op cannot be done to a range; needs fs.mu.
func (f *memoryFile) checkRange(op string, off, length int64) error {
	err := f.usable()
	if err == nil {
		err = checkZero(off, length, f.data.size)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", op, f.name, err)
	}
	return nil
}

// Size implements File.
func (f *memoryFile) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.usable(); err != nil {
		return 0, fmt.Errorf("size of %s: %w", f.name, err)
	}
	return f.data.size, nil
}

// Close implements File. A handle can be closed after a crash too.
func (f *memoryFile) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return fmt.Errorf("close %s: %w", f.name, fs.ErrClosed)
	}
	f.closed = true
	return nil
}
