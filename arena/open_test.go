package arena

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// newFile makes an arena with one record in it and returns its path, closed.
func newFile(t testing.TB, o Options) string {
	a := open(t, o)
	p := alloc(t, a)
	a.Put(p, fillWrite(a, p, 42, 7, Stamp{1, 1}))
	path := a.Path()
	closeArena(t, a)
	return path
}

func read(t testing.TB, path string) []byte {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, path string, b []byte) {
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// reseal makes the header's checksum match again.
func reseal(b []byte) {
	binary.NativeEndian.PutUint32(b[12:], crc32.Checksum(b[16:56], castagnoli))
}

// TestRefused damages a file in one way each: Open says so, with the file's
// name, and leaves every byte as it was; SetAside makes room.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		want   error
		says   string
		change func(b []byte) []byte
	}{
		{"next version", ErrVersion, "version 3, want 1 to 2", func(b []byte) []byte { b[8]++; return b }},
		{"next version, other layout", ErrVersion, "version 3, want 1 to 2", func(b []byte) []byte { b[8]++; return b[:headerSize] }},
		{"other magic", ErrForeign, "magic", func(b []byte) []byte { b[0]++; return b }},
		{"magic lost", ErrForeign, "magic", func(b []byte) []byte { clear(b[:8]); return b }},
		{"header lost", ErrForeign, "magic", func(b []byte) []byte { clear(b[:headerSize]); return b }},
		{"header rotten", ErrCorrupt, "header CRC", func(b []byte) []byte { b[33] ^= 4; return b }},
		{"no pages", ErrCorrupt, "0 pages", func(b []byte) []byte { clear(b[32:36]); reseal(b); return b }},
		{"other volume", ErrForeign, "volume", func(b []byte) []byte { b[20]++; reseal(b); return b }},
		{"other shards", ErrForeign, "5 shards, want 4", func(b []byte) []byte { b[36]++; reseal(b); return b }},
		{"other boot", ErrStale, "boot", func(b []byte) []byte { b[44]++; reseal(b); return b }},
		{"cut", ErrCorrupt, "bytes, want", func(b []byte) []byte { return b[:len(b)-1] }},
		{"cut in the header", ErrCorrupt, "want a header", func(b []byte) []byte { return b[:100] }},
		{"longer", ErrCorrupt, "bytes, want", func(b []byte) []byte { return append(b, 0) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := options(t, 8)
			path := newFile(t, o)
			damaged := c.change(read(t, path))
			write(t, path, damaged)
			_, err := Open(o)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v with %q and the path", err, c.want, c.says)
			}
			if !bytes.Equal(read(t, path), damaged) {
				t.Error("Open changed a file that it refused")
			}
			setAsideAndOpen(t, o, path, damaged)
		})
	}
}

func setAsideAndOpen(t *testing.T, o Options, path string, content []byte) {
	aside, err := SetAside(path)
	if err != nil || !bytes.Equal(read(t, aside), content) {
		t.Fatalf("set aside as %q: %v, or with other content", aside, err)
	}
	if a := open(t, o); !a.Created() || a.Live() != 0 {
		t.Error("the arena that Open made in its place is not new")
	}
}

func TestSetAsideKeepsEarlierOnes(t *testing.T) {
	o := options(t, 8)
	first, err := SetAside(newFile(t, o))
	if err != nil {
		t.Fatal(err)
	}
	second, err := SetAside(newFile(t, o))
	if err != nil || first == second {
		t.Fatalf("set aside as %q and %q, %v", first, second, err)
	}
	if _, err := SetAside(filepath.Join(o.Dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("setting nothing aside: %v", err)
	}
}

// TestPlanted puts things under the arena's name that the server did not make.
func TestPlanted(t *testing.T) {
	for name, plant := range map[string]func(path string) error{
		"readable by others": func(path string) error { return os.Chmod(path, 0o644) },
		"another user's":     func(path string) error { return os.Chown(path, 12345, -1) },
		"a fifo":             func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) },
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, 8)
			if err := plant(newFile(t, o)); errors.Is(err, os.ErrPermission) {
				t.Skip("needs root: ", err)
			} else if err != nil {
				t.Fatal(err)
			}
			if a, err := Open(o); err == nil {
				closeArena(t, a)
				t.Error("opened")
			} else if !errors.Is(err, ErrForeign) && !errors.Is(err, os.ErrPermission) {
				t.Errorf("got %v, want ErrForeign or a refusal of the system", err)
			}
		})
	}
}

