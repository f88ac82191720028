package cache

import "testing"

// spread visits 2^k addresses in an order that no prefetcher guesses.
func spread(i, mask uint64) uint64 { return i * 0x5851F42D4C957F2D >> 20 & mask }

// BenchmarkLookup looks up blocks that are present: 1 MiB of blocks, whose
// index stays in the processor's cache, and 512 MiB, whose does not.
func BenchmarkLookup(b *testing.B) {
	for name, n := range map[string]int{"blocks=256": 256, "blocks=131072": 131072} {
		b.Run(name, func(b *testing.B) {
			c := newCache(b, n)
			for lba := range uint64(n) {
				c.Insert(lba)
			}
			b.ReportAllocs()
			for i := uint64(0); b.Loop(); i++ {
				if _, ok := c.Lookup(spread(i, uint64(n-1))); !ok {
					b.Fatal("not found")
				}
			}
		})
	}
}

func BenchmarkLookupMiss(b *testing.B) {
	c := newCache(b, 131072)
	for lba := range uint64(131072) {
		c.Insert(lba)
	}
	b.ReportAllocs()
	for i := uint64(0); b.Loop(); i++ {
		c.Lookup(1<<30 + spread(i, 1<<20-1))
	}
}

// BenchmarkInsertEvict inserts into a full cache, without filling the frame.
func BenchmarkInsertEvict(b *testing.B) {
	c := newCache(b, 131072)
	for lba := range uint64(131072) {
		c.Insert(lba)
	}
	b.ReportAllocs()
	for lba := uint64(1 << 20); b.Loop(); lba++ {
		c.Insert(lba)
	}
}

func BenchmarkDetachAttach(b *testing.B) {
	c := newCache(b, 131072)
	b.ReportAllocs()
	for lba := uint64(0); b.Loop(); lba++ {
		f, _ := c.Detach()
		c.Attach(lba, f)
	}
}
