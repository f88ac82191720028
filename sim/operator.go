package sim

import (
	"errors"

	"trivet/journal"
	"trivet/replica"
	"trivet/resync"
	"trivet/shard"
)

// draw fills a slice with what the seed gives.
func (w *world) draw(b []byte) {
	for i := range b {
		b[i] = byte(w.rng.Uint32())
	}
}

// drawNames fills a slice with what the seed gives for the names of commits.
func (w *world) drawNames(b []byte) {
	for i := range b {
		b[i] = byte(w.names.Uint32())
	}
}

// create makes the volume's slots, before anything can go wrong.
func (w *world) create() {
	for i, super := range w.geometry.Superblocks(w.draw) {
		s, err := replica.MakeSlot(w.legs[i].disk, slotName(i), super)
		if err == nil {
			err = s.Close()
		}
		if err != nil {
			w.fail("make slot %d: %v", i, err)
		}
	}
}

// isLost reports whether the slot's place is empty, or nothing says whose the
// slot is: an operator has to replace it.
func (w *world) isLost(i int) bool {
	super, err := replica.Inspect(w.legs[i].disk)
	return super == nil && err == nil || errors.Is(err, journal.ErrNoSuperblock)
}

// lost returns the first slot that an operator has to replace, -1 for none.
func (w *world) lost() int {
	for i := range w.legs {
		if w.isLost(i) {
			return i
		}
	}
	return -1
}

// makeSlot makes a slot on an operator's word; what is left of the old one is
// lost.
func (s *server) makeSlot(super *journal.Superblock) (*replica.Slot, error) {
	w, i := s.w, int(super.Slot)
	w.blank(i)
	w.legs[i].stale = true
	rep, err := replica.MakeSlot(s.files(i), slotName(i), super)
	if err != nil {
		return nil, err
	}
	rep.Draw = w.drawNames
	if err := w.legs[i].store.Open(rep.Expect()); err != nil {
		return nil, errors.Join(err, rep.Close())
	}
	rep.Attach(w.legs[i].store)
	w.cover["slots replaced"]++
	return rep, nil
}

// replace has a slot replaced that takes no part, while the volume is served.
func (c *comeback) replace() error {
	w, s := c.w, c.w.srv
	w.generation = max(w.generation, s.group.Generation) + 1
	err := c.volume().Replace(c.slot, w.generation, func(next replica.Replaced) error {
		s.shut(c.slot)
		rep, err := s.makeSlot(next())
		if err != nil {
			return err
		}
		return rep.Close()
	})
	w.trace("slot %d is replaced: %v", c.slot, err)
	if err == nil {
		s.group.Generation = w.generation
		w.legs[c.slot].store = w.legs[c.slot].store.Crash(0)
	}
	return err
}

// volume is what the slot comes back to.
func (c *comeback) volume() *resync.Volume {
	w, s := c.w, c.w.srv
	return &resync.Volume{
		Group: s.group, Shards: s.shards, Arena: s.arena, Members: s.membership, Live: s.liveSlots,
		Open: func() (*replica.Slot, error) {
			s.shut(c.slot)
			w.legs[c.slot].mayBear = true // its peers have all that it had: from here on it may say so
			return s.openSlot(c.slot)
		},
		Start: func(rep *replica.Slot) shard.Slot {
			w.legs[c.slot].fed = true // and now it does, in every shard
			s.group.Slots[c.slot] = rep
			s.slots[c.slot] = &slot{w: w, id: c.slot, rep: rep, lanes: make([][]operation, w.geometry.Shards)}
			return s.slots[c.slot]
		},
		Wait: c.wait, Progress: func(int, int) { w.cover["pieces of returns"]++ },
	}
}

// heal brings back every slot that takes no part. Nothing is in its way, so that
// it must succeed.
func (w *world) heal() {
	for range 10 * journal.MaxSlots {
		s, missing := w.srv, -1
		for i, live := range s.membership.Live() {
			if !live && missing < 0 {
				missing = i
			}
		}
		if missing < 0 {
			return
		}
		if s.back == nil || s.back.ended {
			old := s.back
			s.startComeback(missing)
			s.back.anew = old != nil && (errors.Is(old.err, replica.ErrRetired) || errors.Is(old.err, replica.ErrOtherLife))
		}
		w.drainUntil(func() bool { return s.back.ended }, "a slot neither comes back nor fails")
	}
	w.fail("a slot does not come back, though nothing is in its way")
}