func TestSymbolicLinkIsRefused(t *testing.T) {
	o, other := options(t, 8), options(t, 8)
	target := newFile(t, other)
	if err := os.Symlink(target, filepath.Join(o.Dir, FileName(o.Volume))); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(o); !errors.Is(err, unix.ELOOP) {
		t.Errorf("got %v, want ELOOP", err)
	}
}

func TestLocked(t *testing.T) {
	o := options(t, 8)
	a := open(t, o)
	if _, err := Open(o); !errors.Is(err, ErrLocked) {
		t.Errorf("opened twice: %v, want ErrLocked", err)
	}
	if _, err := SetAside(a.Path()); !errors.Is(err, ErrLocked) {
		t.Errorf("set aside while open: %v, want ErrLocked", err)
	}
	closeArena(t, a)
	closeArena(t, open(t, o))
}

// TestUnfinishedCreation leaves what a kill during creation can leave.
func TestUnfinishedCreation(t *testing.T) {
	o := options(t, 8)
	whole := read(t, newFile(t, o))
	headerOnly := make([]byte, len(whole)+5*PageSize) // as if the size had been another
	copy(headerOnly[8:], whole[8:64])
	for name, left := range map[string][]byte{"empty": {}, "short": make([]byte, 77), "no magic": headerOnly} {
		t.Run(name, func(t *testing.T) {
			o := options(t, 8)
			path := filepath.Join(o.Dir, FileName(o.Volume))
			write(t, path, left)
			a := open(t, o)
			if !a.Created() || a.Live() != 0 || a.Pages() != 8 || a.Path() != path {
				t.Errorf("created %v, %d live of %d, at %s", a.Created(), a.Live(), a.Pages(), a.Path())
			}
		})
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, change := range map[string]func(o *Options){
		"no shards":       func(o *Options) { o.Shards = 0 },
		"too many shards": func(o *Options) { o.Shards = maxShards + 1 },
		"negative size":   func(o *Options) { o.SizeBytes = -1 },
		"too large":       func(o *Options) { o.SizeBytes = maxPages*PageSize + 1 },
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, 8)
			change(&o)
			if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "want") {
				t.Errorf("got %v, want an error that says what is possible", err)
			}
		})
	}
}

// diskDir returns a directory that is not on tmpfs, for the fallback.
func diskDir(t *testing.T) string {
	dir := t.TempDir()
	if kindOf(dir) == TmpFS {
		t.Skipf("%s is on tmpfs, so there is no disk to fall back to", dir)
	}
	return dir
}

