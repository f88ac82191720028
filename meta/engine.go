package meta

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sys/unix"
)

const (
	// memTableBytes is Badger's memtable: it bounds what an idle store keeps
	// resident, and a transaction may fill 15 % of it.
	memTableBytes = 8 << 20
	// transactionBytes is the least that a transaction writes, by padding: it
	// bounds how many fit in a memtable, see windowSlots.
	transactionBytes = 8 << 10
	// windowSlots is how many of the last transactions can be told to be all
	// there. Up to two full memtables may lie between a rotten one and the
	// newest: their transactions must not hide that one before them is lost.
	windowSlots = 2*memTableBytes/transactionBytes + 64
)

// The keys in Badger: one byte for the kind, then the key.
const (
	keyState  = 0 // the state record
	keyWindow = 1 // + slot u16: the transaction number last written there
	keyPad    = 2 // filler
	keyUser   = 3 // + the user's key
)

// engine is the store on Badger: synchronous, with commits by one goroutine at
// a time and everything else by any. It owns the directory:
//
//	badger/  Badger's files
//	redo     a commit too large for one transaction (redoFile)
//	reserve  blocks to give up when the filesystem is full (space)
//	lock     flock, so that a restarted helper waits for the one before it
type engine struct {
	dir   string
	opt   BadgerOptions
	lock  *os.File
	db    *badger.DB // nil at rest, as is audit
	redo  *redoFile
	space space
	audit *audit

	// Only the committer touches these, after open.
	state    state
	walFiles string // the write-ahead logs whose directory entries are durable

	mu     sync.Mutex // guards view, failed
	view   *view      // what readers see: the last commit, as a whole
	failed error      // once set, every call returns it

	compaction chan struct{} // holds a token while a compaction runs
}

// view is a snapshot that is never half of a commit. Readers share it, so none
// waits for a large commit to be applied.
type view struct {
	txn  *badger.Txn
	refs int // guarded by engine.mu
}

// openEngine opens the store in dir, or makes it if that is expected, and finishes
// what a crash left.
func openEngine(dir string, opt BadgerOptions) (e *engine, err error) {
	opt = opt.withDefaults()
	if err := makeOrFind(dir, opt.Expect.Create); err != nil {
		return nil, fmt.Errorf("open metadata store %s: %w", dir, err)
	}
	e = &engine{
		dir:        dir,
		opt:        opt,
		space:      space{dir: dir, minFree: opt.MinFreeBytes, reserve: opt.ReserveBytes},
		compaction: make(chan struct{}, 1),
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open metadata store %s: %w", dir, err), e.release())
			e = nil
		}
	}()
	if e.lock, err = lockFile(filepath.Join(dir, "lock"), opt.LockWait); err != nil {
		return e, err
	}
	if err = e.space.admitOpen(); err != nil {
		return e, err
	}
	if e.redo, err = openRedo(filepath.Join(dir, "redo")); err != nil {
		return e, err
	}
	if err = e.openBadger(); err != nil {
		return e, err
	}
	return e, e.recover()
}

// makeOrFind makes the store's directories, or finds a database there: Badger
// would make one that is gone, and would remove what it has tables of.
func makeOrFind(dir string, create bool) error {
	if create {
		return os.MkdirAll(filepath.Join(dir, "badger"), 0o700)
	}
	_, err := os.Stat(filepath.Join(dir, "badger", badger.ManifestFilename))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("its database is gone: %w: %w", ErrCorrupt, err)
	}
	return err
}

// openBadger opens the database. After a crash it does so twice: what Badger
// replays from its logs may be known to the page cache alone (a failed sync
// leaves it so), and closing writes it anew, into synced tables.
func (e *engine) openBadger() error {
	if err := e.removeUnbegun(); err != nil {
		return err
	}
	crashed, err := e.memoryLogs()
	if err != nil {
		return err
	}
	for {
		if e.db, err = badger.Open(badgerOptions(e.badgerDir(), e.opt)); err != nil {
			e.db = nil // what Badger returns with an error is closed already, and panics when it is again
			return e.explainOpen(err)
		}
		if crashed == "" {
			break
		}
		crashed = ""
		if err := e.db.Close(); err != nil {
			return fmt.Errorf("badger: write replayed log anew: %w", err)
		}
	}
	e.audit = newAudit(e.db, e.badgerDir())
	return e.syncDirectories()
}

