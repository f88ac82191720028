package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Options modify Real.
type Options struct {
	// Create makes the directory, durably, when there is none.
	Create bool
	// Buffered goes through the page cache even where direct I/O could be had.
	Buffered bool
}

// RealFS is a directory of the host.
type RealFS struct {
	dir    string
	direct bool

	mu sync.Mutex // guards synced
	// synced holds the directories whose entries are known to be durable. The
	// process that made a file may have been killed before it synced the
	// directory, so the first Open in each does. Bounded by the directories.
	synced map[string]bool
}

// Real returns the directory dir of the host as an FS. It finds out by a write
// to an unnamed file whether direct I/O can be had there; Direct tells. Errors
// of the directory wrap what the operating system said.
func Real(dir string, opt Options) (*RealFS, error) {
	r := &RealFS{dir: dir, synced: make(map[string]bool)}
	if opt.Create {
		if err := makeDir(dir); err != nil {
			return nil, err
		}
	}
	switch info, err := os.Stat(dir); {
	case err != nil:
		return nil, fmt.Errorf("open slot: %w", err)
	case !info.IsDir():
		return nil, fmt.Errorf("open slot %s: %w", dir, unix.ENOTDIR)
	}
	if opt.Buffered {
		return r, nil
	}
	var err error
	r.direct, err = takesDirect(dir)
	return r, err
}

// Direct reports whether files are read and written past the page cache. Where
// they are not (some tmpfs and FUSE filesystems refuse O_DIRECT), reads may
// come from memory: one that succeeds does not prove that the disk has the
// bytes. After a failed Sync in particular, the pages that did not reach the
// disk read as written, so nothing read from that file may be trusted.
func (r *RealFS) Direct() bool { return r.direct }

// takesDirect tries direct I/O on a file without a name, so that a crash
// leaves nothing behind.
func takesDirect(dir string) (bool, error) {
	const flags = unix.O_TMPFILE | unix.O_RDWR | unix.O_CLOEXEC
	fd, err := unix.Open(dir, flags|unix.O_DIRECT, 0o600)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("probe %s for direct I/O: %w", dir, err)
	}
	defer unix.Close(fd)
	_, err = unix.Pwrite(fd, Alloc(BlockSize), 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	return true, nil // a full disk, say, is no answer; what was opened is direct
}

func (r *RealFS) flags() int {
	if r.direct {
		return unix.O_RDWR | unix.O_CLOEXEC | unix.O_DIRECT
	}
	return unix.O_RDWR | unix.O_CLOEXEC
}

func (r *RealFS) path(name string) string { return filepath.Join(r.dir, name) }

// Create implements FS. When it fails it removes the file again, so that a
// full disk is left as it was.
func (r *RealFS) Create(name string, sizeBytes int64) (File, error) {
	if err := errors.Join(checkName(name), checkSize(sizeBytes)); err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	fd, err := openFile(r.path(name), r.flags()|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	f := newRealFile(fd, name, sizeBytes, r.direct)
	if err := f.preallocate(); err != nil {
		err = errors.Join(err, f.Close(), r.Remove(name))
		return nil, fmt.Errorf("create %s of %d bytes: %w", name, sizeBytes, err)
	}
	if err := r.syncDir(path.Dir(name)); err != nil {
		return nil, fmt.Errorf("create %s: %w", name, errors.Join(err, f.Close()))
	}
	return f, nil
}

// Open implements FS.
func (r *RealFS) Open(name string) (File, error) {
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	fd, err := openFile(r.path(name), r.flags())
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	var stat unix.Stat_t
	err = unix.Fstat(fd, &stat)
	if err == nil && stat.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("mode %#o: not a regular file", stat.Mode)
	}
	if err == nil {
		err = r.syncDirOnce(path.Dir(name))
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, errors.Join(err, unix.Close(fd)))
	}
	return newRealFile(fd, name, stat.Size, r.direct), nil
}

