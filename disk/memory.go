package disk

import (
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"

	iofs "io/fs"

	"golang.org/x/sys/unix"
)

// MemoryOptions modify Memory.
type MemoryOptions struct {
	// CapacityBytes is the space that all files share; 0 has no limit.
	CapacityBytes int64
}

// unlimitedBytes is the capacity that Usage reports without a limit.
const unlimitedBytes = 1 << 50

// MemoryFS is a simulated disk with a volatile cache. It starts no goroutines
// and reads no clock: the same calls give the same contents, and every choice of
// a crash is drawn from its seed. It holds only blocks that were written and
// are not zero.
type MemoryFS struct {
	mu    sync.Mutex // guards all below, and the files' contents
	rng   *rand.Rand
	gone  error // why handles no longer work, after Crash or Kill
	limit int64 // bytes; 0: none
	used  int64 // bytes of all files
	files map[string]*memoryData
	dirs  map[string]bool // "." is always there
	locks map[string]bool // the names that are locked
}

// Memory returns an empty simulated disk.
func Memory(seed uint64, opt MemoryOptions) *MemoryFS {
	return &MemoryFS{
		rng:   newRand(seed),
		limit: opt.CapacityBytes,
		files: make(map[string]*memoryData),
		dirs:  map[string]bool{".": true},
		locks: make(map[string]bool),
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x7472697665740000)) }

// Crash cuts the power and returns what a restart finds. Everything that was
// opened from m, and m itself, fails with ErrCrashed from now on.
func (m *MemoryFS) Crash() *MemoryFS {
	next := m.Kill()
	next.mu.Lock()
	defer next.mu.Unlock()
	next.crash()
	return next
}

// Kill ends the process that uses the disk and returns what its successor
// finds: everything that was written, of which what was not durable is still
// at the mercy of a later Crash. Everything that was opened from m, and m
// itself, fails with ErrCrashed from now on.
func (m *MemoryFS) Kill() *MemoryFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := &MemoryFS{
		rng: m.rng, gone: m.gone, limit: m.limit, used: m.used,
		files: m.files, dirs: m.dirs, locks: make(map[string]bool),
	}
	if m.gone == nil {
		m.rng, m.files, m.dirs, m.locks, m.gone = nil, nil, nil, nil, ErrCrashed
	}
	return next
}

// CrashClone returns what a restart would find if the power failed now, with
// choices drawn from seed, and leaves m as it is: one state can be crashed in
// many ways. It takes time by the number of blocks that are not zero.
func (m *MemoryFS) CrashClone(seed uint64) *MemoryFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	clone := &MemoryFS{
		rng: newRand(seed), gone: m.gone, limit: m.limit, used: m.used,
		files: make(map[string]*memoryData, len(m.files)), dirs: maps.Clone(m.dirs), locks: make(map[string]bool),
	}
	for name, data := range m.files {
		clone.files[name] = data.clone()
	}
	clone.crash()
	return clone
}

// Copy returns what a copy of all files is, made by reading them: everything that
// was written is durable in it. m stays as it is.
func (m *MemoryFS) Copy(seed uint64) *MemoryFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := &MemoryFS{
		rng: newRand(seed), gone: m.gone, limit: m.limit, used: m.used,
		files: make(map[string]*memoryData, len(m.files)), dirs: maps.Clone(m.dirs), locks: make(map[string]bool),
	}
	for name, data := range m.files {
		next.files[name] = &memoryData{size: data.size, blocks: maps.Clone(data.blocks), unsynced: make(map[int64]unsynced)}
	}
	return next
}

// crash settles what was not durable; needs mu.
func (m *MemoryFS) crash() {
	if m.gone != nil {
		return
	}
	w := drawWeather(m.rng)
	for _, name := range slices.Sorted(maps.Keys(m.files)) {
		m.files[name].crash(m.rng, w)
	}
}

// SetCapacity changes the space that all files share, to fill the disk or to
// make room; 0 has no limit. Files that exist stay.
func (m *MemoryFS) SetCapacity(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit = bytes
}

// Corrupt inverts the byte at off of a file, on the disk and in the cache.
func (m *MemoryFS) Corrupt(name string, off int64) error {
	data, err := m.lookup("corrupt", name)
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	if off < 0 || off >= data.size {
		return fmt.Errorf("corrupt %s: byte %d of %d: %w", name, off, data.size, ErrBeyondEnd)
	}
	data.corrupt(off)
	return nil
}

// Create implements FS.
func (m *MemoryFS) Create(name string, sizeBytes int64) (File, error) {
	if err := checkSize(sizeBytes); err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.checkNew(name); err != nil {
		return nil, fmt.Errorf("create %s of %d bytes: %w", name, sizeBytes, err)
	}
	if free, _ := m.usage(); sizeBytes > free {
		return nil, fmt.Errorf("create %s of %d bytes with %d free: %w", name, sizeBytes, free, unix.ENOSPC)
	}
	data := newMemoryData(sizeBytes)
	m.files[name] = data
	m.used += sizeBytes
	return &memoryFile{fs: m, name: name, data: data, told: data.failures}, nil
}

