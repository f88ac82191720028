package shard

import (
	"fmt"
	"time"

	"trivet/cache"
	"trivet/journal"
)

// readOp is a disk read under way for a part: the blocks that were not in
// memory, from one slot. They land in frames of the cache, which stay out of
// it until the read has returned, whatever becomes of the part.
type readOp struct {
	disk   journal.Read
	part   *Part // nil once the part gave up
	slot   int
	since  time.Duration
	stray  bool  // it takes too long, and nobody waits for it any more
	frames int   // that it holds
	tried  uint8 // bit mask of slots that were asked
	base   bool  // for a write that needs what the block holds
	blocks [MaxPartBlocks]missing
	n      int
	lost   int // the last so many blocks are lost in this slot, and are not asked of it
	dst    [MaxPartBlocks]journal.ReadBlock
}

// missing is a block of a readOp.
type missing struct {
	lba   journal.LBA
	index int // of the block in the part
	entry journal.Entry
	frame cache.Frame
	// What another slot had at fault for this block: repaired once it is read.
	badSlot  int // -1: none
	badEntry journal.Entry
}

// read serves a part from memory, or from a slot's log where it must.
func (c *core) read(p *Part) {
	op := c.beginRead(p)
	if op == nil {
		return
	}
	p.Extents = p.Extents[:0]
	region := c.pending.lookup(p.LBA.Region())
	for i := range p.blocks() {
		c.readBlock(op, region, i)
	}
	if op.n == 0 {
		c.freeOps = append(c.freeOps, op)
		c.finish(p, nil)
		return
	}
	c.start(op)
}

// beginRead takes an operation for a part whose blocks are all in memory or known
// to a slot's map. nil: the part waits.
func (c *core) beginRead(p *Part) *readOp {
	slot := c.readSlot(p)
	if !c.mapped(p, slot) {
		c.awaitPage(p, slot)
		return nil
	}
	op := c.newReadOp(p, slot)
	if op == nil {
		c.queued.push(p)
	}
	return op
}

// mapped tells whether every block of the part that is not in memory is known
// to the slot's map; what is not is asked for.
func (c *core) mapped(p *Part, slot int) bool {
	region := c.pending.lookup(p.LBA.Region())
	for i := range p.blocks() {
		lba := p.LBA + journal.LBA(i)
		if region != nil && region.refs[lba.Index()] != 0 {
			continue
		}
		if _, known := c.lanes[slot].Lookup(lba); !known {
			if _, hit := c.cfg.Cache.Lookup(uint64(lba)); !hit || p.Prefer != 0 {
				return false
			}
		}
	}
	return true
}

// readBlock copies one block from memory, or adds it to what the disk must
// give.
func (c *core) readBlock(op *readOp, region *pendingRegion, i int) {
	p := op.part
	lba := p.LBA + journal.LBA(i)
	if kind, content, ok := c.inWindow(region, lba); ok {
		p.deliver(i, kind, content)
		return
	}
	if content, hit := c.cfg.Cache.Lookup(uint64(lba)); hit && p.Prefer == 0 {
		c.counters.CacheHits++
		p.deliver(i, journal.Data, content)
		return
	}
	e, _ := c.lanes[op.slot].Lookup(lba)
	if e.Content != journal.Data && e.Content != journal.Lost {
		p.deliver(i, e.Content, nil)
		return
	}
	c.counters.CacheMisses++
	p.note(journal.Data)
	op.add(missing{lba: lba, index: i, entry: e, badSlot: -1})
}

// deliver hands block i of a read to its destination; nil content is zeros.
func (p *Part) deliver(i int, kind journal.Content, content []byte) {
	p.note(kind)
	p.place(i, content)
}

func (p *Part) note(kind journal.Content) {
	if p.Status {
		p.addExtent(1, kind)
	}
}

// place copies block i of a read to its destination.
func (p *Part) place(i int, content []byte) {
	if p.Data == nil {
		return
	}
	from, to, at := p.span(i)
	if content == nil {
		clear(p.Data[at : at+to-from])
		return
	}
	copy(p.Data[at:at+to-from], content[from:to])
}

// newReadOp takes a free operation, or returns nil.
func (c *core) newReadOp(p *Part, slot int) *readOp {
	n := len(c.freeOps)
	if n == 0 || c.out[slot].reads >= maxReads {
		return nil
	}
	op := c.freeOps[n-1]
	c.freeOps = c.freeOps[:n-1]
	op.part, op.slot, op.tried, op.base, op.n = p, slot, 0, false, 0
	return op
}

