package disk_test

import (
	"errors"
	iofs "io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"trivet/disk"
)

func realFS(t testing.TB, dir string) *disk.RealFS {
	t.Helper()
	fs, err := disk.Real(dir, disk.Options{})
	must(t, err)
	return fs
}

func TestRealSteadyStateAllocatesNothing(t *testing.T) {
	f := create(t, realFS(t, t.TempDir()), "log", 64*bs)
	bufs := [][]byte{block(1), blocks(3, 2), block(3)}
	for _, durable := range []bool{false, true} {
		if n := testing.AllocsPerRun(20, func() { must(t, f.Write(bufs, 0, durable)) }); n != 0 {
			t.Errorf("a write (durable: %v) makes %v allocations", durable, n)
		}
	}
	n := testing.AllocsPerRun(50, func() { must(t, f.Read(bufs, 0)) })
	if n != 0 && !raceDetector {
		t.Errorf("a read makes %v allocations", n)
	}
}

func TestRealPreallocates(t *testing.T) {
	dir := t.TempDir()
	create(t, realFS(t, dir), "log", 1<<20)
	var stat unix.Stat_t
	must(t, unix.Stat(filepath.Join(dir, "log"), &stat))
	if stat.Size != 1<<20 || stat.Blocks*512 < 1<<20 {
		t.Errorf("size %d, %d bytes allocated", stat.Size, stat.Blocks*512)
	}
}

// TestRealGoesPastThePageCache asks the kernel whether what was written with
// direct I/O is in the page cache.
func TestRealGoesPastThePageCache(t *testing.T) {
	dir := t.TempDir()
	fs := realFS(t, dir)
	if !fs.Direct() {
		t.Skip("no direct I/O in", dir)
	}
	var stat unix.Statfs_t
	must(t, unix.Statfs(dir, &stat))
	if stat.Type == unix.TMPFS_MAGIC {
		t.Skip("tmpfs is the page cache")
	}
	f := create(t, fs, "log", 16*bs)
	write(t, f, 0, false, blocks(16, 1))
	read(t, f, 0, 16*bs)
	host, err := os.Open(filepath.Join(dir, "log"))
	must(t, err)
	defer host.Close()
	_, err = unix.Preadv2(int(host.Fd()), [][]byte{block(0)}, 0, unix.RWF_NOWAIT)
	wantErr(t, "a read from the page cache alone", err, unix.EAGAIN)
}

func TestRealDirectory(t *testing.T) {
	root := t.TempDir()
	_, err := disk.Real(filepath.Join(root, "none"), disk.Options{})
	wantErr(t, "a directory that is not there", err, iofs.ErrNotExist)
	fs, err := disk.Real(filepath.Join(root, "a", "slot-0"), disk.Options{Create: true})
	must(t, err)
	must(t, create(t, fs, "f", bs).Close())
	_, err = disk.Real(filepath.Join(root, "a", "slot-0"), disk.Options{Create: true})
	must(t, err)
	if names, err := fs.List("."); err != nil || len(names) != 1 {
		t.Errorf("the probe for direct I/O left %q, %v", names, err)
	}
	_, err = disk.Real(filepath.Join(root, "a", "slot-0", "f"), disk.Options{})
	wantErr(t, "a file for a directory", err, unix.ENOTDIR)
}

// TestRealClosesDescriptors counts them: Close may leave that to a read, and
// what fails has to clean up.
func TestRealClosesDescriptors(t *testing.T) {
	fs := realFS(t, t.TempDir())
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries)
	}
	must(t, fs.MkdirAll("log"))
	before := count()
	for range 20 {
		f, err := fs.Create("log/0", 16*bs)
		must(t, err)
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for buf := blocks(16, 0); f.Read([][]byte{buf}, 0) == nil; {
				}
			})
		}
		must(t, f.Close())
		wg.Wait()
		_, err = fs.Create("log/0", bs)
		wantErr(t, "create again", err, iofs.ErrExist)
		_, err = fs.Open("log")
		if err == nil {
			t.Fatal("opened a directory")
		}
		must(t, fs.Remove("log/0"))
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// TestRealOddFile opens a file that somebody has cut at no block's end.
func TestRealOddFile(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "superblock"), make([]byte, bs+100), 0o600))
	f := reopen(t, realFS(t, dir), "superblock")
	read(t, f, 0, bs)
	if err := f.Read([][]byte{block(0)}, bs); err == nil {
		t.Error("read past the end of an odd file")
	}
}

// TestRealFullDisk fills a small filesystem: files are there in full or not at
// all, and what exists can be written to its end.
func TestRealFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("cannot mount a tmpfs:", err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	fs := realFS(t, dir)
	t.Logf("direct: %v", fs.Direct())
	f := create(t, fs, "first", 768<<10)
	free, all, err := fs.Usage()
	must(t, err)
	if all != 1<<20 || free != 256<<10 {
		t.Errorf("%d free of %d bytes, want 256 KiB of 1 MiB", free, all)
	}
	_, err = fs.Create("second", 512<<10)
	wantErr(t, "create on a full disk", err, unix.ENOSPC)
	_, err = fs.Open("second")
	wantErr(t, "what could not be created", err, iofs.ErrNotExist)
	third := create(t, fs, "third", 256<<10)
	write(t, f, 0, true, blocks(192, 1))
	must(t, f.Sync())
	must(t, third.Close()) // its space is held by the handle too
	must(t, fs.Remove("third"))
	create(t, fs, "second", 256<<10)
}

// TestRealLockIsSeenByOthers takes the lock through two openers, which is what
// two processes are to flock.
func TestRealLockIsSeenByOthers(t *testing.T) {
	dir := t.TempDir()
	lock, err := realFS(t, dir).Lock("lock")
	must(t, err)
	_, err = realFS(t, dir).Lock("lock")
	wantErr(t, "another opener", err, disk.ErrLocked)
	must(t, lock.Close())
	lock, err = realFS(t, dir).Lock("lock")
	must(t, errors.Join(err, lock.Close()))
}

func BenchmarkRealWrite(b *testing.B) {
	f := create(b, realFS(b, b.TempDir()), "log", 64<<20)
	must(b, f.Zero(0, 64<<20))
	must(b, f.Sync())
	bufs := [][]byte{block(1), block(2)}
	for _, durable := range []bool{false, true} {
		name := map[bool]string{false: "volatile", true: "durable"}[durable]
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(2 * bs)
			off := int64(0)
			for b.Loop() {
				must(b, f.Write(bufs, off, durable))
				off = (off + 2*bs) % (64 << 20)
			}
		})
	}
}