// explainOpen tells a database that can't be used from one that can't be read:
// Badger's errors have lost what they wrapped.
func (e *engine) explainOpen(cause error) error {
	entries, err := os.ReadDir(e.badgerDir())
	if err != nil {
		return fmt.Errorf("badger: %w: %w", cause, err)
	}
	for _, entry := range entries {
		file, err := os.Open(filepath.Join(e.badgerDir(), entry.Name()))
		if err != nil {
			return fmt.Errorf("badger: %w: %w", cause, err)
		}
		_, err = file.Read(make([]byte, 1))
		file.Close()
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("badger: %w: %w", cause, err)
		}
	}
	return fmt.Errorf("badger: %w: %w", ErrCorrupt, cause)
}

func badgerOptions(dir string, opt BadgerOptions) badger.Options {
	o := badger.DefaultOptions(dir)
	o.Logger = newQuietLog(opt.Log)
	o.MetricsEnabled = false
	o.DetectConflicts = false // commits are serial
	o.Compression = options.None
	o.BlockCacheSize = 0
	o.IndexCacheSize = 0
	o.ChecksumVerificationMode = options.OnBlockRead
	o.MemTableSize = memTableBytes
	o.NumMemtables = 1
	o.BaseTableSize = 4 << 20
	o.BaseLevelSize = 64 << 20
	o.ValueLogFileSize = 1 << 20         // never written: every value is below the threshold
	o.ValueThreshold = 128 << 10         // above MaxValueBytes and our checksum
	o.NumCompactors = 0                  // they poll 20 times a second; compact runs them when needed
	o.NumLevelZeroTables = compactAt - 1 // more than these, and Flatten has something to do
	o.NumLevelZeroTablesStall = 1 << 20
	return o
}

func (e *engine) badgerDir() string { return filepath.Join(e.dir, "badger") }

// recover reads the state, proves that no transaction before the last is
// missing, and finishes a commit that was under way.
func (e *engine) recover() error {
	e.publish()
	found, err := e.readState()
	switch {
	case err != nil:
		return err
	case !found && !e.opt.Expect.Create:
		return errNoState
	}
	if err := e.opt.Expect.owned(e.state.Identity); err != nil {
		return err
	}
	if err := e.checkWindow(); err != nil {
		return err
	}
	if err := e.finishRedo(); err != nil {
		return err
	}
	if e.state.transaction == 0 {
		if err := e.begun(); err != nil {
			return err
		}
	}
	e.publish()
	e.startCompaction()
	return nil
}

// errNoState: a store that once was made has its state from then on.
var errNoState = fmt.Errorf("there is no state record: the store was emptied: %w", ErrCorrupt)

