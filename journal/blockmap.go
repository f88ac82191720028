package journal

import "fmt"

// page is the map of one region. Until it is loaded it is an overlay: known
// has a bit for each entry that was set since, the others are in the store.
type page struct {
	region Region
	stamp  Stamp // of the region's last change; kept when the page is empty
	// A patchy page lacks records: it is whole up to an earlier stamp, and has what
	// was fed since. Until it is loaded, whole is not known. See fill.go.
	patchy bool
	whole  Stamp
	entryTable
	known entrySet

	// changed are the entries that differ from the page in the store, if based:
	// a delta beside it says what they are. See page.go.
	changed entrySet
	based   bool

	loaded     bool   // every entry is known
	loading    bool   // asked for
	referenced bool   // looked up since the eviction's hand passed
	stored     uint64 // number of the last checkpoint that it was encoded for

	// shadow is the frozen state of a page that changed again before it was
	// loaded, and so could not be encoded first. It is on the frozen list in
	// the page's stead, and completed by the same load.
	shadow *page

	older, newer *page // in the list it is on
	onList       *pageList
	bytes        int // as the list counts it
}

func (p *page) isKnown(i int) bool { return p.loaded || p.known.has(i) }

// pageList is an intrusive list, oldest first.
type pageList struct {
	oldest, newest *page
	len            int
	bytes          int // of memory
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
	l.bytes += p.bytes
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
	l.bytes -= p.bytes
}

// toStore is what the pages of the list take with what they add to a checkpoint.
func (l *pageList) toStore() int { return l.bytes + l.len*pairOverhead }

// What pages take, in bytes.
const (
	// pageOverhead is what one takes beside its entries: itself, and its place in
	// the table of resident pages.
	pageOverhead = 264
	// pairOverhead is what a dirty one is going to take in a checkpoint, if few of its
	// entries have changed, or of every pair beside its value.
	pairOverhead = 160
	// chunkBytes is what 32,768 regions take in a RegionSet.
	chunkBytes = 8 * len(regionChunk{}.bits)
)

// leastPages stay in memory whatever the budget is: with fewer, those that wait
// for a page might take it from each other for ever.
const leastPages = 16

// blockMap is a lane's map of its blocks: pages by region, loaded on demand
// and evicted within a budget. Owner: the shard.
type blockMap struct {
	pages  map[Region]*page // resident ones; never ranged over
	clean  pageList         // candidates for eviction, unless they are being committed
	dirty  *pageList        // changed since the last checkpoint began
	frozen *pageList        // of the checkpoint under way, not yet encoded
	wanted []Region         // to be loaded; drained by the lane
	stored RegionSet        // regions that have a page in the store, or get one with the commit under way
	plain  RegionSet        // and no delta, for sure
	deltas RegionSet        // and a delta, for sure; it is not known of the others
	budget int              // bytes that resident pages may take

	begun     uint64 // checkpoints
	confirmed uint64 // the last of them whose commit succeeded
	// unconfirmed are the regions of stored whose first page no commit that
	// succeeded has stored yet. Whatever else is stored must be found when it is
	// loaded. Never ranged over.
	unconfirmed map[Region]bool
	committing  int // bytes of pages, and of their pairs, that wait for a commit
	loading     int // pages that were asked for
	loaded      int // bytes that a page takes once it is loaded: an average of late

	// Regions that the lane has not got all records of: all of them, or those of
	// the set. A record that comes to one makes its page patchy.
	lacksAll bool
	lacking  RegionSet
	unsure   bool // an older program has left pages that do not say that they are patchy

	segments *segmentTable
	// encodeNow is called with a frozen page that is about to change.
	encodeNow func(*page)
}

func newBlockMap(budget int, segments *segmentTable) *blockMap {
	return &blockMap{
		pages:    make(map[Region]*page),
		dirty:    new(pageList),
		frozen:   new(pageList),
		stored:   make(RegionSet),
		plain:    make(RegionSet),
		deltas:   make(RegionSet),
		budget:   budget,
		loaded:   pageOverhead + RegionBlocks*entryBytes,
		segments: segments,

		unconfirmed: make(map[Region]bool),
	}
}

