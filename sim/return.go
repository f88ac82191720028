package sim

import (
	"errors"
	"iter"
	"slices"
	"time"

	"trivet/journal"
	"trivet/replica"
)

// comeback is a slot that comes back. What does that in earnest, and waits in
// between, runs here as a coroutine of the loop: it is resumed when what it waits
// for has happened.
type comeback struct {
	w         *world
	slot      int
	due       time.Duration
	resume    func() (struct{}, bool)
	stop      func()
	yield     func(struct{}) bool
	runnable  bool
	cancelled bool // the volume is being closed
	anew      bool // an operator has the slot replaced first
	err       error
	ended     bool
}

var errCancelled = errors.New("cancelled")

// bringBack lets a slot that takes no part come back after a while.
func (s *server) bringBack(slot int) {
	w := s.w
	if s.back != nil || w.rng.IntN(4) == 0 {
		return
	}
	s.startComeback(slot)
}

// startComeback begins to bring a slot back.
func (s *server) startComeback(slot int) {
	w := s.w
	c := &comeback{w: w, slot: slot, due: w.now + time.Duration(w.rng.IntN(300))*time.Millisecond, runnable: true}
	c.resume, c.stop = iter.Pull(func(yield func(struct{}) bool) {
		c.yield = yield
		c.run()
	})
	s.back = c
}

func (c *comeback) offer(n *next) {
	if c.runnable && !c.ended {
		n.offer(max(c.due, c.w.now), c.step)
	}
}

// worthWaiting tells whether a life should not end before the slot is back, and
// what happens then has happened.
func (c *comeback) worthWaiting() bool {
	if !c.ended {
		return c.w.step < 30000
	}
	return len(c.w.plan) > 0
}

// step goes on until it has to wait, or has ended.
func (c *comeback) step() {
	c.runnable = false
	c.w.crossing()
	if _, more := c.resume(); more {
		return
	}
	c.ended = true
}

// kill ends it with the process.
func (c *comeback) kill() {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(killed); !ok {
				panic(p)
			}
		}
	}()
	c.stop()
}

// cancel ends it in an orderly way, before the volume is closed.
func (c *comeback) cancel() {
	c.cancelled = true
	if !c.ended {
		c.step()
	}
}

// run tries to bring the slot back, once.
func (c *comeback) run() {
	w, s := c.w, c.w.srv
	if c.cancelled || !s.idle(c.slot) {
		return
	}
	if c.anew || w.isLost(c.slot) {
		if err := c.replace(); err != nil {
			w.cover["returns that failed"]++
			return
		}
	}
	w.generation = max(w.generation, s.group.Generation) + 1
	err := c.volume().Return(c.slot, w.generation)
	c.err = err
	w.trace("slot %d has come back: %v", c.slot, err)
	if err == nil {
		s.group.Generation, s.group.Absent[c.slot] = w.generation, nil
		s.returned(c.slot)
		return
	}
	w.cover["returns that failed"]++
}

// returned notes that the slot has all that its peers have: another one may be
// lost now.
func (s *server) returned(id int) {
	w := s.w
	w.cover["slots returned"]++
	w.legs[id].stale, w.legs[id].making, w.legs[id].fed, w.legs[id].mayBear = false, false, false, false
	if w.legs[id].suspicious || len(w.faults.List()) > 0 || s.slots[id].hung > 0 || w.failingMeta {
		return
	}
	w.trouble[id] = false
	if w.rng.IntN(2) == 0 {
		other := (id + 1 + w.rng.IntN(2)) % journal.MaxSlots
		from := w.step
		w.planErrors(other)
		for i := range w.plan {
			w.plan[i].step += from
		}
		w.cover["trouble after a return"]++
	}
}

// idle tells whether nothing of the slot's disk is under way.
func (s *server) idle(id int) bool {
	old := s.slots[id]
	return old == nil || len(old.other) == 0 && !slices.ContainsFunc(old.lanes, func(lane []operation) bool { return len(lane) > 0 })
}

// shut closes what a slot has left open.
func (s *server) shut(id int) {
	w := s.w
	if old := s.slots[id]; old != nil {
		s.slots[id], s.group.Slots[id] = nil, nil
		if err := old.rep.Close(); err != nil {
			w.fail("close slot %d: %v", id, err)
		}
	}
	w.legs[id].store = w.legs[id].store.Crash(0) // which is opened once
}

func (s *server) liveSlots() (slots []*replica.Slot) {
	for i, live := range s.membership.Live() {
		if live {
			slots = append(slots, s.group.Slots[i])
		}
	}
	return slots
}

// wait calls start and waits until done is called.
func (c *comeback) wait(start func(done func())) error {
	done := false
	start(func() { done, c.runnable = true, true })
	for !done || c.w.rng.IntN(3) == 0 {
		if c.cancelled {
			return errCancelled
		}
		c.due = c.w.now + c.w.latency()
		if !c.yield(struct{}{}) {
			panic(killed{})
		}
		c.runnable = done // resumed by chance, or because it is cancelled
	}
	return nil
}
