package arena

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// home is the directory of the volume that an arena belongs to, told so that
// its end can be proved: not found at its path is no proof, for it may have
// been renamed, or its filesystem may not be mounted. A file handle names a
// directory wherever it is, and is stale once it was removed.
type home struct {
	path       string
	filesystem unix.Fsid
	handleType int32
	handle     []byte
}

// Where a home is in the header; see the package comment.
const (
	homeAt       = 128
	homeHandleAt = homeAt + 20
	homeSize     = headerSize - homeAt
)

// findHome describes a directory; nil when there is none, or when its
// filesystem has no handles, which leaves its arena for ever.
func findHome(dir string) *home {
	var fs unix.Statfs_t
	if !filepath.IsAbs(dir) || unix.Statfs(dir, &fs) != nil || fs.Fsid == (unix.Fsid{}) {
		return nil
	}
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
	if err != nil || homeHandleAt+handle.Size()+len(dir) > headerSize {
		return nil
	}
	return &home{path: dir, filesystem: fs.Fsid, handleType: handle.Type(), handle: handle.Bytes()}
}

// encode returns the home's part of the header, zeros for none.
func (h *home) encode() []byte {
	b := make([]byte, homeSize)
	if h == nil {
		return b
	}
	binary.NativeEndian.PutUint32(b[4:], uint32(h.filesystem.Val[0]))
	binary.NativeEndian.PutUint32(b[8:], uint32(h.filesystem.Val[1]))
	binary.NativeEndian.PutUint32(b[12:], uint32(h.handleType))
	binary.NativeEndian.PutUint16(b[16:], uint16(len(h.handle)))
	binary.NativeEndian.PutUint16(b[18:], uint16(len(h.path)))
	copy(b[20:], h.handle)
	copy(b[20+len(h.handle):], h.path)
	binary.NativeEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	return b
}

// decodeHome reads what encode has written; nil for anything else.
func decodeHome(b []byte) *home {
	if binary.NativeEndian.Uint32(b) != crc32.Checksum(b[4:], castagnoli) {
		return nil
	}
	size, length := int(binary.NativeEndian.Uint16(b[16:])), int(binary.NativeEndian.Uint16(b[18:]))
	if size == 0 || length == 0 || 20+size+length > len(b) {
		return nil
	}
	h := &home{handleType: int32(binary.NativeEndian.Uint32(b[12:])), handle: b[20 : 20+size], path: string(b[20+size : 20+size+length])}
	h.filesystem.Val[0], h.filesystem.Val[1] = int32(binary.NativeEndian.Uint32(b[4:])), int32(binary.NativeEndian.Uint32(b[8:]))
	return h
}

// settle notes in a locked file which volume it now is of.
func settle(file *os.File, dir string) error {
	want, found := findHome(dir).encode(), make([]byte, homeSize)
	if _, err := file.ReadAt(found, homeAt); err != nil {
		return fmt.Errorf("read the volume's directory: %w", err)
	}
	if bytes.Equal(want, found) {
		return nil
	}
	if _, err := file.WriteAt(want, homeAt); err != nil {
		return fmt.Errorf("write the volume's directory: %w", err)
	}
	return nil
}

// gone proves that the directory was removed: its filesystem is there, and
// knows it no more. Whatever cannot be found out is no proof.
func (h *home) gone() bool {
	if there, err := exists(h.path); there || err != nil {
		return false
	}
	above, err := openAbove(h.path)
	if err != nil {
		return false
	}
	defer above.Close()
	var fs unix.Statfs_t
	if unix.Fstatfs(int(above.Fd()), &fs) != nil || fs.Fsid != h.filesystem {
		return false
	}
	fd, err := unix.OpenByHandleAt(int(above.Fd()), unix.NewFileHandle(h.handleType, h.handle), unix.O_PATH|unix.O_CLOEXEC)
	if err == nil {
		unix.Close(fd)
	}
	return errors.Is(err, unix.ESTALE)
}

// openAbove opens the nearest directory above a path that exists.
func openAbove(path string) (*os.File, error) {
	for {
		parent := filepath.Dir(path)
		dir, err := os.OpenFile(parent, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) || parent == path {
			return dir, err
		}
		path = parent
	}
}

// Prune removes the arenas in dir, default /dev/shm, of volumes whose directory
// was removed, those that were set aside included, and returns for each its
// name and the directory. It leaves every arena that a process has open, that
// another user owns, or whose volume may come back: one that was moved, or
// whose filesystem is not mounted, or that does not say where it is.
func Prune(dir string) (removed []string, err error) {
	dir = cmpOr(dir, defaultDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("arena: prune: %w", err)
	}
	for _, e := range entries {
		base, _, _ := strings.Cut(e.Name(), ".aside-")
		if !strings.HasPrefix(base, "trivet-") || !strings.HasSuffix(base, ".arena") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if home := prune(path); home != "" {
			removed = append(removed, fmt.Sprintf("%s of the volume that was in %s", path, home))
		}
	}
	return removed, nil
}

// prune removes one arena if its volume's directory was removed, and returns
// that directory.
func prune(path string) (removed string) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer file.Close()
	// Without the lock first, which a server that is starting may want.
	if homeless(file) == "" || lock(file) != nil || checkOwner(file) != nil || !stillAt(path, file) {
		return ""
	}
	if removed = homeless(file); removed == "" || os.Remove(path) != nil {
		return ""
	}
	return removed
}

// homeless returns the directory of the volume of an arena if it was removed.
func homeless(file *os.File) string {
	header := make([]byte, headerSize)
	if _, err := file.ReadAt(header, 0); err != nil || string(header[:len(magic)]) != magic || binary.NativeEndian.Uint32(header[8:]) != version {
		return ""
	}
	h := decodeHome(header[homeAt:])
	if h == nil || !h.gone() {
		return ""
	}
	return h.path
}
