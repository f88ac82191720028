package journal

import (
	"errors"
	"fmt"
	"slices"

	"trivet/disk"
)

// Copier brings a recovered lane together with a better one before the shard
// is activated. Copies are appended to the lane's own log, but count only
// through the checkpoint that Finish commits: a crash before leaves the lane
// as it was. When the copy is too large for one checkpoint, those in between
// mark the lane as incomplete.
type Copier struct {
	To         *Recovery
	Generation Generation
	// Peers are the lanes of the shard, nil where there is none: a block that
	// the better one cannot read is taken from any that holds the same.
	Peers []*Recovery
	// Prepare returns a segment to append to; Commit stores pairs atomically.
	Prepare func() (*Open, error)
	Commit  func([]Pair) error
	// Closed, when set, is told that the copier has closed a segment's file.
	Closed func(*Open)

	open    *Open
	block   []byte
	header  []byte
	payload []byte
	// Copied counts the blocks copied so far.
	Copied int
}

// ErrSource tells that the better copy cannot be read, nor anybody else's of
// the same content. What was wrong with it is told in words only: it is no
// fault of the lane that was to be brought together, which must not be taken
// for damaged.
var ErrSource = errors.New("the better copy cannot be read")

// copyDirtyPages bounds the pages that a copy keeps in memory.
const copyDirtyPages = 8192

// Regions returns every region of which the lane's map has a page, ascending.
func (r *Recovery) Regions() (regions []Region) {
	set := make(RegionSet)
	r.Lane.AddRegions(set)
	set.Each(func(g Region) { regions = append(regions, g) })
	return regions
}

// page returns the loaded page of the region.
func (r *Recovery) page(g Region) (*page, error) {
	b := r.Lane.blocks
	p := b.resident(g)
	if p.loaded {
		return p, nil
	}
	keys := storedPageKeys(nil, r.Lane.cfg.ID.Shard, g, false)
	values, err := r.source.Load(keys)
	if err != nil {
		return nil, err
	}
	if i := slices.Index(b.wanted, g); i >= 0 {
		b.wanted = slices.Delete(b.wanted, i, i+1)
	}
	return p, b.install(g, cutStoredPage(&keys, &values))
}

// Doubt is how little the Copier believes of the lane that it copies to.
type Doubt uint8

// The doubts.
const (
	Behind   Doubt = iota // regions of the same stamp are the same
	Patchy                // blocks of the same checksum are
	Distrust              // nothing is
)

// Copy makes the region what it is in from, but for what is the same already, as
// far as the lane can be believed.
func (c *Copier) Copy(g Region, from *Recovery, doubt Doubt) error {
	force := doubt == Distrust
	source, err := from.page(g)
	if err != nil {
		return fmt.Errorf("map page of region %d in slot %d: %w: %v", g, from.Lane.cfg.ID.Slot, ErrSource, err)
	}
	target, err := c.To.page(g)
	if err != nil {
		return fmt.Errorf("map page of region %d in slot %d: %w", g, c.To.Lane.cfg.ID.Slot, err)
	}
	if source.stamp == target.stamp && doubt == Behind && !target.patchy {
		return nil
	}
	theirs, ours := source.all(), target.all()
	b := c.To.Lane.blocks
	p := b.touch(g, target.stamp)
	for i := 0; i < RegionBlocks; {
		n := 1
		switch e := theirs[i]; {
		case e.Content == Lost:
			if err := c.copyLost(g, i, ours[i], e); err != nil {
				return err
			}
		case e.Content != Data:
			b.fill(p, i, 1, e.Content)
		case force || !e.SameContent(ours[i]):
			for i+n < RegionBlocks && n < 64 && theirs[i+n].Content == Data && (force || !theirs[i+n].SameContent(ours[i+n])) {
				n++
			}
			if err := c.copyRun(g, i, theirs[i:i+n], from, p); err != nil {
				return err
			}
		}
		i += n
	}
	p.stamp, p.patchy = source.stamp, false // last, for it says that the region is equal
	if b.dirty.len >= copyDirtyPages {
		return c.commit(laneRecord{stamp: c.To.Stamp, incomplete: true, fed: c.To.Incomplete && c.To.Fed})
	}
	return nil
}

