package replica

import (
	"sync"
	"sync/atomic"

	"trivet/disk"
	"trivet/journal"
)

// asyncDepth is how many operations of a slot are under way in the kernel.
const asyncDepth = 256

// reads carries out a slot's disk reads: asynchronously in the kernel, where
// that is to be had; else, and whenever something is out of the ordinary, on a
// bounded pool.
type reads struct {
	slot    *Slot
	async   *disk.Async // nil: everything goes to the pool
	pool    *workers
	batches sync.Pool // of *disk.AsyncBatch

	posted  atomic.Bool     // waiting may hold something
	mu      sync.Mutex      // guards waiting
	waiting []*journal.Read // until the next kick; the shards bound their number
}

func newReads(s *Slot, async *disk.Async) *reads {
	r := &reads{slot: s, async: async, pool: newWorkers(readWorkers)}
	r.batches.New = func() any { return r.async.Batch() }
	return r
}

// read takes an operation, to be started by the next kick. It never blocks.
func (r *reads) read(op *journal.Read) {
	op.Pending.Store(int32(runsOf(op.Blocks)))
	r.mu.Lock()
	r.waiting = append(r.waiting, op)
	r.mu.Unlock()
	r.posted.Store(true)
}

// kick starts every operation that waits, in one call of the kernel. It never
// blocks.
func (r *reads) kick() {
	if !r.posted.Load() || !r.posted.Swap(false) {
		return
	}
	var few [16]*journal.Read
	for {
		r.mu.Lock()
		n := copy(few[:], r.waiting)
		r.waiting = append(r.waiting[:0], r.waiting[n:]...)
		r.mu.Unlock()
		if n == 0 {
			return
		}
		r.submit(few[:n])
	}
}

// submit hands operations to the kernel, or to the pool.
func (r *reads) submit(ops []*journal.Read) {
	if r.async == nil {
		for _, op := range ops {
			eachRun(op, r.fallBack)
		}
		return
	}
	batch := r.batches.Get().(*disk.AsyncBatch)
	defer r.batches.Put(batch)
	for _, op := range ops {
		eachRun(op, func(t *readTask) {
			if !r.add(batch, t) {
				r.fallBack(t)
			}
		})
	}
	batch.Submit(func(user any) { r.fallBack(user.(*readTask)) })
}

// add puts a run into the batch. It returns false when it cannot be read that
// way, or has to wait.
func (r *reads) add(batch *disk.AsyncBatch, t *readTask) bool {
	blocks := t.read.Blocks[t.from:t.to]
	file, base := r.slot.openReader(blocks[0].Entry.Segment)
	if file == nil || len(blocks) > disk.MaxAsyncBuffers {
		return false
	}
	var few [disk.MaxAsyncBuffers][]byte
	for i := range blocks {
		few[i] = blocks[i].Buf
	}
	return batch.Add(file, few[:len(blocks)], base+int64(blocks[0].Entry.Block)*journal.BlockSize, t)
}

// runsOf counts the runs of blocks that lie one behind the other on disk.
func runsOf(blocks []journal.ReadBlock) int {
	runs := 1
	for i := 1; i < len(blocks); i++ {
		if !adjacent(blocks[i-1].Entry, blocks[i].Entry) {
			runs++
		}
	}
	return runs
}

// eachRun calls fn for every run of the operation, which may be done, and
// belong to its shard again, once fn was called for the last.
func eachRun(op *journal.Read, fn func(*readTask)) {
	blocks := op.Blocks
	for from := 0; from < len(blocks); {
		to := from + 1
		for to < len(blocks) && adjacent(blocks[to-1].Entry, blocks[to].Entry) {
			to++
		}
		t := readTasks.Get().(*readTask)
		*t = readTask{read: op, from: from, to: to}
		from = to
		fn(t)
	}
}

// fallBack reads a run on the pool.
func (r *reads) fallBack(t *readTask) {
	t.slot = r.slot
	if err := r.pool.submit(t); err != nil {
		t.fail(err)
	}
}

// reaped checks what was read. What is not as it should be is read once more
// on the pool, which tells what is wrong with it.
func (r *reads) reaped(t *readTask, err error) {
	blocks := t.read.Blocks[t.from:t.to]
	ok := err == nil
	for i := range blocks {
		blocks[i].Err = nil
		ok = ok && journal.Checksum(blocks[i].Buf) == blocks[i].Entry.CRC
	}
	if !ok {
		r.fallBack(t)
		return
	}
	t.finish()
}

// close joins the pool. Nothing may be under way.
func (r *reads) close() { r.pool.close() }
