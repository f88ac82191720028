package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A page is stored as a whole, and what changed since in a delta beside it, which
// holds the present entries of all that ever changed; once they are too many, the
// page is stored again. A checkpoint of a log that is written at random changes a
// few entries of every page: deltas make it several times smaller.
//
// Both have the same form. All integers are little-endian.
//
//	0 8 region
//	8 8 generation of the stamp
//	16 8 LSN of the stamp
//	24 2 number of runs; its highest bit: the page is patchy
//	26 2 number of places
//	28   of a patchy page: generation (8) and LSN (8) up to which it is whole
//	     places: segment (4), life (4), each named by its number
//	     runs: first index (1), length - 1 (1), content (1), place (1), and for
//	     data first block (2), one CRC32C (4) a block; for lost blocks the CRCs alone
//	end  CRC32C (4) of all before
//
// What no run of a whole page covers is a hole; in a delta, it is unchanged.
const (
	pageFixed    = 28
	pageWhole    = 16
	pagePatchy   = 1 << 15
	placeFixed   = 8
	runFixed     = 4
	runDataFixed = runFixed + 2
)

const (
	// mostChanged is how many entries a delta holds at most.
	mostChanged = RegionBlocks / 4
	// fewEntries make a page that is hardly longer than a delta: it has none, so
	// that one key is read for it and not two.
	fewEntries = 8
)

// storedPage is what the store holds of a region: the page and its delta, each
// nil when there is none.
type storedPage struct{ whole, delta []byte }

// storedPageKeys appends the keys under which the store has a region; plain: it
// has no delta.
func storedPageKeys(keys [][]byte, shard uint16, r Region, plain bool) [][]byte {
	keys = append(keys, pageKey(shard, r))
	if plain {
		return keys
	}
	return append(keys, deltaKey(shard, r))
}

// cutStoredPage takes the first region off what was asked of the store and what it
// returned.
func cutStoredPage(keys, values *[][]byte) (s storedPage) {
	n := 1
	if s.whole = (*values)[0]; len(*keys) > 1 && (*keys)[1][0] == keyDelta {
		s.delta, n = (*values)[1], 2
	}
	*keys, *values = (*keys)[n:], (*values)[n:]
	return s
}

// decode reads what the store holds of region r.
func (s storedPage) decode(r Region, p *page) error {
	if s.whole == nil {
		if s.delta != nil {
			return fmt.Errorf("map page of region %d: there is only a delta: %w", r, ErrNotThis)
		}
		return nil
	}
	if err := decodePage(s.whole, r, p, nil); err != nil {
		return err
	}
	p.based = true
	if s.delta == nil {
		return nil
	}
	if err := decodePage(s.delta, r, p, &p.changed); err != nil {
		return fmt.Errorf("delta: %w", err)
	}
	return nil
}

// store appends the pairs that make the store hold the page, and takes note of
// what it holds then. plain tells whether it had no delta, and whether it has none
// now.
func (p *page) store(pairs []Pair, shard uint16, plain bool) (_ []Pair, nowPlain bool) {
	var scratch [pageFixed + pageWhole + RegionBlocks*(placeFixed+runDataFixed+4) + 4]byte // a page at its longest
	if p.based && p.changed.len() <= mostChanged && len(p.packed) > fewEntries {
		delta := bytes.Clone(p.encode(scratch[:0], &p.changed))
		return append(pairs, Pair{deltaKey(shard, p.region), delta}), false
	}
	whole := bytes.Clone(p.encode(scratch[:0], nil))
	p.based, p.changed = true, entrySet{}
	pairs = append(pairs, Pair{pageKey(shard, p.region), whole})
	if !plain {
		pairs = append(pairs, Pair{deltaKey(shard, p.region), nil})
	}
	return pairs, true
}

