package arena

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"sync/atomic"
	"unsafe"
)

// RecordKind is what a record did to its blocks.
type RecordKind uint8

// The kinds of records. 0 is none of them, so that zeroed memory is no record.
const (
	Write RecordKind = 1 + iota // the block holds the page's bytes
	Trim                        // the blocks are a hole
	Zero                        // the blocks are zeros, allocated
)

// Stamp is a record's place in its shard's history.
type Stamp struct {
	Generation uint64 // of the activation that gave the LSN
	LSN        uint64 // sequence number within the shard
}

// Record describes what a page holds.
type Record struct {
	Shard uint16
	Kind  RecordKind
	LBA   uint64 // block address of the first block
	Count uint32 // blocks: 1 for Write, any number from 1 on for Trim and Zero
	CRC   uint32 // CRC32C of the page for Write, 0 otherwise
	Stamp
}

// Recovered is a record that Recover found.
type Recovered struct {
	Page   Page
	Record Record
	// Err wraps ErrDamaged when the record or its payload does not match its
	// checksum; Record is then what could be read, and not to be believed.
	Err error
}

// ErrDamaged tells that a page was published, but is not what was published.
var ErrDamaged = errors.New("arena record is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// pageRecord is a record in shared memory; the package comment draws it. Only
// commit is read while another thread may write.
type pageRecord struct {
	commit     atomic.Uint64
	lba        uint64
	count      uint32
	payloadCRC uint32
	page       uint32
	shard      uint16
	kind       RecordKind
	_          uint8
	stamps     [2]Stamp
}

const (
	recordSize = 64
	fieldsAt   = 8
	stampsAt   = 32
	stampSize  = 16
)

// The drawing in the package comment and the struct must agree.
var (
	_ [recordSize - unsafe.Sizeof(pageRecord{})]struct{}
	_ [unsafe.Sizeof(pageRecord{}) - recordSize]struct{}
	_ [stampsAt - unsafe.Offsetof(pageRecord{}.stamps)]struct{}
	_ [unsafe.Offsetof(pageRecord{}.stamps) - stampsAt]struct{}
)

// commitTag marks a commit word of a page that holds a record.
const commitTag = 'T'<<16 | 'R'<<8 | 'V'

// commitWord makes the word that publishes a record under stamps[selector].
func (r *pageRecord) commitWord(selector int) uint64 {
	return commitTag<<40 | uint64(selector)<<32 | uint64(r.checksum(selector))
}

// checksum covers everything that selector makes valid. It reads the bytes in
// place: a copy on the stack would escape to the heap through crc32.
func (r *pageRecord) checksum(selector int) uint32 {
	raw := (*[recordSize]byte)(unsafe.Pointer(r))
	at := stampsAt + selector*stampSize
	crc := crc32.Update(0, castagnoli, raw[fieldsAt:stampsAt])
	return crc32.Update(crc, castagnoli, raw[at:at+stampSize])
}

// clear withdraws the record with one store. Pages that never were published
// are common (reads, failed requests), and a plain load is cheaper.
func (r *pageRecord) clear() {
	if r.commit.Load() != 0 {
		r.commit.Store(0)
	}
}

// Put publishes what the page holds: from its last instruction on, the record
// outlives the process. The page's bytes must be complete, and stay as they
// are until Free. The page must be the caller's and hold no record yet; Put
// panics when it does, or when the record is impossible.
func (a *Arena) Put(p Page, rec Record) {
	r := &a.table[p]
	if old := r.commit.Load(); old != 0 {
		panic(fmt.Sprintf("arena: page %d already holds a record, commit word %#x", p, old))
	}
	if err := rec.validate(len(a.retired)); err != nil {
		panic(fmt.Sprintf("arena: page %d: %v", p, err))
	}
	r.lba, r.count, r.payloadCRC = rec.LBA, rec.Count, rec.CRC
	r.page, r.shard, r.kind = uint32(p), rec.Shard, rec.Kind
	r.stamps[0] = rec.Stamp
	r.commit.Store(r.commitWord(0))
	a.changed()
}

// Restamp gives a published record another place in history, as an activation
// does with what it recovered. It panics when the page holds no record.
//
// A kill in the middle leaves the old stamp or the new one: the record has two,
// and the commit word says which counts. The new stamp is written to the one
// that does not count, which changes nothing that is valid. Then one atomic
// store of the commit word changes both which stamp counts and the checksum
// that it is to match. Clearing the record and writing it again would not do:
// a kill in between would lose an acknowledged write.
func (a *Arena) Restamp(p Page, s Stamp) {
	r := &a.table[p]
	old := r.commit.Load()
	if old>>40 != commitTag {
		panic(fmt.Sprintf("arena: page %d holds no record, commit word %#x", p, old))
	}
	selector := 1 - int(old>>32&1)
	r.stamps[selector] = s
	r.commit.Store(r.commitWord(selector))
	a.changed()
}

// Withdraw ends the records of pages in the order given, as Free does, and
// leaves the pages to their owner: the kernel may still be reading them.
func (a *Arena) Withdraw(pages ...Page) {
	for _, p := range pages {
		a.table[p].clear()
		a.changed()
	}
}

// validate checks what Put may be given and Recover may believe.
func (rec *Record) validate(shards int) error {
	switch {
	case rec.Kind < Write || rec.Kind > Zero:
		return fmt.Errorf("kind %d, want %d to %d", rec.Kind, Write, Zero)
	case int(rec.Shard) >= shards:
		return fmt.Errorf("shard %d, want less than %d", rec.Shard, shards)
	case rec.Count == 0 || rec.Kind == Write && rec.Count != 1:
		return fmt.Errorf("count %d of kind %d, want 1 or, for a range, more", rec.Count, rec.Kind)
	}
	return nil
}

// Recover returns the records of an arena that Open found, sorted by shard,
// generation, LSN and address, damaged ones at the end. Their pages are
// allocated, damaged ones too, and now the caller's to free; all others are
// free. It reads every page that holds a write, to check it: 64 MiB take some
// 10 ms. The error wraps os.ErrClosed after Close.
func (a *Arena) Recover() ([]Recovered, error) {
	if a.mapped == nil {
		return nil, fmt.Errorf("arena: recover %s: %w", a.path, os.ErrClosed)
	}
	found := make([]Recovered, 0, a.records())
	for p := range Page(len(a.table)) {
		if commit := a.table[p].commit.Load(); commit != 0 {
			found = append(found, a.recoverPage(p, commit))
		}
	}
	slices.SortFunc(found, func(x, y Recovered) int {
		if x.Err != nil || y.Err != nil {
			return cmp.Compare(damage(x), damage(y))
		}
		return compareRecords(&x.Record, &y.Record)
	})
	return found, nil
}

// recoverPage reads and checks one record.
func (a *Arena) recoverPage(p Page, commit uint64) Recovered {
	r := &a.table[p]
	selector := int(commit >> 32 & 1)
	rec := Record{
		Shard: r.shard, Kind: r.kind, LBA: r.lba, Count: r.count, CRC: r.payloadCRC,
		Stamp: r.stamps[selector],
	}
	err := r.verify(p, commit)
	if err == nil {
		err = rec.validate(len(a.retired))
	}
	if err == nil && rec.Kind == Write {
		if crc := crc32.Checksum(a.Bytes(p), castagnoli); crc != rec.CRC {
			err = fmt.Errorf("payload CRC %#x, want %#x", crc, rec.CRC)
		}
	}
	if err != nil {
		err = fmt.Errorf("arena: recover page %d of %s: %w: %w", p, a.path, ErrDamaged, err)
	}
	return Recovered{Page: p, Record: rec, Err: err}
}

// verify checks a record against its commit word.
func (r *pageRecord) verify(p Page, commit uint64) error {
	if want := r.commitWord(int(commit >> 32 & 1)); commit != want {
		return fmt.Errorf("commit word %#x, want %#x", commit, want)
	}
	if r.page != uint32(p) {
		return fmt.Errorf("record belongs to page %d", r.page)
	}
	return nil
}

// damage orders damaged records behind the others, by page.
func damage(r Recovered) int64 {
	if r.Err == nil {
		return -1
	}
	return int64(r.Page)
}

func compareRecords(x, y *Record) int {
	return cmp.Or(
		cmp.Compare(x.Shard, y.Shard),
		cmp.Compare(x.Generation, y.Generation),
		cmp.Compare(x.LSN, y.LSN),
		cmp.Compare(x.LBA, y.LBA),
	)
}

// records counts the pages that hold a record, damaged or not.
func (a *Arena) records() int {
	n := 0
	for i := range a.table {
		if a.table[i].commit.Load() != 0 {
			n++
		}
	}
	return n
}
