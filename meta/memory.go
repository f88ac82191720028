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
	OpSequence
)

// Memory is a Store without I/O, clocks or goroutines, for the simulator and
// for tests. Nothing in it survives but through Crash.
type Memory struct {
	mu       sync.Mutex // guards everything below
	pairs    map[string][]byte
	sequence uint64
	underWay *memoryCommit // begun, not finished; nil when there is none
	fault    func(Op) error
	closed   bool
}

type memoryCommit struct {
	sequence uint64
	pairs    []Pair
}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{pairs: make(map[string][]byte)}
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
	after := &Memory{pairs: maps.Clone(m.pairs), sequence: m.sequence}
	if m.underWay != nil && seed&1 == 1 {
		after.apply(m.underWay)
	}
	m.closed = true
	return after
}

// Begin starts a commit that stays under way, invisible, until Finish; a Crash
// in between loses it or keeps it as a whole. It copies the pairs and returns
// the errors of Commit.
func (m *Memory) Begin(sequence uint64, pairs []Pair) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.begin(sequence, pairs)
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
		values[i] = bytes.Clone(m.pairs[string(key)])
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
func (m *Memory) Commit(ctx context.Context, sequence uint64, pairs []Pair) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := m.begin(sequence, pairs); err != nil {
		return err
	}
	return m.finish()
}

// Sequence implements Store.
func (m *Memory) Sequence(ctx context.Context) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter(ctx, OpSequence); err != nil {
		return 0, err
	}
	return m.sequence, nil
}

// Close implements Store.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

func (m *Memory) begin(sequence uint64, pairs []Pair) error {
	if err := m.enter(context.Background(), OpCommit); err != nil {
		return err
	}
	if sequence <= m.sequence {
		return fmt.Errorf("commit %d after %d: %w", sequence, m.sequence, ErrSequence)
	}
	if err := checkPairs(pairs); err != nil {
		return err
	}
	copied := make([]Pair, len(pairs))
	for i, pair := range pairs {
		copied[i] = Pair{Key: bytes.Clone(pair.Key), Value: bytes.Clone(pair.Value)}
	}
	m.underWay = &memoryCommit{sequence: sequence, pairs: copied}
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
	for _, pair := range commit.pairs {
		if pair.Value == nil {
			delete(m.pairs, string(pair.Key))
		} else {
			m.pairs[string(pair.Key)] = pair.Value
		}
	}
	m.sequence = commit.sequence
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
	for key, value := range m.pairs {
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
	if m.fault != nil {
		return m.fault(op)
	}
	return nil
}
