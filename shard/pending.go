package shard

import "trivet/journal"

// pendingIndex knows, for every block that a record in the window changes,
// the newest such record. What it names is newer than any lane's map.
// Owner: the shard.
type pendingIndex struct {
	regions map[journal.Region]*pendingRegion // never ranged over
	window  *journal.Window
	spare   []*pendingRegion
}

// pendingRegion holds a reference for each block: 0 when nothing is pending,
// else a position in the window plus one, with rangeRef set when it is that of
// a record without payload instead of an item's.
type pendingRegion struct {
	count int // blocks that have a reference
	refs  [journal.RegionBlocks]uint32
}

const rangeRef = 1 << 31

// lookup returns the region's references, or nil.
func (x *pendingIndex) lookup(r journal.Region) *pendingRegion { return x.regions[r] }

// content tells what a reference says of its block; item is valid for Data.
func (x *pendingIndex) content(ref uint32) (c journal.Content, item journal.Item) {
	if ref&rangeRef == 0 {
		return journal.Data, x.window.ItemAtPosition(ref - 1)
	}
	if x.window.AtPosition(ref&^rangeRef-1).Kind == journal.KindZero {
		return journal.Zero, item
	}
	return journal.Hole, item
}

// lsn returns the LSN of the record that a reference names.
func (x *pendingIndex) lsn(ref uint32) journal.LSN {
	if ref&rangeRef == 0 {
		return x.window.LSNOfItem(ref - 1)
	}
	return x.window.AtPosition(ref&^rangeRef - 1).LSN
}

// add enters a record that was just added to the window.
func (x *pendingIndex) add(r *journal.Record) {
	region := x.regions[r.LBA.Region()]
	if region == nil {
		if n := len(x.spare); n > 0 {
			region, x.spare = x.spare[n-1], x.spare[:n-1]
		} else {
			region = new(pendingRegion)
		}
		x.regions[r.LBA.Region()] = region
	}
	first := r.LBA.Index()
	for i := range int(r.Count) {
		if region.refs[first+i] == 0 {
			region.count++
		}
		region.refs[first+i] = x.reference(r, i)
	}
}

// retire removes what still refers to the record.
func (x *pendingIndex) retire(r *journal.Record) {
	region := x.regions[r.LBA.Region()]
	if region == nil || r.Count == 0 {
		return
	}
	first := r.LBA.Index()
	for i := range int(r.Count) {
		if region.refs[first+i] == x.reference(r, i) {
			region.refs[first+i] = 0
			region.count--
		}
	}
	if region.count == 0 {
		delete(x.regions, r.LBA.Region())
		x.spare = append(x.spare, region)
	}
}

func (x *pendingIndex) reference(r *journal.Record, i int) uint32 {
	if r.Kind == journal.KindWrite {
		return x.window.ItemPosition(r, i) + 1
	}
	return rangeRef | (x.window.Position(r) + 1)
}
