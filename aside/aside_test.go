package aside

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// filled makes a slot's directory with a file in each of two directories.
func filled(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"log", "meta"} {
		must(t, os.MkdirAll(filepath.Join(dir, name), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, name, "file"), make([]byte, 10000), 0o600))
	}
}

// TestMoveListRemove: what is set aside is there as it was, is listed with what it
// takes, is bounded, and goes when it is removed.
func TestMoveListRemove(t *testing.T) {
	dir := t.TempDir()
	for n := range Most {
		filled(t, dir)
		must(t, os.WriteFile(filepath.Join(dir, "superblock"), []byte("stays"), 0o600))
		path, err := Move(dir, []string{"log", "meta", "absent"})
		must(t, err)
		if _, err := os.Stat(filepath.Join(path, "log", "file")); err != nil {
			t.Fatal(err)
		}
		all, err := List(dir)
		must(t, err)
		if len(all) != n+1 || all[n].Path != path || all[n].SizeBytes < 20000 {
			t.Fatalf("listed as %+v", all)
		}
	}
	filled(t, dir)
	if _, err := Move(dir, []string{"log", "meta"}); !errors.Is(err, ErrTooMany) {
		t.Fatalf("one more than %d: %v", Most, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "log", "file")); err != nil {
		t.Fatal(err)
	}
	all, err := List(dir)
	must(t, err)
	for _, e := range all {
		must(t, Remove(dir, filepath.Base(e.Path)))
	}
	if all, err := List(dir); err != nil || len(all) > 0 {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, kept := range []string{"superblock", "log/file", "meta/file"} {
		if _, err := os.Stat(filepath.Join(dir, kept)); err != nil {
			t.Error(err)
		}
	}
}

// TestRemoveNothingElse: no name makes Remove remove what was not set aside.
func TestRemoveNothingElse(t *testing.T) {
	parent := t.TempDir()
	dir, outside := filepath.Join(parent, "slot-0"), filepath.Join(parent, "outside")
	filled(t, dir)
	filled(t, outside)
	must(t, os.Symlink(outside, filepath.Join(dir, "aside-link")))
	must(t, os.WriteFile(filepath.Join(dir, "aside-file"), nil, 0o600))
	must(t, os.Mkdir(filepath.Join(parent, "aside-x"), 0o700))
	for _, name := range []string{
		"", ".", "..", "log", "aside-", "../aside-x", "aside-link", "aside-link/log", "aside-file", "aside-../log",
		filepath.Join(outside, "log"), "../outside", "aside-absent",
	} {
		if err := Remove(dir, name); !errors.Is(err, ErrNotAside) && err == nil {
			t.Errorf("%q was removed", name)
		}
	}
	inside := filepath.Join(dir, "aside-1")
	must(t, os.Mkdir(inside, 0o700))
	must(t, os.Symlink(outside, filepath.Join(inside, "link")))
	must(t, Remove(dir, "aside-1"))
	for _, kept := range []string{
		filepath.Join(outside, "log", "file"), filepath.Join(dir, "log", "file"), filepath.Join(parent, "aside-x"), filepath.Join(dir, "aside-file"),
	} {
		if _, err := os.Lstat(kept); err != nil {
			t.Error(err)
		}
	}
}

// TestRemoveWhileMoved: what is being set aside is left alone.
func TestRemoveWhileMoved(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "aside-1")
	must(t, os.Mkdir(path, 0o700))
	lock, err := locked(path)
	must(t, err)
	if err := Remove(dir, "aside-1"); !errors.Is(err, ErrBusy) {
		t.Errorf("it was removed: %v", err)
	}
	must(t, lock.Close())
	must(t, Remove(dir, "aside-1"))
}
