package journal

// Lookup returns the map's entry of a block. known is false while its page is
// not in memory: it has been asked for, and a Pump hands that over.
func (l *Lane) Lookup(lba LBA) (e Entry, known bool) { return l.blocks.lookup(lba) }

// StillAt tells whether the block's entry is known and still names the place.
func (l *Lane) StillAt(lba LBA, e Entry) bool {
	now, known := l.blocks.lookup(lba)
	return known && now.samePlace(e)
}

// AddRegions adds every region of which the lane's map has a page.
func (l *Lane) AddRegions(to RegionSet) {
	to.AddAll(l.blocks.stored)
	for g := range l.blocks.pages {
		to.Add(g)
	}
}

// Pin keeps the entry's segment from being recycled until Unpin. It returns
// false when that life of the segment has ended.
func (l *Lane) Pin(e Entry) bool {
	s := l.segments.of(e)
	if s != nil {
		s.pins++
	}
	return s != nil
}

// Unpin ends a Pin of the same entry.
func (l *Lane) Unpin(e Entry) {
	s := l.segments.of(e)
	if s == nil || s.pins == 0 {
		panic("journal: unpin of a segment that is not pinned")
	}
	s.pins--
	if s.dead && s.pins == 0 {
		l.recycle()
	}
}

// Pins returns the number of pins held, which is 0 once all reads are done.
func (l *Lane) Pins() (n int) {
	for _, s := range l.segments.order {
		n += int(s.pins)
	}
	return n
}

// Usage is what a lane holds, for status.
type Usage struct {
	Segments   int
	LogBytes   int64 // in those segments, descriptors included
	LiveBytes  int64
	Pages      int // map pages in memory
	DirtyPages int
}

// Usage returns what the lane holds.
func (l *Lane) Usage() Usage {
	u := Usage{Segments: len(l.segments.order), Pages: len(l.blocks.pages), DirtyPages: l.blocks.dirty.len}
	for _, s := range l.segments.order {
		u.LogBytes += int64(s.used) * BlockSize
		u.LiveBytes += int64(s.live) * BlockSize
	}
	return u
}

// SegmentsInUse returns the indexes of the segments that the lane's table
// holds, the prepared one excepted.
func (l *Lane) SegmentsInUse() []uint32 {
	var in []uint32
	for _, s := range l.segments.order {
		in = append(in, s.index)
	}
	return in
}

// BacklogBytes returns the payload of the records that were not yet handed to
// the log.
func (l *Lane) BacklogBytes() uint64 { return (l.window.itemNext - l.batchedItem) * BlockSize }

// UnsyncedBytes returns the bytes that were appended since the last sync began.
func (l *Lane) UnsyncedBytes() uint64 { return uint64(l.unsynced) }
