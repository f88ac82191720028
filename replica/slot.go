package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"trivet/disk"
	"trivet/journal"
	"trivet/meta"
)

// metaTimeout bounds every call of the metadata store.
const metaTimeout = 10 * time.Second

// Slot is one local replica: its files and its metadata store.
type Slot struct {
	ID    journal.SlotID
	Where string // for people
	// Draw fills a slice with random bytes, for the names of what the slot stores. It
	// is the system's; who wants another one sets it before the store is opened.
	Draw  func([]byte)
	fs    disk.FS
	store meta.Store
	pool  *pool
	lock  io.Closer

	headers []journal.Header // found by scan; dropped once the pool is seeded

	super      journal.Superblock // guarded by commitMu once the slot is active, as is what follows; see super.go
	superFile  disk.File
	storeOwner meta.Owner    // of the metadata store
	tried      uint64        // the highest sequence that a commit was announced with
	lanes      journal.Lanes // those that have a record in the store
	lanesThen  journal.Lanes // and once the announced commit is made
	commitMu   sync.Mutex    // serialises commits and writes of the superblock, which are I/O

	// What those need who must not wait for I/O; commitMu is held to change it.
	published atomic.Uint64                   // super.Checkpoint's sequence
	expected  atomic.Pointer[expectation]     // nil until the store is opened
	lives     atomic.Pointer[journal.History] // super.History

	handleMu sync.RWMutex
	handles  map[uint32]disk.File // log files open for reading, by number
	appends  map[disk.File]bool   // handles of segments that lanes append to
	closed   bool
}

// ReadSlot locks the slot in a directory and reads its superblock. The error
// wraps fs.ErrNotExist when there is none, journal.ErrNoSuperblock when it is
// no longer one, and ErrInUse when another process serves it. The slot must be
// closed.
func ReadSlot(files disk.FS, id journal.SlotID, where string) (*Slot, error) {
	s := newSlot(files, id, where)
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("slot %d in %s: %w", id, where, err)
	}
	return s, nil
}

func newSlot(files disk.FS, id journal.SlotID, where string) *Slot {
	return &Slot{ID: id, Where: where, Draw: drawSystem, fs: files, handles: make(map[uint32]disk.File), appends: make(map[disk.File]bool)}
}

// open takes the lock before it reads: a server that is about to end may still
// write its superblock.
func (s *Slot) open() (err error) {
	if s.superFile, err = s.fs.Open(journal.SuperblockFile); err != nil {
		return err // and no lock is left in a directory that holds no slot
	}
	if s.lock, err = lockSlot(s.fs); err != nil {
		return errors.Join(err, s.superFile.Close())
	}
	super, err := superblockOf(s.superFile)
	if err == nil && super.Slot != s.ID {
		err = fmt.Errorf("it holds slot %d: %w", super.Slot, ErrMismatch)
	}
	if err != nil {
		return errors.Join(err, s.superFile.Close(), s.lock.Close())
	}
	s.super = *super
	s.publish()
	s.pool = newPool(s.fs, super.SegmentBlocks)
	return nil
}

// scan reads the first block of every segment. A segment that cannot be read
// ends the recovery of the slot.
func (s *Slot) scan() ([]journal.Header, error) {
	err := s.pool.discover()
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", journal.ErrDamaged, err)
	}
	if err != nil {
		return nil, fmt.Errorf("slot %d: %w", s.ID, err)
	}
	var headers []journal.Header
	block := disk.Alloc(2 * journal.BlockSize)
	for segment := range s.pool.segments() {
		if err := s.ReadSegment(segment, block, 0); err != nil {
			return nil, err
		}
		h, ok, err := journal.DecodeHeader(block, s.super.Signed, s.ID, segment)
		if err != nil {
			return nil, fmt.Errorf("slot %d: %w", s.ID, err)
		}
		if ok {
			headers = append(headers, h)
		}
	}
	return headers, nil
}

// ReadSegment, Scan and Load make the slot a journal.Source.
func (s *Slot) ReadSegment(segment uint32, buf []byte, block uint32) error {
	f, base, err := s.reader(segment)
	if err == nil {
		err = f.Read([][]byte{buf}, base+int64(block)*journal.BlockSize)
	}
	if err != nil {
		return fmt.Errorf("slot %d segment %d block %d: %w", s.ID, segment, block, err)
	}
	return nil
}

