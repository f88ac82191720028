package meta

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// space keeps Badger away from a full filesystem. Badger writes through memory
// mappings of sparse files, where a missing block is not an error but SIGBUS,
// which ends the process. So a commit is refused while less than minFree bytes
// would be left, and a preallocated reserve is given up when it comes to that:
// what is under way in the background then still finds room.
type space struct {
	dir     string
	minFree int64 // bytes that must stay free
	reserve int64 // bytes of the reserve file when it is whole

	mu   sync.Mutex // guards held
	held bool       // whether the reserve file holds its blocks
}

func (s *space) path() string { return filepath.Join(s.dir, "reserve") }

// admit refuses to write bytes more when that would leave too little. The error
// wraps syscall.ENOSPC.
func (s *space) admit(bytes int64) error {
	free, err := s.free()
	if err != nil {
		return err
	}
	if free < s.minFree+bytes {
		s.giveUp()
		return fmt.Errorf("%d bytes free, %d must stay and %d are to be written: %w",
			free, s.minFree, bytes, syscall.ENOSPC)
	}
	s.refill(free - bytes)
	return nil
}

// admitOpen is admit for opening the store, which writes little and frees much.
func (s *space) admitOpen() error {
	const bytes = 4 << 20 // headers of fresh files, a replayed memtable's table is counted below
	free, err := s.free()
	if err != nil {
		return err
	}
	if free >= min(s.minFree, bytes+memTableBytes) {
		return nil
	}
	s.giveUp()
	if free, err = s.free(); err != nil {
		return err
	}
	if free < min(s.minFree, bytes+memTableBytes) {
		return fmt.Errorf("%d bytes free, %d are needed to open: %w", free, bytes+memTableBytes, syscall.ENOSPC)
	}
	return nil
}

func (s *space) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", s.dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// refill allocates the reserve when that leaves enough. Failing is no error:
// the reserve is the second line, the watermark is the first.
func (s *space) refill(free int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held || s.reserve <= 0 || free < s.minFree+2*s.reserve {
		return
	}
	file, err := os.OpenFile(s.path(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer file.Close()
	s.held = unix.Fallocate(int(file.Fd()), 0, 0, s.reserve) == nil
}

func (s *space) giveUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Truncate(s.path(), 0); err == nil || errors.Is(err, os.ErrNotExist) {
		s.held = false
	}
}
