package shard

import (
	"errors"

	"trivet/journal"
)

// ErrLeft: the client of a part has hung up before the part was logged.
var ErrLeft = errors.New("the client has hung up")

// turns keeps those in order that change the same blocks. A write that covers a
// block in part may have to read the rest of it first. Until it is logged, later
// changes of its blocks wait behind it, and later ones of theirs behind those: so a
// part that a shard was given is never overtaken, and what the next client writes,
// which is given to the shard later, ends up on top.
// Owner: the shard.
type turns struct {
	first  []*Part  // writes that wait for the rest of a block, in no order
	behind partList // those that wait for them, in the order of coming
	freed  bool     // one of first was logged, or has failed
}

// hold makes a write one that others must not overtake.
func (t *turns) hold(p *Part) {
	if !p.held {
		p.held = true
		t.first = append(t.first, p)
	}
}

// release lets others pass a part that is logged now, or has failed.
func (t *turns) release(p *Part) {
	if !p.held {
		return
	}
	p.held, t.freed = false, true
	last := len(t.first) - 1
	for i, q := range t.first {
		if q == p {
			t.first[i], t.first[last] = t.first[last], nil
			t.first = t.first[:last]
			return
		}
	}
}

// overtakes reports whether the part changes a block that an older one waits to
// change.
func (t *turns) overtakes(p *Part) bool {
	if p.held || len(t.first) == 0 && t.behind.len == 0 {
		return false
	}
	for _, q := range t.first {
		if p.touches(q) {
			return true
		}
	}
	for q := t.behind.oldest; q != nil; q = q.newer {
		if p.touches(q) {
			return true
		}
	}
	return false
}

// isRagged reports whether a part covers a block in part.
func (p *Part) isRagged() bool {
	return p.Skip != 0 || (int(p.Skip)+int(p.Length))%journal.BlockSize != 0
}

// touches reports whether two parts have a block in common.
func (p *Part) touches(q *Part) bool {
	return p.LBA < q.LBA+journal.LBA(q.blocks()) && q.LBA < p.LBA+journal.LBA(p.blocks())
}

// mayLog reports whether a part that changes something may be logged now. Else it
// has failed, or waits for its turn.
func (c *core) mayLog(p *Part) bool {
	switch {
	case c.stopped != nil:
		c.refuse(p, c.stopped)
	case p.Deadline <= c.now:
		c.refuse(p, ErrDeadline)
	case p.Left != nil && p.Left.Load():
		c.refuse(p, ErrLeft)
	case c.turns.overtakes(p):
		c.turns.behind.push(p)
	default:
		return true
	}
	return false
}

// takeTurns lets those go on that waited for one that is out of the way.
func (c *core) takeTurns() {
	for c.turns.freed {
		c.turns.freed = false
		waiting := c.turns.behind
		c.turns.behind = partList{}
		for p := waiting.pop(); p != nil; p = waiting.pop() {
			c.handle(p)
		}
	}
}
