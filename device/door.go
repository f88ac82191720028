package device

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"trivet/shard"
)

// errDoor: a write waited at the door for room in the arena until its deadline.
var errDoor = errors.New("no room in the arena")

// door is where writes wait for room in the arena: in order, holding nothing
// but a copy of their payload, while reads, flushes and whatever else needs no
// room pass. Its goroutine runs only while somebody waits.
type door struct {
	device *Device

	waiting atomic.Int32 // parked parts; while there are any, nobody overtakes
	mu      sync.Mutex   // guards queue and stopped
	queue   []parked     // oldest first
	stopped bool
	wake    chan struct{} // capacity 1: room was made, or somebody has parked
	done    sync.WaitGroup
}

type parked struct {
	part  *part
	pages int
}

func (o *door) closed() bool { return o.waiting.Load() > 0 }

// park queues a part that needs a number of pages.
func (o *door) park(p *part, pages int) {
	o.mu.Lock()
	o.waiting.Add(1)
	o.queue = append(o.queue, parked{p, pages})
	o.mu.Unlock()
	o.notify()
}

// notify lets the door's goroutine look again. It never blocks, for shards
// call it when they have freed pages.
func (o *door) notify() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// start begins to serve the queue.
func (o *door) start() {
	o.wake = make(chan struct{}, 1)
	o.done.Go(func() {
		timer := time.NewTimer(time.Hour)
		timer.Stop()
		for {
			select {
			case <-o.wake:
			case <-timer.C:
			}
			next, stop := o.serve()
			if stop {
				timer.Stop()
				return
			}
			if next > 0 {
				timer.Reset(next)
			}
		}
	})
}

// serve lets in whom there is room for, and refuses who cannot wait any longer.
// It returns when the next one has to be refused.
func (o *door) serve() (next time.Duration, stop bool) {
	for {
		o.mu.Lock()
		if len(o.queue) == 0 {
			stop = o.stopped
			o.mu.Unlock()
			return 0, stop
		}
		i, err := o.choose()
		if i < 0 {
			next = o.soonest()
			o.mu.Unlock()
			return next, false
		}
		p := o.queue[i].part
		o.queue = slices.Delete(o.queue, i, i+1)
		o.waiting.Add(-1)
		o.mu.Unlock()
		if err != nil {
			p.Err = err
			p.done()
			continue
		}
		if p.Op == shard.Write {
			p.Fill(o.device.arena, p.parked)
		}
		o.device.shardOfPart(p).Submit(&p.Part)
	}
}

// choose returns whose turn it is, -1 for nobody's: the first for whom the
// device has stopped or whose deadline has passed, with the error; else the
// head of the queue once it has got its pages. It needs mu.
func (o *door) choose() (i int, err error) {
	if stopped := o.device.stopped.Load(); stopped != nil {
		return 0, *stopped
	}
	now := o.device.now()
	for i, q := range o.queue {
		if q.part.Deadline <= now {
			return i, fmt.Errorf("%w: %w", shard.ErrDeadline, errDoor)
		}
	}
	head := o.queue[0]
	if o.device.arena.Alloc(head.pages, head.part.Pages[:head.pages]) {
		return 0, nil
	}
	return -1, nil
}

// soonest returns the time until the next deadline in the queue. It needs mu.
func (o *door) soonest() time.Duration {
	least := o.queue[0].part.Deadline
	for _, q := range o.queue {
		least = min(least, q.part.Deadline)
	}
	return max(least-o.device.now(), 1)
}

// close ends the goroutine once the queue is empty.
func (o *door) close() {
	o.mu.Lock()
	o.stopped = true
	o.mu.Unlock()
	o.notify()
	o.done.Wait()
}
