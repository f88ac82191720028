package device

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"

	"trivet/arena"
	"trivet/journal"
	"trivet/replica"
)

// arenaOptions say where the volume's arena is.
func (d *Device) arenaOptions(g replica.Geometry) arena.Options {
	return arena.Options{
		Volume: g.Volume, Dir: d.opt.ArenaDir, FallbackDir: d.opt.Dir, SizeBytes: d.arenaBytes(), Shards: g.Shards,
		Notify: func() { d.door.notify() },
	}
}

// isInMemory reports whether there is an arena of a volume.
func (d *Device) isInMemory(v journal.Volume) bool {
	_, err := os.Stat(filepath.Join(cmp.Or(d.opt.ArenaDir, "/dev/shm"), arena.FileName(v)))
	return err == nil
}

// pruneArenas gives the memory back that killed servers of volumes hold which
// were removed since.
func (d *Device) pruneArenas() {
	removed, err := arena.Prune(d.opt.ArenaDir)
	if err != nil {
		d.events.note(-1, "arenas of volumes that were removed are not looked for", err)
	}
	for _, what := range removed {
		d.events.note(-1, "removed the arena "+what, nil)
	}
}

// setArenaAside renames an arena that cannot be used.
func (d *Device) setArenaAside(opt arena.Options, why error) error {
	for _, dir := range []string{opt.Dir, "/dev/shm", opt.FallbackDir} {
		path := filepath.Join(dir, arena.FileName(opt.Volume))
		if _, err := os.Stat(path); dir == "" || err != nil {
			continue
		}
		aside, err := arena.SetAside(path)
		if err != nil {
			return err
		}
		d.events.note(-1, "the arena of a former run cannot be used and is kept as "+aside, why)
	}
	return nil
}

// adoptRecords gives the shards what outlived the server.
func (d *Device) adoptRecords() {
	total := 0
	for i, records := range d.held.Records {
		total += len(records)
		d.shards[i].Adopt(records)
	}
	if total > 0 {
		d.events.note(-1, fmt.Sprintf("%d acknowledged records had outlived the server and are logged again", total), nil)
	}
}