// checkNew returns the error of making an entry with that name; needs mu.
func (m *MemoryFS) checkNew(name string) error {
	switch {
	case m.gone != nil:
		return m.gone
	case checkName(name) != nil:
		return checkName(name)
	case m.files[name] != nil || m.dirs[name]:
		return iofs.ErrExist
	case !m.dirs[path.Dir(name)]:
		return fmt.Errorf("directory %s: %w", path.Dir(name), iofs.ErrNotExist)
	}
	return nil
}

// lookup returns a file, with mu locked whether it fails or not.
func (m *MemoryFS) lookup(op, name string) (*memoryData, error) {
	m.mu.Lock()
	err := m.gone
	if err == nil {
		err = checkName(name)
	}
	if err == nil && m.dirs[name] {
		err = unix.EISDIR
	}
	if err == nil && m.files[name] == nil {
		err = iofs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", op, name, err)
	}
	return m.files[name], nil
}

// Open implements FS.
func (m *MemoryFS) Open(name string) (File, error) {
	data, err := m.lookup("open", name)
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return &memoryFile{fs: m, name: name, data: data, told: data.failures}, nil
}

// Remove implements FS. The space is free at once; handles go on working.
func (m *MemoryFS) Remove(name string) error {
	data, err := m.lookup("remove", name)
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	delete(m.files, name)
	m.used -= data.size
	return nil
}

// Rename implements FS.
func (m *MemoryFS) Rename(from, to string) error {
	if err := checkRename(from, to); err != nil {
		return err
	}
	data, err := m.lookup("rename", from)
	defer m.mu.Unlock()
	if err == nil && m.dirs[to] {
		err = fmt.Errorf("rename %s to %s: %w", from, to, unix.EISDIR)
	}
	if err != nil {
		return err
	}
	if old := m.files[to]; old != nil && old != data {
		m.used -= old.size
	}
	delete(m.files, from)
	m.files[to] = data
	return nil
}

// List implements FS.
func (m *MemoryFS) List(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.gone != nil:
		return nil, fmt.Errorf("list %s: %w", dir, m.gone)
	case checkName(dir) != nil:
		return nil, fmt.Errorf("list: %w", checkName(dir))
	case m.files[dir] != nil:
		return nil, fmt.Errorf("list %s: %w", dir, unix.ENOTDIR)
	case !m.dirs[dir]:
		return nil, fmt.Errorf("list %s: %w", dir, iofs.ErrNotExist)
	}
	names := make([]string, 0, len(m.files))
	for name := range m.files {
		names = appendChild(names, dir, name)
	}
	for name := range m.dirs {
		names = appendChild(names, dir, name)
	}
	slices.Sort(names)
	return names, nil
}

// appendChild appends the last element of name when name is directly in dir.
func appendChild(names []string, dir, name string) []string {
	if dir != "." {
		var inside bool
		if name, inside = strings.CutPrefix(name, dir+"/"); !inside {
			return names
		}
	}
	if name == "." || strings.Contains(name, "/") {
		return names
	}
	return append(names, name)
}

// MkdirAll implements FS.
func (m *MemoryFS) MkdirAll(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone != nil {
		return fmt.Errorf("make directory %s: %w", dir, m.gone)
	}
	if err := checkName(dir); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	for d := dir; d != "."; d = path.Dir(d) {
		if m.files[d] != nil {
			return fmt.Errorf("make directory %s: %s: %w", dir, d, unix.ENOTDIR)
		}
	}
	for d := dir; d != "."; d = path.Dir(d) {
		m.dirs[d] = true
	}
	return nil
}

// Usage implements FS.
func (m *MemoryFS) Usage() (freeBytes, totalBytes int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone != nil {
		return 0, 0, fmt.Errorf("usage: %w", m.gone)
	}
	freeBytes, totalBytes = m.usage()
	return freeBytes, totalBytes, nil
}

// usage needs mu.
func (m *MemoryFS) usage() (freeBytes, totalBytes int64) {
	totalBytes = m.limit
	if totalBytes == 0 {
		totalBytes = unlimitedBytes
	}
	return max(totalBytes-m.used, 0), totalBytes
}

// Lock implements FS. Like a real lock it leaves an empty file, and ends with
// Crash and Kill.
func (m *MemoryFS) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.files[name] == nil {
		if err := m.checkNew(name); err != nil {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		m.files[name] = newMemoryData(0)
	}
	if m.locks[name] {
		return nil, fmt.Errorf("lock %s: %w", name, ErrLocked)
	}
	m.locks[name] = true
	return &memoryLock{fs: m, name: name}, nil
}

type memoryLock struct {
	fs   *MemoryFS
	name string
	done bool // guarded by fs.mu
}

func (l *memoryLock) Close() error {
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	if l.done {
		return fmt.Errorf("unlock %s: %w", l.name, iofs.ErrClosed)
	}
	l.done = true
	delete(l.fs.locks, l.name)
	return nil
}