func (op *readOp) add(m missing) {
	op.blocks[op.n] = m
	op.n++
}

// fetchBase reads one block into the cache for a write that covers it in part.
func (c *core) fetchBase(p *Part, slot int, lba journal.LBA, e journal.Entry) {
	op := c.newReadOp(p, slot)
	if op == nil {
		c.queued.push(p)
		return
	}
	op.base = true
	op.add(missing{lba: lba, entry: e, badSlot: -1})
	c.start(op)
}

// partLost puts those blocks last that are lost in the operation's slot.
func (op *readOp) partLost() {
	op.lost = 0
	for i := 0; i < op.n-op.lost; {
		if op.blocks[i].entry.Content != journal.Lost {
			i++
			continue
		}
		op.lost++
		last := op.n - op.lost
		op.blocks[i], op.blocks[last] = op.blocks[last], op.blocks[i]
	}
}

// start gives every block a frame and hands the read over. What is lost in the slot
// is asked of another one afterwards.
func (c *core) start(op *readOp) {
	op.tried |= 1 << op.slot
	l := c.lanes[op.slot]
	op.disk.Slot, op.disk.Blocks = journal.SlotID(op.slot), op.dst[:0]
	if op.partLost(); op.lost == op.n {
		c.failLost(op, 0)
		c.retry(op)
		return
	}
	if o := &c.out[op.slot]; o.frames > 0 && o.frames+op.n > c.cfg.Cache.Cap()/2 {
		c.giveUp(op, 0)
		return
	}
	for i := range op.n - op.lost {
		m := &op.blocks[i]
		frame, ok := c.cfg.Cache.Detach()
		if !ok {
			c.giveUp(op, i)
			return
		}
		if !l.Pin(m.entry) {
			panic(fmt.Sprintf("shard %d: block %d is at a place that was recycled", c.cfg.Index, m.lba))
		}
		m.frame = frame
		op.disk.Blocks = append(op.disk.Blocks, journal.ReadBlock{Entry: m.entry, Buf: c.cfg.Cache.Bytes(frame)})
	}
	op.part.op = op
	c.reading.push(op.part)
	c.left(op)
	c.slots[op.slot].Read(&op.disk)
}

// giveUp puts a part back in the queue for which the cache has no frames: its
// other reads hold them all and will return them.
func (c *core) giveUp(op *readOp, got int) {
	for i := range got {
		c.cfg.Cache.Release(op.blocks[i].frame)
		c.lanes[op.slot].Unpin(op.blocks[i].entry)
	}
	c.freeOps = append(c.freeOps, op)
	p := op.part
	op.part = nil
	c.queued.push(p)
}

// readDone takes the result of a disk read. What was read is delivered even
// if the block was overwritten meanwhile, for the two were concurrent; it is
// cached only if it is still current.
func (c *core) readDone(op *readOp) {
	p := op.part
	l := c.lanes[op.slot]
	c.returned(op)
	if p != nil {
		p.op = nil
		p.queue.remove(p)
	}
	bad := 0
	for i := range op.n - op.lost {
		m, err := op.blocks[i], op.disk.Blocks[i].Err
		l.Unpin(m.entry)
		if err == nil {
			c.gotBlock(op, p, m)
			continue
		}
		c.cfg.Cache.Release(m.frame)
		c.cfg.Event(op.slot, fmt.Sprintf("read of block %d", m.lba), err)
		m.badSlot, m.badEntry = op.slot, m.entry
		op.blocks[bad] = m
		bad++
	}
	c.failLost(op, bad)
	switch {
	case p == nil:
		c.freeOps = append(c.freeOps, op)
	case op.n > 0:
		c.retry(op)
	default:
		base := op.base
		op.part = nil
		c.freeOps = append(c.freeOps, op)
		if base {
			c.handle(p)
			return
		}
		c.finish(p, nil)
	}
}

// failLost leaves the first n blocks of the operation and those that are lost in its
// slot, to be read elsewhere.
func (c *core) failLost(op *readOp, n int) {
	for _, m := range op.blocks[op.n-op.lost : op.n] {
		if m.badSlot < 0 {
			m.badSlot, m.badEntry = op.slot, m.entry
		}
		op.blocks[n] = m
		n++
	}
	op.n, op.lost = n, 0
}

