package arena

import (
	"fmt"
	"testing"
)

func benchArena(b *testing.B) *Arena {
	o := options(b, 16384)
	return open(b, o)
}

// BenchmarkAllocFree takes and gives back pages, with nothing else in the arena
// and with every other page taken, so that there are no runs.
func BenchmarkAllocFree(b *testing.B) {
	for _, n := range []int{1, 8, 256} {
		for _, fragmented := range []bool{false, true} {
			b.Run(fmt.Sprintf("pages=%d/fragmented=%v", n, fragmented), func(b *testing.B) {
				a := benchArena(b)
				if fragmented {
					takeEveryOther(b, a)
				}
				pages := make([]Page, n)
				b.ReportAllocs()
				for b.Loop() {
					if !a.Alloc(n, pages) {
						b.Fatal("full")
					}
					a.Free(pages...)
				}
			})
		}
	}
}

func takeEveryOther(b *testing.B, a *Arena) {
	for range a.Pages() {
		alloc(b, a)
	}
	for p := Page(0); int(p) < a.Pages(); p += 2 {
		a.Free(p)
	}
}

// BenchmarkAllocFull fails on an arena without a free page.
func BenchmarkAllocFull(b *testing.B) {
	a := benchArena(b)
	for range a.Pages() {
		alloc(b, a)
	}
	b.ReportAllocs()
	for b.Loop() {
		a.Alloc(1, make([]Page, 1))
	}
}

func BenchmarkAllocFreeParallel(b *testing.B) {
	a := benchArena(b)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		pages := make([]Page, 1)
		for pb.Next() {
			if a.Alloc(1, pages) {
				a.Free(pages...)
			}
		}
	})
}

// BenchmarkWrite is an acknowledged 4-KiB write's whole stay: allocate,
// publish, free.
func BenchmarkWrite(b *testing.B) {
	a := benchArena(b)
	pages := make([]Page, 1)
	b.ReportAllocs()
	for lsn := uint64(1); b.Loop(); lsn++ {
		a.Alloc(1, pages)
		a.Put(pages[0], Record{Kind: Write, LBA: lsn, Count: 1, Stamp: Stamp{1, lsn}})
		a.Free(pages...)
	}
}

func BenchmarkRestamp(b *testing.B) {
	a := benchArena(b)
	p := alloc(b, a)
	a.Put(p, Record{Kind: Trim, Count: 1, Stamp: Stamp{1, 1}})
	b.ReportAllocs()
	for lsn := uint64(1); b.Loop(); lsn++ {
		a.Restamp(p, Stamp{1, lsn})
	}
}

// BenchmarkRecover reads an arena of 64 MiB that is full of writes.
func BenchmarkRecover(b *testing.B) {
	a := benchArena(b)
	for i := range a.Pages() {
		p := alloc(b, a)
		a.Put(p, fillWrite(a, p, uint64(i), uint64(i), Stamp{1, uint64(i)}))
	}
	for b.Loop() {
		if found := recoverAll(b, a); len(found) != a.Pages() || found[0].Err != nil {
			b.Fatal("not all recovered")
		}
	}
}

// BenchmarkOpen creates and discards an arena of 64 MiB.
func BenchmarkOpen(b *testing.B) {
	o := options(b, 16384)
	for b.Loop() {
		a, err := Open(o)
		if err != nil {
			b.Fatal(err)
		}
		if err := a.Discard(); err != nil {
			b.Fatal(err)
		}
	}
}
