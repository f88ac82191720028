package meta

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// batch is a commit being put together from runs of pairs. It keeps at most
// what fits in one transaction in memory; beyond that, all of it goes to the
// redo file.
type batch struct {
	e       *engine
	name    Commit
	run     []byte // pairs not yet in the redo file
	pairs   int    // in run
	cost    int64  // of run, in a transaction
	total   int64  // bytes of all pairs
	spilled bool
}

// begin starts a commit, and so drops what an earlier one left unfinished.
func (e *engine) begin(name Commit) (*batch, error) {
	if err := e.failure(); err != nil {
		return nil, err
	}
	if name.Sequence <= e.state.Last.Sequence {
		return nil, fmt.Errorf("commit %v after %v: %w", name, e.state.Last, ErrSequence)
	}
	return &batch{e: e, name: name}, nil
}

// append adds a run of at most chunkBytes and copies it. After an error the
// batch must be dropped; the store is as it was.
func (b *batch) append(run []byte) error {
	pairs, cost := 0, int64(0)
	err := eachPair(run, func(pair Pair) error {
		pairs++
		cost += pairCost(pair)
		return nil
	})
	if err != nil {
		return err
	}
	if b.total += int64(len(run)); b.total > MaxCommitBytes {
		return fmt.Errorf("commit of over %d bytes: %w", MaxCommitBytes, ErrTooLarge)
	}
	if !b.spilled && b.e.fits(b.pairs+pairs, b.cost+cost) {
		b.run, b.pairs, b.cost = append(b.run, run...), b.pairs+pairs, b.cost+cost
		return nil
	}
	return b.spill(run)
}

// spill writes a run, and what was kept before it, to the redo file.
func (b *batch) spill(run []byte) error {
	if err := b.e.space.admit(int64(len(run))); err != nil {
		return err
	}
	redo := b.e.redo
	if !b.spilled {
		b.spilled = true
		if err := redo.begin(); err != nil {
			return err
		}
		for part := range cutRun(b.run) {
			if err := redo.append(part); err != nil {
				return err
			}
		}
		b.run = nil
	}
	return redo.append(run)
}

// commit makes the batch durable as a whole. The function is told of progress,
// so that a long commit is not taken for a stuck one.
func (b *batch) commit(progress func()) error {
	e := b.e
	e.awaitCompaction(progress)
	// A pair goes to a log, and soon to a table; twice more when it is compacted.
	if err := e.space.admit(4 * b.total); err != nil {
		return err
	}
	if !b.spilled {
		return e.commitDirect(b.name, b.run)
	}
	if err := e.redo.writeHeader(e.title(b.name)); err != nil {
		return err
	}
	if err := e.redo.sync(); err != nil {
		return e.fail(err)
	}
	if err := e.applyRedo(b.name, progress); err != nil {
		return e.fail(err)
	}
	e.publish()
	e.startCompaction()
	if err := e.redo.clear(); err != nil {
		return e.fail(err)
	}
	return nil
}

func (e *engine) commitDirect(name Commit, run []byte) error {
	t := e.newTransaction()
	if err := eachPair(run, t.add); err != nil {
		t.txn.Discard()
		return err
	}
	if err := t.commit(e.after(name)); err != nil {
		return e.fail(err)
	}
	e.publish()
	e.startCompaction()
	return nil
}

// applyRedo writes the commit in the redo file in as many transactions as it
// takes. All but the last record that it is half applied. Doing it again from
// the start gives the same.
func (e *engine) applyRedo(name Commit, progress func()) error {
	half := state{Identity: e.state.Identity, applying: name}
	t := e.newTransaction()
	_, err := e.redo.replay(func(run []byte) error {
		return eachPair(run, func(pair Pair) error {
			if !e.fits(t.pairs+1, t.cost+pairCost(pair)) {
				if err := t.commit(half); err != nil {
					return err
				}
				progress()
				t = e.newTransaction()
			}
			return t.add(pair)
		})
	})
	if err != nil {
		return fmt.Errorf("apply commit %v from the redo file: %w", name, err)
	}
	return t.commit(e.after(name))
}

// title is what the redo file says of a commit.
func (e *engine) title(name Commit) redoTitle {
	return redoTitle{commit: name, owner: e.opt.Expect.owner(e.state.Identity), before: e.state.Last}
}

// after is the state behind a commit: the first one by this version gives the
// store its owner.
func (e *engine) after(name Commit) state {
	return state{Identity: Identity{Owner: e.opt.Expect.owner(e.state.Identity), Last: name}}
}

