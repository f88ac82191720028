package shard

import (
	"errors"
	"fmt"
	"time"

	"trivet/arena"
	"trivet/journal"
)

// stalled is the error of a slot that has not answered for so long.
func stalled(since time.Duration) error {
	return fmt.Errorf("%w for %v", ErrStalled, since.Round(time.Millisecond))
}

// lagged is the error of a slot that has held up writes for so long.
func lagged(since time.Duration) error {
	return fmt.Errorf("%w: its map is not stored as fast as its peers' are, for %v", ErrStalled, since.Round(time.Millisecond))
}

// errDropped wraps why a slot was dropped when that stopped the device.
var errDropped = errors.New("slot dropped")

// flush completes once everything that was acknowledged before is durable on a
// quorum. Whether it may is asked in the shard, so every connection gets the
// same answer.
func (c *core) flush(p *Part) {
	if c.stopped != nil {
		c.finish(p, c.stopped)
		return
	}
	c.marks.Epoch++
	c.eager = c.sinceFlush > 0 && c.sinceFlush <= eagerRecords || c.sinceFlush == 0 && c.eager
	c.sinceFlush, c.lastFlush = 0, c.now
	c.await(p, max(c.window.Last(), c.atLeast))
}

// await completes the part once a quorum is durable up to target.
func (c *core) await(p *Part, target journal.LSN) {
	p.target = max(target, c.atLeast)
	if c.durable() >= p.target {
		c.finish(p, nil)
		return
	}
	c.wantDurable(p.target)
	p.since = c.now
	c.waiting.push(p)
}

// wantDurable asks a quorum of lanes to be durable up to lsn. The others are
// left to write larger batches and to sync later, which spares a third of the
// syncs; hedge asks them, too, when the quorum takes long.
func (c *core) wantDurable(lsn journal.LSN) {
	asked := 0
	for i := range c.lanes {
		if s := (c.primary + i) % len(c.lanes); c.live[s] && asked < c.cfg.Quorum {
			c.lanes[s].Want(lsn)
			asked++
		}
	}
}

// wantAll asks every lane that takes part to be durable up to lsn.
func (c *core) wantAll(lsn journal.LSN) {
	for i, l := range c.lanes {
		if c.fed[i] {
			l.Want(lsn)
		}
	}
}

// hedge asks every lane when somebody has waited for durability for long. It
// returns when it has to look again, or 0.
func (c *core) hedge() time.Duration {
	p := c.waiting.oldest
	if p == nil || c.cfg.Quorum == len(c.lanes) {
		return 0
	}
	if due := p.since + hedgeAfter; c.now < due {
		return due
	}
	c.wantAll(c.waiting.newest.target)
	return 0
}

// durable returns the LSN up to which a quorum of live slots is durable.
func (c *core) durable() journal.LSN { return c.quorum((*journal.Lane).Durable) }

// quorum returns the highest LSN that enough live lanes have reached.
func (c *core) quorum(of func(*journal.Lane) journal.LSN) journal.LSN {
	var best journal.LSN
	for i, l := range c.lanes {
		if !c.live[i] {
			continue
		}
		reached, lsn := 0, of(l)
		for j, other := range c.lanes {
			if c.live[j] && of(other) >= lsn {
				reached++
			}
		}
		if reached >= c.cfg.Quorum {
			best = max(best, lsn)
		}
	}
	return best
}

// least returns the lowest LSN of the lanes that get records.
func (c *core) least(of func(*journal.Lane) journal.LSN) journal.LSN {
	least := c.window.Last()
	for i, l := range c.lanes {
		if c.fed[i] {
			least = min(least, of(l))
		}
	}
	return least
}

// advance takes account of what the lanes have reached: it completes who waits
// for it, and releases what is safe.
func (c *core) advance() {
	if c.stopped != nil {
		return // nothing is released: what was acknowledged stays in the arena
	}
	durable := c.durable()
	for p := c.waiting.oldest; p != nil && p.target <= durable; p = c.waiting.oldest {
		c.finish(p, nil)
	}
	c.retire(durable)
}

