package arena

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// homedOptions are those of an arena, and the directory of its volume.
type homedOptions struct {
	Options
	Home string
}

// homed makes an arena with a record, of a volume in a directory of its own,
// and returns its path, closed, with its options.
func homed(t *testing.T) (string, homedOptions) {
	o := homedOptions{options(t, 8), filepath.Join(t.TempDir(), "a", "volume")}
	if err := os.MkdirAll(o.Home, 0o700); err != nil {
		t.Fatal(err)
	}
	h := findHome(o.Home)
	if len(h.handle) == 0 {
		t.Skipf("the filesystem of %s has no file handles", o.Home)
	}
	fd, err := unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(h.handleType, h.handle), unix.O_PATH)
	if err != nil {
		t.Skipf("a file handle cannot be opened: %v", err)
	}
	unix.Close(fd)
	path := newFile(t, o.Options)
	settle(t, o, o.Home)
	return path, o
}

// settle opens the arena and says that its volume is in a directory.
func settle(t *testing.T, o homedOptions, home string) {
	a := open(t, o.Options)
	a.SetOwner(Owner{Generation: 1, Home: home, Whole: true})
	closeArena(t, a)
}

// pruned tells whether Prune removes the file, and that it says so.
func pruned(t *testing.T, path string, o homedOptions) bool {
	t.Helper()
	removed, err := Prune(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	there, err := exists(path)
	if err != nil {
		t.Fatal(err)
	}
	if said := len(removed) == 1 && strings.Contains(removed[0], path) && strings.Contains(removed[0], o.Home); said == there {
		t.Errorf("is it there: %v; removed are %q", there, removed)
	}
	return !there
}

// TestPrune: the arena of a volume that was removed goes, as does one that was
// set aside.
func TestPrune(t *testing.T) {
	for name, remove := range map[string]func(dir string) error{
		"its directory": os.RemoveAll,
		"all above it":  func(dir string) error { return os.RemoveAll(filepath.Dir(dir)) },
	} {
		t.Run(name, func(t *testing.T) {
			path, o := homed(t)
			if pruned(t, path, o) {
				t.Fatal("the volume is there")
			}
			if err := remove(o.Home); err != nil {
				t.Fatal(err)
			}
			if !pruned(t, path, o) {
				t.Error("the volume is gone")
			}
		})
	}
	path, o := homed(t)
	aside, err := SetAside(path)
	if err != nil {
		t.Fatal(err)
	}
	if pruned(t, aside, o) {
		t.Fatal("the volume is there")
	}
	if err := os.RemoveAll(o.Home); err != nil {
		t.Fatal(err)
	}
	if !pruned(t, aside, o) {
		t.Error("the volume is gone")
	}
}

// TestPruneLeaves: an arena whose volume may come back stays, with every byte.
func TestPruneLeaves(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, path string, o *homedOptions) error{
		"moved": func(t *testing.T, path string, o *homedOptions) error { return os.Rename(o.Home, o.Home+"2") },
		"moved to another directory": func(t *testing.T, path string, o *homedOptions) error {
			return os.Rename(filepath.Dir(o.Home), filepath.Join(t.TempDir(), "b"))
		},
		"another filesystem": func(t *testing.T, path string, o *homedOptions) error {
			return edit(path, o, func(h *home) { h.filesystem.Val[0]++ })
		},
		"a path that cannot be looked at": func(t *testing.T, path string, o *homedOptions) error {
			return edit(path, o, func(h *home) { h.path = "/" + strings.Repeat("x", 300) })
		},
		"rotten": func(t *testing.T, path string, o *homedOptions) error {
			b := read(t, path)
			for i := range 2 {
				b[ownerAt+i*ownerSize+ownerHomeAt+homeFixed]++
			}
			write(t, path, b)
			return os.RemoveAll(o.Home)
		},
		"another version": func(t *testing.T, path string, o *homedOptions) error {
			b := read(t, path)
			b[8]++
			write(t, path, b)
			return os.RemoveAll(o.Home)
		},
		"open": func(t *testing.T, path string, o *homedOptions) error {
			open(t, o.Options)
			return os.RemoveAll(o.Home)
		},
		"opened without a home since": func(t *testing.T, path string, o *homedOptions) error {
			settle(t, *o, "")
			return os.RemoveAll(o.Home)
		},
		"moved, and opened there since": func(t *testing.T, path string, o *homedOptions) error {
			settle(t, *o, t.TempDir())
			return os.RemoveAll(o.Home)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, o := homed(t)
			if err := change(t, path, &o); err != nil {
				t.Fatal(err)
			}
			before := read(t, path)
			if pruned(t, path, o) {
				t.Fatal("it was removed")
			}
			if string(read(t, path)) != string(before) {
				t.Error("it was changed")
			}
		})
	}
}

// edit removes the volume and changes what its arena says of it.
func edit(path string, o *homedOptions, change func(*home)) error {
	h := findHome(o.Home)
	change(h)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	for i := range 2 {
		c := ownerCopy{Owner{Home: h.path, Whole: true, home: h}, uint64(i)}
		if _, err := file.WriteAt(c.encode(), int64(ownerAt+i*ownerSize)); err != nil {
			return err
		}
	}
	return os.RemoveAll(o.Home)
}

// FuzzOwner: what is not an owner is none, whatever its bytes.
func FuzzOwner(f *testing.F) {
	c := ownerCopy{Owner{Generation: 7, Home: "/volume", home: &home{path: "/volume", handleType: 1, handle: []byte{1, 2, 3}}}, 5}
	f.Add(c.encode())
	f.Add(make([]byte, ownerSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != ownerSize {
			return
		}
		c, ok := decodeOwner(b)
		if !ok {
			binary.NativeEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
			c, _ = decodeOwner(b)
		}
		if c.home != nil && (c.home.path == "" || c.home.path != c.Home) {
			t.Errorf("%+v", c)
		}
	})
}
