package device

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"

	"trivet/disk"
	"trivet/journal"
	"trivet/replica"
)

// draw fills a slice with random bytes, of which the system never runs out.
func draw(b []byte) { _, _ = rand.Read(b) }

// create makes a volume in an empty directory. The record is first, and says that
// the volume is being made until every slot is there: a start goes on where another
// one was cut short.
func (d *Device) create() (*layout, error) {
	o := &d.opt
	if o.Size == 0 {
		return nil, ErrNoVolume
	}
	if err := checkEmpty(o.Dir); err != nil {
		return nil, err
	}
	g := replica.Geometry{
		Name: o.Name, SizeBytes: o.Size, Replicas: o.Replicas, Shards: o.Shards,
		SegmentBlocks: replica.SegmentBlocksFor(o.Size),
	}
	if g.Replicas == 0 {
		g.Replicas = journal.MaxSlots
	}
	if g.Shards == 0 {
		g.Shards = defaultShards()
	}
	draw(g.Volume[:])
	if err := g.Validate(); err != nil {
		return nil, err
	}
	l := &layout{geometry: g}
	l.place(o, [journal.MaxSlots]string{})
	l.dirs = l.dirs[:g.Replicas]
	for i, dir := range l.dirs {
		if err := d.isVacant(dir); err != nil {
			return nil, fmt.Errorf("slot %d: %w", i, err)
		}
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	supers := g.Superblocks(draw)
	l.record = recordOf(g, supers[0].Members, l.places)
	l.record.Making = true
	return l, l.record.write(o.Dir)
}

// isVacant returns why no slot can be made in a directory, nil when one can.
func (d *Device) isVacant(dir string) error {
	super, err := inspectSlot(dir)
	if err == nil && super != nil {
		err = fmt.Errorf("%s holds slot %d of volume %x already", dir, super.Slot, super.Volume[:4])
	}
	return err
}

// makeSlots makes the slots of a volume whose making was begun.
func (d *Device) makeSlots(l *layout) error {
	g, members := l.geometry, l.record.members()
	for i, super := range g.Superblocks(func([]byte) {}) {
		super.Members, super.Incarnation = members, members.Slots[i]
		super.Home, super.Places = d.opt.Dir, l.places
		draw(super.StoreOwner[:])
		found, err := inspectSlot(l.dirs[i])
		if err == nil && found != nil {
			if err := isOfMaking(found, super); err != nil {
				return fmt.Errorf("slot %d in %s: %w", i, l.dirs[i], err)
			}
			continue
		}
		s, err := d.makeSlot(l.dirs[i], super)
		if err == nil {
			err = s.Close()
		}
		if err != nil {
			return err
		}
	}
	l.record.Making = false
	if err := l.record.write(d.opt.Dir); err != nil {
		return err
	}
	d.events.note(-1, fmt.Sprintf("made the volume %s (%x): %d MiB, %d shards, slots in %s",
		g.Name, g.Volume, g.SizeBytes>>20, g.Shards, strings.Join(l.dirs, ", ")), nil)
	return nil
}

// isOfMaking returns why a slot is not one that an earlier start of the making has
// left.
func isOfMaking(found, want *journal.Superblock) error {
	if found.Volume == want.Volume && found.Incarnation == want.Incarnation && found.Started() == 0 {
		return nil
	}
	return fmt.Errorf("it is in the way of a volume that is being made: %w", replica.ErrForeign)
}

// makeSlot makes a blank slot in a directory.
func (d *Device) makeSlot(dir string, super *journal.Superblock) (*replica.Slot, error) {
	files, err := disk.Real(dir, disk.Options{Create: true})
	if err != nil {
		return nil, err
	}
	return replica.MakeSlot(d.faulty(files, int(super.Slot)), dir, super)
}

// replaceSlot makes a blank slot on an operator's word. What is in its place is set
// aside, if it is a slot of this volume.
func (d *Device) replaceSlot(dir string, super *journal.Superblock) (*replica.Slot, error) {
	old, err := inspectSlot(dir)
	lost := errors.Is(err, journal.ErrNoSuperblock)
	switch {
	case err != nil && !lost:
		return nil, fmt.Errorf("%s: %w", dir, err)
	case old != nil && (old.Volume != super.Volume || old.Slot != super.Slot):
		return nil, fmt.Errorf("%s holds slot %d of volume %x; empty it, or give another with --at: %w", dir, old.Slot, old.Volume[:4], replica.ErrForeign)
	case old != nil:
		if err := d.retire(dir, super.Slot); err != nil {
			return nil, err
		}
	}
	if old != nil || lost {
		if err := d.setAside(int(super.Slot), dir); err != nil {
			return nil, err
		}
	}
	s, err := d.makeSlot(dir, super)
	if err == nil {
		d.events.note(int(super.Slot), "a new slot was made in "+dir, nil)
	}
	return s, err
}

// retire writes into a slot that it was replaced: its disk may be plugged in again
// where nobody knows.
func (d *Device) retire(dir string, id journal.SlotID) error {
	files, err := disk.Real(dir, disk.Options{})
	if err != nil {
		return err
	}
	s, err := replica.ReadSlot(files, id, dir)
	if err != nil {
		return err
	}
	return errors.Join(s.Retire(), s.Close())
}
