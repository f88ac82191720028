package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"trivet/arena"
	"trivet/disk"
	"trivet/journal"
	"trivet/replica"
)

// asides returns what lies aside in a slot's directory.
func (v *volume) asides(slot string) []string {
	v.t.Helper()
	found, err := filepath.Glob(filepath.Join(v.opt.Dir, slot, replica.AsidePrefix+"*", "*"))
	v.must(err)
	return found
}

// TestSuperblockLost: of a slot that has lost its superblock nothing says whose it
// is. The volume starts without it and touches nothing in it, until an operator has
// it replaced; what was there is set aside.
func TestSuperblockLost(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"removed": os.Remove,
		"zeroed":  func(path string) error { return os.WriteFile(path, make([]byte, journal.SuperblockSize), 0o600) },
		"cut":     func(path string) error { return os.Truncate(path, 100) },
	} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, func(o *Options) { o.ReturnAfter = time.Hour })
			v.must(v.write(0, pattern(1, 1<<20), 0))
			v.close()
			v.must(lose(filepath.Join(v.opt.Dir, "slot-0", journal.SuperblockFile)))
			v.open()
			if live := v.live(); live[0] || !v.said(0, "superblock is lost") {
				t.Errorf("slot 0 takes part: %v; %v", live[0], v.Events())
			}
			if aside := v.asides("slot-0"); len(aside) > 0 {
				t.Errorf("%v lies aside, and nobody said so", aside)
			}
			v.expect(0, pattern(1, 1<<20))
			v.replace(0)
			if len(v.asides("slot-0")) < 2 {
				t.Errorf("%v lies aside, expected its log and metadata", v.asides("slot-0"))
			}
			v.close()
			v.must(os.RemoveAll(filepath.Join(v.opt.Dir, "slot-1"))) // slot 0 and 2 serve
			v.open()
			v.expect(0, pattern(1, 1<<20))
		})
	}
}

// TestSuperblockLostAlone: the only slot there is must not be made over.
func TestSuperblockLostAlone(t *testing.T) {
	v := newVolume(t, func(o *Options) { o.Replicas = 1 })
	v.must(v.write(0, pattern(1, 1<<20), 0))
	v.close()
	path := filepath.Join(v.opt.Dir, "slot-0", journal.SuperblockFile)
	kept := filepath.Join(t.TempDir(), "kept")
	v.must(os.Rename(path, kept))
	for _, size := range []uint64{v.opt.Size, 0} {
		opt := v.opt
		opt.Size = size
		if _, err := Open(context.Background(), opt); !errors.Is(err, journal.ErrNoSuperblock) {
			t.Fatalf("the only slot has lost its superblock: %v", err)
		}
	}
	if dirs, _ := filepath.Glob(filepath.Join(v.opt.Dir, "slot-*")); len(dirs) != 1 || len(v.asides("slot-0")) > 0 {
		t.Errorf("%v are there, %v lies aside", dirs, v.asides("slot-0"))
	}
	v.must(os.Rename(kept, path))
	v.open()
	v.expect(0, pattern(1, 1<<20))
}

// TestMakingCutShort: a volume whose making was cut short is made; so is a slot, on
// an operator's word.
func TestMakingCutShort(t *testing.T) {
	torn := func(dir string) error {
		return errors.Join(os.MkdirAll(filepath.Join(dir, "log"), 0o755), os.WriteFile(filepath.Join(dir, journal.SuperblockFile), make([]byte, 5000), 0o600))
	}
	for _, replicas := range []int{1, 3} {
		t.Run(fmt.Sprint(replicas, " replicas"), func(t *testing.T) {
			v := newVolume(t, func(o *Options) {
				o.Replicas = replicas
				if err := torn(filepath.Join(o.Dir, "slot-0")); err != nil {
					t.Fatal(err)
				}
			})
			v.must(v.write(0, pattern(1, 1<<20), 0))
			if replicas == 1 {
				return
			}
			v.close()
			slot := filepath.Join(v.opt.Dir, "slot-2")
			v.must(errors.Join(os.RemoveAll(slot), torn(slot)))
			v.open()
			if live := v.live(); live[2] {
				t.Error("a slot that was never made takes part")
			}
			v.replace(2)
			v.close()
			v.must(os.RemoveAll(filepath.Join(v.opt.Dir, "slot-0")))
			v.open()
			v.expect(0, pattern(1, 1<<20))
		})
	}
}

