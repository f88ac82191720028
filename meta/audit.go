package meta

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
	"github.com/dgraph-io/ristretto/v2/z"
	"golang.org/x/sys/unix"
)

// audit makes rot in Badger's tables visible. Badger verifies a block when it
// reads it, and then treats a bad block as one without the key: a lookup finds
// nothing, or an older version in a lower level; an iterator ends early; a
// compaction drops the rest of the table for good. So every read is preceded by
// one of the same blocks through handles of our own, whose iterators tell a bad
// block from the end of the table, and a compaction by one of all tables.
type audit struct {
	db  *badger.DB
	dir string

	mu      sync.RWMutex // guards handles; held for reading while they are used
	handles map[uint64]*table.Table
}

func newAudit(db *badger.DB, dir string) *audit {
	return &audit{db: db, dir: dir, handles: make(map[uint64]*table.Table)}
}

// keys checks the blocks that lookups of the keys would read.
func (a *audit) keys(txn *badger.Txn, keys [][]byte) error {
	return a.each(txn, func(info badger.TableInfo, t *table.Table) error {
		for _, key := range keys {
			if outside(info, key) || t.DoesNotHave(y.Hash(key)) {
				continue
			}
			if err := checkSeek(t, y.KeyWithTs(key, txn.ReadTs())); err != nil {
				return err
			}
		}
		return nil
	})
}

// prefix checks the blocks that a scan of the prefix would read; the empty
// prefix stands for everything.
func (a *audit) prefix(txn *badger.Txn, prefix []byte) error {
	return a.each(txn, func(info badger.TableInfo, t *table.Table) error {
		left, right := y.ParseKey(info.Left), y.ParseKey(info.Right)
		if bytes.Compare(right, prefix) < 0 || (bytes.Compare(left, prefix) > 0 && !bytes.HasPrefix(left, prefix)) {
			return nil
		}
		// What was read lies in the page cache, and is mapped by Badger as well:
		// it need not count as resident twice.
		defer unix.Madvise(t.Data, unix.MADV_DONTNEED)
		return checkWalk(t, prefix)
	})
}

// each calls fn for every table. An iterator of Badger's pins the tables
// meanwhile: to delete one, Badger first truncates its file, and a read of our
// mapping would end the process. The iterator pins what was there when it was
// made, which is known only if the tables were the same before and after.
func (a *audit) each(txn *badger.Txn, fn func(badger.TableInfo, *table.Table) error) error {
	const attempts = 32 // tables change no faster than megabytes are written
	for range attempts {
		before := a.db.Tables()
		pin := txn.NewIterator(badger.IteratorOptions{})
		if !sameTables(before, a.db.Tables()) {
			pin.Close()
			continue
		}
		defer pin.Close()
		if err := a.open(before); err != nil {
			return err
		}
		return a.visit(before, fn)
	}
	return fmt.Errorf("tables changed %d times while they were listed: %w", attempts, ErrUnavailable)
}

func sameTables(a, b []badger.TableInfo) bool {
	return slices.EqualFunc(a, b, func(a, b badger.TableInfo) bool { return a.ID == b.ID && a.Level == b.Level })
}

func (a *audit) visit(infos []badger.TableInfo, fn func(badger.TableInfo, *table.Table) error) error {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, info := range infos {
		t := a.handles[info.ID]
		if t == nil { // a call that saw later tables has closed it: this one is merged into them
			continue
		}
		if err := guarded(func() error { return fn(info, t) }); err != nil {
			return fmt.Errorf("table %06d of level %d: %w", info.ID, info.Level, err)
		}
	}
	return nil
}

// open brings the handles in line with the tables.
func (a *audit) open(infos []badger.TableInfo) error {
	if a.current(infos) {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	live := make(map[uint64]bool, len(infos))
	for _, info := range infos {
		live[info.ID] = true
	}
	for id, t := range a.handles {
		if !live[id] {
			delete(a.handles, id)
			_ = t.Close(-1) // a read-only mapping of a deleted file
		}
	}
	for _, info := range infos {
		if a.handles[info.ID] != nil {
			continue
		}
		t, err := openTable(table.NewFilename(info.ID, a.dir))
		if err != nil {
			return err
		}
		a.handles[info.ID] = t
	}
	return nil
}

func (a *audit) current(infos []badger.TableInfo) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if len(infos) != len(a.handles) {
		return false
	}
	for _, info := range infos {
		if a.handles[info.ID] == nil {
			return false
		}
	}
	return true
}

func (a *audit) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.handles {
		_ = t.Close(-1)
	}
	clear(a.handles)
}

// openTable maps a table for reading alone. Its reference count must never
// reach zero, which would delete the file: handles are closed instead.
func openTable(path string) (t *table.Table, err error) {
	file, err := z.OpenMmapFile(path, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) { // Badger holds it open, so it was not Badger that removed it
		return nil, fmt.Errorf("map table %s: %w: %w", filepath.Base(path), ErrCorrupt, err)
	}
	if err != nil {
		return nil, fmt.Errorf("map table %s: %w", filepath.Base(path), err)
	}
	err = guarded(func() error {
		t, err = table.OpenTable(file, table.Options{ReadOnly: true, ChkMode: options.OnBlockRead})
		if err != nil {
			return fmt.Errorf("open table %s: %w: %w", filepath.Base(path), ErrCorrupt, err)
		}
		return nil
	})
	return t, err
}

func outside(info badger.TableInfo, key []byte) bool {
	return bytes.Compare(key, y.ParseKey(info.Left)) < 0 || bytes.Compare(key, y.ParseKey(info.Right)) > 0
}

// checkSeek fails when the block that should hold key can't be read: only
// beyond the table's last key may a seek end with nothing.
func checkSeek(t *table.Table, key []byte) error {
	it := t.NewIterator(table.NOCACHE)
	defer it.Close()
	it.Seek(key)
	if it.Valid() || y.CompareKeys(t.Biggest(), key) < 0 {
		return nil
	}
	return fmt.Errorf("unreadable block at key %x: %w", y.ParseKey(key), ErrCorrupt)
}

// checkWalk reads all keys with the prefix; a walk that ends before the last
// key of the table has met a bad block.
func checkWalk(t *table.Table, prefix []byte) error {
	it := t.NewIterator(table.NOCACHE)
	defer it.Close()
	var last []byte
	for it.Seek(y.KeyWithTs(prefix, math.MaxUint64)); it.Valid(); it.Next() {
		if !bytes.HasPrefix(y.ParseKey(it.Key()), prefix) {
			return nil
		}
		last = append(last[:0], it.Key()...)
	}
	if !bytes.Equal(last, t.Biggest()) {
		return fmt.Errorf("unreadable block after key %x: %w", last, ErrCorrupt)
	}
	return nil
}

// guarded turns a panic into ErrCorrupt: Badger decodes a block's index before
// it verifies the block's checksum, and slices out of range when it is garbage.
func guarded(fn func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("decode: %v: %w", r, ErrCorrupt)
		}
	}()
	return fn()
}