// streamBlocks is how many blocks are not kept in the cache when one part reads
// them from disk: who reads in such pieces reads in order, and would drive out
// what is read again, and touch all of the cache's memory, which costs as much as
// the disk.
const streamBlocks = 64

// gotBlock delivers a block that was read and keeps it in the cache.
func (c *core) gotBlock(op *readOp, p *Part, m missing) {
	content := c.cfg.Cache.Bytes(m.frame)
	if p != nil && !op.base {
		p.place(m.index, content)
	}
	if m.badSlot >= 0 {
		c.repair(m.badSlot, m.lba, m.badEntry, content)
	}
	region := c.pending.lookup(m.lba.Region())
	overtaken := region != nil && region.refs[m.lba.Index()] != 0
	current := !overtaken && c.live[op.slot] && c.lanes[op.slot].StillAt(m.lba, m.entry)
	if current && op.n < streamBlocks {
		c.cfg.Cache.Attach(uint64(m.lba), m.frame)
		return
	}
	c.cfg.Cache.Release(m.frame)
}

// retry reads the blocks that failed once more: from memory or a new place if
// they have changed since, else from a slot that was not asked yet.
func (c *core) retry(op *readOp) {
	p := op.part
	next := -1
	for s := range c.lanes {
		if c.live[s] && op.tried&(1<<s) == 0 {
			next = s
			break
		}
	}
	if next < 0 {
		op.part = nil
		c.freeOps = append(c.freeOps, op)
		c.refuse(p, ErrIO)
		return
	}
	op.slot = next
	still := 0
	for i := range op.n {
		m := op.blocks[i]
		e, resolved, ok := c.relocate(op, m)
		if !ok { // the map page has to be loaded: begin anew
			op.part = nil
			c.freeOps = append(c.freeOps, op)
			c.awaitPage(p, op.slot)
			return
		}
		if resolved {
			continue
		}
		m.entry = e
		op.blocks[still] = m
		still++
	}
	op.n = still
	if still > 0 {
		c.start(op)
		return
	}
	base := op.base
	op.part = nil
	c.freeOps = append(c.freeOps, op)
	if base {
		c.handle(p)
		return
	}
	c.finish(p, nil)
}

// relocate looks a block up again. resolved: it was delivered from memory.
func (c *core) relocate(op *readOp, m missing) (e journal.Entry, resolved, ok bool) {
	if _, content, ok := c.inWindow(c.pending.lookup(m.lba.Region()), m.lba); ok {
		if !op.base {
			op.part.place(m.index, content)
		}
		return e, true, true
	}
	e, known := c.lanes[op.slot].Lookup(m.lba)
	switch {
	case !known:
		return e, false, false
	case c.contradicts(e, m):
		return journal.Entry{Content: journal.Lost, CRC: m.badEntry.CRC}, false, true
	case e.Content != journal.Data && e.Content != journal.Lost:
		if !op.base {
			op.part.place(m.index, nil)
		}
		return e, true, true
	}
	return e, false, true
}

// contradicts reports whether another slot's entry is not of what a slot could not
// read that still should have it: what that one has is older, or anybody's.
func (c *core) contradicts(e journal.Entry, m missing) bool {
	return m.badSlot >= 0 && c.live[m.badSlot] && c.lanes[m.badSlot].StillAt(m.lba, m.badEntry) &&
		((e.Content != journal.Data && e.Content != journal.Lost) || e.CRC != m.badEntry.CRC)
}

// status describes the part's blocks.
func (c *core) status(p *Part) {
	slot := c.readSlot(p)
	l := c.lanes[slot]
	region := c.pending.lookup(p.LBA.Region())
	p.Extents = p.Extents[:0]
	for i := range p.blocks() {
		lba := p.LBA + journal.LBA(i)
		if kind, _, ok := c.inWindow(region, lba); ok {
			p.addExtent(1, kind)
			continue
		}
		e, known := l.Lookup(lba)
		if !known {
			c.awaitPage(p, slot)
			return
		}
		if e.Content == journal.Lost {
			e.Content = journal.Data // it was, and is an error to read
		}
		p.addExtent(1, e.Content)
	}
	c.finish(p, nil)
}
