package disk

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"slices"
)

// sectorSize is what a disk writes as a whole, or not.
const sectorSize = 512

// content is a block's bytes; nil reads as zeros. It is never changed once it
// is stored, so clones and the durable state share it.
type content *[BlockSize]byte

// unsynced is what is known of a block that was written and is not durable.
type unsynced struct {
	durable content // what the disk holds for certain
	lost    bool    // its sync failed: no later sync makes it durable
}

// memoryData is what a file of a MemoryFS holds. The file system's mutex guards
// it.
type memoryData struct {
	size     int64             // bytes
	blocks   map[int64]content // what a read finds, by block number; absent: zeros
	unsynced map[int64]unsynced
	failures int // syncs that failed: each handle is told of them, once
}

func newMemoryData(size int64) *memoryData {
	return &memoryData{size: size, blocks: make(map[int64]content), unsynced: make(map[int64]unsynced)}
}

func (d *memoryData) clone() *memoryData {
	return &memoryData{size: d.size, blocks: maps.Clone(d.blocks), unsynced: maps.Clone(d.unsynced), failures: d.failures}
}

// put stores a block.
func (d *memoryData) put(block int64, c content, durable bool) {
	if durable {
		delete(d.unsynced, block)
	} else if u, pending := d.unsynced[block]; pending {
		// A page that is written again is dirty again, even if its sync failed.
		d.unsynced[block] = unsynced{durable: u.durable}
	} else {
		d.unsynced[block] = unsynced{durable: d.blocks[block]}
	}
	d.set(block, c)
}

func (d *memoryData) set(block int64, c content) {
	if c == nil {
		delete(d.blocks, block)
	} else {
		d.blocks[block] = c
	}
}

// write stores whole blocks from off on.
func (d *memoryData) write(b []byte, off int64, durable bool) {
	for ; len(b) > 0; b, off = b[BlockSize:], off+BlockSize {
		c := new([BlockSize]byte)
		copy(c[:], b)
		d.put(off/BlockSize, c, durable)
	}
}

// read fills whole blocks from off on.
func (d *memoryData) read(b []byte, off int64) {
	for ; len(b) > 0; b, off = b[BlockSize:], off+BlockSize {
		if c := d.blocks[off/BlockSize]; c != nil {
			copy(b, c[:])
		} else {
			clear(b[:BlockSize])
		}
	}
}

// zero writes zeros over what is not zero on the disk and in the cache; for the
// rest old, new and the preallocated file are the same. It takes time by the
// blocks that are stored, not by the length.
func (d *memoryData) zero(off, length int64) {
	first, end := off/BlockSize, (off+length)/BlockSize
	inside := func(block int64) bool { return first <= block && block < end }
	for block := range d.unsynced { // the order makes no difference
		if inside(block) {
			d.put(block, nil, false)
		}
	}
	for block := range d.blocks {
		if inside(block) {
			d.put(block, nil, false)
		}
	}
}

// sync makes durable what no failed sync has lost.
func (d *memoryData) sync() {
	maps.DeleteFunc(d.unsynced, func(_ int64, u unsynced) bool { return !u.lost })
}

// lose is a sync that fails.
func (d *memoryData) lose() {
	d.failures++
	for block, u := range d.unsynced {
		u.lost = true
		d.unsynced[block] = u
	}
}

// corrupt inverts a byte wherever the block is held.
func (d *memoryData) corrupt(off int64) {
	invert := func(c content) content {
		bad := new([BlockSize]byte)
		if c != nil {
			*bad = *c
		}
		bad[off%BlockSize] ^= 0xff
		return bad
	}
	block := off / BlockSize
	d.set(block, invert(d.blocks[block]))
	if u, pending := d.unsynced[block]; pending {
		u.durable = invert(u.durable)
		d.unsynced[block] = u
	}
}

// weather is how a crash treats what was not durable. If every sector were
// drawn evenly, a batch of a few blocks would practically never survive whole,
// and tails that are whole but were never durable would not be tested.
type weather struct {
	keep float64 // chance that a block is new rather than old
	mix  float64 // chance that a block is drawn sector by sector
}

func drawWeather(rng *rand.Rand) weather {
	keeps := [...]float64{0, 0.1, 0.5, 0.9, 1}
	mixes := [...]float64{0, 0.1, 0.5, 1}
	return weather{keep: keeps[rng.IntN(len(keeps))], mix: mixes[rng.IntN(len(mixes))]}
}

// crash settles every block that was not durable.
func (d *memoryData) crash(rng *rand.Rand, w weather) {
	for _, block := range slices.Sorted(maps.Keys(d.unsynced)) {
		old, latest := d.unsynced[block].durable, d.blocks[block]
		switch {
		case rng.Float64() < w.mix:
			d.set(block, mixed(rng, old, latest))
		case rng.Float64() >= w.keep:
			d.set(block, old)
		}
	}
	clear(d.unsynced)
}

// mixed draws each sector from old, latest and garbage.
func mixed(rng *rand.Rand, old, latest content) content {
	c := new([BlockSize]byte)
	for at := 0; at < BlockSize; at += sectorSize {
		sector := c[at : at+sectorSize]
		switch rng.IntN(3) {
		case 0:
			copySector(sector, old, at)
		case 1:
			copySector(sector, latest, at)
		default:
			for i := 0; i < sectorSize; i += 8 {
				binary.LittleEndian.PutUint64(sector[i:], rng.Uint64())
			}
		}
	}
	return c
}

func copySector(sector []byte, c content, at int) {
	if c != nil {
		copy(sector, c[at:])
	}
}
