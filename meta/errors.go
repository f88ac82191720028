package meta

import "errors"

// The errors of a store besides ErrCorrupt. A full filesystem is reported with
// an error that wraps syscall.ENOSPC; the store stays usable after it.
var (
	// ErrClosed is returned by calls on a closed store.
	ErrClosed = errors.New("metadata store is closed")
	// ErrSequence is returned by Commit when its sequence is not greater than
	// the last one. Nothing was changed.
	ErrSequence = errors.New("sequence is not greater than the last commit's")
	// ErrTooLarge is returned when a key, a value or a commit exceeds its
	// limit. Nothing was changed.
	ErrTooLarge = errors.New("beyond the limits of a metadata store")
	// ErrUnavailable is returned for calls that were under way when the helper
	// process died or was given up as stuck. The store restarts it; the outcome
	// of a commit is told by Identity.
	ErrUnavailable = errors.New("metadata helper is gone")
	// ErrFailed is returned by every call once the store has given itself up:
	// a sync failed, or the helper could not be kept alive. It stays so until
	// the store is closed and opened again.
	ErrFailed = errors.New("metadata store has failed")
)

// The limits of every store, in bytes.
const (
	MaxKeyBytes    = 1 << 10
	MaxValueBytes  = 64 << 10
	MaxCommitBytes = 1 << 30
)
