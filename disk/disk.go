// Package disk is the only way to a file. It has three implementations of one
// small seam, FS and File, and one conformance suite for all of them:
//
//	Real    a directory of the host: direct I/O where it can be had
//	Memory  a simulated disk that can lose power, for models and the simulator
//	Faulty  any of them, made to fail by the rules of package inject
//
// # What a crash leaves
//
// The fault model is that of Linux and a disk with a volatile cache, taken at
// its word where that is worst:
//
//   - Sync makes all completed writes of one file durable; a durable Write
//     makes its own range durable and nothing else, not even what was written
//     before it. Durability is not a prefix: who needs one keeps count.
//   - After a power cut each 512-byte sector that was not durable is, on its
//     own, what was durable before, what was written last, or garbage. Blocks
//     that were durable are never changed by a write beside them.
//   - A process that is killed loses nothing that was written, but what was not
//     durable stays so: its successor reads it from the page cache, and must
//     sync it before it builds on it.
//   - A failed Sync or durable Write may have lost every byte of that file that
//     was not durable. The kernel reports that once to each open handle: until the power cut the
//     file reads as written, and the next Sync returns nil for a range that
//     never reached the disk. So a range whose sync failed is never asked again;
//     it is written anew elsewhere, from memory. Reading it proves nothing
//     either, with buffered I/O above all (see RealFS.Direct).
//   - Create, Remove, Rename and MkdirAll are durable when they return. A crash during
//     Create leaves no file, or one of any size up to the one asked for.
//   - A disk may also lie: a write that was reported as done can be lost, land
//     one block further, or change a bit. Sync does not tell. Checksums that
//     know their place find it, and nothing in this package does.
//
// # Ownership
//
// Files have a fixed size and do not grow. Buffers are the caller's; they are
// read or filled during the call and not kept. Memory for I/O comes from Alloc
// (or any mapping), because all addresses, lengths and offsets are multiples of
// BlockSize, on every implementation, so that tests find what direct I/O would
// refuse. The one that writes, syncs and closes a file is its owner; everybody
// may read it, also during Close.
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
	// Rename gives a file another name in the same directory, in place of what
	// has that name, and syncs the directory. A crash leaves the one or the
	// other under the new name, whole. Handles of both go on working.
	Rename(from, to string) error
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

// File is one file of a slot. Reads may be called from any goroutine; what
// changes the file or syncs it, and Close, by one at a time, its owner.
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
	// Deallocate gives a range's blocks back to the filesystem; it reads as
	// zeros then. Where the filesystem cannot, the error wraps
	// errors.ErrUnsupported. After a crash the range may hold what it held.
	Deallocate(off, length int64) error
	// Allocate makes sure that a range has blocks, so that writing it needs no
	// space; what it holds stays.
	Allocate(off, length int64) error
	// Size returns the length in bytes.
	Size() (int64, error)
	// Close releases the file. It does not sync.
	Close() error
}
