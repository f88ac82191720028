package main

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"trivet/disk"
	"trivet/journal"
)

// openToCheck opens a slot's directory to be read through. It goes by the page
// cache, unlike a server: a segment is read as a whole first, for its
// descriptors, and then block by block in the order of the map. Of a log that
// was written at random the latter are a disk operation for each 4 KiB without
// a cache, and none with one that has room for a lane.
func openToCheck(dir string, count func(sizeBytes int)) (disk.FS, error) {
	files, err := disk.Real(dir, disk.Options{Buffered: true})
	if err != nil {
		return nil, err
	}
	forgetCached(dir)
	return countedFS{files, count}, nil
}

// forgetCached has the page cache drop what it holds of a slot: before a check,
// because that is about the disk; and behind it, because nobody reads it again.
// It is a request to the kernel: what was not written back yet stays, as does
// what is being read ahead; what cannot be opened is for the check to find.
func forgetCached(dir string) {
	paths, _ := filepath.Glob(filepath.Join(dir, "log", "*")) // the pattern is right
	for _, path := range append(paths, filepath.Join(dir, journal.SuperblockFile)) {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		_ = f.Close() // it was only read
	}
}

// countedFS counts what is read of its files.
type countedFS struct {
	disk.FS
	count func(sizeBytes int)
}

// Open opens a file whose reads are counted.
func (c countedFS) Open(name string) (disk.File, error) {
	f, err := c.FS.Open(name)
	if err != nil {
		return nil, err
	}
	return &countedFile{f, c.count}, nil
}

// countedFile is a file of a countedFS.
type countedFile struct {
	disk.File
	count func(sizeBytes int)
}

// Read implements disk.File.
func (f *countedFile) Read(bufs [][]byte, off int64) error {
	err := f.File.Read(bufs, off)
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	f.count(n)
	return err
}
