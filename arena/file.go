package arena

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// attempts bounds the races with other processes that are tried again.
const attempts = 4

// lockFile opens the file at path, or creates it, and locks it for as long as
// it is open. A new file is made only where tmpfs is, if that is needed.
//
// The lock belongs to the open file, so it ends with the process however that
// ends; the descriptor does not pass to the helper processes.
func lockFile(path string, needTmpFS bool) (*os.File, Kind, error) {
	for range attempts {
		file, err := openOrCreate(path, needTmpFS)
		if errors.Is(err, os.ErrExist) {
			continue // another process made it just now
		}
		if err != nil {
			return nil, 0, err
		}
		err = lock(file)
		if err == nil {
			err = checkOwner(file)
		}
		if err != nil {
			file.Close()
			return nil, 0, err
		}
		if stillAt(path, file) {
			return file, kindOf(filepath.Dir(path)), nil
		}
		file.Close() // discarded by its owner between our open and our lock
	}
	return nil, 0, fmt.Errorf("%w: it was replaced %d times while being opened", ErrLocked, attempts)
}

// openOrCreate opens what is there. Failures to create are unusableErrors,
// but for os.ErrExist.
func openOrCreate(path string, needTmpFS bool) (*os.File, error) {
	const flags = os.O_RDWR | unix.O_NOFOLLOW | unix.O_CLOEXEC
	file, err := os.OpenFile(path, flags, 0)
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return file, err
	}
	if dir := filepath.Dir(path); needTmpFS && kindOf(dir) != TmpFS {
		return nil, &unusableError{fmt.Errorf("there is no tmpfs at %s", dir)}
	}
	file, err = os.OpenFile(path, flags|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, &unusableError{err}
	}
	return file, err
}

// lock takes the file's lock without waiting.
func lock(file *os.File) error {
	err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrLocked
	}
	if err != nil {
		return fmt.Errorf("flock: %w", err)
	}
	return nil
}

// kindOf tells tmpfs from disks. A directory that does not say what it is on
// gets the caution that a disk needs.
func kindOf(dir string) Kind {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil && st.Type == unix.TMPFS_MAGIC {
		return TmpFS
	}
	return DiskFile
}

// checkOwner refuses files that somebody else could have planted or can read:
// /dev/shm is open to everybody.
func checkOwner(file *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o077 != 0 || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: mode %#o of user %d, want a regular file, mode 0600, of user %d",
			ErrForeign, st.Mode, st.Uid, os.Geteuid())
	}
	return nil
}

// stillAt reports whether the path leads to the open file.
func stillAt(path string, file *os.File) bool {
	there, err := os.Lstat(path)
	if err != nil {
		return false
	}
	open, err := file.Stat()
	return err == nil && os.SameFile(there, open)
}

// isBlank reports whether a file's creation was never finished: the magic
// number, written last, is absent, and so is everything that a server could
// have stored since. A header without its magic number over a table or a
// payload that is not zero is damage, and is told from the magic number later.
func isBlank(file *os.File) (bool, error) {
	start := make([]byte, len(magic))
	if n, err := file.ReadAt(start, 0); err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read header: %w", err)
	} else if !allZero(start[:n]) {
		return false, nil
	}
	chunk := make([]byte, 1<<20)
	for at := int64(headerSize); ; {
		n, err := file.ReadAt(chunk, at)
		if !allZero(chunk[:n]) {
			return false, nil
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("read: %w", err)
		}
		at += int64(n)
	}
}

func allZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// format makes a blank file an empty arena, with memory behind every page of
// it: a page that the kernel could not provide later would be a SIGBUS. On a
// disk the header is synced, so that a power cut cannot leave records without
// one.
func format(file *os.File, id *identity, kind Kind) error {
	size := id.layout().sizeBytes
	if err := file.Truncate(0); err != nil {
		return err
	}
	if err := allocate(file, size); err != nil {
		return err
	}
	encoded := id.encode()
	if _, err := file.WriteAt(encoded[len(magic):], int64(len(magic))); err != nil {
		return err
	}
	if _, err := file.WriteAt(encoded[:len(magic)], 0); err != nil {
		return err
	}
	if kind == TmpFS {
		return nil
	}
	return file.Sync()
}

// allocateStep is how much memory is asked for at once. A signal, of which the
// Go runtime sends itself many, makes tmpfs undo the call it interrupts.
const allocateStep = 16 << 20

// allocate gives the file its size and its memory. It leaves bytes that are
// there alone.
func allocate(file *os.File, sizeBytes int64) error {
	for at := int64(0); at < sizeBytes; {
		n := min(sizeBytes-at, allocateStep)
		err := unix.Fallocate(int(file.Fd()), 0, at, n)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("fallocate %d bytes for %s: %w", sizeBytes, file.Name(), err)
		}
		at += n
	}
	return nil
}

// readIdentity checks everything about a file that can be checked before it is
// mapped.
func readIdentity(file *os.File, want *identity, kind Kind) (identity, error) {
	b := make([]byte, headerSize)
	if n, err := file.ReadAt(b, 0); errors.Is(err, io.EOF) {
		return identity{}, fmt.Errorf("%w: %d bytes, want a header of %d", ErrCorrupt, n, headerSize)
	} else if err != nil {
		return identity{}, fmt.Errorf("read header: %w", err)
	}
	id, err := decodeIdentity(b)
	if err != nil {
		return id, err
	}
	if err := id.check(want, kind); err != nil {
		return id, err
	}
	st, err := file.Stat()
	if err != nil {
		return id, err
	}
	size := id.layout().sizeBytes
	if st.Size() != size {
		return id, fmt.Errorf("%w: %d bytes, want %d", ErrCorrupt, st.Size(), size)
	}
	return id, allocate(file, size)
}

// SetAside renames a stale or damaged arena, so that Open can make a new one,
// and returns its new name: path with '.aside-' and a number. It refuses with
// ErrLocked while a process has the arena open.
func SetAside(path string) (string, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("arena: set aside: %w", err)
	}
	defer file.Close()
	if err := lock(file); err != nil {
		return "", fmt.Errorf("arena: set aside %s: %w", path, err)
	}
	for n := 1; ; n++ {
		aside := fmt.Sprintf("%s.aside-%d", path, n)
		err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, aside, unix.RENAME_NOREPLACE)
		if err == nil {
			return aside, nil
		}
		if !errors.Is(err, unix.EEXIST) || n == maxAside {
			return "", fmt.Errorf("arena: set aside %s as %s: %w", path, aside, err)
		}
	}
}

// maxAside bounds how many arenas may lie aside: past it somebody has to look.
const maxAside = 99
