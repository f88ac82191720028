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
//  2. Missed names the regions that changed without it. Each is logged again as
//     it is, by Refresh parts: records like any others, so nothing that is
//     written meanwhile is ever overtaken by what was there before.
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
	todo       journal.RegionSet // to be logged again; nil unless it is fed
	left       int               // regions in todo: counting them would take long
	next       journal.Region    // of those
	whole      journal.LSN       // that it counts once it is durable up to
	answer     func(error)       // for who waits for that; nil: nobody
}

// miss begins to remember what a slot misses that is about to be dropped.
func (c *core) miss(slot int) {
	a := &c.absent[slot]
	if a.answer != nil {
		c.answer(a.answer, ErrAbsent)
	}
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

// Feed gives every record from now on to the slot's recovered lane. What the
// slot misses is known when it is known since a record that the lane still has;
// else, or unless known is set, all is. The lane must be incomplete.
func (s *Shard) Feed(slot int, r *journal.Recovery, to Slot, known bool, answer func(error)) {
	s.call(answer, func(c *core) error {
		if c.fed[slot] || c.stopped != nil || len(c.quiet) > 0 || !c.isIdle(slot) {
			return fmt.Errorf("slot %d is still in use", slot)
		}
		a := &c.absent[slot]
		todo := a.missed
		if todo == nil || a.everything || !known || r.Stamp.LSN < c.marks.Durable[slot] {
			todo = make(journal.RegionSet)
			r.Lane.AddRegions(todo)
			c.lanes[c.primary].AddRegions(todo)
			c.addWindow(todo, 0)
		}
		*a = absence{todo: todo, left: todo.Len()}
		c.engage(slot, r, to)
		return nil
	})
}

// Missed takes the next region that the slot misses; ok is false when there is
// none left. left is how many there are besides.
func (s *Shard) Missed(slot int, answer func(region journal.Region, left int, ok bool, err error)) {
	var region journal.Region
	var left int
	var ok bool
	s.call(func(err error) { answer(region, left, ok, err) }, func(c *core) error {
		a := &c.absent[slot]
		if a.todo == nil {
			return fmt.Errorf("slot %d: %w", slot, ErrAbsent)
		}
		if region, ok = a.todo.Next(a.next); ok {
			a.todo.Remove(region)
			a.next = region
			a.left--
		}
		left = a.left
		return nil
	})
}

// Complete answers once the slot's lane is durable up to the present record, and
// its metadata says that it counts.
func (s *Shard) Complete(slot int, answer func(error)) {
	s.enter(&event{apply: func(time.Duration) {
		c := &s.core
		a := &c.absent[slot]
		if a.todo == nil || c.stopped != nil || c.halted {
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
	return c.lanes[slot] == nil || !c.lanes[slot].Busy() && c.out[slot].reads == 0
}

// refresh logs the part's blocks again as they are. Those that somebody else
// changes meanwhile are logged by that.
func (c *core) refresh(p *Part) {
	if c.stopped != nil {
		c.refuse(p, c.stopped)
		return
	}
	op := c.beginRead(p)
	if op == nil {
		return
	}
	region := c.pending.lookup(p.LBA.Region())
	for i := 0; i < p.blocks(); {
		i += c.refreshBlocks(op, region, i)
	}
	if op.n == 0 {
		c.freeOps = append(c.freeOps, op)
		c.readEnded(p)
		return
	}
	c.start(op)
}

// refreshBlocks logs what is in memory, from block i of the part on, or adds it
// to what the disk must give. It returns how many blocks that were.
func (c *core) refreshBlocks(op *readOp, region *pendingRegion, i int) int {
	p := op.part
	kind, content, entry := c.contentOf(op, region, p.LBA+journal.LBA(i))
	switch {
	case p.logged&(1<<i) != 0:
		return 1
	case kind == journal.Data && content == nil:
		op.add(missing{lba: p.LBA + journal.LBA(i), index: i, entry: entry, badSlot: -1})
		return 1
	case kind == journal.Data:
		c.logAgain(p, i, 1, kind, content)
		return 1
	}
	n := 1
	for ; i+n < p.blocks() && p.logged&(1<<(i+n)) == 0; n++ {
		if next, _, _ := c.contentOf(op, region, p.LBA+journal.LBA(i+n)); next != kind {
			break
		}
	}
	c.logAgain(p, i, n, kind, nil)
	return n
}

// contentOf tells what a block holds: content is nil unless it is data in memory,
// and entry where data that are not are. Its map page is loaded, or it is in memory.
func (c *core) contentOf(op *readOp, region *pendingRegion, lba journal.LBA) (kind journal.Content, content []byte, entry journal.Entry) {
	if kind, content, ok := c.inWindow(region, lba); ok {
		return kind, content, entry
	}
	if content, hit := c.cfg.Cache.Lookup(uint64(lba)); hit {
		return journal.Data, content, entry
	}
	entry, _ = c.lanes[op.slot].Lookup(lba)
	return entry.Content, nil, entry
}

// logAgain adds a record of n blocks of the part, from block i on, as they are.
func (c *core) logAgain(p *Part, i, n int, kind journal.Content, content []byte) {
	page, lba := p.Pages[p.used], p.LBA+journal.LBA(i)
	p.used++
	p.logged |= (1<<n - 1) << i
	switch kind {
	case journal.Data:
		c.enter(c.addBlock(lba, page, content))
	case journal.Zero:
		c.enter(c.addRange(journal.KindZero, lba, n, page))
	default:
		c.enter(c.addRange(journal.KindTrim, lba, n, page))
	}
}

// readEnded completes a part that has all that it asked of the disk. Blocks of a
// Refresh that the cleaner has moved meanwhile are read once more.
func (c *core) readEnded(p *Part) {
	if p.Op == Refresh {
		if p.logged != 1<<p.blocks()-1 {
			c.handle(p)
			return
		}
		c.cfg.Arena.Free(p.Pages[p.used:p.blocks()]...)
	}
	c.finish(p, nil)
}
