package disk_test

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"trivet/disk"
	"trivet/inject"
)

// sector is what a test knows of 512 bytes: how often the value (one byte,
// repeated) changed does not matter, only what a crash may leave.
type sector struct {
	durable byte // on the disk for certain
	latest  byte // what a read finds
	dirty   bool // a crash may leave durable, latest or garbage
	lost    bool // a sync that does not fail leaves it dirty
}

// diskModel is a second, simpler statement of what MemoryFS promises, for one
// file that is written in blocks of one value.
type diskModel struct{ blocks []sector }

func (m *diskModel) write(first, n int, value byte, durable bool) {
	for i := first; i < first+n; i++ {
		b := &m.blocks[i]
		b.latest, b.lost, b.dirty = value, false, !durable
		if durable {
			b.durable = value
		}
	}
}

func (m *diskModel) sync(fails bool) {
	for i := range m.blocks {
		switch b := &m.blocks[i]; {
		case fails:
			b.lost = b.dirty
		case !b.lost:
			b.durable, b.dirty = b.latest, false
		}
	}
}

// check compares a file with the model, before a crash or behind one.
func (m *diskModel) check(t *rapid.T, f disk.File, crashed bool) {
	content := disk.Alloc(len(m.blocks) * bs)
	if err := f.Read([][]byte{content}, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range m.blocks {
		got := content[i*bs : (i+1)*bs]
		if !crashed || !b.dirty {
			if !bytes.Equal(got, block(b.latest)) {
				t.Fatalf("block %d (%+v) holds %x…", i, b, got[:8])
			}
			continue
		}
		for at := 0; at < bs; at += 512 {
			if value, uniform := uniform(got[at : at+512]); uniform && value != b.durable && value != b.latest {
				t.Fatalf("sector %d of block %d (%+v) holds %#x", at/512, i, b, value)
			}
		}
	}
}

// settle takes over what a crash has left; blocks with garbage are zeroed
// first, durably, so that the model can go on.
func (m *diskModel) settle(t *rapid.T, f disk.File) {
	for i := range m.blocks {
		got := disk.Alloc(bs)
		if err := f.Read([][]byte{got}, int64(i)*bs); err != nil {
			t.Fatal(err)
		}
		value, whole := uniform(got)
		if !whole {
			if err := f.Write([][]byte{block(0)}, int64(i)*bs, true); err != nil {
				t.Fatal(err)
			}
		}
		m.blocks[i] = sector{durable: value, latest: value}
	}
}

// uniform returns the value that all of b has; 0 when there is none.
func uniform(b []byte) (value byte, ok bool) {
	for _, c := range b {
		if c != b[0] {
			return 0, false
		}
	}
	return b[0], true
}

// TestMemoryAgainstModel runs random operations, failed syncs, kills and power
// cuts.
func TestMemoryAgainstModel(t *testing.T) {
	const n = 12
	rapid.Check(t, func(t *rapid.T) {
		m := diskModel{blocks: make([]sector, n)}
		fs := disk.Memory(rapid.Uint64().Draw(t, "seed"), disk.MemoryOptions{})
		if _, err := fs.Create("superblock", n*bs); err != nil {
			t.Fatal(err)
		}
		var f disk.File
		var faults *inject.Set
		open := func() {
			faults = inject.NewSet(1, time.Now)
			var err error
			if f, err = disk.Faulty(fs, faults, 0, disk.FaultyOptions{}).Open("superblock"); err != nil {
				t.Fatal(err)
			}
		}
		fail := func() { // the next sync, or sync part of a durable write
			if _, err := faults.Add(inject.MustParse("superblock op=sync count=1 error=EIO")); err != nil {
				t.Fatal(err)
			}
		}
		open()
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				first := rapid.IntRange(0, n-1).Draw(t, "first")
				count := rapid.IntRange(1, n-first).Draw(t, "count")
				value, durable := rapid.Byte().Draw(t, "value"), rapid.Bool().Draw(t, "durable")
				if err := f.Write([][]byte{blocks(count, value)}, int64(first)*bs, durable); err != nil {
					t.Fatal(err)
				}
				m.write(first, count, value, durable)
			},
			"zero": func(t *rapid.T) {
				first := rapid.IntRange(0, n-1).Draw(t, "first")
				count := rapid.IntRange(1, n-first).Draw(t, "count")
				if err := f.Zero(int64(first)*bs, int64(count)*bs); err != nil {
					t.Fatal(err)
				}
				m.write(first, count, 0, false)
			},
			"sync": func(t *rapid.T) {
				if err := f.Sync(); err != nil {
					t.Fatal(err)
				}
				m.sync(false)
			},
			"fail-sync": func(t *rapid.T) {
				fail()
				if f.Sync() == nil {
					t.Fatal("the sync did not fail")
				}
				faults.Clear()
				m.sync(true)
			},
			"fail-durable-write": func(t *rapid.T) {
				fail()
				if f.Write([][]byte{block(7)}, 0, true) == nil {
					t.Fatal("the write did not fail")
				}
				faults.Clear()
				m.write(0, 1, 7, false)
				m.sync(true)
			},
			"kill": func(t *rapid.T) {
				fs = fs.Kill()
				open()
			},
			"crash": func(t *rapid.T) {
				fs = fs.Crash()
				open()
				m.check(t, f, true)
				m.settle(t, f)
			},
			"crash-clone": func(t *rapid.T) {
				survivor, err := fs.CrashClone(rapid.Uint64().Draw(t, "seed")).Open("superblock")
				if err != nil {
					t.Fatal(err)
				}
				m.check(t, survivor, true)
			},
			"": func(t *rapid.T) { m.check(t, f, false) },
		})
	})
}

