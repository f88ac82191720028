package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
)

// Content is what the map says of a block.
type Content uint8

// The contents of a block.
const (
	Hole Content = iota // never written, or trimmed: reads as zeros
	Data                // in the log, at a place
	Zero                // reads as zeros, and stays allocated
)

// Entry is the map's entry of one block: what it holds and, for Data, where in
// the slot's log and with which CRC32C. A place names the segment's life, so
// that it never means what a recycled segment holds later.
type Entry struct {
	Segment uint32
	Life    uint32
	CRC     uint32
	Block   uint16 // offset in the segment, in blocks
	Content Content
}

// samePlace tells whether two entries name the same bytes on disk.
func (e Entry) samePlace(o Entry) bool {
	return e.Content == o.Content && e.Segment == o.Segment && e.Life == o.Life && e.Block == o.Block
}

// sameContent tells whether two lanes' entries say that a block holds the same.
func (e Entry) sameContent(o Entry) bool {
	return e.Content == o.Content && (e.Content != Data || e.CRC == o.CRC)
}

// page is the map of one region. Until it is loaded it is an overlay: known
// has a bit for each entry that was set since, the others are in the store.
type page struct {
	region  Region
	stamp   Stamp // of the region's last change; kept when the page is empty
	entries [RegionBlocks]Entry
	known   [RegionBlocks / 64]uint64

	loaded     bool // every entry is known
	loading    bool // asked for
	dirty      bool // changed since the last freeze; on the dirty list
	frozen     bool // belongs to the checkpoint under way, not yet encoded
	committing bool // encoded, the commit not yet confirmed: must not be evicted
	referenced bool // looked up since the eviction's hand passed

	// shadow is the frozen state of a page that changed again before it was
	// loaded, and so could not be encoded first. It is on the frozen list in
	// the page's stead, and completed by the same load.
	shadow *page

	older, newer *page // in the list it is on: clean, dirty or frozen
	onList       *pageList
}

func (p *page) evictable() bool {
	return p.loaded && !p.dirty && !p.frozen && !p.committing && !p.loading
}

func (p *page) isKnown(i int) bool { return p.loaded || p.known[i/64]&(1<<(i%64)) != 0 }

// pageList is an intrusive list, oldest first.
type pageList struct {
	oldest, newest *page
	len            int
}

func (l *pageList) push(p *page) {
	p.onList, p.older, p.newer = l, l.newest, nil
	if l.newest != nil {
		l.newest.newer = p
	} else {
		l.oldest = p
	}
	l.newest = p
	l.len++
}

func (l *pageList) remove(p *page) {
	if p.older != nil {
		p.older.newer = p.newer
	} else {
		l.oldest = p.newer
	}
	if p.newer != nil {
		p.newer.older = p.older
	} else {
		l.newest = p.older
	}
	p.onList, p.older, p.newer = nil, nil, nil
	l.len--
}

// blockMap is a lane's map of its blocks: pages by region, loaded on demand
// and evicted within a budget. Owner: the shard.
type blockMap struct {
	pages  map[Region]*page // resident ones; never ranged over
	clean  pageList         // candidates for eviction
	dirty  pageList         // changed since the last checkpoint began
	frozen pageList         // of the checkpoint under way, not yet encoded
	wanted []Region         // to be loaded; drained by the lane
	stored regionSet        // regions that have a page in the store
	spare  *page            // evicted pages for reuse, linked through newer
	budget int              // resident pages

	segments *segmentTable
	// encodeNow is called with a frozen page that is about to change.
	encodeNow func(*page)
}

func newBlockMap(budget int, segments *segmentTable) *blockMap {
	return &blockMap{
		pages:    make(map[Region]*page),
		stored:   make(regionSet),
		budget:   max(budget, 16),
		segments: segments,
	}
}

// resident returns the region's page, making an overlay when it is absent. A
// region that was never stored is known to be empty at once.
func (m *blockMap) resident(r Region) *page {
	if p := m.pages[r]; p != nil {
		p.referenced = true
		return p
	}
	p := m.spare
	if p != nil {
		m.spare = p.newer
		*p = page{}
	} else {
		p = new(page)
	}
	p.region, p.loaded = r, !m.stored.has(r)
	m.pages[r] = p
	m.clean.push(p)
	m.evict(p)
	return p
}

