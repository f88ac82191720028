// Package shard is the hot path: one state machine for each share of the
// address space, which numbers writes, orders overlapping I/O, knows what is
// in flight, and decides when a request is acknowledged or durable.
//
// # Who runs it
//
// A shard has one owner at a time, and no lock. Whoever has something for it
// (a connection with a part of a request, a disk operation that has returned,
// the timer) leaves it in the inbox and tries to become the owner with one
// compare-and-swap. The owner takes turns: it handles what is in the inbox,
// lets the lanes hand over what is due, releases the ownership, and only then
// calls back those whose parts have completed. Who finds the shard owned goes
// on at once; the owner looks into the inbox again after it let go. A turn
// handles a bounded number of events, and a goroutine takes a bounded number
// of turns in a row before it hands over to the shard's own runner, so that a
// connection is never captured by a busy shard.
//
// Inside a turn nothing blocks: no system call, no channel, no lock that is
// held for long, no allocation that grows with load. Everything below core is
// touched by the owner alone.
//
// # What survives
//
// A write is acknowledged once its payload and its record are in the arena, in
// shared memory, and in the window of all live lanes, of which there must be a
// quorum. What the lanes have made durable leaves the arena; what is left
// there when the process is killed is logged again when it starts.
package shard

import (
	"sync/atomic"
	"time"

	"trivet/journal"
)

// The bounds of ownership.
const (
	turnEvents = 128
	turnsInRow = 4
	// statusEvents is what the look-ups of a Status count for, so that reads need
	// not wait for a turn full of them.
	statusEvents = 16
)

// Host is the world outside of the shard's turns. A simulator has its own.
type Host interface {
	// Now is the shard's clock, from any fixed point; never 0.
	Now() time.Duration
	// WakeAt asks for a Tick at that time, in place of what was asked before.
	// It is called by the owner and must not block.
	WakeAt(at time.Duration)
	// HandOver asks for a Run on another goroutine. It must not block.
	HandOver()
}

// Shard is one shard; see the package comment for who may do what. All its
// methods may be called from any goroutine.
type Shard struct {
	core core // the owner's
	host Host

	inbox    atomic.Pointer[event] // newest first; pushed by all, emptied by the owner
	owned    atomic.Bool
	waiting  atomic.Bool // backlog is not empty: written by the owner
	backlog  *event      // taken from the inbox, oldest first; the owner's
	armed    time.Duration
	ticking  atomic.Bool  // tick is in the inbox
	pressure atomic.Int32 // see Pressure; written by the owner
	lagging  atomic.Bool  // see Lagging; written by the owner
	tick     event
}

// event is a node of the inbox, embedded in what it brings.
type event struct {
	next  *event
	part  *Part
	apply func(now time.Duration)
}

// New makes a shard of the recovered lanes, by slot; nil ones do not take part.
func New(cfg Config, lanes []*journal.Recovery, host Host) *Shard {
	s := &Shard{host: host, core: core{cfg: cfg}}
	s.tick.apply = func(time.Duration) { s.armed = 0; s.ticking.Store(false) }
	s.core.now = host.Now()
	s.core.attach(lanes, s.connect)
	return s
}

// connect makes the function that an executor calls when an operation is done.
func (s *Shard) connect(apply func(now time.Duration)) (done func()) {
	e := &event{apply: func(now time.Duration) {
		s.core.progress = true
		apply(now)
	}}
	return func() { s.enter(e) }
}

// Submit hands a part to the shard. Its Done may be called before Submit
// returns.
func (s *Shard) Submit(p *Part) {
	s.Post(p)
	s.Run()
}

// Post leaves a part in the shard's inbox. Run must follow, after any number of
// parts: what arrives together then costs one turn, and one sync.
func (s *Shard) Post(p *Part) {
	p.event.part = p
	p.target, p.merged, p.op, p.avoid, p.stuck, p.held = 0, 0, nil, 0, 0, false
	s.post(&p.event)
}

// Full is the pressure at which no more may be written.
const Full = journal.FullPressure

// Pressure tells how much writes to the shard have to slow down: 0 while there is
// no need to, Full when nothing more may be written. They do for log space, of which
// a slot that alone is short does not count, or because a checkpoint lags behind.
func (s *Shard) Pressure() int { return int(s.pressure.Load()) }

