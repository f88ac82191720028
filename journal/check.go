package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"slices"

	"trivet/disk"
)

// Check verifies a recovered lane that nobody serves: every descriptor of its
// segments, every page of its map, every block that the map names. It changes
// nothing. Data that were overwritten are nobody's, and are not looked at.
type Check struct {
	Of *Recovery
	// Found is told what is wrong, and in which segment, region or block.
	Found func(place string, err error)
	// Verified is told how many more bytes of data were read.
	Verified func(sizeBytes int64)

	named   map[uint32][]uint64 // by segment: a bit for each block that the map names
	hidden  map[uint32]int32    // by segment: stored entries that the log replaces
	content map[Region]uint64   // digest of what each region with a page holds
	scan    scanner
	buf     []byte
}

// Run verifies the lane. The error tells that it could not go on: the metadata
// cannot be read.
func (c *Check) Run() error {
	c.named, c.hidden, c.content = make(map[uint32][]uint64), make(map[uint32]int32), make(map[Region]uint64)
	c.scan = scanner{source: c.Of.source}
	c.buf = disk.Alloc(RegionBlocks * BlockSize)
	l := c.Of.Lane
	for _, s := range l.segments.order {
		c.named[s.index] = make([]uint64, (l.cfg.SegmentBlocks+63)/64)
		if err := c.segment(s); err != nil {
			c.Found(fmt.Sprintf("segment %d", s.index), err)
		}
	}
	regions, err := c.regions()
	if err != nil {
		return err
	}
	for part := range slices.Chunk(regions, loadBatch) {
		if err := c.pages(part); err != nil {
			return err
		}
	}
	c.counts()
	return nil
}

// Differs returns the regions, ascending, that two checked lanes do not hold
// the same in, judged by the checksums in their maps.
func (c *Check) Differs(o *Check) (regions []Region) {
	for g, digest := range c.content {
		if o.content[g] != digest {
			regions = append(regions, g)
		}
	}
	for g := range o.content {
		if _, both := c.content[g]; !both {
			regions = append(regions, g)
		}
	}
	slices.Sort(regions)
	return regions
}

// segment follows the chain of descriptors from the header on. A segment may be in
// the table before its first batch is on disk.
func (c *Check) segment(s *segmentInfo) error {
	if s.used <= 1 { // a checkpoint began when nothing was written there, and nothing came to be
		return nil
	}
	block, err := c.scan.block(s.index, 0, c.Of.Lane.cfg.SegmentBlocks)
	if err != nil {
		return err
	}
	var h header
	want := position{volume: c.Of.Lane.cfg.Volume, lane: c.Of.Lane.cfg.ID, segment: s.index, life: s.life}
	switch err := decodeHeader(block, &h); {
	case err != nil:
		return fmt.Errorf("header: %w", err)
	case h.position != want:
		return fmt.Errorf("header of %+v, expected %+v: %w", h.position, want, ErrNotThis)
	}
	return c.descriptors(s, &h)
}

// descriptors verifies the batches behind a header, up to where the lane wrote.
// What lies behind the point from which the next segment wrote it again was
// never durable, and may hold anything.
func (c *Check) descriptors(s *segmentInfo, h *header) error {
	limit := s.lastLSN
	if next := c.Of.successor(s.life); next != nil {
		limit = min(limit, next.tail)
	}
	used, last := s.used, h.tail
	if r := c.Of.segment; r != nil && r.segment == s.index && r.life == s.life {
		used = min(used, c.Of.offset)
	}
	chain, want := h.crc, h.position
	var d descriptor
	for at := uint32(1); at < used; at += 1 + d.dataBlocks {
		block, err := c.scan.block(s.index, at, c.Of.Lane.cfg.SegmentBlocks)
		if err != nil {
			return err
		}
		want.offset = at
		if err = decodeDescriptor(block, want, &d); err == nil && d.previous != chain {
			err = fmt.Errorf("behind a block with checksum %08x, expected %08x: %w", d.previous, chain, ErrNotThis)
		}
		if err != nil {
			if limit < s.lastLSN && last >= limit {
				return nil
			}
			return fmt.Errorf("descriptor in block %d: %w", at, err)
		}
		chain, last = d.crc, max(last, d.lastLSN())
	}
	return nil
}

