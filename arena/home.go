package arena

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
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

// homeFixed is what stands before a home's handle and path.
const homeFixed = 16

// findHome describes a directory; nil when there is none to describe. Where its
// filesystem has no handles its path is all that is known, and its end can never
// be proved.
func findHome(dir string) *home {
	if !filepath.IsAbs(dir) || ownerHomeAt+homeFixed+len(dir) > ownerSize {
		return nil
	}
	h := &home{path: dir}
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil || fs.Fsid == (unix.Fsid{}) {
		return h
	}
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
	if err == nil && ownerHomeAt+homeFixed+handle.Size()+len(dir) <= ownerSize {
		h.filesystem, h.handleType, h.handle = fs.Fsid, handle.Type(), handle.Bytes()
	}
	return h
}

// encode writes the home to b, which is zero: filesystem (8), type of the handle
// (4), its length (2), that of the path (2), handle, path. Zeros for none.
func (h *home) encode(b []byte) {
	if h == nil {
		return
	}
	binary.NativeEndian.PutUint32(b, uint32(h.filesystem.Val[0]))
	binary.NativeEndian.PutUint32(b[4:], uint32(h.filesystem.Val[1]))
	binary.NativeEndian.PutUint32(b[8:], uint32(h.handleType))
	binary.NativeEndian.PutUint16(b[12:], uint16(len(h.handle)))
	binary.NativeEndian.PutUint16(b[14:], uint16(len(h.path)))
	copy(b[homeFixed:], h.handle)
	copy(b[homeFixed+len(h.handle):], h.path)
}

// decodeHome reads what encode has written; nil for anything else.
func decodeHome(b []byte) *home {
	size, length := int(binary.NativeEndian.Uint16(b[12:])), int(binary.NativeEndian.Uint16(b[14:]))
	if length == 0 || homeFixed+size+length > len(b) {
		return nil
	}
	h := &home{
		handleType: int32(binary.NativeEndian.Uint32(b[8:])),
		handle:     bytes.Clone(b[homeFixed : homeFixed+size]), path: string(b[homeFixed+size : homeFixed+size+length]),
	}
	h.filesystem.Val[0], h.filesystem.Val[1] = int32(binary.NativeEndian.Uint32(b)), int32(binary.NativeEndian.Uint32(b[4:]))
	return h
}

// Elsewhere returns where the arena's home is, if that is another directory than
// dir and still there; empty if it is dir itself, whatever it is called by now, or
// gone, or not known. Where handles cannot be opened its path decides.
func (o *Owner) Elsewhere(dir string) string {
	if o.home == nil {
		return ""
	}
	here, err := os.Stat(dir)
	if err != nil {
		return ""
	}
	if there, err := os.Stat(o.home.path); err == nil && os.SameFile(here, there) {
		return ""
	}
	found, err := o.home.open()
	if err != nil {
		if there, errPath := exists(o.home.path); errors.Is(err, unix.ESTALE) || errPath != nil || !there {
			return ""
		}
		return o.home.path
	}
	defer found.Close()
	there, err := found.Stat()
	if err != nil || os.SameFile(here, there) {
		return ""
	}
	if path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", found.Fd())); err == nil {
		return path
	}
	return o.home.path
}

// open opens the directory by its handle. ESTALE: it was removed.
func (h *home) open() (*os.File, error) {
	above, err := openAbove(h.path)
	if err != nil {
		return nil, err
	}
	defer above.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(above.Fd()), &fs); err != nil {
		return nil, err
	}
	if fs.Fsid != h.filesystem || len(h.handle) == 0 {
		return nil, unix.EXDEV
	}
	fd, err := unix.OpenByHandleAt(int(above.Fd()), unix.NewFileHandle(h.handleType, h.handle), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), h.path), nil
}

// gone proves that the directory was removed: its filesystem is there, and
// knows it no more. Whatever cannot be found out is no proof.
func (h *home) gone() bool {
	if there, err := exists(h.path); there || err != nil {
		return false
	}
	found, err := h.open()
	if err == nil {
		found.Close()
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
	if _, err := file.ReadAt(header, 0); err != nil || string(header[:len(magic)]) != magic {
		return ""
	}
	if v := binary.NativeEndian.Uint32(header[8:]); v < firstVersion || v > version {
		return ""
	}
	owner, _, err := readOwner(header)
	if err != nil || owner.home == nil || !owner.Whole || !owner.home.gone() {
		return ""
	}
	return owner.Home
}
