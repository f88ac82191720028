package shard

import (
	"fmt"
	"time"

	"trivet/journal"
)

// lba returns the address of the i-th block of the job.
func (j *fillJob) lba(i int) journal.LBA {
	b := &j.blocks[i]
	return j.regions[b.region].Region.First() + journal.LBA(b.index)
}

// wanted reports whether the i-th block of the job has still to be read.
func (j *fillJob) wanted(i int) bool {
	b := &j.blocks[i]
	return b.bad && j.regions[b.region].Lacks(b.index)
}

// readElsewhere reads what the job still wants from a slot that was not asked yet:
// the source, another live slot, at last the one that returns. When there is none
// left, what was not read is lost.
func (c *core) readElsewhere(f *fill, j *fillJob) {
	for {
		slot := c.nextToAsk(f, j)
		if slot < 0 || !c.anyWanted(j) {
			c.settleMissing(f, j)
			return
		}
		known := c.ask(f, j, slot)
		switch {
		case !known:
			return // until the map page is loaded
		case len(j.asked) > 0:
			c.startRead(j, slot)
			return
		}
		j.tried |= 1 << slot
	}
}

func (c *core) anyWanted(j *fillJob) bool {
	for i := range j.blocks {
		if j.wanted(i) {
			return true
		}
	}
	return false
}

// nextToAsk returns the slot that is asked next, or -1.
func (c *core) nextToAsk(f *fill, j *fillJob) int {
	for i := range c.lanes {
		s := (j.source + i) % len(c.lanes)
		if c.live[s] && j.tried&(1<<s) == 0 {
			return s
		}
	}
	if j.tried&(1<<f.slot) == 0 {
		return f.slot
	}
	return -1
}

// ask lists what the slot should have of what the job still wants. known is false
// while a map page has to be loaded.
func (c *core) ask(f *fill, j *fillJob, slot int) (known bool) {
	j.asked, j.disk.Blocks = j.asked[:0], j.disk.Blocks[:0]
	for i := range j.blocks {
		if !j.wanted(i) {
			continue
		}
		e, known := c.lanes[slot].Lookup(j.lba(i))
		if !known {
			return false
		}
		if e.Content != journal.Data || e.CRC != j.blocks[i].entry.CRC {
			continue
		}
		j.asked = append(j.asked, i)
		j.disk.Blocks = append(j.disk.Blocks, journal.ReadBlock{Entry: e, Buf: j.buffer(i)})
	}
	return true
}

// startRead hands the read over.
func (c *core) startRead(j *fillJob, slot int) {
	for i := range j.disk.Blocks {
		if b := &j.disk.Blocks[i]; !c.lanes[slot].Pin(b.Entry) {
			panic(fmt.Sprintf("shard %d: %+v is at a place that was recycled", c.cfg.Index, b.Entry))
		}
	}
	j.stage, j.slot, j.since = fillReading, slot, c.now
	j.tried |= 1 << slot
	j.disk.Slot = journal.SlotID(slot)
	c.out[slot].reads++
	c.slots[slot].Read(&j.disk)
}

// fillReadDone takes the result of a job's read.
func (c *core) fillReadDone(f *fill, j *fillJob) {
	o := &c.out[j.slot]
	o.reads--
	if j.stray {
		o.strays--
	}
	for i := range j.disk.Blocks {
		b := &j.disk.Blocks[i]
		c.lanes[j.slot].Unpin(b.Entry)
		j.blocks[j.asked[i]].bad = b.Err != nil
		if b.Err != nil && !f.over && !j.stray {
			c.cfg.Event(j.slot, fmt.Sprintf("read of block %d, to be copied to slot %d", j.lba(j.asked[i]), f.slot), b.Err)
		}
	}
	if f.over || j.stray {
		j.reset()
		c.dropFill(f)
		return
	}
	c.reportRot(j)
	j.stage = fillMissing
}

// reset makes the job one that could be filled again.
func (j *fillJob) reset() {
	j.stage, j.stray = fillIdle, false
	j.regions, j.blocks, j.asked = j.regions[:0], j.blocks[:0], j.asked[:0]
}

// reportRot has the blocks repaired that the source could not read, and another slot
// could.
func (c *core) reportRot(j *fillJob) {
	if j.slot == j.source || !c.live[j.slot] {
		return
	}
	for _, i := range j.asked {
		if b := &j.blocks[i]; !b.bad && b.entry.Content == journal.Data {
			c.rotten = append(c.rotten, rot{j.source, j.lba(i)})
		}
	}
}

