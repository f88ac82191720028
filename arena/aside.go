package arena

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"
)

// ErrNotAside: a name is not that of an arena that was set aside.
var ErrNotAside = errors.New("no arena that was set aside")

var asideName = regexp.MustCompile(`^trivet-[0-9a-f]{32}\.arena\.aside-[0-9]{1,2}$`)

// IsAside reports whether SetAside gives files such names.
func IsAside(name string) bool { return asideName.MatchString(name) }

// RemoveAside removes an arena that was set aside. It removes nothing else, and
// follows no link. The error wraps ErrNotAside for anything else, and ErrLocked while a
// process has the arena open.
func RemoveAside(path string) error {
	if !IsAside(filepath.Base(path)) {
		return fmt.Errorf("arena: remove %s: %w", path, ErrNotAside)
	}
	info, err := os.Lstat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = ErrNotAside
	}
	if err != nil {
		return fmt.Errorf("arena: remove %s: %w", path, err)
	}
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("arena: remove %s: %w", path, err)
	}
	defer file.Close()
	if err := lock(file); err != nil {
		return fmt.Errorf("arena: remove %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("arena: remove %s: %w", path, err)
	}
	return nil
}
