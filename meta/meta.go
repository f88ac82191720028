// Package meta stores what a slot changes at checkpoint speed: map pages, the
// segment table, generations, the superblock's mirror. It is an ordered map of
// small pairs with atomic, durable commits, behind the interface Store, three
// times: Memory for the simulator, OpenBadger for tools, and StartHelper for
// servers, where Badger runs in a process of its own.
//
// # What survives
//
// A commit that returned nil survives a crash of the process, of the helper and
// of the host, and is seen as a whole or not at all; so is one that returned an
// error, and Identity tells which. Rot in Badger's files is reported with
// ErrCorrupt, or it makes the store fall behind (the end of a write-ahead log
// can't be told from one that was never written), as does a store that was
// replaced by an older copy of itself: callers keep elsewhere whose the store is
// and which commit was its last, and have that compared at every opening (see
// Expect). It never yields a wrong value or a missing key. A full filesystem is
// refused with ENOSPC before it is reached.
//
// # How it is made
//
//	Load, Scan, Commit, Identity          store      the same for both below
//	  │ requests                          transport
//	  ├─ goroutine ───────────────┐       local      OpenBadger
//	  └─ frames ─ socket pair ────┤       remote     StartHelper; session: one life of a process
//	                              ▼
//	                            server    runs of pairs, cursors, the commit under way
//	                            engine    state, views, transactions, redo file, rest
//	                            audit     what Badger hides: unreadable blocks
//	                            space     watermark and reserve
//
// A commit that fits in one Badger transaction is one, synced. A larger one is
// written to the redo file and synced, which is when it happens; then applied in
// several transactions, each synced, all but the last saying that the commit is
// half applied. Opening finishes that.
//
// Keys in Badger are a kind byte and the rest; each value, but the padding,
// begins with its checksum:
//
//	00            CRC32C u32 | state: see there
//	01 slot u16   CRC32C u32 | transaction u64
//	02            padding
//	03 key        CRC32C u32 | value
//
// The CRC32C covers the key, kind byte included, and the value. Integers are
// little-endian, except the slot, which is big-endian. The state's fields, the
// window of slots and the padding are explained at state, windowSlots and
// transactionBytes; the redo file at redoFile, frames at frame.
//
// # Who owns what
//
// The engine owns its directory, under a lock, while it is open. The helper is
// owned by the session that started it, which kills and reaps it; it ends by
// itself when the socket does. Buffers handed to a call are the caller's again
// when it returns; values returned are the caller's.
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
	// Commit has returned nil. It stores the commit's name, whose sequence must be
	// greater than the last, in the same step. After an error the outcome is
	// unknown until Identity tells; when that names another commit, this one will
	// never come to be.
	Commit(ctx context.Context, name Commit, pairs []Pair) error
	// Identity returns whose store it is, and its last commit.
	Identity(ctx context.Context) (Identity, error)
	// Close releases the store, waiting for the calls under way.
	Close() error
}
