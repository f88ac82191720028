package device

import (
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"testing"
)

// openBench opens a volume that is closed when the benchmark ends.
func openBench(b *testing.B, size, memory uint64) *Device {
	d, err := Open(context.Background(), Options{
		Dir: b.TempDir(), ArenaDir: "/dev/shm", Name: "bench", Size: size, Memory: memory,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := d.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return d
}

// bench runs one request of 4 KiB after another.
func bench(b *testing.B, op Op) {
	d := openBench(b, 64<<20, 0)
	done := make(chan struct{}, 1)
	r := &Request{Op: Write, Length: 4096, Data: make([]byte, 4096), Done: func(*Request) { done <- struct{}{} }}
	do := func(n int) {
		r.Offset = uint64(n) * 7919 % 1024 * 4096
		d.Submit(r)
		if <-done; r.Err != nil {
			b.Fatal(r.Err)
		}
	}
	for n := range 1024 {
		do(n)
	}
	r.Op = op
	b.SetBytes(4096)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		do(n)
	}
}

func BenchmarkDeviceWrite4K(b *testing.B) { bench(b, Write) }
func BenchmarkDeviceRead4K(b *testing.B)  { bench(b, Read) }

// BenchmarkWriteVolume writes 4 KiB at random over all of thin volumes of several
// sizes, 32 at a time: what a write costs should not depend on the size.
func BenchmarkWriteVolume(b *testing.B) {
	for _, size := range []struct {
		name string
		gib  uint64
	}{{"1GiB", 1}, {"16GiB", 16}, {"256GiB", 256}, {"1TiB", 1 << 10}, {"4TiB", 4 << 10}} {
		b.Run(size.name, func(b *testing.B) {
			d := openBench(b, size.gib<<30, 256<<20)
			random := rand.New(rand.NewPCG(1, 1))
			free := make(chan *Request, 32)
			data := make([]byte, blockBytes)
			for range cap(free) {
				free <- &Request{Op: Write, Length: blockBytes, Data: data, Done: func(r *Request) { free <- r }}
			}
			b.SetBytes(blockBytes)
			for b.Loop() {
				r := <-free
				if r.Err != nil {
					b.Fatal(r.Err)
				}
				r.Offset = random.Uint64N(size.gib<<30/blockBytes) * blockBytes
				d.Submit(r)
			}
			for range cap(free) {
				<-free
			}
		})
	}
}
