package replica

import (
	"sync"
	"time"

	"trivet/journal"
)

// The bounds of a slot's goroutines.
const (
	readWorkers = 32 // blocking reads at a time
	// readOperations is the most that one shard has under way.
	readOperations = 64
	ioQueue        = 8 // operations of a lane; more than it ever has under way
)

// Engine carries out a slot's operations on goroutines: one for each lane's
// log, so that lanes share no queue, and bounded pools for reads and for
// metadata. Its submitting methods never block. Close joins everything.
type Engine struct {
	slot  *Slot
	lanes []chan *journal.IO // by shard; closed by Close
	reads *reads
	meta  *workers
	done  sync.WaitGroup
}

// StartEngine starts a slot's goroutines.
func StartEngine(s *Slot) *Engine {
	shards := int(s.super.Shards)
	e := &Engine{slot: s, reads: startReads(s, shards*readOperations), meta: newWorkers(min(3*shards, 16))}
	for range shards {
		lane := make(chan *journal.IO, ioQueue)
		e.lanes = append(e.lanes, lane)
		e.startLane(lane)
	}
	return e
}

// startLane runs a lane's appends and syncs in order.
func (e *Engine) startLane(lane <-chan *journal.IO) {
	e.done.Go(func() {
		for io := range lane {
			e.slot.RunIO(io)
		}
	})
}

// Slot returns the slot that the engine works for.
func (e *Engine) Slot() *Slot { return e.slot }

// IO queues an append or sync of a lane.
func (e *Engine) IO(io *journal.IO) { e.lanes[io.Lane.Shard] <- io }

type prepareTask struct {
	slot *Slot
	op   *journal.Prepare
}

func (t prepareTask) run() { t.slot.RunPrepare(t.op) }

// Prepare makes a segment ready on a worker. Once submitted the operation is
// the worker's, its error included; so it is with Load and Commit.
func (e *Engine) Prepare(p *journal.Prepare) {
	if err := e.meta.submit(prepareTask{e.slot, p}); err != nil {
		p.Err = err
		p.Done()
	}
}

type loadTask struct {
	slot *Slot
	op   *journal.Load
}

func (t loadTask) run() { t.slot.RunLoad(t.op) }

// Load reads map pages on a worker.
func (e *Engine) Load(l *journal.Load) {
	if err := e.meta.submit(loadTask{e.slot, l}); err != nil {
		l.Err = err
		l.Done()
	}
}

type commitTask struct {
	slot *Slot
	op   *journal.Commit
}

func (t commitTask) run() { t.slot.RunCommit(t.op) }

// Commit stores a checkpoint on a worker.
func (e *Engine) Commit(c *journal.Commit) {
	if err := e.meta.submit(commitTask{e.slot, c}); err != nil {
		c.Err = err
		c.Done()
	}
}

// Recycle returns segments to the slot's pool.
func (e *Engine) Recycle(segments []uint32) { e.slot.Recycle(segments) }

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

// Read reads blocks of the slot's log. Blocks that are scattered over it are
// read at the same time.
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
// false, and the slot's files must stay open.
func (e *Engine) Close(wait time.Duration) bool {
	for _, lane := range e.lanes {
		close(lane)
	}
	joined := make(chan struct{})
	e.startJoin(joined)
	select {
	case <-joined:
		return true
	case <-time.After(wait):
		return false
	}
}

// startJoin closes joined once every goroutine of the engine has ended.
func (e *Engine) startJoin(joined chan<- struct{}) {
	go func() {
		e.done.Wait()
		e.reads.close()
		e.meta.close()
		close(joined)
	}()
}
