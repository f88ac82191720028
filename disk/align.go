package disk

import (
	"errors"
	"fmt"
	"io"
	"path"
	"unsafe"

	iofs "io/fs"
)

var (
	// ErrMisaligned is wrapped by errors about memory, offsets, lengths and
	// sizes that are not multiples of BlockSize.
	ErrMisaligned = errors.New("not a multiple of the block size")
	// ErrBeyondEnd is wrapped by the errors of writes past a file's end.
	ErrBeyondEnd = errors.New("beyond the end of the file")
	// ErrLocked is wrapped by the error of Lock when somebody holds the lock.
	ErrLocked = errors.New("locked by another process")
)

// Alloc returns n zeroed bytes whose address is a multiple of BlockSize, as
// direct I/O wants it. The garbage collector frees them.
func Alloc(n int) []byte {
	memory := make([]byte, n+BlockSize-1)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(memory)))) & (BlockSize - 1)
	return memory[skip : skip+n : skip+n]
}

// CheckAligned returns an error that wraps ErrMisaligned unless off and the
// address and length of every buffer are multiples of BlockSize. Every Read and
// Write calls it.
func CheckAligned(bufs [][]byte, off int64) error {
	if off < 0 || off%BlockSize != 0 {
		return fmt.Errorf("offset %d: %w %d", off, ErrMisaligned, BlockSize)
	}
	for i, b := range bufs {
		address := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
		if len(b)%BlockSize != 0 || len(b) > 0 && address%BlockSize != 0 {
			return fmt.Errorf("buffer %d of %d at address %#x with %d bytes: %w %d",
				i, len(bufs), address, len(b), ErrMisaligned, BlockSize)
		}
	}
	return nil
}

// total returns the bytes in all buffers.
func total(bufs [][]byte) (n int64) {
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}

// checkWrite returns the error of a write that a file of size bytes refuses.
func checkWrite(bufs [][]byte, off, size int64) error {
	if err := CheckAligned(bufs, off); err != nil {
		return err
	}
	return checkInside(off, total(bufs), size)
}

// checkRead returns the error of a read that a file of size bytes refuses.
func checkRead(bufs [][]byte, off, size int64) error {
	if err := CheckAligned(bufs, off); err != nil {
		return err
	}
	if n := total(bufs); n > size-off {
		return fmt.Errorf("%d bytes at %d of a file of %d: %w", n, off, size, io.ErrUnexpectedEOF)
	}
	return nil
}

// checkZero returns the error of a Zero that a file of size bytes refuses.
func checkZero(off, length, size int64) error {
	if off < 0 || length < 0 || off%BlockSize != 0 || length%BlockSize != 0 {
		return fmt.Errorf("%d bytes at %d: %w %d", length, off, ErrMisaligned, BlockSize)
	}
	return checkInside(off, length, size)
}

func checkInside(off, length, size int64) error {
	if length > size-off {
		return fmt.Errorf("%d bytes at %d of a file of %d: %w", length, off, size, ErrBeyondEnd)
	}
	return nil
}

// checkSize returns the error of a Create with that size.
func checkSize(sizeBytes int64) error {
	if sizeBytes < 0 || sizeBytes%BlockSize != 0 {
		return fmt.Errorf("size %d: %w %d", sizeBytes, ErrMisaligned, BlockSize)
	}
	return nil
}

// checkName refuses names that are not relative and clean.
func checkName(name string) error {
	if !iofs.ValidPath(name) || path.Clean(name) != name {
		return fmt.Errorf("%q: %w: want a clean relative name", name, iofs.ErrInvalid)
	}
	return nil
}
