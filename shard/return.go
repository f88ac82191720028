package shard

import (
	"errors"
	"fmt"
	"time"

	"trivet/journal"
)

// A slot that was dropped, or was missing, comes back while the shard serves:
//
//  1. Feed: its lane, of which its own metadata says that it counts for nothing,
//     gets every record from now on. It neither votes nor is read.
//  2. Fill copies what it lacks of the regions that changed without it from the
//     lane of a peer: see fill.go.
//  3. Complete: once all that is durable, the lane's metadata says that it counts.
//  4. Begin: a generation begins, from which on its peers do not suspect it.
//  5. Admit: once that generation is stored on every slot, it votes and is read.
//
// Whatever happens in between, the slot is dropped again and a start copies it
// from its peers, as one that was never fed.

// ErrAbsent: the slot does not take part in the way that the call needs.
var ErrAbsent = errors.New("slot takes no part")

// absence is what a shard knows of a slot that is not live.
type absence struct {
	missed     journal.RegionSet // changed without it; nil while it is live or fed
	everything bool              // that is not all
	whole      journal.LSN       // that it counts once it is durable up to
	answer     func(error)       // for who waits for that; nil: nobody
}

// miss begins to remember what a slot misses that is about to be dropped.
func (c *core) miss(slot int) {
	a := &c.absent[slot]
	if a.answer != nil {
		c.answer(a.answer, ErrAbsent)
	}
	c.endFill(slot, ErrAbsent)
	from := c.lanes[slot].Durable() + 1
	*a = absence{missed: make(journal.RegionSet), everything: !c.live[slot] || from < c.window.First()}
	c.addWindow(a.missed, from)
}

// addWindow adds the regions of the records from an LSN on.
func (c *core) addWindow(to journal.RegionSet, from journal.LSN) {
	for lsn := max(from, c.window.First()); lsn <= c.window.Last(); lsn++ {
		if r := c.window.At(lsn); r.Count > 0 {
			to.Add(r.LBA.Region())
		}
	}
}

// answer has a function called after the turn.
func (c *core) answer(fn func(error), err error) { c.calls = append(c.calls, func() { fn(err) }) }

// Spare answers without an error once the slot may be opened anew: nothing of it
// is under way, and its peers have made durable all that was when it was dropped.
// Until then it may be one of two that hold something.
func (s *Shard) Spare(slot int, answer func(error)) {
	s.call(answer, func(c *core) error {
		switch {
		case c.stopped != nil:
			return c.stopped
		case c.fed[slot] || !c.isIdle(slot):
			return fmt.Errorf("slot %d is still in use", slot)
		case c.durable() < c.atLeast:
			c.wantAll(c.atLeast)
			return fmt.Errorf("its peers are not durable up to LSN %d yet", c.atLeast)
		}
		return nil
	})
}

// Comeback is a slot that returns, as one shard sees it.
type Comeback struct {
	Lane *journal.Recovery // incomplete
	To   Slot
	// Known: what the lane lacks was all written since the slot was dropped.
	Known bool
	// Distrust: the lane may not hold what its map says.
	Distrust bool
}

// Feed gives every record from now on to the slot's recovered lane. What the slot
// lacks lies in the regions that the shard has noted if that is known since a record
// that the lane still has; else it may lie in any.
func (s *Shard) Feed(slot int, back Comeback, answer func(error)) {
	s.call(answer, func(c *core) error {
		if c.fed[slot] || c.stopped != nil || len(c.quiet) > 0 || !c.isIdle(slot) {
			return fmt.Errorf("slot %d is still in use", slot)
		}
		a, r := &c.absent[slot], back.Lane
		lacking := a.missed
		if lacking == nil || a.everything || !back.Known || back.Distrust || r.Stamp.LSN < c.marks.Durable[slot] {
			lacking = make(journal.RegionSet)
			r.Lane.AddRegions(lacking)
			c.lanes[c.primary].AddRegions(lacking)
			c.addWindow(lacking, 0)
		}
		*a = absence{}
		c.newFill(slot, r, back.Distrust)
		c.engage(slot, r, back.To)
		c.lanes[slot].Lack(lacking)
		return nil
	})
}

// Complete answers once the slot's lane is durable up to the present record, and
// its metadata says that it counts.
func (s *Shard) Complete(slot int, answer func(error)) {
	s.enter(&event{apply: func(time.Duration) {
		c := &s.core
		a := &c.absent[slot]
		if !c.fed[slot] || c.live[slot] || c.lanes[slot].Lacks() > 0 || c.stopped != nil || c.halted {
			c.answer(answer, fmt.Errorf("slot %d: %w", slot, ErrAbsent))
			return
		}
		a.whole, a.answer = c.window.Last(), answer
	}})
}

// heedReturns moves the slots on that are to be complete.
func (c *core) heedReturns() {
	for i := range c.lanes {
		a := &c.absent[i]
		if a.answer == nil {
			continue
		}
		switch l := c.lanes[i]; {
		case l.Durable() < a.whole:
			l.Want(a.whole)
		case l.IsComplete():
			c.answer(a.answer, nil)
			a.answer = nil
		default:
			l.Complete()
		}
	}
}

// Begin begins a generation in which the slot is not suspected. It answers with
// the generation's first record.
func (s *Shard) Begin(slot int, g journal.Generation, answer func(start journal.LSN, err error)) {
	var start journal.LSN
	s.call(func(err error) { answer(start, err) }, func(c *core) error {
		if !c.fed[slot] || c.live[slot] || c.stopped != nil || !c.lanes[slot].IsComplete() {
			return fmt.Errorf("slot %d: %w", slot, ErrAbsent)
		}
		start = c.window.Add(journal.KindNote, 0, 0).LSN
		c.marks.Suspect[slot], c.marks.Generation, c.marks.Began = 0, g, start
		c.wantAll(start)
		return nil
	})
}

// Admit makes the slot live.
func (s *Shard) Admit(slot int, answer func(error)) {
	s.call(answer, func(c *core) error {
		if !c.fed[slot] || c.stopped != nil || !c.lanes[slot].IsComplete() {
			return fmt.Errorf("slot %d: %w", slot, ErrAbsent)
		}
		c.live[slot], c.absent[slot] = true, absence{}
		c.endFill(slot, nil)
		c.choosePrimary()
		return nil
	})
}

// call runs fn in a turn, and gives its error to answer after it.
func (s *Shard) call(answer func(error), fn func(*core) error) {
	s.enter(&event{apply: func(time.Duration) {
		c := &s.core
		if c.halted {
			c.answer(answer, ErrAbsent)
			return
		}
		c.answer(answer, fn(c))
	}})
}

// isIdle tells whether nothing of the slot is under way.
func (c *core) isIdle(slot int) bool {
	return c.fills[slot] == nil && (c.lanes[slot] == nil || !c.lanes[slot].Busy() && c.out[slot].reads == 0)
}
