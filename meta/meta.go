package meta

import (
	"context"
	"errors"
)

// ErrCorrupt is wrapped by errors that tell that the store's own content
// cannot be trusted; the slot must be rebuilt from a peer.
var ErrCorrupt = errors.New("metadata store is corrupt")

// Pair is one key and its value. A nil Value in a commit deletes the key.
type Pair struct {
	Key, Value []byte
}

// Store is a slot's metadata: an ordered map of small keys and values of up to
// 64 KiB. Calls may come from several goroutines; commits are serialised by
// the caller. Every call returns when its context ends, whatever the store is
// doing.
type Store interface {
	// Load returns the values of keys, in their order; nil for an absent key
	// (a present empty value is non-nil and empty).
	Load(ctx context.Context, keys [][]byte) ([][]byte, error)
	// Scan calls fn for every pair with the prefix, in ascending order of keys,
	// until fn returns an error, which it returns. The slices are valid during
	// the call alone.
	Scan(ctx context.Context, prefix []byte, fn func(key, value []byte) error) error
	// Commit applies all pairs atomically, whatever their number, and durably:
	// after a crash either all of them are there or none, and all of them once
	// Commit has returned nil. It stores sequence, which must be greater than
	// the last, in the same step. After an error the outcome is unknown until
	// Sequence tells.
	Commit(ctx context.Context, sequence uint64, pairs []Pair) error
	// Sequence returns the sequence of the last commit; 0 for a new store.
	// Callers mirror it elsewhere and refuse a store that has fallen behind.
	Sequence(ctx context.Context) (uint64, error)
	// Close releases the store, waiting for the calls under way.
	Close() error
}