// holdLocks takes every lock of a volume at rest, as a server does that was
// killed and has not ended yet.
func (v *volume) holdLocks() (release func()) {
	v.t.Helper()
	var held []interface{ Close() error }
	for _, slot := range []string{"slot-0", "slot-1", "slot-2"} {
		files, err := disk.Real(filepath.Join(v.opt.Dir, slot), disk.Options{})
		v.must(err)
		lock, err := files.Lock("lock")
		v.must(err)
		held = append(held, lock)
	}
	super, err := inspectSlot(filepath.Join(v.opt.Dir, "slot-0"))
	v.must(err)
	a, err := arena.Open(arena.Options{Volume: super.Volume, Dir: v.opt.ArenaDir, SizeBytes: leastArenaBytes, Shards: int(super.Shards)})
	v.must(err)
	return func() {
		for _, c := range append(held, a) {
			v.must(c.Close())
		}
	}
}

// TestStartBeforeTheEnd: a server that is started while the killed one before it
// still holds its locks waits for them, a bounded time; one that is served is
// refused in time, by its name.
func TestStartBeforeTheEnd(t *testing.T) {
	v := newVolume(t, nil)
	v.must(v.write(0, pattern(1, 1<<20), 0))
	v.close()
	release := v.holdLocks()
	pauses := 0
	v.opt.pause = func(context.Context, time.Duration) error {
		if pauses++; pauses == 3 {
			release()
		}
		return nil
	}
	v.open()
	v.expect(0, pattern(1, 1<<20))
	if pauses < 3 {
		t.Errorf("it waited %d times for locks that were held", pauses)
	}
	var waited time.Duration
	v.opt.pause = func(_ context.Context, d time.Duration) error { waited += d; return nil }
	if _, err := Open(context.Background(), v.opt); !errors.Is(err, replica.ErrInUse) || errors.Is(err, replica.ErrNoVolume) {
		t.Errorf("a volume that is served is opened again: %v", err)
	}
	if waited < time.Second || waited > 3*time.Second {
		t.Errorf("it waited %v for a server that does not end", waited)
	}
	v.expect(0, pattern(1, 1<<20))
}

// TestVolumeRemoved: what a killed server of a volume that was removed since has
// left in shared memory goes when any volume is served; that of one that is
// there stays.
func TestVolumeRemoved(t *testing.T) {
	v := newVolume(t, nil)
	dirs := []string{filepath.Join(t.TempDir(), "removed"), filepath.Join(t.TempDir(), "there")}
	var paths []string
	for i, dir := range dirs {
		v.must(os.Mkdir(dir, 0o700))
		a, err := arena.Open(arena.Options{Volume: journal.Volume{byte(i)}, Dir: v.opt.ArenaDir, SizeBytes: 4096, Shards: 1})
		v.must(err)
		a.SetOwner(arena.Owner{Generation: 1, Home: dir, Whole: true})
		if a.Kind() != arena.TmpFS {
			t.Skip("there is no shared memory")
		}
		paths = append(paths, a.Path())
		v.must(a.Close())
	}
	v.must(os.Remove(dirs[0]))
	v.reopen()
	if _, err := os.Stat(paths[1]); err != nil {
		t.Errorf("the arena of a volume that is there: %v", err)
	}
	_, err := os.Stat(paths[0])
	if err == nil {
		t.Skip("the filesystem of a removed volume cannot tell that it was")
	}
	if !errors.Is(err, os.ErrNotExist) || !v.said(-1, paths[0], dirs[0]) {
		t.Errorf("the arena of a volume that was removed: %v, and nobody said so", err)
	}
}
