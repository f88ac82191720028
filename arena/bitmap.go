package arena

import (
	"fmt"
	"math/bits"
)

// bitmap is the set of free pages. It is not kept in shared memory: a page is
// in use exactly when it has a record, or belongs to a process that is alive.
//
// Pages are taken from the bottom up, so that an arena with little in flight
// uses the same few pages again and again: they stay in the processor's cache,
// and the rest of the arena never becomes resident.
type bitmap struct {
	words []uint64 // bit set: the page is free
	low   int      // no word before this one has a bit
	count int      // bits set
}

func newBitmap(pages int) bitmap {
	b := bitmap{words: make([]uint64, (pages+63)/64), count: pages}
	b.set(0, pages)
	return b
}

// take fills dst with free pages, ascending, in one run if run finds one. It
// does nothing and reports false when there are too few.
func (b *bitmap) take(dst []Page) bool {
	if b.count < len(dst) {
		return false
	}
	for b.words[b.low] == 0 { // ends: count is positive
		b.low++
	}
	if start, ok := b.run(len(dst)); ok {
		b.clear(start, len(dst))
		for i := range dst {
			dst[i] = Page(start + i)
		}
	} else {
		b.gather(dst)
	}
	b.count -= len(dst)
	return true
}

// maxRuns bounds how many runs of free pages are looked at for one that is long
// enough. In an arena more fragmented than that, scattered pages do: the search
// happens under the lock, and 128 runs take some 300 ns.
const maxRuns = 128

// run finds the lowest run of n free pages, among the first maxRuns.
func (b *bitmap) run(n int) (start int, ok bool) {
	length := 0 // of the run that ends where the search stands
	runs := 0
	for w := b.low; w < len(b.words); w++ {
		for word, at := b.words[w], 0; at < 64; {
			gap := bits.TrailingZeros64(word >> at)
			if gap > 0 {
				length, at = 0, at+gap // past the end when nothing is left
				continue
			}
			if length == 0 {
				start, runs = w*64+at, runs+1
			}
			ones := bits.TrailingZeros64(^(word >> at))
			length, at = length+ones, at+ones
			if length >= n {
				return start, true
			}
		}
		if runs >= maxRuns {
			break
		}
	}
	return 0, false
}

// gather takes the lowest free pages, wherever they are. There are enough.
func (b *bitmap) gather(dst []Page) {
	w := b.low
	for i := range dst {
		for b.words[w] == 0 {
			w++
		}
		dst[i] = Page(w*64 + bits.TrailingZeros64(b.words[w]))
		b.words[w] &= b.words[w] - 1
	}
}

// put returns pages to the set.
func (b *bitmap) put(pages []Page) {
	for _, p := range pages {
		w, bit := int(p/64), uint64(1)<<(p%64)
		if b.words[w]&bit != 0 {
			panic(fmt.Sprintf("arena: page %d freed twice", p))
		}
		b.words[w] |= bit
		b.low = min(b.low, w)
	}
	b.count += len(pages)
}

// reserve takes one page that must be free: a recovered record is in it.
func (b *bitmap) reserve(p Page) {
	b.clear(int(p), 1)
	b.count--
}

func (b *bitmap) set(start, n int) {
	for n > 0 {
		mask, covered := wordMask(start, n)
		b.words[start/64] |= mask
		start, n = start+covered, n-covered
	}
}

func (b *bitmap) clear(start, n int) {
	for n > 0 {
		mask, covered := wordMask(start, n)
		b.words[start/64] &^= mask
		start, n = start+covered, n-covered
	}
}

// wordMask returns the bits of start's word that are in the n bits from start
// on, and how many they are.
func wordMask(start, n int) (mask uint64, covered int) {
	covered = min(n, 64-start%64)
	return ^uint64(0) >> (64 - covered) << (start % 64), covered
}
