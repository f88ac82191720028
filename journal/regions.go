package journal

import (
	"maps"
	"math/bits"
	"slices"
)

// RegionSet is a set of regions, in chunks that are stored as they are: 32,768
// regions (32 GiB of address space) in 4 KiB.
type RegionSet map[uint32]*regionChunk

type regionChunk struct {
	bits [512]uint64
}

// Has tells whether the region is in the set.
func (s RegionSet) Has(r Region) bool {
	c := s[uint32(r>>15)]
	return c != nil && c.bits[r>>6&511]&(1<<(r&63)) != 0
}

// Add puts a region into the set.
func (s RegionSet) Add(r Region) {
	c := s[uint32(r>>15)]
	if c == nil {
		c = new(regionChunk)
		s[uint32(r>>15)] = c
	}
	c.bits[r>>6&511] |= 1 << (r & 63)
}

// AddAll puts every region of another set into this one.
func (s RegionSet) AddAll(o RegionSet) {
	for chunk, from := range o {
		to := s[chunk]
		if to == nil {
			to = new(regionChunk)
			s[chunk] = to
		}
		for i, word := range from.bits {
			to.bits[i] |= word
		}
	}
}

// Remove takes a region out of the set.
func (s RegionSet) Remove(r Region) {
	if c := s[uint32(r>>15)]; c != nil {
		c.bits[r>>6&511] &^= 1 << (r & 63)
	}
}

// Len returns how many regions the set has.
func (s RegionSet) Len() (n int) {
	for _, c := range s {
		for _, word := range c.bits {
			n += bits.OnesCount64(word)
		}
	}
	return n
}

// Next returns the first region of the set that is not before r; ok is false
// when there is none.
func (s RegionSet) Next(r Region) (next Region, ok bool) {
	var last uint32
	for chunk := range s {
		last = max(last, chunk)
	}
	for len(s) > 0 && uint32(r>>15) <= last {
		c := s[uint32(r>>15)]
		if c == nil {
			r = (r>>15 + 1) << 15
			continue
		}
		if word := c.bits[r>>6&511] >> (r & 63); word != 0 {
			return r + Region(bits.TrailingZeros64(word)), true
		}
		r = (r>>6 + 1) << 6
	}
	return 0, false
}

// Each calls fn for every region of the set, in ascending order.
func (s RegionSet) Each(fn func(Region)) {
	for _, chunk := range slices.Sorted(maps.Keys(s)) {
		for w, word := range s[chunk].bits {
			for ; word != 0; word &= word - 1 {
				fn(Region(chunk)<<15 | Region(w<<6|bits.TrailingZeros64(word)))
			}
		}
	}
}