// Scan calls fn for every pair of the slot's metadata with the prefix.
func (s *Slot) Scan(prefix []byte, fn func(key, value []byte) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 6*metaTimeout)
	defer cancel()
	return s.store.Scan(ctx, prefix, fn)
}

// Load returns the values of keys in the slot's metadata.
func (s *Slot) Load(keys [][]byte) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), metaTimeout)
	defer cancel()
	return s.store.Load(ctx, keys)
}

// reader returns a handle for reading the segment, and its offset there.
func (s *Slot) reader(segment uint32) (disk.File, int64, error) {
	file, base := s.pool.place(segment)
	s.handleMu.RLock()
	f := s.handles[file]
	s.handleMu.RUnlock()
	if f != nil {
		return f, base, nil
	}
	s.handleMu.Lock()
	defer s.handleMu.Unlock()
	if f := s.handles[file]; f != nil {
		return f, base, nil
	}
	if s.closed {
		return nil, 0, fs.ErrClosed
	}
	f, err := s.fs.Open(fileName(file))
	if err != nil {
		return nil, 0, err
	}
	s.handles[file] = f
	return f, base, nil
}

// openReader is reader for those who must not wait: nil when the file is not
// open yet.
func (s *Slot) openReader(segment uint32) (disk.File, int64) {
	file, base := s.pool.place(segment)
	s.handleMu.RLock()
	defer s.handleMu.RUnlock()
	return s.handles[file], base
}

// prepare takes a segment from the pool and opens a handle to append to it.
func (s *Slot) prepare(who taker) (*journal.Open, error) {
	segment, life, fresh, err := s.pool.take(who)
	if err != nil {
		return nil, err
	}
	file, base := s.pool.place(segment)
	f, err := s.fs.Open(fileName(file))
	if err != nil {
		s.pool.put([]uint32{segment})
		return nil, err
	}
	if who == zeroingAppender && fresh {
		if err := zeroAndSync(f, base, s.pool.segmentBytes()); err != nil {
			s.pool.put([]uint32{segment})
			return nil, errors.Join(err, f.Close())
		}
		fresh = false
	}
	s.handleMu.Lock()
	s.appends[f] = true
	s.handleMu.Unlock()
	return &journal.Open{Index: segment, Life: life, Blocks: s.pool.blocks, File: f, Base: base, Fresh: fresh}, nil
}

// zeroAndSync writes zeros, in pieces that others on the disk do not wait for
// long, and syncs them, so that the lane need not.
func zeroAndSync(f disk.File, base, length int64) error {
	const piece = 256 << 10
	for at := int64(0); at < length; at += piece {
		if err := f.Zero(base+at, min(piece, length-at)); err != nil {
			return err
		}
	}
	return f.Sync()
}

// forget drops a handle that prepare has opened and its user has closed.
func (s *Slot) forget(o *journal.Open) {
	s.handleMu.Lock()
	defer s.handleMu.Unlock()
	delete(s.appends, o.File)
}

// abandonCopy closes what a copy into the slot that was given up has open. Its
// segment stays behind the log, as after a crash.
func (s *Slot) abandonCopy() {
	s.handleMu.Lock()
	defer s.handleMu.Unlock()
	for f := range s.appends {
		_ = f.Close() // nothing of the copy counts
	}
	clear(s.appends)
}

// syncLog makes the segments durable that recovery has adopted.
func (s *Slot) syncLog(segments []uint32) error {
	synced := make(map[uint32]bool)
	for _, segment := range segments {
		file, _ := s.pool.place(segment)
		if synced[file] {
			continue
		}
		synced[file] = true
		f, _, err := s.reader(segment)
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			return fmt.Errorf("slot %d: sync %s: %w", s.ID, fileName(file), err)
		}
	}
	return nil
}

// Segments returns how many segments are in use and free.
func (s *Slot) Segments() (inUse, free int) { return s.pool.counts() }

// CheckpointSequence returns the sequence of the last checkpoint. It never waits.
func (s *Slot) CheckpointSequence() uint64 { return s.published.Load() }

// Close releases the slot's files, store and lock. Nothing may be under way.
func (s *Slot) Close() error {
	s.handleMu.Lock()
	s.closed = true
	var errs []error
	for _, f := range s.handles {
		errs = append(errs, f.Close())
	}
	for f := range s.appends {
		errs = append(errs, f.Close())
	}
	s.handles, s.appends = nil, nil
	s.handleMu.Unlock()
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	errs = append(errs, s.superFile.Close(), s.lock.Close())
	return errors.Join(errs...)
}
