// Package aside keeps what a slot can no longer use: its log and its metadata
// when they cannot be believed, or all of a slot that is made anew. It is moved
// into a directory of its own beside what takes its place, and stays there until
// somebody has looked at it and removes it with 'trivet aside rm'.
//
// # What survives a crash
//
// A move is durable when it returns. One that is cut short leaves some of the
// content in the slot's directory and the rest in the one that it was to go to;
// nothing is lost, and what is left of the slot cannot be believed, so that the
// next start moves it as well.
//
// # Ownership
//
// A slot's directory is changed by the process that serves the slot. What lies
// aside is nobody's: anybody may remove it, at any time, but not while it is being
// moved there, which a lock on its directory holds off.
package aside

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Prefix begins the names of the directories in a slot's that hold what was set
// aside.
const Prefix = "aside-"

// Most is how many may lie in a slot's directory: each takes up to what the slot
// takes.
const Most = 4

// The errors of this package.
var (
	// ErrTooMany: so many lie there already that somebody has to look first.
	ErrTooMany = errors.New("too much is set aside there")
	// ErrNotAside: the name is not that of something that was set aside.
	ErrNotAside = errors.New("nothing that was set aside")
	// ErrBusy: it is being set aside, or removed, at this moment.
	ErrBusy = errors.New("it is being changed")
)

// Entry is something that was set aside.
type Entry struct {
	Path      string
	SizeBytes int64 // that it takes on its disk
}

// Move moves the named files and directories, those of them that are there, from a
// slot's directory to a new one in it, durably, and returns that one's path. They
// are moved in this order. The error wraps ErrTooMany when nothing was moved.
func Move(dir string, names []string) (path string, err error) {
	if err := room(dir); err != nil {
		return "", err
	}
	path = filepath.Join(dir, Prefix+time.Now().UTC().Format("20060102T150405.000000000"))
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", fmt.Errorf("set aside: %w", err)
	}
	to, err := locked(path)
	if err != nil {
		return "", fmt.Errorf("set aside: %w", err)
	}
	defer to.Close()
	if err := syncDir(dir); err != nil {
		return "", fmt.Errorf("set aside: %w", err)
	}
	for _, name := range names {
		err := os.Rename(filepath.Join(dir, name), filepath.Join(path, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		// One after the other: the order is what a crash leaves.
		if err = errors.Join(err, to.Sync(), syncDir(dir)); err != nil {
			return "", fmt.Errorf("set aside: %w", err)
		}
	}
	return path, nil
}

// room returns ErrTooMany when nothing more may be set aside in a slot's directory.
func room(dir string) error {
	names, err := names(dir)
	if err != nil {
		return err
	}
	if len(names) >= Most {
		return fmt.Errorf("%w: %s holds %d former contents; look at them and remove some with 'trivet aside rm'", ErrTooMany, dir, len(names))
	}
	return nil
}

// names returns those of the directories in a slot's that hold what was set aside.
func names(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("what is set aside: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && isName(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// isName reports whether Move gives such names.
func isName(name string) bool {
	return strings.HasPrefix(name, Prefix) && len(name) > len(Prefix) && !strings.ContainsRune(name, filepath.Separator)
}

// List returns what was set aside in a slot's directory, the oldest first. It is an
// empty list for a directory that is not there.
func List(dir string) (all []Entry, err error) {
	found, err := names(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, name := range found {
		e := Entry{Path: filepath.Join(dir, name)}
		if e.SizeBytes, err = size(e.Path); err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return all, err
}

// size is what a directory's files take. What vanishes meanwhile takes nothing.
func size(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		total += Blocks(info)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("what is set aside: %w", err)
	}
	return total, nil
}

// Blocks is what a file takes on its disk, in bytes.
func Blocks(info fs.FileInfo) int64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Blocks * 512
	}
	return info.Size()
}

// Remove removes something that was set aside in a slot's directory, by its name
// there. It removes nothing else, and follows no link. The error wraps ErrNotAside
// for any other name, and ErrBusy.
func Remove(dir, name string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	defer root.Close()
	info, err := root.Lstat(name)
	switch {
	case !isName(name) || errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("remove %s in %s: %w", name, dir, ErrNotAside)
	case err != nil:
		return fmt.Errorf("remove %s: %w", name, err)
	case !info.IsDir():
		return fmt.Errorf("remove %s in %s, which is no directory: %w", name, dir, ErrNotAside)
	}
	lock, err := locked(filepath.Join(dir, name))
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	defer lock.Close()
	if err := root.RemoveAll(name); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return syncDir(dir)
}

// locked opens a directory and locks it.
func locked(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w: %w", ErrBusy, err)
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
	}
	return file, nil
}

func syncDir(dir string) error {
	file, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