// finishRedo applies a commit that became durable in the redo file, and empties
// the file durably, so that nothing of it can come back.
func (e *engine) finishRedo() error {
	title, err := e.redo.verify()
	whole := err == nil
	switch {
	case err != nil && !errors.Is(err, errNoRedo):
		return err
	case e.state.applying != (Commit{}) && (!whole || title.commit != e.state.applying):
		return fmt.Errorf("commit %v is half applied and its redo file lost (%v, %v): %w",
			e.state.applying, title.commit, err, ErrCorrupt)
	case whole && !e.applied(title):
		if err := e.fitting(title); err != nil {
			return err
		}
		if err := e.applyRedo(title.commit, func() {}); err != nil {
			return err
		}
	}
	if err := e.redo.clear(); err != nil {
		return err
	}
	return e.redo.sync()
}

// applied reports whether the store has the commit of a redo file, which need not
// have been emptied durably.
func (e *engine) applied(title redoTitle) bool {
	return title.commit == e.state.Last || title.commit.Sequence < e.state.Last.Sequence
}

// fitting refuses the redo file of another store, or of another day of this one.
func (e *engine) fitting(title redoTitle) error {
	x, id := &e.opt.Expect, e.state.Identity
	switch {
	case title.older && id.Unnamed():
		return nil
	case title.older || title.owner != x.owner(id):
		return fmt.Errorf("the redo file is of a store of %v, this one belongs to %v: %w", title.owner, x.owner(id), ErrCorrupt)
	case title.before != id.Last:
		return fmt.Errorf("the redo file's commit %v follows %v, the store is at %v: %w", title.commit, title.before, id.Last, ErrCorrupt)
	}
	return nil
}

// transaction is one Badger transaction, durable when commit returns. A batch
// of several is not left to Badger: its own is not atomic, and a sync reaches
// the newest memtable's log alone, so each has to be synced before the next.
type transaction struct {
	e     *engine
	txn   *badger.Txn
	pairs int
	cost  int64
}

func (e *engine) newTransaction() *transaction {
	return &transaction{e: e, txn: e.db.NewTransaction(true)}
}

// add keeps a reference to the pair until commit.
func (t *transaction) add(pair Pair) error {
	t.pairs++
	t.cost += pairCost(pair)
	key := userKey(pair.Key)
	if pair.Value == nil {
		return t.txn.Delete(key)
	}
	return t.txn.Set(key, seal(key, pair.Value))
}

// commit adds the state, with the transaction's number filled in, and makes
// all of it durable.
func (t *transaction) commit(next state) error {
	e := t.e
	defer t.txn.Discard()
	next.transaction = e.state.transaction + 1
	if err := t.seal(next); err != nil {
		return fmt.Errorf("transaction %d: %w", next.transaction, err)
	}
	if err := t.txn.Commit(); err != nil {
		return fmt.Errorf("transaction %d: %w", next.transaction, err)
	}
	if err := e.db.Sync(); err != nil {
		return fmt.Errorf("sync transaction %d: %w", next.transaction, err)
	}
	e.state = next
	return e.syncDirectories()
}

// seal adds our own keys: the state, its slot in the window, and padding.
func (t *transaction) seal(next state) error {
	number := binary.LittleEndian.AppendUint64(nil, next.transaction)
	window := windowKey(next.transaction)
	own := []Pair{
		{Key: []byte{keyState}, Value: seal([]byte{keyState}, next.encode())},
		{Key: window, Value: seal(window, number)},
	}
	if t.cost < transactionBytes {
		own = append(own, Pair{Key: []byte{keyPad}, Value: make([]byte, transactionBytes-t.cost)})
	}
	for _, pair := range own {
		if err := t.txn.Set(pair.Key, pair.Value); err != nil {
			return err
		}
	}
	return nil
}

// pairCost is an upper bound of what Badger counts for a pair: kind byte,
// version, checksum, and its own bookkeeping.
func pairCost(pair Pair) int64 {
	return int64(len(pair.Key)+len(pair.Value)) + 48
}

// fits tells whether so much goes in one transaction, with room for our keys.
func (e *engine) fits(pairs int, cost int64) bool {
	const own = 3 * transactionBytes
	return int64(pairs)+8 < e.db.MaxBatchCount() && cost+own < e.db.MaxBatchSize()
}

// cutRun cuts a run between pairs into parts of at most chunkBytes.
func cutRun(run []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		start, end := run, 0
		for len(start) > end {
			pair, _, err := cutPair(start[end:])
			if err != nil { // append checked it
				panic(err)
			}
			if end+pairBytes(pair) > chunkBytes {
				if !yield(start[:end]) {
					return
				}
				start, end = start[end:], 0
			}
			end += pairBytes(pair)
		}
		if end > 0 {
			yield(start[:end])
		}
	}
}
