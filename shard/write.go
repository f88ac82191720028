package shard

import (
	"fmt"

	"trivet/arena"
	"trivet/journal"
)

// write logs a part's blocks. Its payload is in the arena already; a block
// that it covers in part is first completed with what the block holds now.
func (c *core) write(p *Part) {
	if !c.mayLog(p) {
		return
	}
	if p.isRagged() { // before it can fail: whoever fails gives its place up
		c.turns.hold(p)
	}
	if !c.complete(p) {
		return
	}
	c.turns.release(p)
	n := p.blocks()
	r := c.window.Add(journal.KindWrite, p.LBA, n)
	for i := range n {
		c.addPage(r, p.LBA+journal.LBA(i), p.Pages[i], p.CRCs[i])
		if frame := c.cfg.Cache.Insert(uint64(p.LBA) + uint64(i)); frame != nil {
			copy(frame, c.cfg.Arena.Bytes(p.Pages[i]))
		}
	}
	c.logged(p, r)
}

// writeRange logs a Trim or Zero part, which holds one page for its record.
func (c *core) writeRange(p *Part) {
	if !c.mayLog(p) {
		return
	}
	kind, n := journal.KindTrim, p.blocks()
	if p.Op == Zero {
		kind = journal.KindZero
	}
	r := c.addRange(kind, p.LBA, n, p.Pages[0])
	c.cfg.Cache.DropRange(uint64(p.LBA), n)
	c.logged(p, r)
}

// enter makes a record that was just added count for those who read, and for
// slots that do not get it.
func (c *core) enter(r *journal.Record) {
	c.pending.add(r)
	if c.filling > 0 {
		c.overtake(r)
	}
	for i := range c.lanes {
		if c.absent[i].missed != nil {
			c.absent[i].missed.Add(r.LBA.Region())
		}
	}
}

// logged acknowledges a part whose record is in the window, and so with all
// live lanes, or lets it wait until it is durable.
func (c *core) logged(p *Part, r *journal.Record) {
	c.enter(r)
	c.sinceFlush++
	if c.eager && c.now-c.lastFlush > eagerWithin {
		c.eager = false
	}
	switch {
	case p.FUA:
		c.await(p, r.LSN)
	case c.eager && c.sinceFlush <= eagerRecords:
		c.wantDurable(r.LSN)
		c.finish(p, nil)
	default:
		c.finish(p, nil)
	}
}

// complete fills the parts of the first and last block that the write does not
// cover. It returns false when it has to wait for them, or has failed.
func (c *core) complete(p *Part) bool {
	n := p.blocks()
	for _, i := range [...]int{0, n - 1} {
		from, to, _ := p.span(i)
		bit := uint8(1)
		if i > 0 {
			bit = 2
		}
		if to-from == journal.BlockSize || p.merged&bit != 0 {
			continue
		}
		base, ok := c.base(p, p.LBA+journal.LBA(i))
		if !ok {
			p.merged = 0 // what was completed may be old by the time we are back
			return false
		}
		page := c.cfg.Arena.Bytes(p.Pages[i])
		if base == nil {
			clear(page[:from])
			clear(page[to:])
		} else {
			copy(page[:from], base[:from])
			copy(page[to:], base[to:])
		}
		p.CRCs[i] = journal.Checksum(page)
		p.merged |= bit
	}
	return true
}

// base returns what a block holds, nil for zeros. When that is not in memory, the
// part waits for it, or has failed, and ok is false. It gets a new checksum with
// the part's data, so that it is compared with its old one first.
func (c *core) base(p *Part, lba journal.LBA) (content []byte, ok bool) {
	if region := c.pending.lookup(lba.Region()); region != nil && region.refs[lba.Index()] != 0 {
		return c.pendingBase(p, lba, region.refs[lba.Index()])
	}
	slot := c.readSlot(p)
	e, known := c.lanes[slot].Lookup(lba)
	switch {
	case !known:
		c.awaitPage(p, slot)
		return nil, false
	case e.Content != journal.Data && e.Content != journal.Lost:
		return nil, true
	}
	if b, hit := c.cfg.Cache.Lookup(uint64(lba)); hit {
		if journal.Checksum(b) == e.CRC {
			return b, true
		}
		c.cfg.Cache.DropRange(uint64(lba), 1)
		c.cfg.Event(slot, fmt.Sprintf("block %d in the cache is not what was put there; it is read again", lba), journal.ErrChecksum)
	}
	c.fetchBase(p, slot, lba, e)
	return nil, false
}