// divertJob gives a job up whose source stands still, or was dropped, if there is
// another one: what is read may come whenever it does, to the job's own memory.
func (c *core) divertJob(f *fill, j *fillJob) (wake time.Duration) {
	if j.stray {
		return 0
	}
	due := j.since + c.cfg.StallAfter/4
	lost := j.slot != f.slot && !c.live[j.slot]
	if c.now < due && !lost {
		return due
	}
	if c.source(f, j.slot) < 0 {
		return c.now + c.cfg.StallAfter/4
	}
	o := &c.out[j.slot]
	if o.strays == 0 {
		o.strayed = j.since
	}
	o.strays++
	j.stray, j.regions = true, j.regions[:0]
	return 0
}

// settleMissing decides about what no slot could read: in memory it may still be.
// Else it is lost, unless the source has moved it meanwhile: then the region is put
// off.
func (c *core) settleMissing(f *fill, j *fillJob) {
	again, lost := uint32(0), 0
	for i := range j.blocks {
		if !j.wanted(i) || again&(1<<j.blocks[i].region) != 0 {
			continue
		}
		b := &j.blocks[i]
		switch lba := j.lba(i); {
		case c.fromCache(lba, b.entry.CRC, j.buffer(i)):
			b.bad = false
		case !c.isCertain(f, j, i):
			again |= 1 << b.region
		default:
			j.regions[b.region].Give(b.index, journal.Entry{Content: journal.Lost, CRC: b.entry.CRC})
			lost++
		}
	}
	if lost > 0 {
		f.lost += lost
		c.cfg.Event(f.slot, fmt.Sprintf("%d blocks that no slot can read are stored as lost, %d so far; the first of their regions is %d", lost, f.lost, j.regions[0].Region), journal.ErrLost)
	}
	if again != 0 {
		c.putOff(f, j, again)
	}
	j.stage = fillRead
}

// isCertain reports whether the source's map still names the place that could not
// be read, and no failed append explains it.
func (c *core) isCertain(f *fill, j *fillJob, i int) bool {
	b, l := &j.blocks[i], c.lanes[j.source]
	if !c.live[j.source] || !l.HasWritten(f.behind) {
		return false
	}
	if b.entry.Content == journal.Lost {
		e, known := l.Lookup(j.lba(i))
		return known && e.SameContent(b.entry)
	}
	return l.StillAt(j.lba(i), b.entry)
}

// fromCache takes a block from the cache that is what it should be.
func (c *core) fromCache(lba journal.LBA, crc uint32, to []byte) bool {
	content, hit := c.cfg.Cache.Lookup(uint64(lba))
	if !hit || journal.Checksum(content) != crc {
		return false
	}
	copy(to, content)
	return true
}

// putOff takes regions out of the job, which are looked at again later.
func (c *core) putOff(f *fill, j *fillJob, regions uint32) {
	for i := range j.blocks {
		if regions&(1<<j.blocks[i].region) != 0 {
			j.blocks[i].bad = true // it is not written
		}
	}
	for k := range j.regions {
		if regions&(1<<k) != 0 {
			j.regions[k].PutOff()
		}
	}
	f.notBefore = max(f.notBefore, c.now+fillAgain)
}

// writeJob has the blocks of a job appended, once those of the one before are.
func (c *core) writeJob(f *fill, j *fillJob) {
	for i := range j.blocks {
		if b := &j.blocks[i]; !b.bad && j.regions[b.region].Lacks(b.index) {
			j.writes = append(j.writes, journal.FillBlock{LBA: j.lba(i), CRC: b.entry.CRC, Buf: j.buffer(i)})
			continue
		}
		j.blocks[i].bad = true
	}
	if len(j.writes) == 0 {
		j.stage = fillEntering
		return
	}
	if f.writing != nil {
		j.writes = j.writes[:0]
		return
	}
	j.stage, f.writing = fillWriting, j
	c.lanes[f.slot].Fill(j.writes, false, c.now)
}

// finishWrite takes note of an append that is over.
func (c *core) finishWrite(f *fill) {
	j := f.writing
	if j == nil || c.lanes[f.slot].IsFilling() {
		return
	}
	f.writing, j.stage = nil, fillEntering
	at := 0
	for i := range j.blocks {
		if b := &j.blocks[i]; !b.bad {
			j.regions[b.region].Give(b.index, j.writes[at].To)
			at++
		}
	}
}

// enterJob makes the regions of a job whole.
func (c *core) enterJob(f *fill, j *fillJob) {
	l := c.lanes[f.slot]
	for ; j.entered < len(j.regions); j.entered++ {
		k := &j.regions[j.entered]
		if k.IsPutOff() {
			continue
		}
		if !l.Accept(k) {
			return
		}
		f.done++
	}
	for i := range j.writes {
		l.Release(j.writes[i].To)
	}
	j.reset()
}

// closeFill closes the segment that was appended to last, once nothing is lacking.
func (c *core) closeFill(f *fill) time.Duration {
	l := c.lanes[f.slot]
	switch {
	case f.closed || l.Lacks() > 0 || l.IsFilling():
	case f.closing:
		f.closed = true
	default:
		f.closing = true
		l.Fill(nil, true, c.now)
	}
	return 0
}
