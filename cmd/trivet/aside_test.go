package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"trivet/arena"
	"trivet/aside"
	"trivet/journal"
)

// TestRemoveAside: what was set aside inside a slot, or of an arena, is removed by its
// path, and nothing that only looks like it.
func TestRemoveAside(t *testing.T) {
	dir := t.TempDir()
	slot, other := filepath.Join(dir, "slot-0"), filepath.Join(dir, "other")
	for _, path := range []string{slot, other} {
		for _, name := range []string{"aside-1/meta", "log"} {
			if err := os.MkdirAll(filepath.Join(path, name), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	super := &journal.Superblock{Replicas: 1, Shards: 1, SizeBytes: 1 << 20, SegmentBlocks: 1024, Signed: journal.Volume{1}, Volume: journal.Volume{1}}
	writeSuperblock(t, slot, super)
	arenaName := arena.FileName([16]byte{1}) + ".aside-1"
	for _, name := range []string{arenaName, "trivet-x.arena.aside-1", arena.FileName([16]byte{1})} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("arena"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(other, "log"), filepath.Join(slot, "aside-2")); err != nil {
		t.Fatal(err)
	}
	refused := []string{
		filepath.Join(other, "aside-1"), filepath.Join(slot, "log"), slot, filepath.Join(slot, "aside-2"), filepath.Join(slot, "aside-1", "meta"),
		filepath.Join(slot, "superblock"), filepath.Join(dir, "trivet-x.arena.aside-1"), filepath.Join(dir, arena.FileName([16]byte{1})), "aside-1", "..", "/",
	}
	for _, path := range refused {
		err := removeAside(path)
		if !errors.Is(err, aside.ErrNotAside) && !errors.Is(err, arena.ErrNotAside) {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := os.Lstat(path); filepath.IsAbs(path) && err != nil {
			t.Errorf("%s is gone: %v", path, err)
		}
	}
	for _, path := range []string{filepath.Join(slot, "aside-1"), filepath.Join(dir, arenaName)} {
		if err := removeAside(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
}

func writeSuperblock(t *testing.T, dir string, super *journal.Superblock) {
	t.Helper()
	files, err := openToCheck(dir, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	f, err := journal.CreateSuperblock(files, journal.SuperblockFile, super)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestListAside: what was set aside is listed with what it takes.
func TestListAside(t *testing.T) {
	dir := t.TempDir()
	slot := filepath.Join(dir, "slot-0")
	path := filepath.Join(slot, "aside-1")
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "superblock"), make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	writeSuperblock(t, slot, &journal.Superblock{Replicas: 1, Shards: 1, SizeBytes: 1 << 20, SegmentBlocks: 1024, Signed: journal.Volume{1}, Volume: journal.Volume{1}})
	var out bytes.Buffer
	if err := listAside(&out, VolumeOptions{Dir: dir}, dir); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, path+"\t64") {
		t.Errorf("listed as %q", got)
	}
}
