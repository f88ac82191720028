package journal

import (
	"math/rand/v2"
	"testing"
)

// pageStore is a store of a few pages. A commit may fail, and then be there or
// not.
type pageStore map[string][]byte

func (s pageStore) apply(pairs []Pair) {
	for _, p := range pairs {
		if p.Value == nil {
			delete(s, string(p.Key))
		} else {
			s[string(p.Key)] = p.Value
		}
	}
}

func (s pageStore) page(t *testing.T, r Region) *page {
	t.Helper()
	values := make([][]byte, 0, 2)
	keys := storedPageKeys(nil, 0, r, false)
	for _, key := range keys {
		values = append(values, s[string(key)])
	}
	p := &page{}
	if err := cutStoredPage(&keys, &values).decode(r, p); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestDeltas changes pages at random, a few entries or many, between checkpoints
// of which some fail, with or without having been stored; pages are evicted and
// come back, some of them while they are being stored. After every checkpoint that
// succeeds the store holds what the pages were when it began.
func TestDeltas(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		const regions = 3
		store := pageStore{}
		table := newSegmentTable()
		table.add(&segmentInfo{index: 1, life: 1, live: 1 << 20})
		var pairs []Pair
		var encoded []*page
		m := newBlockMap(1<<20, table)
		m.encodeNow = func(p *page) {
			var plain bool
			pairs, plain = p.store(pairs, 0, m.isPlain(p.region))
			m.notePlain(p.region, plain)
			encoded = append(encoded, p)
			m.thaw(p)
			m.stored.Add(p.region)
		}
		var want [regions][RegionBlocks]Entry
		change := func(most int) {
			r := Region(rng.IntN(regions))
			p := m.touch(r, Stamp{})
			for range rng.IntN(most) {
				i := rng.IntN(RegionBlocks)
				want[r][i] = Entry{Content: Content(rng.IntN(3))}
				if want[r][i].Content == Data {
					want[r][i] = Entry{Segment: 1, Life: 1, Block: uint16(rng.IntN(500)), Content: Data, CRC: rng.Uint32()}
				}
				m.set(p, i, want[r][i])
			}
		}
		load := func(r Region) {
			var values [][]byte
			keys := storedPageKeys(nil, 0, r, m.isPlain(r))
			for _, key := range keys {
				values = append(values, store[string(key)])
			}
			if err := m.install(r, cutStoredPage(&keys, &values)); err != nil {
				t.Fatal(err)
			}
		}
		for range 60 {
			change([]int{4, 20, 200}[rng.IntN(3)])
			if r := Region(rng.IntN(regions)); rng.IntN(3) == 0 && m.pages[r] != nil && m.pages[r].onList == &m.clean && m.evictable(m.pages[r]) {
				m.clean.remove(m.pages[r])
				delete(m.pages, r)
			}
			if rng.IntN(2) == 0 {
				continue
			}
			begun := want
			pairs, encoded = nil, nil
			m.freeze()
			for m.frozen.oldest != nil {
				if rng.IntN(3) == 0 {
					change(10)
				} else if p := m.frozen.oldest; p.loaded {
					m.encodeNow(p)
				} else {
					load(p.region)
				}
			}
			failed := rng.IntN(4) == 0
			if !failed || rng.IntN(2) == 0 {
				store.apply(pairs)
			}
			if failed {
				m.retract(encoded)
			} else {
				m.confirm()
			}
			for r := range Region(regions) {
				if p := store.page(t, r); !failed && p.all() != begun[r] {
					t.Fatalf("seed %d: region %d is not what it was when the checkpoint began", seed, r)
				}
			}
			m.wanted = nil
		}
	}
}

// TestEntryTable puts entries at random, holes among them, and compares with an
// array; what a table takes follows what it holds.
func TestEntryTable(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	var table entryTable
	var model [RegionBlocks]Entry
	for n := range 20_000 {
		i, e := rng.IntN(RegionBlocks), Entry{Content: Content(rng.IntN(3))}
		if e.Content == Data {
			e = Entry{Segment: rng.Uint32(), Life: 1, CRC: rng.Uint32(), Block: uint16(n), Content: Data}
		}
		if n/5000%2 == 1 {
			e = Entry{} // now they become fewer
		}
		table.put(i, e)
		model[i] = e
		if at := rng.IntN(RegionBlocks); table.at(at) != model[at] {
			t.Fatalf("entry %d is %+v, expected %+v", at, table.at(at), model[at])
		}
		if n%100 == 0 && (table.all() != model || len(table.packed) != table.held.len()) {
			t.Fatalf("after %d: %d packed entries of %d", n, len(table.packed), table.held.len())
		}
	}
}
