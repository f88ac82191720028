package disk_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"slices"
	"sync"
	"testing"
	"time"

	"trivet/disk"
	"trivet/inject"
)

const bs = disk.BlockSize

// block returns an aligned block full of b.
func block(b byte) []byte { return blocks(1, b) }

// blocks returns n aligned blocks full of b.
func blocks(n int, b byte) []byte {
	memory := disk.Alloc(n * bs)
	for i := range memory {
		memory[i] = b
	}
	return memory
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t testing.TB, fs disk.FS, name string, size int64) disk.File {
	t.Helper()
	f, err := fs.Create(name, size)
	must(t, err)
	t.Cleanup(func() { f.Close() }) // some tests have closed it
	return f
}

func reopen(t testing.TB, fs disk.FS, name string) disk.File {
	t.Helper()
	f, err := fs.Open(name)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func write(t testing.TB, f disk.File, off int64, durable bool, bufs ...[]byte) {
	t.Helper()
	must(t, f.Write(bufs, off, durable))
}

func read(t testing.TB, f disk.File, off int64, n int) []byte {
	t.Helper()
	b := disk.Alloc(n)
	must(t, f.Read([][]byte{b}, off))
	return b
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func wantBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		i := slices.IndexFunc(got, func(b byte) bool { return b != want[0] })
		t.Errorf("%s: %d bytes of %#x… differ (first odd byte at %d), want %d of %#x…", what, len(got), got[0], i, len(want), want[0])
	}
}