// resident returns the region's page, making an overlay when it is absent. A
// region that was never stored is known to be empty at once.
func (m *blockMap) resident(r Region) *page {
	if p := m.pages[r]; p != nil {
		p.referenced = true
		return p
	}
	p := &page{region: r, loaded: !m.stored.Has(r), bytes: pageOverhead}
	m.pages[r] = p
	m.clean.push(p)
	m.evict(p)
	return p
}

// count takes note of what the page takes now.
func (m *blockMap) count(p *page) (grown bool) {
	more := pageOverhead + cap(p.packed)*entryBytes - p.bytes
	p.bytes += more
	p.onList.bytes += more
	return more > 0
}

// bytes is what the map takes, but for shadows that are being committed.
func (m *blockMap) bytes() int {
	return m.clean.bytes + m.dirty.bytes + m.frozen.bytes + (len(m.stored)+len(m.plain)+len(m.deltas))*chunkBytes
}

// crowded tells whether so many pages are dirty that a checkpoint is due.
func (m *blockMap) crowded() bool {
	return m.dirty.len >= leastPages/2 && m.dirty.toStore() >= m.budget/4
}

// unstored is what takes memory until a checkpoint succeeds, in bytes. A page that
// was asked for is going to take more than its overlay.
func (m *blockMap) unstored() int {
	return m.dirty.toStore() + m.frozen.toStore() + m.committing + m.loading*(m.loaded-pageOverhead)
}

// evict drops clean pages until the budget holds, giving those that were used
// since its last look a second chance. It looks at a few pages a call, so
// that a step stays short. The page keep is about to be used and stays, even
// when nothing else can go.
func (m *blockMap) evict(keep *page) {
	for looks := 0; m.bytes() > m.budget && len(m.pages) > leastPages && looks < 8 && m.clean.len > 1; looks++ {
		p := m.clean.oldest
		m.clean.remove(p)
		if p == keep || p.referenced || !m.evictable(p) {
			p.referenced = false
			m.clean.push(p)
			continue
		}
		delete(m.pages, p.region)
	}
}

// evictable tells whether the store has what a clean page says.
func (m *blockMap) evictable(p *page) bool {
	return p.loaded && !p.loading && p.stored <= m.confirmed
}

// lookup returns the block's entry. When it is not known yet, the page is
// asked for and known is false.
func (m *blockMap) lookup(lba LBA) (e Entry, known bool) {
	p := m.resident(lba.Region())
	if p.isKnown(lba.Index()) {
		return p.at(lba.Index()), true
	}
	m.want(p)
	return Entry{}, false
}

func (m *blockMap) want(p *page) {
	if !p.loaded && !p.loading {
		p.loading = true
		m.loading++
		m.wanted = append(m.wanted, p.region)
	}
}

// touch prepares the region's page for a change by the record with the stamp; the
// zero Stamp is that of a change by none.
func (m *blockMap) touch(r Region, stamp Stamp) *page {
	p := m.resident(r)
	m.want(p) // also to learn what is overwritten, for the live counts
	if p.onList == m.frozen {
		m.preserve(p)
	}
	if stamp != (Stamp{}) && !p.patchy && (m.lacksAll || m.lacking.Has(r)) {
		p.patchy, p.whole = true, p.stamp
	}
	if p.stamp.Less(stamp) {
		p.stamp = stamp
	}
	m.markDirty(p)
	return p
}

