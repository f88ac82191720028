package device

import (
	"errors"
	"fmt"
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
	wait   time.Duration // after which a parked part fails

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
	until time.Time
}

func (o *door) closed() bool { return o.waiting.Load() > 0 }

// park queues a part that needs a number of pages.
func (o *door) park(p *part, pages int) {
	o.mu.Lock()
	o.waiting.Add(1)
	o.queue = append(o.queue, parked{p, pages, time.Now().Add(o.wait)})
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

// serve lets in whom there is room for. It returns when the oldest one left
// has to be refused.
func (o *door) serve() (next time.Duration, stop bool) {
	for {
		o.mu.Lock()
		if len(o.queue) == 0 {
			stop = o.stopped
			o.mu.Unlock()
			return 0, stop
		}
		head := o.queue[0]
		late := time.Until(head.until)
		room := o.device.arena.Alloc(head.pages, head.part.Pages[:head.pages])
		if !room && late > 0 {
			o.mu.Unlock()
			return late, false
		}
		o.queue = o.queue[1:]
		o.waiting.Add(-1)
		o.mu.Unlock()
		p := head.part
		if !room {
			p.Err = fmt.Errorf("%w after %v: %w", errDoor, o.wait, ErrNoSpace)
			p.done()
			continue
		}
		if p.Op == shard.Write {
			p.Fill(o.device.arena, p.parked)
		}
		o.device.shardOfPart(p).Submit(&p.Part)
	}
}

// close ends the goroutine once the queue is empty.
func (o *door) close() {
	o.mu.Lock()
	o.stopped = true
	o.mu.Unlock()
	o.notify()
	o.done.Wait()
}
