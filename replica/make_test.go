package replica

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"syscall"
	"testing"

	"trivet/disk"
	"trivet/journal"
)

var smallGeometry = Geometry{Name: "test", SizeBytes: 16 << 20, Replicas: 3, Shards: 2, SegmentBlocks: 1024}

// openSlot opens a slot of a new volume, or makes it.
func openSlot(files disk.FS, id journal.SlotID, g Geometry) (s *Slot, made bool, err error) {
	if s, err = ReadSlot(files, id, "test"); !lacks(err) {
		return s, false, err
	}
	s, err = MakeSlot(files, "test", g.Superblocks(func(b []byte) { b[0]++ })[id])
	return s, err == nil, err
}

// mustOpen opens a slot, or makes it, and closes it again.
func mustOpen(t *testing.T, files disk.FS) (made bool) {
	t.Helper()
	s, made, err := openSlot(files, 1, smallGeometry)
	if err != nil {
		t.Fatal(err)
	}
	if s.Geometry() != smallGeometry {
		t.Errorf("the slot is of %+v", s.Geometry())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return made
}

// TestMakeCutShort kills the server, or cuts the power, after every operation
// with which a slot is made: the next start makes it, or has it.
func TestMakeCutShort(t *testing.T) {
	for _, power := range []bool{false, true} {
		for seed := range uint64(8) {
			for n := uint64(0); ; n++ {
				files := disk.Memory(seed, disk.MemoryOptions{})
				faulty, _ := disk.FailNth(files, n, syscall.EIO)
				s, _, err := openSlot(faulty, 1, smallGeometry)
				whole := err == nil
				if whole {
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
				}
				if power {
					files = files.Crash()
				} else {
					files = files.Kill()
				}
				if made := mustOpen(t, files); made && whole {
					t.Fatal("a slot that was whole was made again")
				}
				if whole {
					break
				}
			}
		}
	}
}

// TestMakeTorn: a superblock file of any size and content, which the making of
// a slot has left, does not stand in the way.
func TestMakeTorn(t *testing.T) {
	for _, sizeBytes := range []int64{journal.BlockSize, journal.SuperblockSize} {
		files := disk.Memory(1, disk.MemoryOptions{})
		if err := files.MkdirAll(logDir); err != nil {
			t.Fatal(err)
		}
		createFile(t, files, journal.SuperblockFile, sizeBytes)
		if super, err := Inspect(files); super != nil || err != nil {
			t.Errorf("%v, %v is found", super, err)
		}
		if !mustOpen(t, files) || mustOpen(t, files) {
			t.Error("it was not made once")
		}
	}
}

func createFile(t *testing.T, files disk.FS, name string, sizeBytes int64) {
	t.Helper()
	f, err := files.Create(name, sizeBytes)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestMakeOverNothing: where a slot has lost its superblock, or where something
// else is, nothing is made and nothing is touched.
func TestMakeOverNothing(t *testing.T) {
	for name, c := range map[string]struct {
		there func(t *testing.T, files disk.FS)
		want  error
	}{
		"a log": {func(t *testing.T, files disk.FS) { createFile(t, files, "log/000000", journal.BlockSize) }, journal.ErrNoSuperblock},
		"a log, and a superblock that is none": {func(t *testing.T, files disk.FS) {
			createFile(t, files, "log/000001", journal.BlockSize)
			createFile(t, files, journal.SuperblockFile, journal.SuperblockSize)
		}, journal.ErrNoSuperblock},
		"metadata": {func(t *testing.T, files disk.FS) {
			if err := files.MkdirAll(metaDir); err != nil {
				t.Fatal(err)
			}
		}, journal.ErrNoSuperblock},
		"somebody's file": {func(t *testing.T, files disk.FS) { createFile(t, files, "thesis.tex", journal.BlockSize) }, ErrForeign},
		"somebody's log":  {func(t *testing.T, files disk.FS) { createFile(t, files, "log/messages", journal.BlockSize) }, ErrForeign},
	} {
		t.Run(name, func(t *testing.T) {
			files := disk.Memory(1, disk.MemoryOptions{})
			if err := files.MkdirAll(logDir); err != nil {
				t.Fatal(err)
			}
			c.there(t, files)
			before, _ := files.List(".")
			if s, _, err := openSlot(files, 1, smallGeometry); s != nil || !errors.Is(err, c.want) {
				t.Errorf("opened: %v, expected %v", err, c.want)
			}
			if super, err := Inspect(files); super != nil || !errors.Is(err, c.want) {
				t.Errorf("found %v, %v, expected %v", super, err, c.want)
			}
			after, _ := files.List(".")
			if after = slices.DeleteFunc(after, func(name string) bool { return name == lockFile }); !slices.Equal(before, after) {
				t.Errorf("%v were there, then %v", before, after)
			}
		})
	}
}

// TestLocked: a slot that is served is not opened twice, and any other failure
// of its lock is not taken for that.
func TestLocked(t *testing.T) {
	files := disk.Memory(1, disk.MemoryOptions{})
	s, _, err := openSlot(files, 1, smallGeometry)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := openSlot(files, 1, smallGeometry); !errors.Is(err, ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSlot(noLock{files}, 1, "test"); errors.Is(err, ErrInUse) || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a lock that may not be taken: %v", err)
	}
}

// noLock is a directory in which no lock can be taken.
type noLock struct{ disk.FS }

func (noLock) Lock(string) (io.Closer, error) { return nil, fs.ErrPermission }
