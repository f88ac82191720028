package device

import (
	"context"
	"io"
	"log/slog"
	"testing"
)

// bench opens a volume and runs one request of 4 KiB after another.
func bench(b *testing.B, op Op) {
	d, err := Open(context.Background(), Options{
		Dir: b.TempDir(), ArenaDir: "/dev/shm", Name: "bench", Size: 64 << 20,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := d.Close(context.Background()); err != nil {
			b.Error(err)
		}
	}()
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
