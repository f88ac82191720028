package arena

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Options say which arena to open.
type Options struct {
	Volume [16]byte // the volume's UUID; part of the file's name

	// Dir is the directory for the file; it must be on tmpfs to be used for a
	// new one. Default /dev/shm.
	Dir string
	// FallbackDir is a directory on a disk for when Dir cannot be had; empty
	// for none.
	FallbackDir string

	// SizeBytes is the size of the payload of a new arena, rounded up to whole
	// pages, up to 64 GiB. Default 64 MiB. An existing arena keeps its size.
	SizeBytes int64
	// Shards is the number of shards, 1 to 4096, fixed for a volume.
	Shards int

	// Notify is called without a lock held, on the goroutine that freed pages,
	// when an Alloc has failed since its last call. It must not block.
	Notify func()
}

const (
	defaultDir       = "/dev/shm"
	defaultSizeBytes = 64 << 20
)

// FileName returns the base name of a volume's arena.
func FileName(volume [16]byte) string { return fmt.Sprintf("trivet-%x.arena", volume) }

// Open opens the volume's arena, or makes one: on tmpfs in Dir, else in
// FallbackDir, else in anonymous memory. It holds a lock against other
// processes until Close.
//
// A file that is there is opened, whatever Options would prefer: it may hold
// acknowledged writes. When it cannot be used the error says why (ErrLocked,
// ErrForeign, ErrVersion, ErrCorrupt, ErrStale, ErrTwo, or an error of the
// system) and the file stays as it is; SetAside makes room for a new one.
func Open(o Options) (*Arena, error) {
	o.Dir = cmpOr(o.Dir, defaultDir)
	o.SizeBytes = cmpOr(o.SizeBytes, defaultSizeBytes)
	if o.SizeBytes < 0 || o.SizeBytes > maxPages*PageSize || o.Shards < 1 || o.Shards > maxShards {
		return nil, fmt.Errorf("arena: open: %d bytes for %d shards, want up to %d for 1 to %d",
			o.SizeBytes, o.Shards, int64(maxPages)*PageSize, maxShards)
	}
	dirs, err := o.dirs()
	if err != nil {
		return nil, err
	}
	var reasons []string
	for _, dir := range dirs {
		a, err := openIn(dir, &o)
		if unusable := (*unusableError)(nil); errors.As(err, &unusable) {
			reasons = append(reasons, unusable.Error())
			continue
		}
		if err != nil {
			return nil, err
		}
		a.describe(reasons)
		return a, nil
	}
	return openAnonymous(&o, reasons)
}

// cmpOr returns the first value, or the second when the first is zero.
func cmpOr[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// unusableError tells that a new arena cannot be in a directory. Nothing is
// lost by trying the next one: there is no file, or none that ever was in use.
type unusableError struct{ err error }

func (e *unusableError) Error() string { return e.err.Error() }
func (e *unusableError) Unwrap() error { return e.err }

// dirs returns the directories to try in order: the one that has the file
// already comes first.
func (o *Options) dirs() ([]string, error) {
	dirs := []string{filepath.Clean(o.Dir)}
	if o.FallbackDir != "" && filepath.Clean(o.FallbackDir) != dirs[0] {
		dirs = append(dirs, filepath.Clean(o.FallbackDir))
	}
	found := 0
	for _, dir := range dirs {
		there, err := exists(filepath.Join(dir, FileName(o.Volume)))
		if err != nil {
			return nil, err
		}
		if there {
			found++
		}
		if there && dir != dirs[0] {
			slices.Reverse(dirs)
			break
		}
	}
	if found > 1 {
		return nil, fmt.Errorf("arena: open %s: %w: in %s and in %s; set one aside",
			FileName(o.Volume), ErrTwo, o.Dir, o.FallbackDir)
	}
	return dirs, nil
}

// exists reports whether there is something at path. Only a definite absence
// is one: behind any other error there may be acknowledged writes.
func exists(path string) (bool, error) {
	switch _, err := os.Lstat(path); {
	case err == nil:
		return true, nil
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return false, nil
	default:
		return false, fmt.Errorf("arena: open: %w", err)
	}
}

// openIn opens the file in dir, or makes it.
func openIn(dir string, o *Options) (*Arena, error) {
	path := filepath.Join(dir, FileName(o.Volume))
	onDisk := o.FallbackDir != "" && dir == filepath.Clean(o.FallbackDir)
	file, kind, err := lockFile(path, !onDisk)
	if err != nil {
		return nil, fmt.Errorf("arena: open %s: %w", path, err)
	}
	a := &Arena{file: file, path: path, kind: kind, notify: o.Notify}
	if err := a.load(o); err != nil {
		file.Close()
		return nil, fmt.Errorf("arena: open %s: %w", path, err)
	}
	return a, nil
}

// load formats a blank file, checks its header and maps it.
func (a *Arena) load(o *Options) error {
	want := identity{
		volume: o.Volume,
		pages:  uint32((o.SizeBytes + PageSize - 1) / PageSize),
		shards: uint32(o.Shards),
		boot:   bootID(),
	}
	blank, err := isBlank(a.file)
	if err != nil {
		return err
	}
	if blank {
		a.created = true
		if err := format(a.file, &want, a.kind); err != nil {
			// Nothing was ever in it, and it must not stand in the way.
			return &unusableError{errors.Join(err, os.Remove(a.path))}
		}
	}
	id, err := readIdentity(a.file, &want, a.kind)
	if err != nil {
		return err
	}
	mapped, err := unix.Mmap(int(a.file.Fd()), 0, int(id.layout().sizeBytes),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	a.attach(mapped, &id)
	return nil
}

// openAnonymous makes an arena that dies with the process.
func openAnonymous(o *Options, reasons []string) (*Arena, error) {
	id := identity{
		volume: o.Volume,
		pages:  uint32((o.SizeBytes + PageSize - 1) / PageSize),
		shards: uint32(o.Shards),
	}
	mapped, err := unix.Mmap(-1, 0, int(id.layout().sizeBytes),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("arena: open in anonymous memory (%s): mmap: %w", strings.Join(reasons, "; "), err)
	}
	a := &Arena{kind: Anonymous, created: true, notify: o.Notify}
	a.attach(mapped, &id)
	a.describe(reasons)
	return a, nil
}

// describe writes the note.
func (a *Arena) describe(reasons []string) {
	what := a.path
	if a.kind == Anonymous {
		what = "in anonymous memory"
	}
	cost := map[Kind]string{
		TmpFS:     "acknowledged writes outlive a kill of the server",
		DiskFile:  "acknowledged writes outlive a kill of the server, at the cost of write-back to this disk",
		Anonymous: "a kill of the server loses acknowledged writes that were not flushed",
	}[a.kind]
	a.note = fmt.Sprintf("arena %s (%s, %d MiB): %s", what, a.kind, len(a.payload)>>20, cost)
	if len(reasons) > 0 {
		a.note += "; because " + strings.Join(reasons, "; ")
	}
}
