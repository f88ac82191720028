package replica

import (
	"fmt"
	"sync"
	"time"

	"github.com/panjf2000/ants/v2"
)

// idleAfter is how long a pool without work keeps its goroutines.
const idleAfter = 2 * time.Second

// An idle device must not wake up. ants makes a default pool on import whose
// clock ticks twice a second; nobody here uses that pool.
func init() { ants.Release() }

// task is a piece of blocking work.
type task interface{ run() }

// workers runs blocking tasks on a bounded ants pool. submit never blocks:
// what finds every worker busy waits in a queue, which its callers bound by
// having a fixed number of operations each. The pool, with the clock that
// ants keeps, exists only while there is work.
type workers struct {
	limit int

	mu      sync.Mutex // guards what follows; held for no task
	pool    *ants.PoolWithFuncGeneric[task]
	queue   []task // oldest first, from head on
	head    int
	running int
	closed  bool
	idle    *time.Timer
	stopped sync.WaitGroup // pools being released
}

func newWorkers(limit int) *workers {
	w := &workers{limit: limit}
	w.idle = time.AfterFunc(time.Hour, w.retire)
	w.idle.Stop()
	return w
}

// call has run carried out on a worker; refused is told that it will not be.
func (w *workers) call(run func(), refused func(error)) {
	if err := w.submit(call(run)); err != nil {
		refused(err)
	}
}

type call func()

func (c call) run() { c() }

// submit runs the task on a worker, now or when one is free.
func (w *workers) submit(t task) error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return ants.ErrPoolClosed
	}
	if w.running >= w.limit {
		w.queue = append(w.queue, t)
		w.mu.Unlock()
		return nil
	}
	if w.pool == nil {
		// Twice the limit: a worker that has finished its last task counts as
		// busy with ants for a moment longer than it does here.
		pool, err := ants.NewPoolWithFuncGeneric(2*w.limit, w.work, ants.WithDisablePurge(true), ants.WithPanicHandler(crash))
		if err != nil {
			w.mu.Unlock()
			return fmt.Errorf("worker pool: %w", err)
		}
		w.pool = pool
	}
	if w.running == 0 {
		w.idle.Stop()
	}
	w.running++
	pool := w.pool
	w.mu.Unlock()
	return pool.Invoke(t)
}

// work runs a task and then whatever has queued up.
func (w *workers) work(t task) {
	for t != nil {
		t.run()
		t = w.next()
	}
}

// next returns the oldest task that waits, or gives the worker up.
func (w *workers) next() task {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.head < len(w.queue) {
		t := w.queue[w.head]
		w.queue[w.head] = nil
		if w.head++; w.head == len(w.queue) {
			w.queue, w.head = w.queue[:0], 0
		}
		return t
	}
	if w.running--; w.running == 0 && !w.closed {
		w.idle.Reset(idleAfter)
	}
	return nil
}

// retire releases the pool when it is idle.
func (w *workers) retire() {
	w.mu.Lock()
	pool := w.pool
	if w.running > 0 || pool == nil {
		w.mu.Unlock()
		return
	}
	w.pool = nil
	w.stopped.Add(1)
	w.mu.Unlock()
	defer w.stopped.Done()
	pool.Release()
}

// close waits for the tasks under way and releases the pool. The owner has
// seen to it that nothing is submitted any more.
func (w *workers) close() {
	w.mu.Lock()
	w.closed = true
	pool := w.pool
	w.pool = nil
	w.mu.Unlock()
	w.idle.Stop()
	if pool != nil {
		_ = pool.ReleaseTimeout(5 * time.Second) // on a hung disk the process ends anyway
	}
	w.stopped.Wait()
}

// crash keeps ants from hiding a broken invariant.
func crash(v any) { panic(v) }
