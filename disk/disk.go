package disk

import "io"

// BlockSize is the unit in which files are addressed: offsets, lengths and
// memory of every read and write are multiples of it, so that direct I/O is
// possible. 4096 bytes.
const BlockSize = 4096

// FS is one slot's directory. Names are slash-separated, relative and clean.
// Absence is reported with an error that wraps fs.ErrNotExist; a name that is
// already taken with fs.ErrExist. Methods may be called from any goroutine.
type FS interface {
	// Create makes a file of sizeBytes bytes that reads as zeros, preallocated,
	// and syncs the directory, so that the file survives a power cut.
	Create(name string, sizeBytes int64) (File, error)
	// Open opens an existing file for reading and writing.
	Open(name string) (File, error)
	// Remove unlinks a file and syncs the directory.
	Remove(name string) error
	// List returns the names in a directory, sorted.
	List(dir string) ([]string, error)
	// MkdirAll makes a directory and its parents, durably.
	MkdirAll(dir string) error
	// Usage returns the bytes free and in all of the filesystem underneath.
	Usage() (freeBytes, totalBytes int64, err error)
	// Lock takes an exclusive lock that ends with the process or with Close.
	// It fails at once when another process holds it.
	Lock(name string) (io.Closer, error)
}

// File is one file of a slot. Reads may be called from any goroutine; writes,
// Sync, Zero and Close by one at a time, its owner.
type File interface {
	// Write writes the buffers one after another at off, in full or not at
	// all as far as the caller may assume: after an error the range holds
	// anything. With durable set it returns once these bytes (not earlier
	// ones) are on stable storage, as with RWF_DSYNC.
	Write(bufs [][]byte, off int64, durable bool) error
	// Read fills the buffers from off, past the page cache where the
	// filesystem allows it. Reading beyond the end is io.ErrUnexpectedEOF.
	Read(bufs [][]byte, off int64) error
	// Sync makes all completed writes durable (fdatasync). After an error the
	// unsynced ranges hold anything, and a later nil proves nothing of them.
	Sync() error
	// Zero writes real zeros over a preallocated range, so that later writes
	// need no change of metadata to become durable.
	Zero(off, length int64) error
	// Size returns the length in bytes.
	Size() (int64, error)
	// Close releases the file. It does not sync.
	Close() error
}