// copyLost makes a block what it should be that the source has not got, if any lane
// has it; else it is lost here as well.
func (c *Copier) copyLost(g Region, i int, ours, e Entry) error {
	e.Content = Data
	p := c.To.Lane.blocks.pages[g]
	block := disk.Alloc(BlockSize)
	if ours.SameContent(e) && c.To.readBlock(ours, block) == nil {
		return nil
	}
	if !c.readPeers(g, i, e, block) {
		e.Content = Lost
		c.To.Lane.blocks.set(p, i, e)
		return nil
	}
	at, err := c.write(g.First()+LBA(i), []Entry{e}, block)
	if err == nil {
		c.enter(p, i, []Entry{e}, at)
	}
	return err
}

// copyRun reads the blocks of a run from the source and appends them.
func (c *Copier) copyRun(g Region, index int, run []Entry, from *Recovery, p *page) error {
	if c.payload == nil {
		c.payload = disk.Alloc(64 * BlockSize)
	}
	for i, e := range run {
		block := c.payload[i*BlockSize : (i+1)*BlockSize]
		if err := from.readBlock(e, block); err != nil && !c.readPeers(g, index+i, e, block) {
			return fmt.Errorf("block %d in slot %d: %w: %v", g.First()+LBA(index+i), from.Lane.cfg.ID.Slot, ErrSource, err)
		}
	}
	at, err := c.write(g.First()+LBA(index), run, c.payload)
	if err == nil {
		c.enter(p, index, run, at)
	}
	return err
}

// enter makes the page name a run that was written from block at on.
func (c *Copier) enter(p *page, index int, run []Entry, at uint32) {
	for i, e := range run {
		c.To.Lane.blocks.set(p, index+i, Entry{Segment: c.open.Index, Life: c.open.Life, Block: uint16(at) + uint16(i), Content: Data, CRC: e.CRC})
	}
	c.Copied += len(run)
}

// readBlock reads the block at an entry's place and checks it.
func (r *Recovery) readBlock(e Entry, block []byte) error {
	if err := r.source.ReadSegment(e.Segment, block, uint32(e.Block)); err != nil {
		return err
	}
	if crc := Checksum(block); crc != e.CRC {
		return fmt.Errorf("checksum %08x, expected %08x: %w", crc, e.CRC, ErrChecksum)
	}
	return nil
}

// readPeers reads a block from any lane that holds the same as the entry says.
func (c *Copier) readPeers(g Region, index int, e Entry, block []byte) bool {
	for _, peer := range c.Peers {
		if peer == nil {
			continue
		}
		p, err := peer.page(g)
		if err == nil && p.at(index).SameContent(e) && peer.readBlock(p.at(index), block) == nil {
			return true
		}
	}
	return false
}

// write appends a batch of one copy record, with the first blocks of payload; it
// returns the block offset of its first data block.
func (c *Copier) write(lba LBA, run []Entry, payload []byte) (at uint32, err error) {
	if c.open == nil || c.open.next+1+uint32(len(run)) > c.open.Blocks {
		if err := c.roll(); err != nil {
			return 0, err
		}
	}
	return c.append(func(e *encoder) {
		e.add(KindCopy, lba, len(run))
		for _, entry := range run {
			e.checksum(entry.CRC)
		}
	}, payload[:len(run)*BlockSize])
}

// append writes a batch of what add encodes; it returns the block offset of its
// first data block.
func (c *Copier) append(add func(*encoder), payload []byte) (at uint32, err error) {
	l := c.To.Lane
	bufs := make([][]byte, 0, 3)
	if c.open.next == 0 {
		h := header{
			position:   position{volume: l.cfg.Volume, lane: l.cfg.ID, segment: c.open.Index, life: c.open.Life},
			generation: c.Generation, blocks: c.open.Blocks, previous: l.position.life,
			firstLSN: c.To.Stamp.LSN + 1, tail: c.To.Stamp.LSN,
		}
		c.open.chain = h.encode(c.header)
		bufs = append(bufs, c.header)
	}
	var e encoder
	e.begin(c.block)
	add(&e)
	descriptorAt := max(c.open.next, 1)
	d := descriptor{
		position:   position{volume: l.cfg.Volume, lane: l.cfg.ID, segment: c.open.Index, life: c.open.Life, offset: descriptorAt},
		generation: c.Generation, firstLSN: c.To.Stamp.LSN, previous: c.open.chain,
	}
	offset := c.open.Base + int64(c.open.next)*BlockSize
	c.open.chain = e.finish(&d)
	if bufs = append(bufs, c.block); len(payload) > 0 {
		bufs = append(bufs, payload)
	}
	if err := c.open.File.Write(bufs, offset, false); err != nil {
		return 0, fmt.Errorf("append a copy to segment %d: %w", c.open.Index, err)
	}
	c.open.next = descriptorAt + 1 + uint32(e.blocks)
	l.position = replayPosition{segment: c.open.Index, life: c.open.Life, offset: c.open.next, chain: c.open.chain}
	s := l.segments.byIndex[c.open.Index]
	s.used, s.dirty = c.open.next, true
	return descriptorAt + 1, nil
}

