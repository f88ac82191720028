package replica

import (
	"sync"
	"time"

	"trivet/disk"
	"trivet/journal"
)

// The bounds of a slot's goroutines.
const (
	readWorkers = 32 // blocking reads at a time
	fillWorkers = 1  // copies from a peer, which come one shard after another
)

// Engine carries out a slot's operations: reads and small durable appends in
// the kernel, where that is to be had; the rest on a goroutine for each lane's
// log, so that lanes share no queue, and on bounded pools for metadata and for
// reads that are out of the ordinary. Its submitting methods never block. Close
// joins everything.
type Engine struct {
	slot     *Slot
	async    *disk.Async // nil: the kernel has none for us
	lanes    []*lane     // by shard
	reads    *reads
	meta     *workers
	cleaners *workers
	fillers  *workers
	prune    *time.Timer // stopped unless segments are to be pruned
	done     sync.WaitGroup
	reap     sync.WaitGroup
	closing  sync.Once
	joined   chan struct{} // closed once every goroutine has ended after Close
}

// StartEngine starts a slot's goroutines.
func StartEngine(s *Slot) *Engine {
	shards := int(s.super.Shards)
	e := &Engine{slot: s, joined: make(chan struct{}), meta: newWorkers(min(3*shards, 16)), cleaners: newWorkers(cleanWorkers), fillers: newWorkers(fillWorkers)}
	e.prune = time.AfterFunc(time.Hour, e.pruneNow)
	e.prune.Stop()
	async, err := disk.NewAsync(asyncDepth)
	if err == nil {
		e.async = async
	}
	e.reads = newReads(s, e.async)
	for range shards {
		l := &lane{slot: s, async: e.async, work: make(chan *journal.IO, 1)}
		e.lanes = append(e.lanes, l)
		e.startLane(l)
	}
	if e.async != nil {
		e.startReap()
	}
	return e
}

// startReap takes what the kernel has done. It ends when the queue is closed.
func (e *Engine) startReap() {
	e.reap.Go(func() {
		_ = e.async.Reap(func(user any, err error) {
			switch user := user.(type) {
			case *readTask:
				e.reads.reaped(user, err)
			case *journal.IO:
				e.lanes[user.Lane.Shard].reaped(user, err)
			}
		})
	})
}

// Slot returns the slot that the engine works for.
func (e *Engine) Slot() *Slot { return e.slot }

// IO takes an append or sync of a lane, to be carried out after those before
// it, from the next Kick on.
func (e *Engine) IO(io *journal.IO) { e.lanes[io.Lane.Shard].enter(io) }

// Kick starts what a shard has handed over: appends, syncs and reads. It never
// blocks, but does make system calls, so it is called between turns.
func (e *Engine) Kick(shard uint16) {
	e.lanes[shard].kick()
	e.reads.kick()
}

// Prepare makes a segment ready on a worker. Once submitted the operation is
// the worker's, its error included; so it is with Load, Commit and Clean.
func (e *Engine) Prepare(p *journal.Prepare) {
	e.meta.call(func() { e.slot.RunPrepare(p) }, func(err error) { p.Err = err; p.Done() })
}

// Load reads map pages on a worker.
func (e *Engine) Load(l *journal.Load) {
	e.meta.call(func() { e.slot.RunLoad(l) }, func(err error) { l.Err = err; l.Done() })
}

// Commit stores a checkpoint on a worker.
func (e *Engine) Commit(c *journal.Commit) {
	e.meta.call(func() { e.slot.RunCommit(c) }, func(err error) { c.Err = err; c.Done() })
}

// Clean carries out a piece of cleaning on a worker.
func (e *Engine) Clean(c *journal.Clean) {
	e.cleaners.call(func() { e.slot.RunClean(c) }, func(err error) { c.Err = err; c.Done() })
}

// Fill appends what was copied from a peer, on a worker of its own.
func (e *Engine) Fill(f *journal.Fill) {
	e.fillers.call(func() { e.slot.RunFill(f) }, func(err error) { f.Err = err; f.Done() })
}

// readTask is a piece of a read operation.
type readTask struct {
	slot *Slot
	read *journal.Read
	from int
	to   int
}

func (t *readTask) run() {
	t.slot.readBlocks(t.read.Blocks[t.from:t.to])
	t.finish()
}

var readTasks = sync.Pool{New: func() any { return new(readTask) }}

// finish reports a piece that was read.
func (t *readTask) finish() {
	r := t.read
	*t = readTask{}
	readTasks.Put(t)
	if r.Pending.Add(-1) == 0 {
		r.Done()
	}
}

// Read takes a read of the slot's log, to be started by the next Kick. Blocks
// that are scattered over it are read at the same time.
func (e *Engine) Read(r *journal.Read) { e.reads.read(r) }

// fail reports a piece that could not be started.
func (t *readTask) fail(err error) {
	for i := t.from; i < t.to; i++ {
		t.read.Blocks[i].Err = err
	}
	t.finish()
}

// Close joins the goroutines, waiting for what is under way at most for the
// given time: a system call on a hung disk does not end. It then returns
// false, and the slot's files must stay open; it may be called again.
func (e *Engine) Close(wait time.Duration) bool {
	e.closing.Do(func() {
		for _, l := range e.lanes {
			l.close()
		}
		e.startJoin()
	})
	select {
	case <-e.joined:
		return true
	case <-time.After(wait):
		return false
	}
}

// startJoin closes joined once every goroutine of the engine has ended.
func (e *Engine) startJoin() {
	go func() {
		e.done.Wait()
		e.reads.close()
		e.meta.close()
		e.cleaners.close()
		e.fillers.close()
		e.prune.Stop()
		if e.async != nil {
			_ = e.async.Close() // nothing is under way that could be lost with it
		}
		e.reap.Wait()
		close(e.joined)
	}()
}
