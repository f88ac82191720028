package device

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"trivet/arena"
	"trivet/journal"
	"trivet/replica"
)

// outlived is what a killed server has left in the arena, by shard, in order.
type outlived struct {
	arena   *arena.Arena
	records [][]arena.Recovered
}

// Retired returns the LSN up to which every slot had written the records.
func (o *outlived) Retired(s uint16) journal.LSN { return journal.LSN(o.arena.RetiredLSN(s)) }

// Last returns the highest LSN held.
func (o *outlived) Last(s uint16) journal.LSN {
	if n := len(o.records[s]); n > 0 {
		return journal.LSN(o.records[s][n-1].Record.LSN)
	}
	return 0
}

// openArena opens the volume's arena. held is nil when it holds nothing. One
// that cannot be used is set aside, never overwritten; so is one of an earlier
// generation than was started since: its writes were lost then, and others
// have taken their place.
func (d *Device) openArena(g replica.Geometry, started journal.Generation, locks *patience) (held *outlived, err error) {
	opt := arena.Options{
		Volume: g.Volume, Dir: d.opt.ArenaDir, FallbackDir: d.opt.Dir, SizeBytes: d.arenaBytes(), Shards: g.Shards,
		Notify: func() { d.door.notify() },
	}
	err = locks.take(func() (err error) {
		d.arena, err = arena.Open(opt)
		return err
	})
	if errors.Is(err, arena.ErrCorrupt) || errors.Is(err, arena.ErrStale) {
		if err := d.setArenaAside(opt, err); err != nil {
			return nil, err
		}
		d.arena, err = arena.Open(opt)
	}
	if err != nil {
		return nil, err
	}
	if d.arena.Created() {
		return nil, nil
	}
	records, err := d.arena.Recover()
	if err != nil || len(records) == 0 {
		return nil, err
	}
	if has := d.arena.Generation(); has < uint64(started) {
		why := fmt.Errorf("%d records of generation %d; generation %d was started without them", len(records), has, started)
		if err := d.arena.Close(); err != nil {
			return nil, err
		}
		if err := d.setArenaAside(opt, why); err != nil {
			return nil, err
		}
		d.arena, err = arena.Open(opt)
		return nil, err
	}
	held = &outlived{arena: d.arena, records: make([][]arena.Recovered, g.Shards)}
	for _, r := range records {
		if r.Err != nil {
			d.events.note(-1, "a record of acknowledged data in shared memory is damaged", r.Err)
			continue
		}
		held.records[r.Record.Shard] = append(held.records[r.Record.Shard], r)
	}
	return held, nil
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
	if d.held == nil {
		return
	}
	total := 0
	for i, records := range d.held.records {
		total += len(records)
		d.shards[i].Adopt(records)
	}
	if total > 0 {
		d.events.note(-1, fmt.Sprintf("%d acknowledged records had outlived the server and are logged again", total), nil)
	}
}
