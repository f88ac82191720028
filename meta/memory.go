package meta

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// Op names a call of a store, for fault hooks.
type Op uint8

// The calls that a fault hook sees.
const (
	OpLoad Op = iota
	OpScan
	OpCommit    // before the commit is applied: an error loses it
	OpCommitted // after it was applied: an error hides that it was
	OpIdentity
)

// Memory is a Store without I/O, clocks or goroutines, for the simulator and
// for tests. It stands for a directory as well as for the process that keeps a
// store there: Open is what opening it does, Crash is a crash of the host,
// Restart the end of a helper process and the start of the next one, and Replace
// what somebody does to the files. Nothing in it survives but through Crash and
// Contents.
type Memory struct {
	mu       sync.Mutex // guards everything below
	dir      Contents
	expect   Expect
	underWay *memoryCommit // begun, not finished; nil when there is none
	fault    func(Op) error
	closed   bool
	failed   error // a restart has found something that is not the store
}

// Contents are what the directory of a Memory holds at a moment. They are not
// changed by what happens to the store afterwards. The zero value is an empty
// directory.
type Contents struct {
	pairs    map[string][]byte // nil: there is no store
	identity Identity
}

type memoryCommit struct {
	name  Commit
	pairs []Pair
}

// NewMemory returns a store that was made in an empty directory, without an owner.
func NewMemory() *Memory {
	return &Memory{dir: Contents{pairs: make(map[string][]byte)}}
}

// Open opens the store as it is expected to be, or makes it, and returns the
// errors of OpenBadger. It may be called again, also on what Crash has returned.
func (m *Memory) Open(expect Expect) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	m.expect = expect
	return m.open()
}

// open opens the store, with mu held.
func (m *Memory) open() error {
	if m.dir.pairs == nil {
		if !m.expect.Create {
			return errNoState
		}
		m.dir = Contents{pairs: make(map[string][]byte), identity: Identity{Owner: m.expect.Owner}}
	}
	if len(m.dir.pairs) == 0 && m.dir.identity == (Identity{}) && m.expect.Create {
		m.dir.identity.Owner = m.expect.Owner
	}
	m.expect.Create = false
	if err := m.expect.owned(m.dir.identity); err != nil {
		return err
	}
	return m.expect.verify(m.dir.identity)
}

// Restart is the end of the helper process and the start of the next one: the
// commit under way is lost, or kept as a whole, as the lowest bit of seed decides.
// What lies in the directory by now is opened; if it is not the store that is
// expected, every call returns an error that wraps ErrFailed and ErrCorrupt from
// then on.
func (m *Memory) Restart(seed uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.settle(seed)
	if err := m.open(); err != nil {
		m.failed = fmt.Errorf("%w: %w", ErrFailed, err)
	}
}

// Look returns what the directory holds now.
func (m *Memory) Look() Contents {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.look()
}

func (m *Memory) look() Contents { return Contents{maps.Clone(m.dir.pairs), m.dir.identity} }

// Replace makes the directory hold something else: what it held earlier, what
// another store holds, or nothing. Restart, or Crash and Open, must follow.
func (m *Memory) Replace(c Contents) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.underWay = nil
	m.dir = Contents{maps.Clone(c.pairs), c.identity}
}

// Inject makes every call ask fault first and return its error, if any. A nil
// fault ends that. The hook runs with the store locked and must not call it.
func (m *Memory) Inject(fault func(Op) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = fault
}

// Crash returns the store that a restart sees: every finished commit, and the
// one under way as a whole or not at all, as the lowest bit of seed decides.
// The store itself is closed.
func (m *Memory) Crash(seed uint64) *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.settle(seed)
	m.closed = true
	return &Memory{dir: m.look()}
}

// settle decides on the commit under way.
func (m *Memory) settle(seed uint64) {
	if m.underWay != nil && seed&1 == 1 && m.dir.pairs != nil {
		m.apply(m.underWay)
	}
	m.underWay = nil
}

