package device

import (
	"sync"
	"sync/atomic"
	"time"

	"trivet/shard"
)

// door is where writes wait for log space and for room in the arena, holding
// nothing but a copy of their payload, while reads and flushes, which need
// neither, do not come by. Who waits, and whose turn it is, is line's business.
// The door's goroutine runs only while somebody waits.
type door struct {
	device *Device

	waiting atomic.Int32 // see count; written under mu
	mu      sync.Mutex   // guards line and stopped
	line    line
	stopped bool
	wake    chan struct{} // capacity 1: room was made, or somebody has parked
	done    sync.WaitGroup

	// forced stands in for the shards' pressure in tests; nil otherwise.
	forced func(shard int) int
}

// postedAtOnce is how many parts the door lets in before their shards run.
const postedAtOnce = 32

// pressure, lagging and take are the line's supply.
func (o *door) pressure(shard int) int {
	if o.forced != nil {
		return o.forced(shard)
	}
	return o.device.shards[shard].Pressure()
}

func (o *door) lagging(shard int) bool {
	return o.forced == nil && o.device.shards[shard].Lagging()
}

func (o *door) take(p *part) bool {
	spare := o.line.reserve
	if p.ranged {
		spare = 0
	}
	return o.device.arena.AllocSparing(spare, p.pages, p.Pages[:p.pages])
}

// ask asks the client who sent the part.
func (o *door) ask(p *part) Presence {
	if p.request.Peer == nil {
		return Here
	}
	return p.request.Peer.Ask()
}

// enter lets a part in at once, with its pages, unless it has to wait. While
// nobody waits and space is not short that costs the pages and two loads.
func (o *door) enter(p *part) bool {
	if o.waiting.Load() == 0 && o.pressure(p.shard) == 0 {
		return o.take(p)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.line.enter(o.device.now(), p)
}

// park lets a part wait that could not enter. When that is behind another one's,
// that client is asked, so that the dead hold up nobody.
func (o *door) park(p *part) {
	o.mu.Lock()
	p.since = o.device.now()
	if behind := o.line.park(p); behind != nil {
		o.ask(behind) // who is not there any more finds out, and withdraws
	}
	o.count()
	o.mu.Unlock()
	o.notify()
}

// count notes how many wait, or were let in and have not reached their shard: as
// long as there are any, nobody passes without looking. mu is held.
func (o *door) count() {
	n := o.line.length
	if o.line.order.inside != nil {
		n++
	}
	o.waiting.Store(int32(n))
}

// withdraw takes out what a client has waiting, and fails it.
func (o *door) withdraw(client uint64) {
	for {
		o.mu.Lock()
		p := o.line.withdraw(client)
		o.count()
		o.mu.Unlock()
		if p == nil {
			o.notify() // others may have waited for it
			return
		}
		p.forgetParked()
		p.Err = errWithdrawn
		p.done()
	}
}

// inflight calls fn for at most a number of those who wait, with their shard.
func (o *door) inflight(most int, fn func(w shard.Waiting, shard int)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.line.each(o.device.now(), most, func(p *part, what string) {
		fn(shard.Waiting{
			Op: p.Op, LBA: p.LBA, Skip: p.Skip, Length: p.Length, For: what, Since: p.since, Deadline: p.Deadline,
		}, p.shard)
	})
}

// overdue is the error of a request that came after its deadline.
func (o *door) overdue(index int, op Op) error {
	changes := op == Write || op == Trim || op == WriteZeroes
	if changes && o.pressure(index) > 0 && !o.lagging(index) {
		return errLogSpace
	}
	return shard.ErrDeadline
}

// notify lets the door's goroutine look again. It never blocks, for shards
// call it when they have freed pages.
func (o *door) notify() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// start begins to serve the line.
func (o *door) start() {
	o.line = newLine(o.device.group.Shards, o.device.arena.Pages()/reserveShare, o)
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

// reserveShare of the arena's pages is kept for ranges and repairs: 512 pages
// of an arena of 64 MiB.
const reserveShare = 32

// serve lets in whom there is room for, and refuses who cannot wait any longer.
// It returns after how long to look again, 0 when nobody waits.
func (o *door) serve() (next time.Duration, stop bool) {
	for posted := 0; ; {
		p, err := o.call()
		switch {
		case p == nil:
			o.device.Run()
			return o.rest()
		case err != nil:
			p.forgetParked()
			p.Err = err
			p.done()
			continue
		case p.Op == shard.Write:
			p.Fill(o.device.arena, p.parked)
		}
		p.forgetParked()
		o.device.shards[p.shard].Post(&p.Part)
		if posted++; posted%postedAtOnce == 0 {
			o.device.Run()
		}
	}
}

// call takes the next part out of the line: one that cannot stay, with the
// reason, or else one that may enter.
func (o *door) call() (p *part, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.count()
	o.line.settled()
	if stopped := o.device.stopped.Load(); stopped != nil {
		return o.line.any(), *stopped
	}
	now := o.device.now()
	if p, err := o.line.expired(now); p != nil {
		return p, err
	}
	return o.line.next(now)
}

// rest returns how long the line can be left alone, and whether it is for good.
func (o *door) rest() (next time.Duration, stop bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.line.length == 0 {
		return 0, o.stopped
	}
	now := o.device.now()
	return max(o.line.wake(now)-now, 1), false
}

// keptParked is the memory for a parked payload that a part keeps.
const keptParked = 16 << 10

// forgetParked gives up what a long payload was parked in.
func (p *part) forgetParked() {
	if cap(p.parked) > keptParked {
		p.parked = nil
	}
}

// close ends the goroutine once the line is empty.
func (o *door) close() {
	o.mu.Lock()
	o.stopped = true
	o.mu.Unlock()
	o.notify()
	o.done.Wait()
}
