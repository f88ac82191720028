package device

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"trivet/arena"
	"trivet/aside"
	"trivet/disk"
	"trivet/journal"
	"trivet/replica"
)

// Aside is something that the volume can no longer use, and keeps until somebody
// removes it.
type Aside struct {
	Slot      int // -1: an arena
	Path      string
	SizeBytes int64
}

// setAside moves all that a slot's directory holds out of the way, so that another slot
// can be made there. The superblock goes first: when the rest is cut short, what is left
// is a slot that has lost its own.
func (d *Device) setAside(slot int, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("set aside slot %d: %w", slot, err)
	}
	names := []string{journal.SuperblockFile}
	for _, e := range entries {
		name := e.Name()
		former, _ := filepath.Match(aside.Prefix+"*", name)
		if name != journal.SuperblockFile && name != "lost+found" && !former {
			names = append(names, name)
		}
	}
	return d.moveAside(slot, dir, names)
}

// moveAside moves something out of a slot's directory.
func (d *Device) moveAside(slot int, dir string, names []string) error {
	path, err := aside.Move(dir, names)
	if err != nil {
		return fmt.Errorf("slot %d: %w", slot, err)
	}
	d.events.note(slot, "what it held is set aside in "+path, nil)
	return nil
}

// blank sets aside what a slot holds that cannot be believed. It stays who it is, and
// says that it is being filled.
func (d *Device) blank(slot int) error {
	dir := d.layout.dirs[slot]
	files, err := disk.Real(dir, disk.Options{})
	if err != nil {
		return err
	}
	s, err := replica.ReadSlot(files, slotID(slot), dir)
	if err != nil {
		return err
	}
	if d.group != nil { // while it is served; at a start the assembly has just looked
		if err := d.group.Welcomes(s); err != nil {
			return errors.Join(err, s.Close())
		}
	}
	err = s.Blank(func(names []string) error { return d.moveAside(slot, dir, names) })
	return errors.Join(err, s.Close())
}

// blank makes a slot blank while its peers serve, which are a quorum without it.
func (r *returns) blank(slot int, why error) error {
	d := r.device
	if n := d.membership.Count(); n < d.group.Quorum() {
		return fmt.Errorf("what it holds cannot be believed, but %d slots alone are live; it is left as it is: %w", n, why)
	}
	d.events.note(slot, "what it holds cannot be believed: it is set aside, and the slot is filled by its peers", why)
	return d.blank(slot)
}

// survey looks what is set aside in the slots' directories, and of arenas.
func (d *Device) survey() {
	var all []Aside
	d.slotsMu.Lock()
	dirs := slices.Clone(d.layout.dirs)
	d.slotsMu.Unlock()
	for i, dir := range dirs {
		found, err := aside.List(dir)
		if err != nil {
			d.events.note(i, "what is set aside cannot be listed", err)
		}
		for _, e := range found {
			all = append(all, Aside{i, e.Path, e.SizeBytes})
		}
	}
	all = append(all, d.arenasAside()...)
	d.slotsMu.Lock()
	defer d.slotsMu.Unlock()
	d.asides = all
}

// arenasAside returns the arenas of this volume that were set aside.
func (d *Device) arenasAside() (all []Aside) {
	for _, path := range ArenasAside(d.group.Volume, d.opt.ArenaDir, d.opt.Dir) {
		if info, err := os.Lstat(path); err == nil {
			all = append(all, Aside{-1, path, aside.Blocks(info)})
		}
	}
	return all
}

// ArenasAside returns the paths of a volume's arenas that were set aside: in the
// directory for arenas, "" for the one that is used when none is given, and in the
// volume's own.
func ArenasAside(volume [16]byte, arenaDir, dir string) (paths []string) {
	if arenaDir == "" {
		arenaDir = "/dev/shm"
	}
	for _, in := range []string{arenaDir, dir} {
		// The error is that of a malformed pattern.
		entries, err := fs.Glob(os.DirFS(in), arena.FileName(volume)+".aside-*")
		if err != nil {
			panic(err)
		}
		for _, name := range entries {
			paths = append(paths, filepath.Join(in, name))
		}
	}
	return paths
}