// encode appends the page's stored form to b: of those entries alone, as a delta,
// unless only is nil.
func (p *page) encode(b []byte, only *entrySet) []byte {
	if only == nil {
		only = &p.held
	}
	start := len(b)
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(p.region))
	b = le.AppendUint64(b, uint64(p.stamp.Generation))
	b = le.AppendUint64(b, uint64(p.stamp.LSN))
	countAt, runs := len(b), 0
	b = append(b, 0, 0, 0, 0)
	if p.patchy {
		runs = pagePatchy
		b = le.AppendUint64(b, uint64(p.whole.Generation))
		b = le.AppendUint64(b, uint64(p.whole.LSN))
	}
	placesAt := len(b)
	var numbers [RegionBlocks]uint8
	b = p.encodePlaces(b, &numbers, only)
	le.PutUint16(b[countAt+2:], uint16((len(b)-placesAt)/placeFixed))
	for i := only.next(0); i < RegionBlocks; runs++ {
		e, n := p.at(i), p.run(i, only)
		b = append(b, byte(i), byte(n-1), byte(e.Content), numbers[i])
		if e.Content == Data {
			b = le.AppendUint16(b, e.Block)
		}
		for j := 0; e.hasData() && j < n; j++ {
			b = le.AppendUint32(b, p.at(i+j).CRC)
		}
		i = only.next(i + n)
	}
	le.PutUint16(b[countAt:], uint16(runs))
	return le.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// encodePlaces appends the segments that the page names; numbers gets, by entry,
// which one it is.
func (p *page) encodePlaces(b []byte, numbers *[RegionBlocks]uint8, only *entrySet) []byte {
	le := binary.LittleEndian
	start := len(b)
	var seen [2 * RegionBlocks]uint16 // a hash table: number plus one
	last, number := Entry{}, uint8(0)
	for i := only.next(0); i < RegionBlocks; i = only.next(i + 1) {
		e := p.at(i)
		if e.Content != Data {
			continue
		}
		if last.Content == Data && last.Segment == e.Segment && last.Life == e.Life {
			numbers[i] = number
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
				last, number = e, uint8(*n-1)
				break
			}
		}
		numbers[i] = number
	}
	return b
}

// run returns how many entries of the set continue the first one, which is at i.
func (p *page) run(i int, only *entrySet) int {
	first, n := p.at(i), 1
	for ; i+n < RegionBlocks && only.has(i+n); n++ {
		e := p.at(i + n)
		if e.Content != first.Content {
			break
		}
		if first.Content == Data && (e.Segment != first.Segment || e.Life != first.Life || e.Block != first.Block+uint16(n)) {
			break
		}
	}
	return n
}

// decodePage reads a stored page of region r, or a delta over the page, whose
// entries are added to the set.
func decodePage(b []byte, r Region, p *page, delta *entrySet) error {
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
	places, runs := int(le.Uint16(b[26:]))*placeFixed, int(le.Uint16(b[24:]))
	body = body[pageFixed:]
	p.patchy, p.whole = runs&pagePatchy != 0, Stamp{}
	if p.patchy {
		if len(body) < pageWhole {
			return fmt.Errorf("map page of region %d: the stamp up to which it is whole is cut off: %w", r, ErrNotThis)
		}
		p.whole = Stamp{Generation(le.Uint64(body)), LSN(le.Uint64(body[8:]))}
		body = body[pageWhole:]
	}
	if places > len(body) {
		return fmt.Errorf("map page of region %d: places are cut off: %w", r, ErrNotThis)
	}
	return p.decodeRuns(body[:places], body[places:], runs&^pagePatchy, delta)
}

func (p *page) decodeRuns(places, b []byte, runs int, delta *entrySet) error {
	le := binary.LittleEndian
	for range runs {
		if len(b) < runFixed {
			return fmt.Errorf("map page of region %d: runs are cut off: %w", p.region, ErrNotThis)
		}
		first, n, content := int(b[0]), int(b[1])+1, Content(b[2])
		if first+n > RegionBlocks || content == Hole && delta == nil || content > Lost {
			return fmt.Errorf("map page of region %d: run of %d at %d: %w", p.region, n, first, ErrNotThis)
		}
		for i := first; delta != nil && i < first+n; i++ {
			delta.add(i)
		}
		if content == Hole || content == Zero {
			for i := first; i < first+n; i++ {
				p.put(i, Entry{Content: content})
			}
			b = b[runFixed:]
			continue
		}
		if content == Lost {
			if len(b) < runFixed+4*n {
				return fmt.Errorf("map page of region %d: checksums are cut off: %w", p.region, ErrNotThis)
			}
			for i := range n {
				p.put(first+i, Entry{Content: Lost, CRC: le.Uint32(b[runFixed+4*i:])})
			}
			b = b[runFixed+4*n:]
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
			p.put(first+i, e)
			e.Block++
		}
		b = b[runDataFixed+4*n:]
	}
	return nil
}
