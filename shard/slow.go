package shard

import "time"

// A slot that hangs must not hold up reads while another one is current. A part
// that waits for a slot's disk or map page for too long goes to another slot.
// What it leaves behind still holds its frames until the system call returns,
// so each slot has a bounded share of them; and it counts as a sign that the
// slot stands still.

// outstanding is what a slot's disk has of the shard's reads.
type outstanding struct {
	reads, frames int
	strays        int           // reads that nobody waits for any more
	strayed       time.Duration // when the first of them was handed over
}

// left notes that a read was handed to a slot.
func (c *core) left(op *readOp) {
	o := &c.out[op.slot]
	op.since, op.frames = c.now, op.n
	o.reads++
	o.frames += op.frames
}

// returned notes that it has come back.
func (c *core) returned(op *readOp) {
	o := &c.out[op.slot]
	o.reads--
	o.frames -= op.frames
	if op.stray {
		op.stray = false
		o.strays--
	}
}

// stray takes the part off a read that takes too long.
func (c *core) stray(op *readOp) {
	o := &c.out[op.slot]
	if o.strays == 0 {
		o.strayed = op.since
	}
	o.strays++
	op.stray, op.part = true, nil
}

// readSlot returns the slot that the part is read from: the one that it
// prefers, else the shard's, unless that one is slow and another is not.
func (c *core) readSlot(p *Part) int {
	first := c.primary
	if s := p.Prefer - 1; s >= 0 && s < len(c.lanes) && c.live[s] {
		first = s
	}
	if p.avoid == 0 && c.out[first].strays == 0 {
		return first
	}
	best := first
	for i := range c.lanes {
		s := (first + i) % len(c.lanes)
		if !c.live[s] || p.avoid&(1<<s) != 0 {
			continue
		}
		if c.out[s].strays == 0 {
			return s
		}
		if p.avoid&(1<<best) != 0 {
			best = s
		}
	}
	return best
}

// elsewhere tells whether the part may turn to another slot.
func (c *core) elsewhere(p *Part, slot int) bool {
	for s := range c.lanes {
		if c.live[s] && s != slot && p.avoid&(1<<s) == 0 {
			return true
		}
	}
	return false
}

// awaitPage lets the part wait for a map page of the slot.
func (c *core) awaitPage(p *Part, slot int) {
	if p.stuck != slot+1 {
		p.stuck, p.since = slot+1, c.now
	}
	c.unmapped.push(p)
}

// divertSlow turns parts to another slot that wait for too long. It returns
// when it has to look again, or 0.
func (c *core) divertSlow() (next time.Duration) {
	slow := c.cfg.StallAfter / 4
	for n := c.reading.len; n > 0; n-- {
		p := c.reading.oldest
		if due := p.op.since + slow; c.now < due {
			next = due
			break
		}
		if c.elsewhere(p, p.op.slot) {
			c.divert(p)
			continue
		}
		p.op.since = c.now // look again later
		c.reading.remove(p)
		c.reading.push(p)
	}
	for n := c.unmapped.len; n > 0; n-- {
		p := c.unmapped.oldest
		if due := p.since + slow; c.now < due {
			if next == 0 || due < next {
				next = due
			}
			break
		}
		slot := p.stuck - 1
		c.unmapped.remove(p)
		if c.elsewhere(p, slot) {
			p.avoid |= 1 << slot
		}
		p.stuck = 0
		c.handle(p)
	}
	return next
}

// divert takes a part away from the slot that it reads from.
func (c *core) divert(p *Part) {
	op := p.op
	p.avoid |= 1 << op.slot
	p.op = nil
	c.reading.remove(p)
	c.stray(op)
	c.handle(p)
}

// leave turns every part to another slot that waits for the one that was
// dropped.
func (c *core) leave(slot int) {
	for n := c.reading.len; n > 0; n-- {
		p := c.reading.pop()
		c.reading.push(p)
		if p.op.slot == slot && c.elsewhere(p, slot) {
			c.divert(p)
		}
	}
	c.retryUnmapped()
}
