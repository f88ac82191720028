package replica

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"trivet/journal"
	"trivet/meta"
)

// The superblock knows whose its slot's metadata store is, the last commit that is
// confirmed, and one that may have been made since. A commit is announced there
// before the store is asked for it, and confirmed afterwards; so the store is
// exactly at the one or at the other, whatever was cut short, and one that is
// anywhere else was emptied, exchanged or taken back in time.
//
// When nobody can say whether a commit has happened, nothing more is announced
// until somebody can: the superblock has room for one.

// expectation is what a slot's store may be. It is replaced, never changed.
type expectation struct {
	owner     meta.Owner
	older     bool // a version without owners has made the store, and may have used it last
	confirmed meta.Commit
	announced meta.Commit // zero: none
}

// verify refuses a store that is not the slot's, or not where it was left. The
// error wraps meta.ErrCorrupt.
func (x *expectation) verify(id meta.Identity) error {
	switch {
	case id.Unnamed() && x.confirmed.Name == 0 &&
		(id.Last.Sequence == x.confirmed.Sequence || x.older && id.Last.Sequence > x.confirmed.Sequence):
		return nil
	case id.Owner != x.owner && !id.Unnamed():
		return fmt.Errorf("metadata belongs to %v, the slot's to %v: %w", id.Owner, x.owner, meta.ErrCorrupt)
	case id.Last == x.confirmed, x.announced != meta.Commit{} && id.Last == x.announced:
		return nil
	case x.announced != meta.Commit{}:
		return fmt.Errorf("metadata is at commit %v, the superblock knows %v and announces %v: %w", id.Last, x.confirmed, x.announced, meta.ErrCorrupt)
	}
	return fmt.Errorf("metadata is at commit %v, the superblock knows %v: %w", id.Last, x.confirmed, meta.ErrCorrupt)
}

// Expect returns what the slot knows of its metadata store: who opens the store for
// it gives that to meta. A store that was never committed to is made when it is not
// there.
func (s *Slot) Expect() meta.Expect {
	if s.storeOwner = meta.Owner(s.super.StoreOwner); s.storeOwner == (meta.Owner{}) {
		s.Draw(s.storeOwner[:]) // stored when the first commit is announced
	}
	s.tried = max(s.super.Checkpoint.Sequence, s.super.Announced.Sequence)
	s.expected.Store(s.expectation())
	return meta.Expect{
		Owner:  s.storeOwner,
		Create: s.super.Checkpoint == journal.StoreCommit{} && s.super.Announced == journal.StoreCommit{},
		Verify: func(id meta.Identity) error { return s.expected.Load().verify(id) },
	}
}

// expectation is what the superblock says of the store, as it is in memory.
func (s *Slot) expectation() *expectation {
	return &expectation{
		owner: s.storeOwner, older: s.super.StoreOwner == [16]byte{},
		confirmed: meta.Commit(s.super.Checkpoint), announced: meta.Commit(s.super.Announced),
	}
}

// Attach gives the slot its metadata store, which the slot then owns.
func (s *Slot) Attach(store meta.Store) { s.store = store }

// checkStore verifies that the store is the one that the slot has left, with
// everything that must be in it.
func (s *Slot) checkStore() error {
	ctx, cancel := context.WithTimeout(context.Background(), metaTimeout)
	defer cancel()
	if s.expected.Load() == nil {
		s.Expect()
	}
	id, err := s.store.Identity(ctx)
	if err == nil {
		err = s.expected.Load().verify(id)
	}
	if err != nil {
		return fmt.Errorf("slot %d: %w", s.ID, err)
	}
	s.know(id.Last)
	if s.lanes, err = journal.LoadLanes(s, id.Last.Name != 0); err != nil {
		return fmt.Errorf("slot %d: %w", s.ID, err)
	}
	return nil
}

// know takes note of where the store is for certain. It is stored with whatever is
// stored next.
func (s *Slot) know(last meta.Commit) {
	if s.super.Announced != (journal.StoreCommit{}) && journal.StoreCommit(last) == s.super.Announced {
		s.lanes = s.lanesThen
	}
	s.super.Checkpoint, s.super.Announced = journal.StoreCommit(last), journal.StoreCommit{}
	s.tried = max(s.tried, last.Sequence)
	s.expected.Store(s.expectation())
	s.published.Store(last.Sequence)
}

// leastFreeBytes of the filesystem must be free for a commit: the metadata store
// does not survive a full one.
const leastFreeBytes = 16 << 20

// commit stores pairs, between its announcement and its confirmation in the
// superblock.
func (s *Slot) commit(pairs []journal.Pair) error {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 3*metaTimeout)
	defer cancel()
	if free, _, err := s.fs.Usage(); err == nil && free < leastFreeBytes {
		return fmt.Errorf("%d bytes are free, the metadata store needs %d: %w", free, leastFreeBytes, unix.ENOSPC)
	}
	if f, ok := s.fs.(stepper); ok {
		if err := f.Checkpoint(); err != nil {
			return err
		}
	}
	if err := s.settle(ctx); err != nil {
		return err
	}
	s.lanesThen, pairs = s.lanes.With(pairs)
	list := make([]meta.Pair, len(pairs))
	for i, p := range pairs {
		list[i] = meta.Pair(p)
	}
	name, err := s.announce()
	if err != nil {
		return err
	}
	if err := s.store.Commit(ctx, name, list); err != nil {
		if errSettle := s.settle(ctx); errSettle != nil {
			return errors.Join(err, errSettle)
		}
		if s.super.Checkpoint != journal.StoreCommit(name) {
			return err
		}
	}
	s.know(name)
	return s.save(false)
}

// announce stores that a commit is about to be made, with a number and a name that
// none had before it.
func (s *Slot) announce() (meta.Commit, error) {
	s.tried++
	next := meta.Commit{Sequence: s.tried, Name: drawName(s.Draw)}
	s.super.StoreOwner, s.super.Announced = s.storeOwner, journal.StoreCommit(next)
	if err := s.save(false); err != nil {
		s.super.Announced = journal.StoreCommit{} // the store will never be there
		return next, fmt.Errorf("announce commit %v: %w", next, err)
	}
	s.expected.Store(s.expectation())
	return next, nil
}

// settle finds out what became of a commit that was announced and neither
// confirmed nor denied.
func (s *Slot) settle(ctx context.Context) error {
	announced := meta.Commit(s.super.Announced)
	if announced == (meta.Commit{}) {
		return nil
	}
	id, err := s.store.Identity(ctx)
	if err == nil {
		err = s.expected.Load().verify(id)
	}
	if err != nil {
		return fmt.Errorf("commit %v: nobody knows whether it was made: %w", announced, err)
	}
	s.know(id.Last)
	return nil
}