// evict drops clean pages until the budget holds, giving those that were used
// since its last look a second chance. It looks at a few pages a call, so
// that a step stays short. The page keep is about to be used and stays, even
// when nothing else can go.
func (m *blockMap) evict(keep *page) {
	for looks := 0; len(m.pages) > m.budget && looks < 8 && m.clean.len > 1; looks++ {
		p := m.clean.oldest
		m.clean.remove(p)
		if p == keep || p.referenced || !p.evictable() {
			p.referenced = false
			m.clean.push(p)
			continue
		}
		delete(m.pages, p.region)
		p.newer, m.spare = m.spare, p
	}
}

// lookup returns the block's entry. When it is not known yet, the page is
// asked for and known is false.
func (m *blockMap) lookup(lba LBA) (e Entry, known bool) {
	p := m.resident(lba.Region())
	if p.isKnown(lba.Index()) {
		return p.entries[lba.Index()], true
	}
	m.want(p)
	return Entry{}, false
}

func (m *blockMap) want(p *page) {
	if !p.loaded && !p.loading {
		p.loading = true
		m.wanted = append(m.wanted, p.region)
	}
}

// touch prepares the region's page for a change by the record with the stamp.
func (m *blockMap) touch(r Region, stamp Stamp) *page {
	p := m.resident(r)
	m.want(p) // also to learn what is overwritten, for the live counts
	if p.frozen {
		m.preserve(p)
	}
	if p.stamp.Less(stamp) {
		p.stamp = stamp
	}
	m.markDirty(p)
	return p
}

func (m *blockMap) markDirty(p *page) {
	if !p.dirty {
		p.dirty = true
		p.onList.remove(p)
		m.dirty.push(p)
	}
}

// preserve keeps a frozen page's state for the checkpoint before it changes.
func (m *blockMap) preserve(p *page) {
	if p.loaded {
		m.encodeNow(p)
		return
	}
	m.frozen.remove(p)
	shadow := &page{region: p.region, stamp: p.stamp, entries: p.entries, known: p.known, frozen: true}
	m.frozen.push(shadow)
	p.frozen, p.shadow = false, shadow
	m.clean.push(p)
}

// set replaces one entry of a touched page and keeps the live counts.
func (m *blockMap) set(p *page, index int, e Entry) {
	old := p.entries[index]
	if p.isKnown(index) && old.Content == Data {
		m.segments.addLive(old, -1)
	}
	if e.Content == Data {
		m.segments.addLive(e, +1)
	}
	p.entries[index] = e
	p.known[index/64] |= 1 << (index % 64)
}

// fill sets count entries from index on to one content without a place.
func (m *blockMap) fill(p *page, index, count int, c Content) {
	for i := index; i < index+count; i++ {
		m.set(p, i, Entry{Content: c})
	}
}

// install completes an overlay with what the store holds; encoded is nil when
// it holds nothing.
func (m *blockMap) install(r Region, encoded []byte) error {
	p := m.pages[r]
	if p == nil || p.loaded {
		return nil
	}
	var stored page
	if encoded != nil {
		if err := decodePage(encoded, r, &stored); err != nil {
			p.loading = false
			return err
		}
	}
	for i := range p.entries {
		switch {
		case !p.isKnown(i):
			p.entries[i] = stored.entries[i]
		case stored.entries[i].Content == Data:
			m.segments.overwritten(stored.entries[i], p.frozen || p.shadow != nil && p.shadow.isKnown(i))
		}
	}
	p.complete(&stored)
	if p.shadow != nil {
		for i := range p.shadow.entries {
			if !p.shadow.isKnown(i) {
				p.shadow.entries[i] = stored.entries[i]
			}
		}
		p.shadow.complete(&stored)
		p.shadow = nil
	}
	return nil
}

func (p *page) complete(stored *page) {
	if p.stamp.Less(stored.stamp) {
		p.stamp = stored.stamp
	}
	p.loaded, p.loading = true, false
}

