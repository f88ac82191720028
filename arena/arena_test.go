package arena

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"testing"
)

var testVolume = [16]byte{0x7f, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

// tmpfsDir returns a directory of the test's own on tmpfs.
func tmpfsDir(t testing.TB) string {
	if kindOf(defaultDir) != TmpFS {
		t.Skipf("there is no tmpfs at %s", defaultDir)
	}
	dir, err := os.MkdirTemp(defaultDir, "trivet-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// options returns a small arena's options in a tmpfs directory of its own.
func options(t testing.TB, pages int) Options {
	return Options{Volume: testVolume, Dir: tmpfsDir(t), SizeBytes: int64(pages) * PageSize, Shards: 4}
}

func open(t testing.TB, o Options) *Arena {
	a, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeArena(t, a) })
	return a
}

func closeArena(t testing.TB, a *Arena) {
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// alloc allocates one page.
func alloc(t testing.TB, a *Arena) Page {
	var page [1]Page
	if !a.Alloc(1, page[:]) {
		t.Fatal("no page is free")
	}
	return page[0]
}

// fillWrite writes a payload that depends on seed into p, and returns its record.
func fillWrite(a *Arena, p Page, lba, seed uint64, s Stamp) Record {
	b := a.Bytes(p)
	for at := 0; at < PageSize; at += 8 {
		binary.NativeEndian.PutUint64(b[at:], seed+uint64(at))
	}
	return Record{Kind: Write, LBA: lba, Count: 1, CRC: crc32.Checksum(b, castagnoli), Stamp: s}
}

func recoverAll(t testing.TB, a *Arena) []Recovered {
	found, err := a.Recover()
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestRetiredOnlyGrows(t *testing.T) {
	o := options(t, 4)
	a := open(t, o)
	a.Retired(1, 10)
	a.Retired(1, 7)
	closeArena(t, a)
	a = open(t, o)
	if one, zero := retired(t, a, 1), retired(t, a, 0); one != 10 || zero != 0 {
		t.Errorf("retired %d and %d, want 10 and 0", one, zero)
	}
}

func retired(t testing.TB, a *Arena, shard uint16) uint64 {
	lsn, err := a.RetiredLSN(shard)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

// TestNotify parks an allocation and frees too little, then enough.
func TestNotify(t *testing.T) {
	o := options(t, 8)
	calls := 0
	var a *Arena
	o.Notify = func() {
		calls++
		a.FreePages() // would deadlock under the lock
	}
	a = open(t, o)
	pages := make([]Page, 8)
	if !a.Alloc(8, pages) {
		t.Fatal("no room in a new arena")
	}
	a.Free(pages[0])
	if calls != 0 {
		t.Fatal("notified although nobody had failed")
	}
	if a.Alloc(2, make([]Page, 2)) || a.FreePages() != 1 {
		t.Fatalf("2 pages of 1, or part of them: %d left", a.FreePages())
	}
	a.Free()
	if calls != 0 {
		t.Fatal("notified although nothing was freed")
	}
	a.Free(pages[1])
	a.Free(pages[2])
	if calls != 1 {
		t.Fatalf("notified %d times, want once for one failure", calls)
	}
}

// TestAllocSparing: what is spared is left to Alloc, and a Free after a refusal
// is told to whoever was refused.
func TestAllocSparing(t *testing.T) {
	told := 0
	o := options(t, 10)
	o.Notify = func() { told++ }
	a := open(t, o)
	var pages [10]Page
	if !a.AllocSparing(4, 6, pages[:]) {
		t.Fatal("6 of 10 pages were refused, sparing 4")
	}
	if a.AllocSparing(4, 1, pages[6:]) {
		t.Fatal("a page was given that was to be spared")
	}
	if !a.Alloc(3, pages[6:]) {
		t.Fatal("what was spared is not there")
	}
	a.Free(pages[0])
	if told != 1 {
		t.Errorf("told %d times that a page is free, expected once", told)
	}
	a.Free(pages[1:9]...)
}

func TestSpansMergeNeighbours(t *testing.T) {
	a := open(t, options(t, 16))
	spans := a.Spans(nil, []Page{3, 4, 5, 9, 8, 10})
	lengths := []int{3, 1, 1, 1}
	if len(spans) != len(lengths) {
		t.Fatalf("%d spans, want %d", len(spans), len(lengths))
	}
	for i, n := range lengths {
		if len(spans[i]) != n*PageSize || cap(spans[i]) != n*PageSize {
			t.Errorf("span %d has %d bytes, room for %d, want %d pages", i, len(spans[i]), cap(spans[i]), n)
		}
	}
	if &spans[0][PageSize] != &a.Bytes(4)[0] {
		t.Error("the second page of the first span is not page 4")
	}
}

func TestMisuseIsCaught(t *testing.T) {
	a := open(t, options(t, 8))
	live, unpublished, freed := alloc(t, a), alloc(t, a), alloc(t, a)
	a.Put(live, fillWrite(a, live, 1, 1, Stamp{1, 1}))
	a.Free(freed)
	for name, misuse := range map[string]func(){
		"freed twice":        func() { a.Free(freed) },
		"published twice":    func() { a.Put(live, Record{Kind: Write, Count: 1}) },
		"restamped nothing":  func() { a.Restamp(unpublished, Stamp{}) },
		"no kind":            func() { a.Put(unpublished, Record{Count: 1}) },
		"two blocks, a page": func() { a.Put(unpublished, Record{Kind: Write, Count: 2}) },
		"unknown shard":      func() { a.Put(unpublished, Record{Kind: Trim, Count: 2, Shard: 4}) },
		"too many at once":   func() { a.Alloc(MaxAlloc+1, make([]Page, MaxAlloc+1)) },
		"none":               func() { a.Alloc(0, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("want a panic")
				}
			}()
			misuse()
		})
	}
}

func TestSteadyStateDoesNotAllocate(t *testing.T) {
	a := open(t, options(t, 600))
	pages, spans := make([]Page, 8), make([][]byte, 0, 8)
	lsn := uint64(0)
	if n := testing.AllocsPerRun(1000, func() {
		lsn++
		if !a.Alloc(len(pages), pages) {
			t.Fatal("full")
		}
		spans = a.Spans(spans[:0], pages)
		for _, p := range pages {
			a.Put(p, Record{Kind: Write, LBA: lsn, Count: 1, Stamp: Stamp{1, lsn}})
			a.Restamp(p, Stamp{2, lsn})
		}
		a.Free(pages...)
		a.Retired(1, lsn)
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}
