package replica

import (
	"sync"

	"trivet/disk"
	"trivet/journal"
)

// asyncDepth is how many reads of a slot are under way in the kernel.
const asyncDepth = 128

// reads carries out a slot's disk reads: asynchronously in the kernel, where
// that is to be had; else, and whenever something is out of the ordinary, on a
// bounded pool.
type reads struct {
	slot  *Slot
	queue chan *journal.Read // operations to be submitted; the shards bound their number
	async *disk.Async        // nil: everything goes to the pool
	pool  *workers
	done  sync.WaitGroup
}

// startReads starts the submitting goroutine; operations is the most that all
// shards have under way.
func startReads(s *Slot, async *disk.Async, operations int) *reads {
	r := &reads{slot: s, async: async, queue: make(chan *journal.Read, operations), pool: newWorkers(readWorkers)}
	if async != nil {
		r.startSubmit()
	}
	return r
}

// read starts an operation. It never blocks.
func (r *reads) read(op *journal.Read) {
	op.Pending.Store(int32(runsOf(op.Blocks)))
	if r.async == nil {
		eachRun(op, r.fallBack)
		return
	}
	r.queue <- op
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

// startSubmit hands operations to the kernel, all that wait in one call. It is
// not done by whoever runs the shard: submitting a read may wait for the disk.
func (r *reads) startSubmit() {
	batch := r.async.Batch()
	refused := func(user any) { r.fallBack(user.(*readTask)) }
	r.done.Go(func() {
		for op := range r.queue {
			r.add(batch, op, refused)
			for more := true; more; {
				select {
				case next, open := <-r.queue:
					if more = open; open {
						r.add(batch, next, refused)
					}
				default:
					more = false
				}
			}
			batch.Submit(refused)
		}
	})
}

// add puts the operation's runs into the batch.
func (r *reads) add(batch *disk.AsyncBatch, op *journal.Read, refused func(any)) {
	eachRun(op, func(t *readTask) {
		var few [disk.MaxAsyncBuffers][]byte
		bufs := few[:0]
		for i := t.from; i < t.to; i++ {
			bufs = append(bufs, op.Blocks[i].Buf)
		}
		first := op.Blocks[t.from].Entry
		file, base, err := r.slot.reader(first.Segment)
		if err != nil {
			r.fallBack(t)
			return
		}
		at := base + int64(first.Block)*journal.BlockSize
		added, full := batch.Add(file, bufs, at, t)
		if full {
			batch.Submit(refused)
			added, _ = batch.Add(file, bufs, at, t)
		}
		if !added {
			r.fallBack(t)
		}
	})
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

// close ends the goroutine. Nothing may be under way.
func (r *reads) close() {
	close(r.queue)
	r.done.Wait()
	r.pool.close()
}
