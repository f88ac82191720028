package meta

import (
	"fmt"
	"time"
)

// The number of level-0 tables (one from each memtable) at which a compaction
// starts, and at which commits wait for it.
const (
	compactAt = 4
	stallAt   = 12
)

// startCompaction compacts in the background when there is something to be
// gained. Badger's own compactors poll for that 20 times a second; and they
// would carry rot on: what they can't read they leave out. So the tables are
// read through before.
func (e *engine) startCompaction() {
	if e.levelZero() < compactAt {
		return
	}
	select {
	case e.compaction <- struct{}{}:
	default:
		return // one is running
	}
	go func() {
		defer func() { <-e.compaction }()
		if err := e.compact(); err != nil {
			_ = e.fail(err)
		}
	}()
}

func (e *engine) compact() error {
	var size int64
	for _, table := range e.db.Tables() {
		size += int64(table.OnDiskSize)
	}
	if e.space.admit(size) != nil {
		return nil // reads get slower; a full filesystem would be worse
	}
	v := e.acquire()
	defer e.drop(v)
	if err := e.audit.prefix(v.txn, nil); err != nil {
		return fmt.Errorf("before compaction: %w", err)
	}
	// An error here is Badger's 'nothing to do', or one that a later attempt
	// meets again: the tables are as they were.
	_ = e.db.Flatten(1)
	return nil
}

func (e *engine) levelZero() int { return e.db.Levels()[0].NumTables }

// awaitCompaction holds a commit back while far too many tables have piled up.
func (e *engine) awaitCompaction(progress func()) {
	if e.levelZero() < stallAt {
		return
	}
	e.startCompaction()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	alive := time.NewTicker(time.Second)
	defer alive.Stop()
	for {
		select {
		case e.compaction <- struct{}{}:
			<-e.compaction
			return
		case <-alive.C:
			progress()
		case <-deadline.C:
			return
		}
	}
}