// freeze moves the dirty pages to the checkpoint that begins.
func (m *blockMap) freeze() {
	for p := m.dirty.oldest; p != nil; p = m.dirty.oldest {
		m.dirty.remove(p)
		p.dirty, p.frozen = false, true
		m.frozen.push(p)
	}
}

// unfreeze gives the frozen pages back to the dirty list, for the checkpoint
// was given up.
func (m *blockMap) unfreeze() {
	for p := m.frozen.oldest; p != nil; p = m.frozen.oldest {
		m.frozen.remove(p)
		p.frozen = false
		if q := m.pages[p.region]; q != p { // a shadow: its page is dirty
			q.shadow = nil
			continue
		}
		p.dirty = true
		m.dirty.push(p)
	}
}

// thaw takes an encoded page off the frozen list; it stays resident until
// committed is called.
func (m *blockMap) thaw(p *page) {
	m.frozen.remove(p)
	p.frozen, p.committing = false, true
	if m.pages[p.region] == p { // not a shadow
		m.clean.push(p)
	}
}

// committed releases a page after its commit; failed makes it dirty again. A
// shadow's page is dirty already, for it changed after the freeze.
func (m *blockMap) committed(p *page, failed bool) {
	p.committing = false
	switch {
	case !failed:
	case m.pages[p.region] == p:
		m.markDirty(p)
	}
}

// A stored page. All integers are little-endian.
//
//	0 8 region
//	8 8 generation of the stamp
//	16 8 LSN of the stamp
//	24 2 number of runs
//	26 2 number of places
//	28   places: segment (4), life (4), each named by its number
//	     runs: first index (1), length - 1 (1), content (1), place (1), and for
//	     data first block (2), one CRC32C (4) a block
//	end  CRC32C (4) of all before
const (
	pageFixed    = 28
	placeFixed   = 8
	runFixed     = 4
	runDataFixed = runFixed + 2
)

// encode appends the page's stored form to b.
func (p *page) encode(b []byte) []byte {
	start := len(b)
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(p.region))
	b = le.AppendUint64(b, uint64(p.stamp.Generation))
	b = le.AppendUint64(b, uint64(p.stamp.LSN))
	countAt, runs := len(b), 0
	b = append(b, 0, 0, 0, 0)
	var numbers [RegionBlocks]uint8
	b = p.encodePlaces(b, &numbers)
	for i := 0; i < RegionBlocks; {
		n := p.run(i)
		if e := p.entries[i]; e.Content != Hole {
			b = append(b, byte(i), byte(n-1), byte(e.Content), numbers[i])
			if e.Content == Data {
				b = le.AppendUint16(b, e.Block)
				for j := i; j < i+n; j++ {
					b = le.AppendUint32(b, p.entries[j].CRC)
				}
			}
			runs++
		}
		i += n
	}
	le.PutUint16(b[countAt:], uint16(runs))
	return le.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// encodePlaces appends the segments that the page names, and their number
// before them; numbers gets, by entry, which one it is.
func (p *page) encodePlaces(b []byte, numbers *[RegionBlocks]uint8) []byte {
	le := binary.LittleEndian
	start := len(b)
	var seen [2 * RegionBlocks]uint16 // a hash table: number plus one
	for i := range p.entries {
		e := &p.entries[i]
		if e.Content != Data {
			continue
		}
		if i > 0 && p.entries[i-1].Content == Data && p.entries[i-1].Segment == e.Segment && p.entries[i-1].Life == e.Life {
			numbers[i] = numbers[i-1]
			continue
		}
		for slot := e.Segment; ; slot++ {
			n := &seen[slot%uint32(len(seen))]
			if *n == 0 {
				b = le.AppendUint32(b, e.Segment)
				b = le.AppendUint32(b, e.Life)
				*n = uint16((len(b) - start) / placeFixed)
			}
			at := start + int(*n-1)*placeFixed
			if le.Uint32(b[at:]) == e.Segment && le.Uint32(b[at+4:]) == e.Life {
				numbers[i] = uint8(*n - 1)
				break
			}
		}
	}
	le.PutUint16(b[start-2:], uint16((len(b)-start)/placeFixed))
	return b
}

