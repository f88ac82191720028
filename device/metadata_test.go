package device

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// metadataLoss is a way in which a slot's metadata store ceases to be what the slot
// left in it, while the volume is served. old is a copy of the store from before
// what was written last; helper is the process that keeps it.
var metadataLoss = map[string]func(t *testing.T, store, old string, helper func() int){
	"removed": func(t *testing.T, store, _ string, helper func() int) {
		noError(t, os.RemoveAll(filepath.Join(store, "badger")))
		noError(t, syscall.Kill(helper(), syscall.SIGKILL))
	},
	"replaced by an older copy": func(t *testing.T, store, old string, helper func() int) {
		pid := helper()
		noError(t, syscall.Kill(pid, syscall.SIGSTOP))
		noError(t, os.RemoveAll(filepath.Join(store, "badger")))
		noError(t, os.CopyFS(filepath.Join(store, "badger"), os.DirFS(filepath.Join(old, "badger"))))
		noError(t, syscall.Kill(pid, syscall.SIGKILL))
	},
	"rotten": func(t *testing.T, store, _ string, _ func() int) {
		flipTables(t, store)
	},
}

// eventually waits for a long while, on a busy machine, until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for start := time.Now(); !holds(); <-tick.C {
		if time.Since(start) > 2*time.Minute {
			t.Fatalf("not within 2 minutes: %s", what)
		}
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// flipTables changes a byte in every KiB of the data of every table of a store: the
// map's pages are among the last of it, before a short index.
func flipTables(t *testing.T, store string) {
	t.Helper()
	tables, err := filepath.Glob(filepath.Join(store, "badger", "*.sst"))
	noError(t, err)
	if len(tables) == 0 {
		t.Fatal("the store has no tables")
	}
	for _, name := range tables {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		noError(t, err)
		info, err := f.Stat()
		noError(t, err)
		for at := int64(1000); at < info.Size()*9/10; at += 1024 {
			b := make([]byte, 1)
			_, err := f.ReadAt(b, at)
			noError(t, err)
			b[0] ^= 0x10
			_, err = f.WriteAt(b, at)
			noError(t, err)
		}
		noError(t, f.Close())
	}
}

// TestMetadataLostWhileServed: the metadata of slot 1 vanish, go back in time or
// rot under a running server (hazard 28). Every read is right all the same; the
// slot is dropped, what it held is set aside, and it is filled by its peers while
// they serve: in the end it alone has everything.
func TestMetadataLostWhileServed(t *testing.T) {
	for name, lose := range metadataLoss {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, func(o *Options) { o.ReturnAfter = 50 * time.Millisecond })
			old := agedStore(v)
			lose(t, filepath.Join(v.opt.Dir, "slot-1", "meta"), old, func() int { return helperOf(t, filepath.Join(v.opt.Dir, "slot-1")) })
			var readers sync.WaitGroup
			for i := range 64 {
				readers.Go(func() {
					if got, err := v.read(uint64(i)<<20, 64<<10); err != nil || !bytes.Equal(got, aged(i)) {
						t.Errorf("MiB %d is not what was written: %v", i, err)
					}
				})
			}
			readers.Wait()
			eventually(t, "slot 1 is set aside", func() bool { return len(asidesOf(t, v.opt.Dir, 1)) > 0 })
			eventually(t, "slot 1 is back", func() bool {
				v.must(v.write(0, aged(0), FUA))
				return v.live()[1]
			})
			v.close()
			for _, other := range []string{"slot-0", "slot-2"} {
				v.must(os.RemoveAll(filepath.Join(v.opt.Dir, other)))
			}
			v.opt.Survivor = 2
			v.open()
			for i := range 64 {
				v.expect(uint64(i)<<20, aged(i))
			}
		})
	}
}

// TestMetadataLostAlone: with one replica there is nobody to ask. Reads fail; they
// return neither zeros nor what was there before.
func TestMetadataLostAlone(t *testing.T) {
	for name, lose := range metadataLoss {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, func(o *Options) { o.Replicas = 1; o.Deadline = 3 * time.Second })
			old := agedStoreOf(v, "slot-0")
			lose(t, filepath.Join(v.opt.Dir, "slot-0", "meta"), old, func() int { return helperOf(t, filepath.Join(v.opt.Dir, "slot-0")) })
			failed := 0
			for i := range 64 {
				got, err := v.read(uint64(i)<<20, 64<<10)
				if err == nil && !bytes.Equal(got, aged(i)) {
					t.Fatalf("MiB %d is not what was written, and no error tells", i)
				}
				if err != nil {
					failed++
					if failed > 2 {
						break // each may take its deadline
					}
				}
			}
			if failed == 0 {
				t.Error("nothing was lost")
			}
			if found := asidesOf(t, v.opt.Dir, 0); len(found) > 0 {
				t.Errorf("the only slot was set aside: %v", found)
			}
		})
	}
}

// aged is what the volume of agedStore holds in each MiB.
func aged(i int) []byte { return pattern(200+i, 64<<10) }

// agedStore fills the volume, stops it, keeps a copy of slot 1's store, fills it with
// something else, and starts it with nothing in its caches.
func agedStore(v *volume) (old string) { return agedStoreOf(v, "slot-1") }

func agedStoreOf(v *volume, slot string) (old string) {
	v.t.Helper()
	old = filepath.Join(v.t.TempDir(), "old")
	for i := range 64 {
		v.must(v.write(uint64(i)<<20, pattern(i, 64<<10), 0))
	}
	v.close()
	v.must(os.CopyFS(old, os.DirFS(filepath.Join(v.opt.Dir, slot, "meta"))))
	v.open()
	for i := range 64 {
		v.must(v.write(uint64(i)<<20, aged(i), 0))
	}
	v.reopen()
	return old
}

// asidesOf returns what was set aside in a slot's directory.
func asidesOf(t *testing.T, dir string, slot int) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "slot-"+string(rune('0'+slot)), "aside-*"))
	noError(t, err)
	return found
}