// retire releases the records that no lane needs from memory any more: those
// that are durable on every live lane; when memory is short, those that are
// durable on a quorum and written on every live lane. (A lane that then fails
// cannot write them again and is faulted.)
//
// Records leave the arena in the order of their LSNs, the detained ones too: a
// kill in between must not leave an older record of a block without the newer
// one, for what is left is logged again, over what was flushed.
func (c *core) retire(durable journal.LSN) {
	limit := c.least((*journal.Lane).Durable)
	if c.arenaLow() {
		limit = max(limit, min(durable, c.least((*journal.Lane).Written)))
	}
	if limit < c.window.First() {
		return
	}
	// Published first: what follows is then no gap if the process is killed here.
	c.cfg.Arena.Retired(c.cfg.Index, uint64(limit))
	var pages [64]arena.Page
	n := 0
	free := func() {
		c.cfg.Arena.Free(pages[:n]...)
		n = 0
	}
	for c.window.Next() > c.window.First() && c.window.First() <= limit {
		r := c.window.At(c.window.First())
		reader := c.reader(r.LSN)
		for i := range c.window.Items(r) {
			page := arena.Page(c.window.ItemAt(r, i).Page)
			if reader >= 0 {
				free() // first what is older: see above
				c.cfg.Arena.Withdraw(page)
				c.detained[reader] = append(c.detained[reader], page)
				continue
			}
			if n == len(pages) {
				free()
			}
			pages[n] = page
			n++
		}
		c.pending.retire(r)
		c.window.Retire()
	}
	free()
}

// reader returns a slot that was dropped while its disk had the record's
// payload, and has not given it back: a hung write would read what the pages
// hold next. -1 when there is none.
func (c *core) reader(lsn journal.LSN) int {
	for i, l := range c.lanes {
		if l != nil && !c.fed[i] && l.Appending(lsn) {
			return i
		}
	}
	return -1
}

// release frees what was kept for a dropped slot, once its disk is done.
func (c *core) release() {
	for i, l := range c.lanes {
		if len(c.detained[i]) > 0 && !l.Busy() {
			c.cfg.Arena.Free(c.detained[i]...)
			c.detained[i] = nil
		}
	}
}

// drop goes on without a slot. Its peers note, before any flush is
// acknowledged without it, from where on it must not be trusted.
func (c *core) drop(slot journal.SlotID, why error) {
	if !c.fed[slot] {
		return
	}
	c.miss(int(slot))
	c.live[slot], c.fed[slot] = false, false
	c.reported[slot] = true
	c.lanes[slot].Abandon(why)
	c.marks.Suspect[slot] = c.lanes[slot].Durable() + 1
	c.choosePrimary()
	c.leave(int(slot))
	live := 0
	for _, ok := range c.live {
		if ok {
			live++
		}
	}
	if live < c.cfg.Quorum {
		c.stop(fmt.Errorf("%w: slot %d: %w", ErrStopped, slot, why))
		return
	}
	c.atLeast = c.window.Add(journal.KindNote, 0, 0).LSN
	for p := c.waiting.oldest; p != nil; p = p.newer {
		p.target = max(p.target, c.atLeast)
	}
	c.wantDurable(c.atLeast)
}

// stop fails whatever needs a quorum, from now on and in the same way for
// everybody. Reads are still served: a live slot is current.
func (c *core) stop(why error) {
	if c.stopped == nil { // the same error for everybody, whatever follows
		c.stopped = fmt.Errorf("%w: %w", errDropped, why)
		for i := range c.lanes {
			c.endFill(i, c.stopped)
		}
	}
	for p := c.waiting.oldest; p != nil; p = c.waiting.oldest {
		c.finish(p, c.stopped)
	}
}
