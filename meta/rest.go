package meta

import (
	"errors"
	"fmt"
)

// rest closes the database of a store that nobody asks anything, and wake opens
// it again for the next request. Badger wakes up every two seconds for as long
// as it is open, and keeps its memtable; at rest a store costs next to nothing.
// It holds on to the directory's lock.
//
// No request may be under way, and no view in use. rest returns false when the
// database is busy in the background, so that it has to be asked again.
func (e *engine) rest() bool {
	select {
	case e.compaction <- struct{}{}:
	default:
		return false
	}
	defer func() { <-e.compaction }()
	// Closing writes the memtable out. Where that might not find space, or the
	// store is no good, it stays as it is.
	if e.db == nil || e.failure() != nil || e.space.admit(memTableBytes) != nil {
		return true
	}
	if err := e.closeBadger(); err != nil {
		_ = e.fail(fmt.Errorf("close badger to rest: %w", err))
	}
	return true
}

// wake fails without giving the store up when it is only space that lacks.
func (e *engine) wake() error {
	if err := e.failure(); err != nil {
		return err
	}
	before := e.state
	if err := e.space.admitOpen(); err != nil {
		return err
	}
	if err := e.reopen(before); err != nil {
		return e.fail(errors.Join(err, e.closeBadger()))
	}
	return nil
}

func (e *engine) reopen(before state) error {
	if err := makeOrFind(e.dir, false); err != nil {
		return fmt.Errorf("after a rest: %w", err)
	}
	if err := e.openBadger(); err != nil {
		return fmt.Errorf("open badger after a rest: %w", err)
	}
	e.publish()
	found, err := e.readState()
	switch {
	case err != nil:
		return err
	case !found:
		return fmt.Errorf("after a rest: %w", errNoState)
	case e.state != before:
		return fmt.Errorf("commit %v of %v and transaction %d after a rest, %v of %v and %d before: %w",
			e.state.Last, e.state.Owner, e.state.transaction, before.Last, before.Owner, before.transaction, ErrCorrupt)
	}
	return e.checkWindow()
}

// closeBadger leaves the engine with its lock, its redo file and its state.
func (e *engine) closeBadger() (err error) {
	e.mu.Lock()
	last := e.view
	e.view = nil
	e.mu.Unlock()
	if last != nil {
		e.drop(last)
	}
	if e.audit != nil {
		e.audit.close()
	}
	if e.db != nil {
		err = e.db.Close()
	}
	e.db, e.audit, e.walFiles = nil, nil, ""
	return err
}