// pendingBase is base for a block that a record in the window changes. What the
// arena should hold of it is nowhere else for sure.
func (c *core) pendingBase(p *Part, lba journal.LBA, ref uint32) (content []byte, ok bool) {
	kind, item := c.pending.content(ref)
	if kind != journal.Data {
		return nil, true
	}
	content = c.cfg.Arena.Bytes(arena.Page(item.Page))
	if journal.Checksum(content) == item.CRC {
		return content, true
	}
	err := fmt.Errorf("block %d in the arena is not what was put there: %w", lba, journal.ErrChecksum)
	c.cfg.Event(-1, "a write of a part of a block has failed", err)
	c.refuse(p, fmt.Errorf("%w: %w", ErrIO, err))
	return nil, false
}

// inWindow returns what the newest record in the window makes of a block, whose
// region's references are given; content is nil for zeros. ok is false when no
// record changes the block.
func (c *core) inWindow(region *pendingRegion, lba journal.LBA) (kind journal.Content, content []byte, ok bool) {
	if region == nil || region.refs[lba.Index()] == 0 {
		return 0, nil, false
	}
	kind, item := c.pending.content(region.refs[lba.Index()])
	if kind == journal.Data {
		content = c.cfg.Arena.Bytes(arena.Page(item.Page))
	}
	return kind, content, true
}

// repair writes a block anew that a slot could not read, with what another
// slot had, unless it was changed since: with the content that the slot's own map
// names, and with nothing else. It is a record like any other, so all slots get it.
func (c *core) repair(slot int, lba journal.LBA, bad journal.Entry, good []byte) {
	if journal.Checksum(good) != bad.CRC {
		return
	}
	if c.stopped != nil || !c.live[slot] || !c.lanes[slot].StillAt(lba, bad) {
		return
	}
	if region := c.pending.lookup(lba.Region()); region != nil && region.refs[lba.Index()] != 0 {
		return
	}
	var pages [1]arena.Page
	if !c.cfg.Arena.Alloc(1, pages[:]) {
		return // the next read of the block tries again
	}
	c.enter(c.addBlock(lba, pages[0], good))
	c.counters.Repairs++
	c.cfg.Event(slot, fmt.Sprintf("block %d repaired from a peer", lba), nil)
}

// addBlock adds a record of one block, whose content is copied into the page.
func (c *core) addBlock(lba journal.LBA, page arena.Page, content []byte) *journal.Record {
	copy(c.cfg.Arena.Bytes(page), content)
	r := c.window.Add(journal.KindWrite, lba, 1)
	c.addPage(r, lba, page, journal.Checksum(content))
	return r
}

// addRange adds a record of n blocks without payload, which is published in the
// page.
func (c *core) addRange(kind journal.Kind, lba journal.LBA, n int, page arena.Page) *journal.Record {
	r := c.window.Add(kind, lba, n)
	c.window.AddItem(r, journal.Item{Page: uint32(page)})
	c.publish(page, r, lba, n, 0)
	return r
}

// addPage gives the record one page of payload and publishes it in the arena.
func (c *core) addPage(r *journal.Record, lba journal.LBA, page arena.Page, crc uint32) {
	c.window.AddItem(r, journal.Item{Page: uint32(page), CRC: crc})
	c.publish(page, r, lba, 1, crc)
}

// publish makes the page's record outlive the process.
func (c *core) publish(page arena.Page, r *journal.Record, lba journal.LBA, blocks int, crc uint32) {
	c.cfg.Arena.Put(page, arena.Record{
		Shard: c.cfg.Index, Kind: arena.RecordKind(r.Kind), LBA: uint64(lba), Count: uint32(blocks), CRC: crc,
		Stamp: arena.Stamp{Generation: uint64(c.marks.Generation), LSN: uint64(r.LSN)},
	})
}
