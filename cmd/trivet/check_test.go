package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"trivet/device"
	"trivet/journal"
)

const checkedBlocks = 64

// writtenVolume makes a volume with three slots, writes blocks that can be told
// apart, the first half of them twice, and stops it.
func writtenVolume(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(tempDir(t), "vol")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	v, err := openVolume(t.Context(), VolumeOptions{
		Dir: dir, SizeBytes: 16 << 20, Name: "vol", ArenaDir: filepath.Dir(dir), MemoryBytes: minMemoryBytes,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		for n := range checkedBlocks / (1 + round) {
			submit(t, v, &device.Request{Op: device.Write, Offset: blockAt(n), Length: journal.BlockSize, Data: checkedBlock(n, round)})
		}
		submit(t, v, &device.Request{Op: device.Flush})
	}
	if err := v.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// blockAt spreads the blocks over the volume's regions.
func blockAt(n int) uint64 { return uint64(n%8)<<20 + uint64(n)*journal.BlockSize }

func checkedBlock(n, round int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("block %5d %3d\n", n, round)), journal.BlockSize)[:journal.BlockSize]
}

func submit(t *testing.T, v Volume, r *device.Request) {
	t.Helper()
	done := make(chan error, 1)
	r.Done = func(r *device.Request) { done <- r.Err }
	v.Submit(r)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// check runs 'trivet check' and returns what it printed and its exit status.
func check(t *testing.T, args ...string) (printed string, status int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status = run(t.Context(), append([]string{"check"}, args...), &stdout, &stderr)
	return stdout.String() + stderr.String(), status
}

// flipAt changes one byte of a file, and returns what changes it back.
func flipAt(t *testing.T, path string, at int64) (restore func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	flip := func() {
		b[0] ^= 0x20
		if _, err := f.WriteAt(b[:], at); err != nil {
			t.Fatal(err)
		}
	}
	flip()
	return func() {
		flip()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// find returns the file of a slot's log that holds the bytes at the start of a
// block, and where.
func find(t *testing.T, dir string, slot int, content []byte) (path string, at int64) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, fmt.Sprintf("slot-%d", slot), "log", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(data); at += journal.BlockSize {
			if bytes.HasPrefix(data[at:], content) {
				return path, int64(at)
			}
		}
	}
	t.Fatalf("slot %d holds no block that begins with %q", slot, content)
	return "", 0
}

func TestCheckFindsOneFlippedByte(t *testing.T) {
	dir := writtenVolume(t)
	if printed, status := check(t, dir); status != exitOK || !strings.Contains(printed, "0 findings, 0 notes, 768 KiB of data verified") {
		t.Fatalf("a clean volume: exit %d\n%s", status, printed)
	}
	data, dataAt := find(t, dir, 1, checkedBlock(5, 1))
	header, headerAt := find(t, dir, 0, []byte("TrivetSg"))
	descriptor, descriptorAt := find(t, dir, 2, []byte("TrivetBt"))
	superblock := filepath.Join(dir, "slot-1", "superblock")
	for _, test := range []struct {
		name, path string
		at         int64
		want       []string
	}{
		{"data", data, dataAt + 99, []string{"slot 1: shard 1 block 1285: segment", "checksum"}},
		{"header", header, headerAt + 36, []string{"slot 0: shard", "segment", "header", "checksum"}},
		{"descriptor", descriptor, descriptorAt + 130, []string{"slot 2: shard", "descriptor in block 1", "checksum"}},
		{"superblock copy 0", superblock, 100, []string{"slot 1: superblock copy 0", "checksum"}},
		{"superblock copy 1", superblock, journal.SuperblockSize/2 + 100, []string{"slot 1: superblock copy 1", "checksum"}},
	} {
		restore := flipAt(t, test.path, test.at)
		printed, status := check(t, dir)
		if status != exitFailure {
			t.Errorf("%s: exit %d, expected %d", test.name, status, exitFailure)
		}
		for _, want := range test.want {
			if !strings.Contains(printed, want) {
				t.Errorf("%s: no %q in\n%s", test.name, want, printed)
			}
		}
		if !strings.Contains(printed, "1 finding,") {
			t.Errorf("%s: one byte is one finding, not\n%s", test.name, printed)
		}
		restore()
	}
	if printed, status := check(t, dir); status != exitOK {
		t.Fatalf("the volume was changed by checking it: exit %d\n%s", status, printed)
	}
	overwritten, at := find(t, dir, 0, checkedBlock(7, 0))
	defer flipAt(t, overwritten, at+8)()
	if printed, status := check(t, dir); status != exitOK {
		t.Errorf("a block that is nobody's any more: exit %d\n%s", status, printed)
	}
}

// cached tells whether the page cache holds any of a file. A read that must not
// wait would not tell: the kernel reads ahead before it gives up.
func cached(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	pages := make([]byte, (len(mapped)+os.Getpagesize()-1)/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), uintptr(len(mapped)), uintptr(unsafe.Pointer(&pages[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	return slices.ContainsFunc(pages, func(state byte) bool { return state&1 != 0 })
}

// TestCheckReadsTheDisk: a check goes by the page cache, and must not be told by
// it what somebody read before.
func TestCheckReadsTheDisk(t *testing.T) {
	slot := filepath.Join(writtenVolume(t), "slot-1")
	paths, err := filepath.Glob(filepath.Join(slot, "log", "*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d log files, %v", len(paths), err)
	}
	paths = append(paths, filepath.Join(slot, "superblock"))
	for _, path := range paths {
		if _, err := os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		if !cached(t, path) {
			t.Skipf("%s was read, and is not cached", path)
		}
	}
	read := 0
	files, err := openToCheck(slot, func(sizeBytes int) { read += sizeBytes })
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if cached(t, path) {
			t.Errorf("%s is cached", path)
		}
	}
	f, err := files.Open("superblock")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Read([][]byte{make([]byte, journal.BlockSize), make([]byte, journal.BlockSize)}, 0); err != nil || read != 2*journal.BlockSize {
		t.Errorf("%d bytes were counted, %v", read, err)
	}
}

func TestCheckFindsRotInMetadata(t *testing.T) {
	for _, pattern := range []string{"MANIFEST", "*.sst"} {
		dir := writtenVolume(t)
		paths, err := filepath.Glob(filepath.Join(dir, "slot-2", "meta", "badger", pattern))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no %s: %v", pattern, err)
		}
		for _, path := range paths {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			for part := range int64(8) { // some of it is padding, which nobody reads
				defer flipAt(t, path, info.Size()*(part+1)/9)()
			}
		}
		if printed, status := check(t, dir); status != exitFailure || !strings.Contains(printed, "slot 2: ") || !strings.Contains(printed, "corrupt") {
			t.Errorf("%s: exit %d\n%s", pattern, status, printed)
		}
	}
}

func TestCheckReportsWhatIsMissing(t *testing.T) {
	dir := writtenVolume(t)
	moved := filepath.Join(filepath.Dir(dir), "elsewhere")
	if err := os.Rename(filepath.Join(dir, "slot-2"), moved); err != nil {
		t.Fatal(err)
	}
	if printed, status := check(t, dir); status != exitFailure || !strings.Contains(printed, "slot 2: "+dir+"/slot-2") {
		t.Errorf("a slot is missing: exit %d\n%s", status, printed)
	}
	if _, err := os.Stat(filepath.Join(dir, "slot-2")); err == nil {
		t.Error("the missing slot was made")
	}
	if printed, status := check(t, dir, "--slot", "2="+moved); status != exitOK {
		t.Errorf("a slot that lives elsewhere: exit %d\n%s", status, printed)
	}
}

func TestCheckRefusesAServedVolume(t *testing.T) {
	dir := filepath.Join(tempDir(t), "vol")
	server := startChild(t, "serve", dir, "--size", "16M")
	server.uri(t)
	if printed, status := check(t, dir); status != exitFailure || !strings.Contains(printed, "slot-0 is being served") {
		t.Errorf("exit %d\n%s", status, printed)
	}
	server.signal(t, os.Interrupt)
	if status := server.wait(t); status != exitOK {
		t.Errorf("serve ended with %d", status)
	}
	if printed, status := check(t, dir); status != exitOK {
		t.Errorf("exit %d\n%s", status, printed)
	}
}