// smallTmpFS mounts a tmpfs of sizeBytes.
func smallTmpFS(t *testing.T, size string) string {
	dir := t.TempDir()
	if err := unix.Mount("trivet-test", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skip("cannot mount a tmpfs: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestFallback goes down the ladder: every rung works, is named, and says why
// the one above it was not to be had.
func TestFallback(t *testing.T) {
	disk := diskDir(t)
	for _, c := range []struct {
		name     string
		dir      string
		fallback string
		kind     Kind
		says     string
	}{
		{"no tmpfs", disk, t.TempDir(), DiskFile, "no tmpfs at " + disk},
		{"no directory", filepath.Join(disk, "absent"), t.TempDir(), DiskFile, "absent"},
		{"no room", smallTmpFS(t, "1m"), t.TempDir(), DiskFile, "no space left"},
		{"the same", disk, disk, DiskFile, "write-back"},
		{"nothing", disk, "", Anonymous, "loses acknowledged writes"},
		{"no fallback either", disk, filepath.Join(disk, "absent"), Anonymous, "absent"},
		{"no room anywhere", smallTmpFS(t, "1m"), smallTmpFS(t, "1m"), Anonymous, "no space left"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Options{Volume: testVolume, Dir: c.dir, FallbackDir: c.fallback, SizeBytes: 2 << 20, Shards: 2}
			a := open(t, o)
			if a.Kind() != c.kind || !strings.Contains(a.Note(), c.says) || strings.Contains(a.Note(), "\n") {
				t.Errorf("kind %v, note %q, want %v with %q on one line", a.Kind(), a.Note(), c.kind, c.says)
			}
			useOnce(t, a, o)
			if left, _ := filepath.Glob(filepath.Join(c.dir, "*.arena")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// useOnce puts a record, opens the arena again if it has a file, and discards
// it.
func useOnce(t *testing.T, a *Arena, o Options) {
	p := alloc(t, a)
	a.Put(p, fillWrite(a, p, 42, 7, Stamp{1, 1}))
	if a.Kind() != Anonymous {
		closeArena(t, a)
		a = open(t, o)
	}
	if found := recoverAll(t, a); len(found) != 1 || found[0].Err != nil || found[0].Record.LBA != 42 {
		t.Errorf("recovered %+v", found)
	}
	a.Free(p)
	if err := a.Discard(); err != nil {
		t.Error(err)
	}
	if err := a.Discard(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("discarded twice: %v, want os.ErrClosed", err)
	}
}

// TestFoundWhereItIs makes the arena in the fallback directory; when tmpfs can
// be had again, the records are still found.
func TestFoundWhereItIs(t *testing.T) {
	o := options(t, 8)
	tmpfs, disk := o.Dir, diskDir(t)
	o.Dir, o.FallbackDir = filepath.Join(disk, "absent"), disk
	newFile(t, o)

	o.Dir = tmpfs
	a := open(t, o)
	if a.Created() || a.Live() != 1 || a.Kind() != DiskFile {
		t.Fatalf("created %v, %d live, %v, want the file on the disk", a.Created(), a.Live(), a.Kind())
	}
	closeArena(t, a)

	o.FallbackDir = ""
	newFile(t, o)
	o.FallbackDir = disk
	if _, err := Open(o); !errors.Is(err, ErrTwo) || !strings.Contains(err.Error(), disk) {
		t.Errorf("two arenas: %v, want ErrTwo and where", err)
	}
}

// TestDamageIsReported flips bits of records and payloads one at a time: each
// is reported, stays allocated, and spoils no other.
func TestDamageIsReported(t *testing.T) {
	o := options(t, 8)
	path := newFile(t, o)
	a := open(t, o)
	p := alloc(t, a)
	a.Put(p, fillWrite(a, p, 43, 9, Stamp{1, 2}))
	a.Restamp(p, Stamp{2, 3})
	closeArena(t, a)
	whole := read(t, path)
	id := identity{pages: 8, shards: 4}
	record, payload := id.layout().tableAt+recordSize, id.layout().payloadAt+PageSize
	for name, at := range map[string]int64{
		"tag": record + 6, "selector": record + 4, "checksum": record, "lba": record + 8, "count": record + 16,
		"payload CRC": record + 20, "page": record + 24, "shard": record + 28, "kind": record + 30,
		"generation": record + 48, "LSN": record + 56, "payload": payload, "payload's end": payload + PageSize - 1,
	} {
		t.Run(name, func(t *testing.T) {
			damaged := bytes.Clone(whole)
			damaged[at] ^= 1
			write(t, path, damaged)
			a := open(t, o)
			defer closeArena(t, a)
			found := recoverAll(t, a)
			if len(found) != 2 || found[0].Err != nil || found[0].Record.LBA != 42 {
				t.Fatalf("recovered %+v, want the other record first", found)
			}
			if bad := found[1]; !errors.Is(bad.Err, ErrDamaged) || bad.Page != p || !strings.Contains(bad.Err.Error(), path) {
				t.Errorf("got %+v, want page %d, ErrDamaged and the path", bad, p)
			}
			if a.Live() != 2 {
				t.Errorf("%d live, want the damaged page kept", a.Live())
			}
		})
	}
}

// TestMisplacedRecord copies a record over another page's.
func TestMisplacedRecord(t *testing.T) {
	o := options(t, 8)
	path := newFile(t, o)
	b, id := read(t, path), identity{pages: 8, shards: 4}
	at := id.layout().tableAt
	copy(b[at+3*recordSize:], b[at:at+recordSize])
	write(t, path, b)
	found := recoverAll(t, open(t, o))
	if len(found) != 2 || found[0].Err != nil || !errors.Is(found[1].Err, ErrDamaged) || found[1].Page != 3 {
		t.Errorf("recovered %+v, want the copy on page 3 damaged", found)
	}
}