// Begin starts a commit that stays under way, invisible, until Finish; a Crash
// in between loses it or keeps it as a whole. It copies the pairs and returns
// the errors of Commit.
func (m *Memory) Begin(name Commit, pairs []Pair) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.begin(name, pairs)
}

// Finish applies the commit that Begin started.
func (m *Memory) Finish() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.finish()
}

// Load implements Store.
func (m *Memory) Load(ctx context.Context, keys [][]byte) ([][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter(ctx, OpLoad); err != nil {
		return nil, err
	}
	if err := checkKeys(keys); err != nil {
		return nil, err
	}
	values := make([][]byte, len(keys))
	for i, key := range keys {
		values[i] = bytes.Clone(m.dir.pairs[string(key)])
	}
	return values, nil
}

// Scan implements Store. It sees the store as it was when the call began.
func (m *Memory) Scan(ctx context.Context, prefix []byte, fn func(key, value []byte) error) error {
	found, err := m.matching(ctx, prefix)
	if err != nil {
		return err
	}
	for _, pair := range found {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(pair.Key, pair.Value); err != nil {
			return err
		}
	}
	return nil
}

// Commit implements Store.
func (m *Memory) Commit(ctx context.Context, name Commit, pairs []Pair) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := m.begin(name, pairs); err != nil {
		return err
	}
	return m.finish()
}

// Identity implements Store.
func (m *Memory) Identity(ctx context.Context) (Identity, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter(ctx, OpIdentity); err != nil {
		return Identity{}, err
	}
	return m.dir.identity, nil
}

// Close implements Store.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

func (m *Memory) begin(name Commit, pairs []Pair) error {
	if err := m.enter(context.Background(), OpCommit); err != nil {
		return err
	}
	if name.Sequence <= m.dir.identity.Last.Sequence {
		return fmt.Errorf("commit %v after %v: %w", name, m.dir.identity.Last, ErrSequence)
	}
	if err := checkPairs(pairs); err != nil {
		return err
	}
	copied := make([]Pair, len(pairs))
	for i, pair := range pairs {
		copied[i] = Pair{Key: bytes.Clone(pair.Key), Value: bytes.Clone(pair.Value)}
	}
	m.underWay = &memoryCommit{name: name, pairs: copied}
	return nil
}

func (m *Memory) finish() error {
	if m.closed {
		return ErrClosed
	}
	if m.underWay == nil {
		return nil
	}
	m.apply(m.underWay)
	m.underWay = nil
	return m.enter(context.Background(), OpCommitted)
}

func (m *Memory) apply(commit *memoryCommit) {
	if m.dir.pairs == nil {
		m.dir.pairs = make(map[string][]byte)
	}
	for _, pair := range commit.pairs {
		if pair.Value == nil {
			delete(m.dir.pairs, string(pair.Key))
		} else {
			m.dir.pairs[string(pair.Key)] = pair.Value
		}
	}
	m.dir.identity = Identity{Owner: m.expect.owner(m.dir.identity), Last: commit.name}
}

// matching returns the pairs with the prefix in ascending order. Stored values
// are never written to, so they need no copy.
func (m *Memory) matching(ctx context.Context, prefix []byte) ([]Pair, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter(ctx, OpScan); err != nil {
		return nil, err
	}
	var found []Pair
	for key, value := range m.dir.pairs {
		if bytes.HasPrefix([]byte(key), prefix) {
			found = append(found, Pair{Key: []byte(key), Value: value})
		}
	}
	slices.SortFunc(found, func(a, b Pair) int { return bytes.Compare(a.Key, b.Key) })
	return found, nil
}

// enter is the start of every call, with mu held.
func (m *Memory) enter(ctx context.Context, op Op) error {
	if m.closed {
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if m.failed != nil {
		return m.failed
	}
	if m.fault != nil {
		return m.fault(op)
	}
	return nil
}