// Remove implements FS.
func (r *RealFS) Remove(name string) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	if err := unix.Unlink(r.path(name)); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	if err := r.syncDir(path.Dir(name)); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// Rename implements FS.
func (r *RealFS) Rename(from, to string) error {
	if err := checkRename(from, to); err != nil {
		return err
	}
	err := unix.Rename(r.path(from), r.path(to))
	if err == nil {
		err = r.syncDir(path.Dir(to))
	}
	if err != nil {
		return fmt.Errorf("rename %s to %s: %w", from, to, err)
	}
	return nil
}

// checkRename checks two names for Rename.
func checkRename(from, to string) error {
	err := errors.Join(checkName(from), checkName(to))
	if err == nil && path.Dir(from) != path.Dir(to) {
		err = unix.EXDEV
	}
	if err != nil {
		return fmt.Errorf("rename %s to %s: %w", from, to, err)
	}
	return nil
}

// List implements FS.
func (r *RealFS) List(dir string) ([]string, error) {
	if err := checkName(dir); err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	entries, err := os.ReadDir(r.path(dir)) // sorted
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	names := make([]string, len(entries))
	for i, entry := range entries {
		names[i] = entry.Name()
	}
	return names, nil
}

// MkdirAll implements FS.
func (r *RealFS) MkdirAll(dir string) error {
	if err := checkName(dir); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if dir == "." {
		return nil
	}
	if err := r.MkdirAll(path.Dir(dir)); err != nil {
		return err
	}
	err := unix.Mkdir(r.path(dir), 0o755)
	if errors.Is(err, unix.EEXIST) {
		var info os.FileInfo
		if info, err = os.Stat(r.path(dir)); err == nil && !info.IsDir() {
			err = unix.ENOTDIR
		}
	}
	if err != nil {
		return fmt.Errorf("make directory %s: %w", dir, err)
	}
	// Also when it was there: whoever made it may have been killed before this.
	return r.syncDir(path.Dir(dir))
}

// Usage implements FS.
func (r *RealFS) Usage() (freeBytes, totalBytes int64, err error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(r.dir, &stat); err != nil {
		return 0, 0, fmt.Errorf("usage of %s: %w", r.dir, err)
	}
	return int64(stat.Bavail) * stat.Frsize, int64(stat.Blocks) * stat.Frsize, nil
}

// Lock implements FS with flock, which the kernel drops with the last
// descriptor, however the process ends. The file stays.
func (r *RealFS) Lock(name string) (io.Closer, error) {
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	f, err := os.OpenFile(r.path(name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrLocked
	}
	return nil, fmt.Errorf("lock %s: %w", f.Name(), errors.Join(err, f.Close()))
}

// syncDir makes the entries of a directory durable.
func (r *RealFS) syncDir(dir string) error {
	if err := syncPath(r.path(dir)); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.synced[dir] = true
	return nil
}

func (r *RealFS) syncDirOnce(dir string) error {
	r.mu.Lock()
	done := r.synced[dir]
	r.mu.Unlock()
	if done {
		return nil
	}
	return r.syncDir(dir)
}

// makeDir makes a directory and its parents on the host, durably.
func makeDir(dir string) error {
	dir = filepath.Clean(dir)
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make slot: %w", err)
	}
	return syncPath(filepath.Dir(dir))
}

// SyncDir makes the entries of a directory of the host durable: for the few files
// that are no slot's.
func SyncDir(dir string) error { return syncPath(dir) }

// syncPath makes the entries of a directory of the host durable.
func syncPath(dir string) error {
	fd, err := openFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	defer unix.Close(fd)
	if err := retried(func() error { return unix.Fsync(fd) }); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

func openFile(path string, flags int) (fd int, err error) {
	err = retried(func() error {
		fd, err = unix.Open(path, flags, 0o600)
		return err
	})
	return fd, err
}

// retried repeats a call that a signal interrupted before it did anything.
func retried(call func() error) (err error) {
	for range maxRetries {
		if err = call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return err
}