// run returns how many entries from i on continue the first one.
func (p *page) run(i int) int {
	first, n := p.entries[i], 1
	for ; i+n < RegionBlocks; n++ {
		e := p.entries[i+n]
		if e.Content != first.Content {
			break
		}
		if first.Content == Data && (e.Segment != first.Segment || e.Life != first.Life || e.Block != first.Block+uint16(n)) {
			break
		}
	}
	return n
}

// decodePage reads a stored page of region r.
func decodePage(b []byte, r Region, p *page) error {
	le := binary.LittleEndian
	if len(b) < pageFixed+4 {
		return fmt.Errorf("map page of region %d: %d bytes: %w", r, len(b), ErrNotThis)
	}
	body, sum := b[:len(b)-4], le.Uint32(b[len(b)-4:])
	if crc := crc32.Checksum(body, castagnoli); crc != sum {
		return fmt.Errorf("map page of region %d: checksum %08x, expected %08x: %w", r, sum, crc, ErrNotThis)
	}
	p.region = Region(le.Uint64(b))
	if p.region != r {
		return fmt.Errorf("map page of region %d found for region %d: %w", p.region, r, ErrNotThis)
	}
	p.stamp = Stamp{Generation(le.Uint64(b[8:])), LSN(le.Uint64(b[16:]))}
	places := int(le.Uint16(b[26:])) * placeFixed
	if body = body[pageFixed:]; places > len(body) {
		return fmt.Errorf("map page of region %d: places are cut off: %w", r, ErrNotThis)
	}
	return p.decodeRuns(body[:places], body[places:], int(le.Uint16(b[24:])))
}

func (p *page) decodeRuns(places, b []byte, runs int) error {
	le := binary.LittleEndian
	for range runs {
		if len(b) < runFixed {
			return fmt.Errorf("map page of region %d: runs are cut off: %w", p.region, ErrNotThis)
		}
		first, n, content := int(b[0]), int(b[1])+1, Content(b[2])
		if first+n > RegionBlocks || content == Hole || content > Zero {
			return fmt.Errorf("map page of region %d: run of %d at %d: %w", p.region, n, first, ErrNotThis)
		}
		if content == Zero {
			for i := first; i < first+n; i++ {
				p.entries[i] = Entry{Content: Zero}
			}
			b = b[runFixed:]
			continue
		}
		if len(b) < runDataFixed+4*n {
			return fmt.Errorf("map page of region %d: checksums are cut off: %w", p.region, ErrNotThis)
		}
		place := int(b[3]) * placeFixed
		if place >= len(places) {
			return fmt.Errorf("map page of region %d: place %d is not there: %w", p.region, b[3], ErrNotThis)
		}
		e := Entry{Segment: le.Uint32(places[place:]), Life: le.Uint32(places[place+4:]), Block: le.Uint16(b[4:]), Content: Data}
		for i := range n {
			e.CRC = le.Uint32(b[runDataFixed+4*i:])
			p.entries[first+i] = e
			e.Block++
		}
		b = b[runDataFixed+4*n:]
	}
	return nil
}

// regionSet is a set of regions, in chunks that are stored as they are: 32,768
// regions (32 GiB of address space) in 4 KiB.
type regionSet map[uint32]*regionChunk

type regionChunk struct {
	bits [512]uint64
}

func (s regionSet) has(r Region) bool {
	c := s[uint32(r>>15)]
	return c != nil && c.bits[r>>6&511]&(1<<(r&63)) != 0
}

func (s regionSet) add(r Region) {
	c := s[uint32(r>>15)]
	if c == nil {
		c = new(regionChunk)
		s[uint32(r>>15)] = c
	}
	c.bits[r>>6&511] |= 1 << (r & 63)
}

// each calls fn for every region of the chunk, in ascending order.
func (c *regionChunk) each(chunk uint32, fn func(Region)) {
	for w, word := range c.bits {
		for ; word != 0; word &= word - 1 {
			fn(Region(chunk)<<15 | Region(w<<6|bits.TrailingZeros64(word)))
		}
	}
}
