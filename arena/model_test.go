package arena

import (
	"errors"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// model is an arena checked against plain maps, through restarts.
type model struct {
	options Options
	arena   *Arena
	held    map[Page]bool   // allocated, not published
	live    map[Page]Record // published
	lsn     uint64
}

func (m *model) draw(t *rapid.T, from []Page) Page {
	if len(from) == 0 {
		t.Skip("no such page")
	}
	slices.Sort(from)
	return rapid.SampledFrom(from).Draw(t, "page")
}

func (m *model) drawHeld(t *rapid.T) Page { return m.draw(t, keys(m.held)) }
func (m *model) drawLive(t *rapid.T) Page { return m.draw(t, keys(m.live)) }

func keys[V any](of map[Page]V) []Page {
	pages := make([]Page, 0, len(of))
	for p := range of {
		pages = append(pages, p)
	}
	return pages
}

func (m *model) drawStamp(t *rapid.T) Stamp {
	m.lsn++
	return Stamp{rapid.Uint64Range(1, 3).Draw(t, "generation"), m.lsn}
}

func (m *model) taken(p Page) bool {
	_, live := m.live[p]
	return live || m.held[p]
}

func (m *model) alloc(t *rapid.T) {
	n := rapid.IntRange(1, 80).Draw(t, "n")
	free, run := m.freeRuns()
	dst := slices.Repeat([]Page{9999}, n+1)
	ok := m.arena.Alloc(n, dst)
	if ok != (n <= free) {
		t.Fatalf("Alloc(%d) reports %v with %d free", n, ok, free)
	}
	if !ok {
		return
	}
	for i, p := range dst[:n] {
		if m.taken(p) || int(p) >= m.arena.Pages() || i > 0 && p <= dst[i-1] {
			t.Fatalf("page %d is in use, out of range or out of order in %d", p, dst)
		}
		m.held[p] = true
	}
	if contiguous := dst[n-1]-dst[0] == Page(n-1); contiguous != (run >= n) {
		t.Fatalf("Alloc(%d) gives %d with a run of %d free", n, dst, run)
	}
	if dst[n] != 9999 {
		t.Fatal("Alloc wrote behind dst[:n]")
	}
}

// freeRuns counts the free pages and the longest run of them.
func (m *model) freeRuns() (free, longest int) {
	length := 0
	for p := range Page(m.arena.Pages()) {
		if m.taken(p) {
			length = 0
			continue
		}
		free, length = free+1, length+1
		longest = max(longest, length)
	}
	return free, longest
}

func (m *model) put(t *rapid.T) {
	p := m.drawHeld(t)
	lba := rapid.Uint64Range(0, 3).Draw(t, "lba")
	rec := Record{Kind: Trim, LBA: lba, Count: 77, Stamp: m.drawStamp(t)}
	if rapid.Bool().Draw(t, "write") {
		rec = fillWrite(m.arena, p, lba, m.lsn, rec.Stamp)
	}
	rec.Shard = rapid.Uint16Range(0, 3).Draw(t, "shard")
	m.arena.Put(p, rec)
	delete(m.held, p)
	m.live[p] = rec
}

func (m *model) restamp(t *rapid.T) {
	p, s := m.drawLive(t), m.drawStamp(t)
	m.arena.Restamp(p, s)
	rec := m.live[p]
	rec.Stamp = s
	m.live[p] = rec
}

func (m *model) free(t *rapid.T) {
	n := rapid.IntRange(1, 30).Draw(t, "n")
	pages := append(keys(m.held), keys(m.live)...)
	slices.Sort(pages)
	pages = rapid.Permutation(pages).Draw(t, "order")
	pages = pages[:min(n, len(pages))]
	m.arena.Free(pages...)
	for _, p := range pages {
		delete(m.held, p)
		delete(m.live, p)
	}
}

// restart closes and opens: what was held is free, what was published is back.
func (m *model) restart(t *rapid.T) {
	if err := m.arena.Close(); err != nil {
		t.Fatal(err)
	}
	a, err := Open(m.options)
	if err != nil {
		t.Fatal(err)
	}
	m.arena = a
	clear(m.held)
	found, err := a.Recover()
	if err != nil || len(found) != len(m.live) || a.Created() {
		t.Fatalf("recovered %d records, %v, created %v, want %d", len(found), err, a.Created(), len(m.live))
	}
	for i, r := range found {
		if r.Err != nil || r.Record != m.live[r.Page] {
			t.Fatalf("page %d: recovered %+v, %v, want %+v", r.Page, r.Record, r.Err, m.live[r.Page])
		}
		if i > 0 && compareRecords(&found[i-1].Record, &r.Record) > 0 {
			t.Fatalf("records %+v and %+v are out of order", found[i-1].Record, r.Record)
		}
	}
}

func (m *model) check(t *rapid.T) {
	if got, want := m.arena.Live(), len(m.held)+len(m.live); got != want || m.arena.FreePages() != m.arena.Pages()-want {
		t.Fatalf("%d pages live, %d free, want %d live of %d", got, m.arena.FreePages(), want, m.arena.Pages())
	}
}

// TestModel drives a small arena with random operations and restarts.
func TestModel(t *testing.T) {
	o := options(t, 0)
	rapid.Check(t, func(t *rapid.T) {
		o.SizeBytes = int64(rapid.IntRange(1, 200).Draw(t, "pages")) * PageSize
		a, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		m := &model{options: o, arena: a, held: map[Page]bool{}, live: map[Page]Record{}}
		defer m.discard(t)
		t.Repeat(map[string]func(*rapid.T){
			"alloc": m.alloc, "put": m.put, "restamp": m.restamp, "free": m.free, "restart": m.restart, "": m.check,
		})
	})
}

// discard removes the arena, which it must refuse while anything is published.
func (m *model) discard(t *rapid.T) {
	if len(m.live) > 0 {
		if err := m.arena.Discard(); !errors.Is(err, ErrLive) {
			t.Errorf("Discard with %d records: %v, want ErrLive", len(m.live), err)
		}
	}
	m.arena.Free(keys(m.live)...)
	path := m.arena.Path()
	if err := m.arena.Discard(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file after Discard: %v", err)
	}
}