// begun makes a new store durable, with its owner: from then on it is missed when
// it is gone.
func (e *engine) begun() error {
	t := e.newTransaction()
	if err := t.commit(state{Identity: Identity{Owner: e.opt.Expect.Owner}}); err != nil {
		return fmt.Errorf("begin a store: %w", err)
	}
	for _, dir := range []string{e.badgerDir(), e.dir, filepath.Dir(e.dir)} {
		if err := e.syncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// readState reports whether the store has a state record, and reads it.
func (e *engine) readState() (found bool, err error) {
	v := e.acquire()
	defer e.drop(v)
	value, err := e.get(v, []byte{keyState})
	if err != nil || value == nil {
		return false, err
	}
	e.state, err = decodeState(value)
	return true, err
}

// checkWindow proves that the last windowSlots transactions are all there. A
// log that rotted in the middle replays to there without an error; when a newer
// log follows it, the sequence alone looks right.
func (e *engine) checkWindow() error {
	found, err := e.window()
	if err != nil {
		return err
	}
	last := e.state.transaction
	first := uint64(1)
	if last > windowSlots {
		first = last - windowSlots + 1
	}
	for number := first; number <= last; number++ {
		if found[number%windowSlots] != number {
			return fmt.Errorf("transaction %d of %d is missing: %w", number, last, ErrCorrupt)
		}
	}
	return nil
}

// window reads which transaction was the last in each slot.
func (e *engine) window() (numbers [windowSlots]uint64, err error) {
	s, err := e.newScanner([]byte{keyWindow})
	if err != nil {
		return numbers, err
	}
	defer s.close()
	run, _, err := s.page(nil, math.MaxInt)
	if err != nil {
		return numbers, err
	}
	return numbers, eachPair(run, func(pair Pair) error {
		if len(pair.Key) != 2 || len(pair.Value) != 8 || binary.BigEndian.Uint16(pair.Key) >= windowSlots {
			return fmt.Errorf("window slot %x of %d bytes: %w", pair.Key, len(pair.Value), ErrCorrupt)
		}
		numbers[binary.BigEndian.Uint16(pair.Key)] = binary.LittleEndian.Uint64(pair.Value)
		return nil
	})
}

func windowKey(transaction uint64) []byte {
	return binary.BigEndian.AppendUint16([]byte{keyWindow}, uint16(transaction%windowSlots))
}

// identity returns that of the commit that readers see.
func (e *engine) identity() (Identity, error) {
	v, err := e.reading()
	if err != nil {
		return Identity{}, err
	}
	defer e.drop(v)
	value, err := e.get(v, []byte{keyState})
	if err != nil {
		return Identity{}, err
	}
	if value == nil {
		return Identity{}, errNoState
	}
	s, err := decodeState(value)
	return s.Identity, err
}

// load appends the values of the keys to dst, as pairs without keys, until it
// holds limit bytes: at most one value more than that, and at least one.
func (e *engine) load(dst []byte, keys [][]byte, limit int) ([]byte, error) {
	v, err := e.reading()
	if err != nil {
		return dst, err
	}
	defer e.drop(v)
	const together = 32 // keys checked at once: the limit ends most requests before the last key
	for group := range slices.Chunk(keys, together) {
		if len(dst) >= limit {
			break
		}
		if dst, err = e.loadGroup(v, dst, group, limit); err != nil {
			return dst, err
		}
	}
	return dst, nil
}

func (e *engine) loadGroup(v *view, dst []byte, keys [][]byte, limit int) ([]byte, error) {
	if err := e.audit.keys(v.txn, keys); err != nil {
		return dst, fmt.Errorf("load: %w", err)
	}
	for _, key := range keys {
		if len(dst) >= limit {
			break
		}
		value, err := v.lookup(key)
		if err != nil {
			return dst, fmt.Errorf("load %x: %w", key[1:], err)
		}
		dst = appendPair(dst, Pair{Value: value})
	}
	return dst, nil
}

// get returns the verified value of a key; nil when it is absent.
func (e *engine) get(v *view, key []byte) ([]byte, error) {
	if err := e.audit.keys(v.txn, [][]byte{key}); err != nil {
		return nil, err
	}
	return v.lookup(key)
}

// lookup is get for a key whose blocks have been checked.
func (v *view) lookup(key []byte) ([]byte, error) {
	item, err := v.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	stored, err := item.ValueCopy(nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return unseal(key, stored)
}

func userKey(key []byte) []byte { return append([]byte{keyUser}, key...) }

// seal puts the CRC32C of key and value before the value.
func seal(key, value []byte) []byte {
	stored := make([]byte, 4, 4+len(value))
	binary.LittleEndian.PutUint32(stored, valueCRC(key, value))
	return append(stored, value...)
}

func unseal(key, stored []byte) ([]byte, error) {
	if len(stored) < 4 {
		return nil, fmt.Errorf("value of %d bytes has no checksum: %w", len(stored), ErrCorrupt)
	}
	value := stored[4:]
	if want, found := binary.LittleEndian.Uint32(stored), valueCRC(key, value); want != found {
		return nil, fmt.Errorf("checksum %08x, expected %08x: %w", found, want, ErrCorrupt)
	}
	return value, nil
}

func valueCRC(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// reading returns the current view for a call of a user.
func (e *engine) reading() (*view, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.failed != nil {
		return nil, e.failed
	}
	e.view.refs++
	return e.view, nil
}

func (e *engine) acquire() *view {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.view.refs++
	return e.view
}

func (e *engine) drop(v *view) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if v.refs--; v.refs == 0 {
		v.txn.Discard()
	}
}

// publish makes readers see everything committed so far.
func (e *engine) publish() {
	next := &view{txn: e.db.NewTransaction(false), refs: 1}
	e.mu.Lock()
	last := e.view
	e.view = next
	e.mu.Unlock()
	if last != nil {
		e.drop(last)
	}
}

// fail gives the store up: after a failed sync nobody knows what is on disk,
// and the next sync would not tell.
func (e *engine) fail(err error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.failed == nil {
		e.failed = fmt.Errorf("%w: %w", ErrFailed, err)
	}
	return e.failed
}

func (e *engine) failure() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.failed
}

// close closes the database; every call must have returned. What was committed
// is durable already, so an error here loses nothing.
func (e *engine) close() error {
	e.compaction <- struct{}{} // joins a compaction, and keeps others out
	return e.release()
}

func (e *engine) release() error {
	err := e.closeBadger()
	if e.redo != nil {
		err = errors.Join(err, e.redo.file.Close())
	}
	if e.lock != nil {
		err = errors.Join(err, e.lock.Close())
	}
	return err
}

// memoryLogs names Badger's write-ahead logs. A clean close leaves none.
func (e *engine) memoryLogs() (string, error) {
	entries, err := os.ReadDir(e.badgerDir())
	if err != nil {
		return "", fmt.Errorf("list badger's files: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), ".mem") {
			names = append(names, entry.Name())
		}
	}
	return strings.Join(names, " "), nil
}

// removeUnbegun removes logs of no length: a process that is killed between
// making the file and giving it a size leaves one, and Badger does not open a
// database that has one. Nothing was ever in it.
func (e *engine) removeUnbegun() error {
	entries, err := os.ReadDir(e.badgerDir())
	if err != nil {
		return fmt.Errorf("list badger's files: %w", err)
	}
	for _, entry := range entries {
		if kind := filepath.Ext(entry.Name()); kind != ".mem" && kind != ".vlog" {
			continue
		}
		info, err := entry.Info()
		if err == nil && info.Size() == 0 {
			err = os.Remove(filepath.Join(e.badgerDir(), entry.Name()))
		}
		if err != nil {
			return fmt.Errorf("badger: a log that was never begun: %w", err)
		}
	}
	return nil
}

// syncDirectories makes the names of fresh files durable, which Badger leaves
// out for its logs.
func (e *engine) syncDirectories() error {
	names, err := e.memoryLogs()
	if err != nil || names == e.walFiles {
		return err
	}
	for _, dir := range []string{e.badgerDir(), e.dir} {
		if err := e.syncDir(dir); err != nil {
			return err
		}
	}
	e.walFiles = names
	return nil
}

// syncDir makes the entries of a directory durable.
func (e *engine) syncDir(dir string) error {
	if e.opt.synced != nil {
		defer e.opt.synced(dir)
	}
	file, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer file.Close()
	if err := file.Sync(); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

// lockFile takes the exclusive lock, waiting at most that long for a process
// that is about to die: its descriptor may outlive its parent by a moment.
func lockFile(path string, wait time.Duration) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) || ctx.Err() != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
		}
	}
}