// Lagging tells whether Pressure is for a checkpoint that lags behind: for memory of
// the map, or for the log that a restart would replay.
func (s *Shard) Lagging() bool { return s.lagging.Load() }

// Tick runs the shard because time has passed.
func (s *Shard) Tick() {
	if s.ticking.CompareAndSwap(false, true) {
		s.enter(&s.tick)
	}
}

// Drop makes the shard go on without a slot.
func (s *Shard) Drop(slot journal.SlotID, why error) {
	s.enter(&event{apply: func(time.Duration) { s.core.drop(slot, why) }})
}

// Checkpoint stores the map of every live lane and calls fn when nothing is
// under way any more. The shard then does nothing more than to be inspected:
// what it works with may be closed. No part may be submitted from this call on.
func (s *Shard) Checkpoint(fn func()) {
	s.enter(&event{apply: func(time.Duration) { s.core.checkpoint(fn) }})
}

// Inspect calls fn in a turn of the shard; it must be brief and keep nothing.
func (s *Shard) Inspect(fn func(*View)) {
	s.enter(&event{apply: func(time.Duration) { fn(&View{&s.core}) }})
}

// enter leaves an event in the inbox and runs the shard if nobody does.
func (s *Shard) enter(e *event) {
	s.post(e)
	s.Run()
}

func (s *Shard) post(e *event) {
	for {
		head := s.inbox.Load()
		e.next = head
		if s.inbox.CompareAndSwap(head, e) {
			return
		}
	}
}

// Run takes turns until there is nothing to do, somebody else has taken over,
// or this goroutine has done its share.
func (s *Shard) Run() {
	for turns := 0; s.inbox.Load() != nil || s.waiting.Load(); turns++ {
		if turns == turnsInRow {
			s.host.HandOver()
			return
		}
		if !s.owned.CompareAndSwap(false, true) {
			return
		}
		s.turn()
	}
}

// turn handles a bounded number of events as the owner, then lets go and calls
// back.
func (s *Shard) turn() {
	c := &s.core
	c.now = s.host.Now()
	for n := 0; n < turnEvents; n++ {
		e := s.take()
		if e == nil {
			break
		}
		if e.part != nil {
			if e.part.Op == Status {
				n += statusEvents - 1
			}
			c.begin(e.part)
		} else {
			e.apply(c.now)
		}
	}
	if wake := c.settle(); wake != 0 && (s.armed == 0 || wake < s.armed) {
		s.armed = wake
		s.host.WakeAt(wake)
	}
	pressure, lagging := c.pressure()
	s.pressure.Store(int32(pressure))
	s.lagging.Store(lagging)
	slots, calls := c.slots, c.calls
	c.calls = nil
	done, faults, rotten, quiet := c.done, c.faults, c.rotten, c.takeQuiet()
	c.done, c.faults, c.rotten = partList{}, nil, nil
	s.waiting.Store(s.backlog != nil)
	s.owned.Store(false)

	for _, slot := range slots {
		if slot != nil {
			slot.Kick(c.cfg.Index)
		}
	}
	for p := done.oldest; p != nil; {
		next := p.newer
		p.queue, p.older, p.newer = nil, nil, nil
		p.Done(p)
		p = next
	}
	for _, f := range faults {
		c.cfg.Faulted(f.slot, f.lost, f.err)
	}
	for _, r := range rotten {
		c.cfg.Rotten(r.slot, r.lba)
	}
	for _, fn := range quiet {
		fn()
	}
	for _, fn := range calls {
		fn()
	}
}

// take returns the oldest event, or nil.
func (s *Shard) take() *event {
	if s.backlog == nil {
		for e := s.inbox.Swap(nil); e != nil; {
			next := e.next
			e.next, s.backlog = s.backlog, e
			e = next
		}
	}
	e := s.backlog
	if e != nil {
		s.backlog = e.next
		e.next = nil
	}
	return e
}

// takeQuiet returns who waits for the shard to be quiet, if it is.
func (c *core) takeQuiet() (fns []func()) {
	if len(c.quiet) > 0 && c.isQuiet() {
		fns, c.quiet, c.halted = c.quiet, nil, true
	}
	return fns
}