// roll syncs the present segment and takes another.
func (c *Copier) roll() error {
	if err := c.settle(); err != nil {
		return err
	}
	o, err := c.Prepare()
	if err != nil {
		return fmt.Errorf("prepare a segment: %w", err)
	}
	c.open = o
	if c.block == nil {
		c.block, c.header = disk.Alloc(BlockSize), disk.Alloc(BlockSize)
	}
	c.To.Lane.segments.add(&segmentInfo{
		index: o.Index, life: o.Life, previous: c.To.Lane.position.life, state: segmentSealed,
		firstLSN: c.To.Stamp.LSN + 1, lastLSN: c.To.Stamp.LSN,
	})
	return nil
}

// settle makes what was copied durable and closes the segment.
func (c *Copier) settle() error {
	if c.open == nil {
		return nil
	}
	o := c.open
	c.open = nil
	if err := o.File.Sync(); err != nil {
		return fmt.Errorf("sync copies in segment %d: %w", o.Index, err)
	}
	if c.Closed != nil {
		c.Closed(o)
	}
	return o.File.Close()
}

// RegionStamp returns the stamp of the lane's page of the region.
func (r *Recovery) RegionStamp(g Region) (Stamp, error) {
	p, err := r.page(g)
	if err != nil {
		return Stamp{}, fmt.Errorf("map page of region %d in slot %d: %w", g, r.Lane.cfg.ID.Slot, err)
	}
	return p.stamp, nil
}

// Finish makes the copy count: the lane then is at stamp, with all its pages
// and its segment table stored.
func (c *Copier) Finish(stamp Stamp) error { return c.commit(laneRecord{stamp: stamp, fed: c.To.Fed}) }

// Discount stores that the lane counts for nothing until a checkpoint says
// otherwise: what is written to it from now on leaves it with some of what its
// peers have, and not with all. Both of them must hold all that it has made durable.
func (c *Copier) Discount() error {
	return c.commit(laneRecord{stamp: c.To.Stamp, incomplete: true, fed: true})
}

// leave makes sure that the lane's log goes on in a segment of the copy, even if
// no data were copied: what follows the place where the log broke off, or was
// torn, must never be replayed over the copy.
func (c *Copier) leave() error {
	if c.block != nil {
		return nil // it has
	}
	if err := c.roll(); err != nil {
		return err
	}
	_, err := c.append(func(*encoder) {}, nil)
	return err
}

// commit stores every changed page in one checkpoint, with the record.
func (c *Copier) commit(record laneRecord) error {
	if err := c.leave(); err != nil {
		return err
	}
	if err := c.settle(); err != nil {
		return err
	}
	l := c.To.Lane
	shard := l.cfg.ID.Shard
	l.blocks.unsure = l.blocks.unsure && record.incomplete
	c.To.Stamp, record.position, record.unsure = record.stamp, l.position, l.blocks.unsure
	l.ckpt.op.Pairs = l.ckpt.op.Pairs[:0]
	for p := l.blocks.dirty.oldest; p != nil; p = p.newer {
		if _, err := c.To.page(p.region); err != nil {
			return err
		}
	}
	l.blocks.freeze()
	for p := l.blocks.frozen.oldest; p != nil; p = l.blocks.frozen.oldest {
		l.encodePage(p)
	}
	for _, s := range l.segments.order {
		l.ckpt.put(segmentKey(shard, s.index), s.encode(nil, s.live))
		s.dirty = false
	}
	l.putChunks()
	record.segments = uint32(len(l.segments.order))
	l.putRecord(record)
	if err := c.Commit(l.ckpt.op.Pairs); err != nil {
		return fmt.Errorf("commit a copied lane: %w", err)
	}
	l.blocks.confirm()
	l.ckpt.pages, l.ckpt.chunks = l.ckpt.pages[:0], l.ckpt.chunks[:0]
	c.To.Incomplete, c.To.Fed, c.To.Damage, c.To.stopped, c.To.Bytes = record.incomplete, record.fed, nil, nil, 0
	return nil
}