// TestCrashLeavesEverything counts over many seeds what becomes of an unsynced
// block: each outcome that the fault model names has to happen.
func TestCrashLeavesEverything(t *testing.T) {
	fs := disk.Memory(1, disk.MemoryOptions{})
	f := create(t, fs, "log", 4*bs)
	write(t, f, 0, true, blocks(4, 1))
	write(t, f, 0, false, blocks(4, 2))
	seen := map[string]int{}
	for seed := range uint64(500) {
		after := read(t, reopen(t, fs.CrashClone(seed), "log"), 0, 4*bs)
		file := ""
		for b := range slices.Chunk(after, bs) {
			kinds := ""
			for s := range slices.Chunk(b, 512) {
				switch value, whole := uniform(s); {
				case !whole:
					kinds += "g"
				case value == 1:
					kinds += "o"
				case value == 2:
					kinds += "n"
				default:
					t.Fatalf("seed %d: a sector of %#x", seed, value)
				}
			}
			switch kinds {
			case "oooooooo", "nnnnnnnn":
				file += kinds[:1]
			default:
				file += "m"
			}
			for _, kind := range kinds {
				seen[string(kind)]++
			}
		}
		seen[file]++
	}
	// Sectors of each kind; files all old, all new, and with a hole in front.
	for _, kind := range []string{"o", "n", "g", "oooo", "nnnn", "mmmm", "nnno", "onnn"} {
		if seen[kind] == 0 {
			t.Errorf("%q never happened in 500 crashes", kind)
		}
	}
}

func TestCrashIsDeterministic(t *testing.T) {
	run := func() []byte {
		fs := disk.Memory(42, disk.MemoryOptions{})
		for _, name := range []string{"c", "a", "b"} {
			f := create(t, fs, name, 64*bs)
			for i := range int64(64) {
				write(t, f, (i*37%64)*bs, false, block(byte(i)))
			}
		}
		fs = fs.Crash().Kill().Crash()
		var all []byte
		for _, name := range []string{"a", "b", "c"} {
			all = append(all, read(t, reopen(t, fs, name), 0, 64*bs)...)
		}
		return all
	}
	if !bytes.Equal(run(), run()) {
		t.Error("the same seed left other bytes")
	}
}

// TestCrashSettles: what one crash has left, the next does not change.
func TestCrashSettles(t *testing.T) {
	fs := disk.Memory(3, disk.MemoryOptions{})
	write(t, create(t, fs, "log", 16*bs), 0, false, blocks(16, 1))
	fs = fs.Crash()
	before := read(t, reopen(t, fs, "log"), 0, 16*bs)
	for range 10 {
		fs = fs.Crash()
		if !bytes.Equal(before, read(t, reopen(t, fs, "log"), 0, 16*bs)) {
			t.Fatal("a second crash changed what was settled")
		}
	}
}