// TestConformance runs one suite against every implementation.
func TestConformance(t *testing.T) {
	real := func(opt disk.Options) func(*testing.T) disk.FS {
		return func(t *testing.T) disk.FS {
			fs, err := disk.Real(t.TempDir(), opt)
			must(t, err)
			t.Logf("direct: %v", fs.Direct())
			return fs
		}
	}
	memory := func() *disk.MemoryFS { return disk.Memory(1, disk.MemoryOptions{CapacityBytes: 1 << 30}) }
	for name, open := range map[string]func(*testing.T) disk.FS{
		"real":          real(disk.Options{}),
		"real-buffered": real(disk.Options{Buffered: true}),
		"memory":        func(*testing.T) disk.FS { return memory() },
		"faulty-empty":  func(*testing.T) disk.FS { return disk.Faulty(memory(), nil, 0, disk.FaultyOptions{}) },
		"faulty-idle": func(t *testing.T) disk.FS { // a rule that never fires: the long way round
			set := inject.NewSet(1, time.Now)
			_, err := set.Add(inject.MustParse("any slot=7 error=EIO"))
			must(t, err)
			return disk.Faulty(memory(), set, 0, disk.FaultyOptions{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, part := range []struct {
				name string
				test func(*testing.T, disk.FS)
			}{
				{"contents", conformContents},
				{"long-vectors", conformLongVectors},
				{"names", conformNames},
				{"directories", conformDirectories},
				{"refusals", conformRefusals},
				{"space", conformSpace},
				{"lock", conformLock},
				{"closing", conformClosing},
				{"concurrent-reads", conformConcurrentReads},
			} {
				t.Run(part.name, func(t *testing.T) { part.test(t, open(t)) })
			}
		})
	}
}

func conformContents(t *testing.T, fs disk.FS) {
	f := create(t, fs, "superblock", 8*bs)
	wantBytes(t, "a new file", read(t, f, 0, 8*bs), blocks(8, 0))
	write(t, f, bs, false, block(1), blocks(2, 2))
	write(t, f, 6*bs, true, block(3))
	must(t, f.Sync())
	want := slices.Concat(block(0), block(1), blocks(2, 2), blocks(2, 0), block(3), block(0))
	wantBytes(t, "written", read(t, f, 0, 8*bs), want)

	a, b := block(9), blocks(2, 9)
	must(t, f.Read([][]byte{a, nil, b}, bs))
	wantBytes(t, "scattered", slices.Concat(a, b), want[bs:4*bs])

	must(t, f.Zero(2*bs, 2*bs))
	must(t, f.Sync())
	must(t, f.Write(nil, 0, true))
	must(t, f.Read(nil, 8*bs))
	copy(want[2*bs:], blocks(2, 0))
	must(t, f.Close())
	f = reopen(t, fs, "superblock")
	wantBytes(t, "reopened", read(t, f, 0, 8*bs), want)
	if size, err := f.Size(); size != 8*bs || err != nil {
		t.Errorf("size %d, %v", size, err)
	}
}

// conformLongVectors goes over the kernel's limit of buffers in one call, and
// zeroes more than one call does.
func conformLongVectors(t *testing.T, fs disk.FS) {
	const n = 1500
	f := create(t, fs, "superblock", n*bs)
	for _, durable := range []bool{false, true} {
		var out, in [][]byte
		for i := range n {
			out, in = append(out, block(byte(i%251)+1)), append(in, disk.Alloc(bs))
		}
		must(t, f.Write(out, 0, durable))
		must(t, f.Read(in, 0))
		for i := range n {
			if !bytes.Equal(in[i], out[i]) {
				t.Fatalf("block %d reads as %#x…, want %#x…", i, in[i][0], out[i][0])
			}
		}
		must(t, f.Zero(bs, (n-2)*bs))
		must(t, f.Sync())
		wantBytes(t, "zeroed", read(t, f, bs, (n-2)*bs), blocks(n-2, 0))
		wantBytes(t, "before", read(t, f, 0, bs), out[0])
		wantBytes(t, "behind", read(t, f, (n-1)*bs, bs), out[n-1])
	}
}

func conformNames(t *testing.T, fs disk.FS) {
	create(t, fs, "a", bs)
	create(t, fs, "empty", 0)
	_, err := fs.Create("a", bs)
	wantErr(t, "create again", err, iofs.ErrExist)
	_, err = fs.Create("log/a", bs)
	wantErr(t, "create without directory", err, iofs.ErrNotExist)
	_, err = fs.Open("b")
	wantErr(t, "open what is not there", err, iofs.ErrNotExist)
	wantErr(t, "remove what is not there", fs.Remove("b"), iofs.ErrNotExist)
	for _, name := range []string{"", "/a", "../a", "x/../a", "a/", "./a"} {
		_, err := fs.Create(name, bs)
		wantErr(t, fmt.Sprintf("create %q", name), err, iofs.ErrInvalid)
		_, err = fs.Open(name)
		wantErr(t, fmt.Sprintf("open %q", name), err, iofs.ErrInvalid)
		wantErr(t, fmt.Sprintf("remove %q", name), fs.Remove(name), iofs.ErrInvalid)
		wantErr(t, fmt.Sprintf("mkdir %q", name), fs.MkdirAll(name), iofs.ErrInvalid)
		_, err = fs.List(name)
		wantErr(t, fmt.Sprintf("list %q", name), err, iofs.ErrInvalid)
	}
	must(t, fs.Remove("a"))
	_, err = fs.Open("a")
	wantErr(t, "open what was removed", err, iofs.ErrNotExist)
	wantBytes(t, "made again", read(t, create(t, fs, "a", bs), 0, bs), block(0))
}

func conformDirectories(t *testing.T, fs disk.FS) {
	must(t, fs.MkdirAll("log/x/y"))
	must(t, fs.MkdirAll("log/x"))
	must(t, fs.MkdirAll("."))
	for _, name := range []string{"log/b", "log/a", "log/x/c", "log.txt"} {
		must(t, create(t, fs, name, bs).Close())
	}
	for dir, want := range map[string][]string{
		".": {"log", "log.txt"}, "log": {"a", "b", "x"}, "log/x": {"c", "y"}, "log/x/y": {},
	} {
		got, err := fs.List(dir)
		must(t, err)
		if !slices.Equal(got, want) {
			t.Errorf("list %s: %q, want %q", dir, got, want)
		}
	}
	_, err := fs.List("lo")
	wantErr(t, "list what is not there", err, iofs.ErrNotExist)
	if fs.MkdirAll("log/a") == nil || fs.MkdirAll("log/a/z") == nil {
		t.Error("made a directory where a file is")
	}
	if _, err := fs.Open("log"); err == nil {
		t.Error("opened a directory")
	}
	if fs.Remove("log/x/y") == nil {
		t.Error("removed a directory")
	}
	if _, err := fs.List("log/a"); err == nil {
		t.Error("listed a file")
	}
}

func conformRefusals(t *testing.T, fs disk.FS) {
	for _, size := range []int64{-bs, 1, bs + 512} {
		_, err := fs.Create("odd", size)
		wantErr(t, fmt.Sprintf("create with size %d", size), err, disk.ErrMisaligned)
	}
	f := create(t, fs, "superblock", 4*bs)
	write(t, f, 0, true, blocks(4, 1))
	skewed := blocks(2, 2)[512 : 512+bs]
	for what, c := range map[string]struct {
		buf []byte
		off int64
	}{
		"memory": {skewed, 0}, "length": {block(2)[:512], 0}, "offset": {block(2), 512}, "negative": {block(2), -bs},
	} {
		wantErr(t, "write, misaligned "+what, f.Write([][]byte{block(2), c.buf}, c.off, false), disk.ErrMisaligned)
		wantErr(t, "read, misaligned "+what, f.Read([][]byte{c.buf}, c.off), disk.ErrMisaligned)
	}
	wantErr(t, "zero, misaligned", f.Zero(512, bs), disk.ErrMisaligned)
	wantErr(t, "zero, misaligned length", f.Zero(0, 512), disk.ErrMisaligned)
	wantErr(t, "zero, negative", f.Zero(0, -bs), disk.ErrMisaligned)

	wantErr(t, "write across the end", f.Write([][]byte{blocks(2, 2)}, 3*bs, true), disk.ErrBeyondEnd)
	wantErr(t, "write behind the end", f.Write([][]byte{block(2)}, 4*bs, true), disk.ErrBeyondEnd)
	wantErr(t, "zero across the end", f.Zero(3*bs, 2*bs), disk.ErrBeyondEnd)
	wantErr(t, "read across the end", f.Read([][]byte{blocks(2, 2)}, 3*bs), io.ErrUnexpectedEOF)
	wantErr(t, "read far behind the end", f.Read([][]byte{block(2)}, 1<<40), io.ErrUnexpectedEOF)
	wantBytes(t, "after refusals", read(t, f, 0, 4*bs), blocks(4, 1))
}

func conformSpace(t *testing.T, fs disk.FS) {
	free, all, err := fs.Usage()
	must(t, err)
	if free <= 0 || all < free {
		t.Errorf("free %d of %d bytes", free, all)
	}
}

func conformLock(t *testing.T, fs disk.FS) {
	lock, err := fs.Lock("lock")
	must(t, err)
	_, err = fs.Lock("lock")
	wantErr(t, "second lock", err, disk.ErrLocked)
	must(t, lock.Close())
	lock, err = fs.Lock("lock")
	must(t, err)
	must(t, lock.Close())
	wantErr(t, "unlock twice", lock.Close(), iofs.ErrClosed)
	if names, err := fs.List("."); err != nil || !slices.Equal(names, []string{"lock"}) {
		t.Errorf("the lock left %q, %v", names, err)
	}
}

func conformClosing(t *testing.T, fs disk.FS) {
	f := create(t, fs, "a", bs)
	other := reopen(t, fs, "a")
	must(t, f.Close())
	wantErr(t, "write", f.Write([][]byte{block(1)}, 0, false), iofs.ErrClosed)
	wantErr(t, "read", f.Read([][]byte{block(1)}, 0), iofs.ErrClosed)
	wantErr(t, "sync", f.Sync(), iofs.ErrClosed)
	wantErr(t, "zero", f.Zero(0, bs), iofs.ErrClosed)
	wantErr(t, "close", f.Close(), iofs.ErrClosed)
	must(t, fs.Remove("a"))
	write(t, other, 0, true, block(1)) // an unlinked file lives as long as its handles
	wantBytes(t, "an unlinked file", read(t, other, 0, bs), block(1))
}

// conformConcurrentReads reads from many goroutines while the owner writes
// elsewhere in the file and then closes it.
func conformConcurrentReads(t *testing.T, fs disk.FS) {
	f := create(t, fs, "log", 64*bs)
	write(t, f, 0, true, blocks(32, 1))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			buf := blocks(2, 0)
			for {
				switch err := f.Read([][]byte{buf[:bs], buf[bs:]}, int64(i)*bs); {
				case errors.Is(err, iofs.ErrClosed):
					<-stop
					return
				case err != nil || !bytes.Equal(buf, blocks(2, 1)):
					t.Errorf("reader %d: %#x…, %v", i, buf[0], err)
					return
				}
			}
		})
	}
	for i := range 50 {
		write(t, f, int64(32+i%32)*bs, i%2 == 0, block(byte(i)))
	}
	must(t, f.Close())
	close(stop)
	wg.Wait()
}

func TestAllocIsAligned(t *testing.T) {
	for _, n := range []int{0, 1, 511, bs, 3 * bs, 1 << 20} {
		b := disk.Alloc(n)
		if len(b) != n || cap(b) != n {
			t.Errorf("Alloc(%d): length %d, capacity %d", n, len(b), cap(b))
		}
		if n%bs == 0 {
			must(t, disk.CheckAligned([][]byte{b}, 0))
		}
	}
}
