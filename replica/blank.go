package replica

import (
	"errors"
	"fmt"

	"trivet/journal"
	"trivet/meta"
)

// Unbelievable reports whether an error says that a slot's own content is at fault,
// so that the slot has to be made blank and filled by its peers: neither another
// try nor time makes it better. One that has lost its superblock is left as it is:
// nothing says any more whose it is.
func Unbelievable(err error) bool {
	return !errors.Is(err, journal.ErrNoSuperblock) &&
		(errors.Is(err, meta.ErrCorrupt) || errors.Is(err, journal.ErrNotThis) || errors.Is(err, journal.ErrDamaged))
}

// ContentError is an error of Reopen that is the fault of what the slot holds, and
// not of its disk or its peers.
type ContentError struct{ Err error }

// Error implements error.
func (e *ContentError) Error() string { return e.Err.Error() }

// Unwrap returns what is wrong with the content.
func (e *ContentError) Unwrap() error { return e.Err }

// Blank makes the slot blank without loss; it stays who it is. It has no store, and
// must be closed afterwards. Its superblock says first, in both copies, that the slot
// is being filled and that its store has never been committed to; then setAside moves
// the named files out of the way, the log first: a log without its metadata would be
// replayed from the beginning, and lacks what was copied into it, whereas metadata of
// another owner are refused, and moved by the next attempt.
func (s *Slot) Blank(setAside func(names []string) error) error {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	s.super.Filling = max(1, s.super.Promised.Number, s.super.Started())
	s.super.Checkpoint, s.super.Announced = journal.StoreCommit{}, journal.StoreCommit{}
	s.Draw(s.super.StoreOwner[:])
	if err := s.save(true); err != nil {
		return fmt.Errorf("slot %d: %w", s.ID, err)
	}
	if err := setAside([]string{logDir, metaDir}); err != nil {
		return fmt.Errorf("slot %d: %w", s.ID, err)
	}
	if err := s.fs.MkdirAll(logDir); err != nil {
		return fmt.Errorf("slot %d: %w", s.ID, err)
	}
	return nil
}