func TestHandlesEndWithTheMachine(t *testing.T) {
	for name, end := range map[string]func(*disk.MemoryFS) *disk.MemoryFS{
		"crash": (*disk.MemoryFS).Crash, "kill": (*disk.MemoryFS).Kill,
	} {
		fs := disk.Memory(1, disk.MemoryOptions{})
		f := create(t, fs, "a", bs)
		lock, err := fs.Lock("lock")
		must(t, err)
		next := end(fs)
		_, openErr := fs.Open("a")
		_, createErr := fs.Create("b", bs)
		_, listErr := fs.List(".")
		_, sizeErr := f.Size()
		_, lockErr := fs.Lock("lock")
		_, _, usageErr := fs.Usage()
		for i, err := range []error{
			openErr, createErr, listErr, sizeErr, lockErr, usageErr, fs.Remove("a"), fs.MkdirAll("d"), fs.Corrupt("a", 0),
			f.Write([][]byte{block(1)}, 0, true), f.Read([][]byte{block(1)}, 0), f.Sync(), f.Zero(0, bs),
		} {
			wantErr(t, fmt.Sprintf("%s, operation %d", name, i), err, disk.ErrCrashed)
		}
		must(t, f.Close())
		must(t, lock.Close())
		if _, err := next.Lock("lock"); err != nil {
			t.Errorf("%s: the lock outlived its process: %v", name, err)
		}
		_, err = end(fs).Open("a")
		wantErr(t, "ended twice", err, disk.ErrCrashed)
		wantBytes(t, name, read(t, reopen(t, next, "a"), 0, bs), block(0))
	}
}

func TestCorrupt(t *testing.T) {
	fs := disk.Memory(1, disk.MemoryOptions{})
	f := create(t, fs, "log", 2*bs)
	write(t, f, 0, true, block(1))
	write(t, f, 0, false, block(2))
	must(t, fs.Corrupt("log", 5))
	must(t, fs.Corrupt("log", bs))
	got := read(t, f, 0, 2*bs)
	if got[5] != 2^0xff || got[4] != 2 || got[bs] != 0xff {
		t.Errorf("read % x", got[:8])
	}
	for seed := range uint64(50) { // old or new, it is corrupt (or garbage)
		got := read(t, reopen(t, fs.CrashClone(seed), "log"), 0, 2*bs)
		if value, whole := uniform(got[:512]); whole {
			t.Fatalf("seed %d: the first sector is all %#x", seed, value)
		}
	}
	wantErr(t, "behind the end", fs.Corrupt("log", 2*bs), disk.ErrBeyondEnd)
}

func TestMemoryCapacity(t *testing.T) {
	fs := disk.Memory(1, disk.MemoryOptions{CapacityBytes: 10 * bs})
	create(t, fs, "a", 6*bs)
	_, err := fs.Create("b", 5*bs)
	wantErr(t, "create", err, unix.ENOSPC)
	create(t, fs, "b", 4*bs)
	if free, all, err := fs.Usage(); free != 0 || all != 10*bs || err != nil {
		t.Errorf("free %d of %d, %v", free, all, err)
	}
	must(t, fs.Remove("a"))
	fs = fs.Crash()
	if free, _, _ := fs.Usage(); free != 6*bs {
		t.Errorf("%d free after a crash", free)
	}
	fs.SetCapacity(2 * bs)
	_, err = fs.Create("c", 0)
	must(t, err)
	if free, all, _ := fs.Usage(); free != 0 || all != 2*bs {
		t.Errorf("free %d of %d after the disk shrank", free, all)
	}
	fs.SetCapacity(0)
	create(t, fs, "d", 1<<40)
}

func TestMemoryIsSparse(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fs := disk.Memory(1, disk.MemoryOptions{})
	for i := range 10 {
		f := create(t, fs, fmt.Sprint("segment-", i), 64<<20)
		must(t, f.Zero(0, 64<<20))
		must(t, f.Sync())
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<10 {
		t.Errorf("ten empty segments allocated %d bytes", n)
	}
}

// BenchmarkMemoryRun is what a simulator does to a disk: it fills a segment in
// batches, syncs every few, crashes and reads.
func BenchmarkMemoryRun(b *testing.B) {
	batch := [][]byte{block(1), blocks(7, 2)}
	buf := disk.Alloc(8 * bs)
	for b.Loop() {
		fs := disk.Memory(1, disk.MemoryOptions{})
		f := create(b, fs, "log", 4<<20)
		for off := int64(0); off < 4<<20; off += 8 * bs {
			write(b, f, off, false, batch...)
			if off/bs%64 == 0 {
				must(b, f.Sync())
			}
		}
		f = reopen(b, fs.Crash(), "log")
		for off := int64(0); off < 4<<20; off += 8 * bs {
			must(b, f.Read([][]byte{buf}, off))
		}
	}
}