// regions returns those that have a page, or a delta, in the store or in memory.
func (c *Check) regions() (regions []Region, err error) {
	l := c.Of.Lane
	for _, first := range [][]byte{pageKey(l.cfg.ID.Shard, 0), deltaKey(l.cfg.ID.Shard, 0)} {
		err = c.Of.source.Scan(first[:3], func(key, _ []byte) error {
			if len(key) != 11 {
				return fmt.Errorf("key of %d bytes among the map pages: %w", len(key), ErrNotThis)
			}
			regions = append(regions, Region(binary.BigEndian.Uint64(key[3:])))
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(regions)
	regions = slices.Compact(regions)
	for _, g := range regions {
		if !l.blocks.stored.Has(g) {
			c.Found(fmt.Sprintf("region %d", g), fmt.Errorf("its map page is not in the set of stored regions: %w", ErrNotThis))
		}
	}
	l.blocks.stored.Each(func(g Region) {
		if _, found := slices.BinarySearch(regions, g); !found {
			c.Found(fmt.Sprintf("region %d", g), fmt.Errorf("its map page is not in the store, which had it: %w", ErrNotThis))
		}
	})
	for g := range l.blocks.pages {
		regions = append(regions, g)
	}
	slices.Sort(regions)
	return slices.Compact(regions), nil
}

// pages verifies the map of some regions.
func (c *Check) pages(regions []Region) error {
	var keys [][]byte
	for _, g := range regions {
		keys = storedPageKeys(keys, c.Of.Lane.cfg.ID.Shard, g, false)
	}
	values, err := c.Of.source.Load(keys)
	if err != nil {
		return err
	}
	for _, g := range regions {
		var p page
		if err := cutStoredPage(&keys, &values).decode(g, &p); err != nil {
			c.Found(fmt.Sprintf("region %d", g), err)
			continue
		}
		c.overlay(&p, c.Of.Lane.blocks.pages[g])
		c.page(g, &p)
	}
	return nil
}

// overlay puts what the log says over what the store says, and counts the
// places that are replaced by it: the segment table counts them still.
func (c *Check) overlay(p, replayed *page) {
	if replayed == nil {
		return
	}
	for i := range RegionBlocks {
		if !replayed.isKnown(i) {
			continue
		}
		if e := p.at(i); e.Content == Data && !replayed.loaded {
			c.hidden[e.Segment]++
		}
		p.put(i, replayed.at(i))
	}
}

// page verifies the entries of a region and the data that they name.
func (c *Check) page(g Region, p *page) {
	digest, held := crc32.New(castagnoli), false
	var sum uint64
	entries := p.all()
	for _, e := range entries {
		held = held || e.Content != Hole
		if e.Content == Lost { // it should be the same
			e.Content = Data
		}
		_, _ = digest.Write(binary.LittleEndian.AppendUint32([]byte{byte(e.Content)}, e.CRC))
		sum = sum*31 + uint64(e.CRC) + uint64(e.Content)
	}
	if held {
		c.content[g] = sum ^ uint64(digest.Sum32())
	}
	for i := 0; i < RegionBlocks; {
		n := 1
		if entries[i].Content == Lost {
			c.Found(fmt.Sprintf("block %d", g.First()+LBA(i)), fmt.Errorf("%w; its checksum should be %08x", ErrLost, entries[i].CRC))
		}
		if entries[i].Content == Data && c.place(g.First()+LBA(i), entries[i]) {
			for ; i+n < RegionBlocks && follows(entries[i+n-1], entries[i+n]); n++ {
				if !c.place(g.First()+LBA(i+n), entries[i+n]) {
					break
				}
			}
			c.data(g.First()+LBA(i), entries[i:i+n])
		}
		i += n
	}
}

// follows tells whether b lies behind a on disk.
func follows(a, b Entry) bool {
	return b.Content == Data && a.Segment == b.Segment && a.Life == b.Life && a.Block+1 == b.Block
}

// place verifies that an entry names a block of the lane's that no other names.
func (c *Check) place(lba LBA, e Entry) bool {
	s := c.Of.Lane.segments.of(e)
	var err error
	switch {
	case s == nil:
		err = fmt.Errorf("the map names segment %d life %d, which is not in the table: %w", e.Segment, e.Life, ErrNotThis)
	case e.Block < 2 || uint32(e.Block) >= s.used:
		err = fmt.Errorf("the map names block %d of segment %d, which has data in blocks 2 to %d: %w", e.Block, e.Segment, s.used-1, ErrNotThis)
	case c.named[e.Segment][e.Block/64]&(1<<(e.Block%64)) != 0:
		err = fmt.Errorf("the map names block %d of segment %d for another block as well: %w", e.Block, e.Segment, ErrNotThis)
	default:
		c.named[e.Segment][e.Block/64] |= 1 << (e.Block % 64)
		return true
	}
	c.Found(fmt.Sprintf("block %d", lba), err)
	return false
}

// data reads blocks that lie one behind the other and verifies each. When they
// cannot be read in one go, each is read by itself, to tell which it is.
func (c *Check) data(lba LBA, run []Entry) {
	buf := c.buf[:len(run)*BlockSize]
	whole := c.Of.source.ReadSegment(run[0].Segment, buf, uint32(run[0].Block)) == nil
	for i, e := range run {
		block := buf[i*BlockSize : (i+1)*BlockSize]
		if whole && Checksum(block) == e.CRC {
			continue
		}
		if err := c.Of.readBlock(e, block); err != nil {
			c.Found(fmt.Sprintf("block %d", lba+LBA(i)), fmt.Errorf("segment %d block %d: %w", e.Segment, e.Block, err))
		}
	}
	c.Verified(int64(len(buf)))
}

// counts compares the live counts of the segment table with the map.
func (c *Check) counts() {
	for _, s := range c.Of.Lane.segments.order {
		live := c.hidden[s.index]
		for _, word := range c.named[s.index] {
			live += int32(bits.OnesCount64(word))
		}
		if live != s.live {
			c.Found(fmt.Sprintf("segment %d", s.index), fmt.Errorf("the table counts %d live blocks, the map names %d: %w", s.live, live, ErrNotThis))
		}
	}
}
