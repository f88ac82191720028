package journal

import "math/bits"

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

// entrySet is a set of a page's entries.
type entrySet [RegionBlocks / 64]uint64

func (s *entrySet) add(i int)      { s[i/64] |= 1 << (i % 64) }
func (s *entrySet) has(i int) bool { return s[i/64]&(1<<(i%64)) != 0 }

// covers is has, of a set that holds every entry when it is nil.
func (s *entrySet) covers(i int) bool { return s == nil || s.has(i) }

func (s *entrySet) len() (n int) {
	for _, word := range s {
		n += bits.OnesCount64(word)
	}
	return n
}

// page is the map of one region. Until it is loaded it is an overlay: known
// has a bit for each entry that was set since, the others are in the store.
type page struct {
	region  Region
	stamp   Stamp // of the region's last change; kept when the page is empty
	entries [RegionBlocks]Entry
	known   entrySet

	// changed are the entries that differ from the page in the store, if based:
	// a delta beside it says what they are. See page.go.
	changed entrySet
	based   bool

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

func (p *page) isKnown(i int) bool { return p.loaded || p.known.has(i) }

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
	stored RegionSet        // regions that have a page in the store
	spare  *page            // evicted pages for reuse, linked through newer
	budget int              // resident pages

	segments *segmentTable
	// encodeNow is called with a frozen page that is about to change.
	encodeNow func(*page)
}

func newBlockMap(budget int, segments *segmentTable) *blockMap {
	return &blockMap{
		pages:    make(map[Region]*page),
		stored:   make(RegionSet),
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
	p.region, p.loaded = r, !m.stored.Has(r)
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
	shadow := &page{region: p.region, stamp: p.stamp, entries: p.entries, known: p.known, changed: p.changed, frozen: true}
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
	p.known.add(index)
	p.changed.add(index)
}

// fill sets count entries from index on to one content without a place.
func (m *blockMap) fill(p *page, index, count int, c Content) {
	for i := index; i < index+count; i++ {
		m.set(p, i, Entry{Content: c})
	}
}

// install completes an overlay with what the store holds.
func (m *blockMap) install(r Region, encoded storedPage) error {
	p := m.pages[r]
	if p == nil || p.loaded {
		return nil
	}
	var stored page
	if err := encoded.decode(r, &stored); err != nil {
		p.loading = false
		return err
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
	for i := range p.changed {
		p.changed[i] |= stored.changed[i]
	}
	p.based = stored.based
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

// committed releases a page after its commit; failed makes it dirty again, and
// stored as a whole: nobody knows what is in the store. A shadow's page is dirty
// already, for it changed after the freeze, and knows all that did before.
func (m *blockMap) committed(p *page, failed bool) {
	p.committing = false
	if failed && m.pages[p.region] == p {
		p.based = false
		m.markDirty(p)
	}
}
