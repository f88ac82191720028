package journal

import (
	"fmt"
	"sort"
)

// Window holds a shard's records that are not yet safe on every lane, in LSN
// order, with the payload that they pin. The three lanes of the shard share
// it: each has its own place in it and takes from there. Both rings are
// allocated once. Owner: the shard.
type Window struct {
	first, next LSN // the records first … next-1 are held
	records     []Record
	items       []Item
	itemFirst   uint64
	itemNext    uint64
}

// Record is one change of a shard's blocks.
type Record struct {
	LSN   LSN
	LBA   LBA
	Count uint16 // blocks, all in one region
	Kind  Kind
	items uint16 // payload or reservation pages
	item  uint64 // position of the first one
}

// Item is one page of payload in the arena and its checksum. A record without
// payload may hold a page for its stamp alone.
type Item struct {
	Page uint32
	CRC  uint32
}

// NewWindow makes a window for LSNs from first on. records and items are the
// most that it holds; they are rounded up to powers of two.
func NewWindow(first LSN, records, items int) *Window {
	return &Window{
		first: first, next: first,
		records: make([]Record, powerOfTwo(records)),
		items:   make([]Item, powerOfTwo(items)),
	}
}

func powerOfTwo(n int) int {
	p := 1
	for p < n {
		p *= 2
	}
	return p
}

// First returns the oldest LSN held; Next() when the window is empty.
func (w *Window) First() LSN { return w.first }

// Next returns the LSN that the next record gets.
func (w *Window) Next() LSN { return w.next }

// Last returns the LSN of the newest record, whether still held or not.
func (w *Window) Last() LSN { return w.next - 1 }

// Room tells whether a record with n items can be added.
func (w *Window) Room(n int) bool {
	return int(w.next-w.first) < len(w.records) && int(w.itemNext-w.itemFirst)+n <= len(w.items)
}

// Add appends a record and returns it with its LSN. The caller has made sure
// of Room, and adds the items at once with Item.
func (w *Window) Add(kind Kind, lba LBA, count int) *Record {
	if !w.Room(0) {
		panic(fmt.Sprintf("journal: window of %d records is full", len(w.records)))
	}
	r := &w.records[int(w.next)&(len(w.records)-1)]
	*r = Record{LSN: w.next, LBA: lba, Count: uint16(count), Kind: kind, item: w.itemNext}
	w.next++
	return r
}

// AddItem appends a page to the record that was added last.
func (w *Window) AddItem(r *Record, it Item) {
	if r.LSN != w.next-1 || int(w.itemNext-w.itemFirst) >= len(w.items) {
		panic("journal: item added to a full window or an old record")
	}
	w.items[int(w.itemNext)&(len(w.items)-1)] = it
	w.itemNext++
	r.items++
}

// At returns the held record with the LSN.
func (w *Window) At(lsn LSN) *Record {
	if lsn < w.first || lsn >= w.next {
		panic(fmt.Sprintf("journal: record %d is not in the window %d to %d", lsn, w.first, w.next))
	}
	return &w.records[int(lsn)&(len(w.records)-1)]
}

// Items returns the number of the record's items.
func (w *Window) Items(r *Record) int { return int(r.items) }

// ItemAt returns the record's i-th item.
func (w *Window) ItemAt(r *Record, i int) Item {
	return w.items[int(r.item+uint64(i))&(len(w.items)-1)]
}

// Retire drops the oldest record, which the caller has released.
func (w *Window) Retire() {
	w.itemFirst += uint64(w.At(w.first).items)
	w.first++
}

// Position returns a number that names the record while it is held.
func (w *Window) Position(r *Record) uint32 { return uint32(int(r.LSN) & (len(w.records) - 1)) }

// ItemPosition returns a number that names the record's i-th item while it is
// held.
func (w *Window) ItemPosition(r *Record, i int) uint32 {
	return uint32(int(r.item+uint64(i)) & (len(w.items) - 1))
}

// LSNOfItem returns the LSN of the held record that has the item with the position.
func (w *Window) LSNOfItem(p uint32) LSN {
	mask := uint64(len(w.items) - 1)
	item := w.itemFirst + (uint64(p)-w.itemFirst)&mask
	n := sort.Search(int(w.next-w.first), func(i int) bool { return w.At(w.first+LSN(i)).item > item })
	return w.first + LSN(n) - 1
}

// AtPosition returns the record, and ItemAtPosition the item, of that name.
func (w *Window) AtPosition(p uint32) *Record { return &w.records[p] }

// ItemAtPosition returns the item with the position.
func (w *Window) ItemAtPosition(p uint32) Item { return w.items[p] }