func (m *blockMap) markDirty(p *page) {
	if p.onList != m.dirty {
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
	p.shadow = &page{region: p.region, stamp: p.stamp, patchy: p.patchy, whole: p.whole, entryTable: p.clone(), known: p.known, changed: p.changed, bytes: p.bytes}
	m.frozen.push(p.shadow)
	m.clean.push(p)
}

// set replaces one entry of a touched page and keeps the live counts.
func (m *blockMap) set(p *page, index int, e Entry) {
	old := p.at(index)
	if p.isKnown(index) && old.Content == Data {
		m.segments.addLive(old, -1)
	}
	if e.Content == Data {
		m.segments.addLive(e, +1)
	}
	p.put(index, e)
	p.known.add(index)
	p.changed.add(index)
	if m.count(p) {
		m.evict(p)
	}
}

// fill sets count entries from index on to one content without a place.
func (m *blockMap) fill(p *page, index, count int, c Content) {
	for i := index + count - 1; i >= index; i-- { // holes leave the table at its end
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
	err := m.missing(r, encoded)
	if err == nil {
		err = encoded.decode(r, &stored)
	}
	if err != nil {
		m.endLoading(p)
		return err
	}
	m.notePlain(r, encoded.delta == nil)
	frozen := p.onList == m.frozen
	for i := p.known.next(0); i < RegionBlocks; i = p.known.next(i + 1) {
		if e := stored.at(i); e.Content == Data {
			m.segments.overwritten(e, frozen || p.shadow != nil && p.shadow.isKnown(i))
		}
	}
	if p.shadow != nil {
		p.shadow.complete(&stored, stored.clone())
		m.count(p.shadow)
		p.shadow = nil
	}
	p.complete(&stored, stored.entryTable)
	p.referenced = true // somebody waits for it
	m.count(p)
	m.endLoading(p)
	m.loaded += (p.bytes - m.loaded) / 16
	return nil
}

// missing returns an error when the store has not got what it must have of a
// region that was asked for: a page that is gone is no hole.
func (m *blockMap) missing(r Region, found storedPage) error {
	switch {
	case !m.stored.Has(r) || m.unconfirmed[r]:
		return nil
	case found.whole == nil:
		return fmt.Errorf("map page of region %d is not in the store, which had it: %w", r, ErrNotThis)
	case found.delta == nil && m.deltas.Has(r):
		return fmt.Errorf("delta of region %d is not in the store, which had it: %w", r, ErrNotThis)
	}
	return nil
}

func (m *blockMap) endLoading(p *page) {
	if p.loading {
		p.loading = false
		m.loading--
	}
}

// isPlain tells whether the store has no delta of the region, for sure.
func (m *blockMap) isPlain(r Region) bool { return m.plain.Has(r) || !m.stored.Has(r) }

func (m *blockMap) notePlain(r Region, plain bool) {
	if plain {
		m.plain.Add(r)
		m.deltas.Remove(r)
	} else {
		m.plain.Remove(r)
		m.deltas.Add(r)
	}
}

// complete puts what is known over what the store holds, whose entries it takes.
func (p *page) complete(stored *page, entries entryTable) {
	for i := p.known.next(0); i < RegionBlocks; i = p.known.next(i + 1) {
		entries.put(i, p.at(i))
	}
	p.entryTable = entries
	if p.patchy {
		p.whole = stored.upTo()
	} else {
		p.patchy, p.whole = stored.patchy, stored.whole
	}
	if p.stamp.Less(stored.stamp) {
		p.stamp = stored.stamp
	}
	for i := range p.changed {
		p.changed[i] |= stored.changed[i]
	}
	p.based = stored.based
	p.loaded = true
}

// upTo returns the stamp up to which a page has every record of its region.
func (p *page) upTo() Stamp {
	if p.patchy {
		return p.whole
	}
	return p.stamp
}

// freeze moves the dirty pages to the checkpoint that begins; none is frozen.
func (m *blockMap) freeze() {
	m.begun++
	m.dirty, m.frozen = m.frozen, m.dirty
}

// unfreeze gives the frozen pages back to the dirty list, for the checkpoint
// was given up.
func (m *blockMap) unfreeze() {
	for p := m.frozen.oldest; p != nil; p = m.frozen.oldest {
		m.frozen.remove(p)
		if q := m.pages[p.region]; q != p { // a shadow: its page is dirty
			q.shadow = nil
			continue
		}
		m.dirty.push(p)
	}
}

// thaw takes an encoded page off the frozen list; it stays resident until the
// commit is confirmed.
func (m *blockMap) thaw(p *page) {
	m.frozen.remove(p)
	m.committing += p.bytes
	p.stored = m.begun
	if m.pages[p.region] == p { // not a shadow
		m.clean.push(p)
	}
}

// confirm releases the pages of a checkpoint that is durable.
func (m *blockMap) confirm() {
	m.confirmed, m.committing = m.begun, 0
	clear(m.unconfirmed)
}

// retract makes the pages dirty again whose commit failed, to be stored as wholes:
// nobody knows what is in the store. A shadow's page is dirty already, for it
// changed after the freeze, and knows all that did before.
func (m *blockMap) retract(pages []*page) {
	m.committing = 0
	for _, p := range pages {
		m.plain.Remove(p.region)
		m.deltas.Remove(p.region)
		if m.pages[p.region] == p {
			p.based = false
			m.markDirty(p)
		}
	}
}
