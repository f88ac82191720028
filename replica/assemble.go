package replica

import (
	"context"
	"errors"
	"fmt"

	"trivet/arena"
	"trivet/journal"
)

// Assembly puts a volume's slots and its arena together when it is opened. A
// server and the simulator differ in the functions that it calls, and in
// nothing else.
type Assembly struct {
	Options      // Arena and Announce are the assembly's to set
	Replicas int // how many slots there are
	// OpenSlot opens the slot that is in its place. The error wraps fs.ErrNotExist
	// when the place is empty.
	OpenSlot func(id int) (*Slot, error)
	// SetAside makes blank, without loss, the slots whose own content is at
	// fault; why is by ID. All slots are closed when it is called.
	SetAside func(ids []int, why []error) error
	// OpenArena opens the volume's arena; ArenaAside makes room for another one
	// when it cannot be used, which is why. It is closed then.
	OpenArena  func(Geometry) (*arena.Arena, error)
	ArenaAside func(g Geometry, why error) error
	// AdoptArena takes an arena although its home is elsewhere, and AcceptLoss
	// goes on although acknowledged writes in it are damaged.
	AdoptArena, AcceptLoss bool
	// NewID is the ID that the volume is to take, and OldID the one that its slots
	// have; zero: the one that it has.
	NewID, OldID journal.Volume
}

// Open opens the slots and the arena, and makes the slots equal, as Recover
// does. A slot that cannot be believed is set aside and made anew from its
// peers, once. After an error everything is closed; it wraps ErrInUse when
// another process serves any of the slots.
func (a *Assembly) Open(ctx context.Context) (*Group, *Held, error) {
	held := new(Held)
	for attempt := 0; ; attempt++ {
		g, err := a.try(ctx, held)
		if err != nil {
			return nil, nil, errors.Join(err, held.close())
		}
		aside := unbelievable(g)
		if attempt > 0 || len(aside) == 0 {
			return g, held, nil
		}
		a.Log(-1, fmt.Sprintf("slots %v are set aside and copied anew", aside), nil)
		err = errors.Join(g.Close(), ctx.Err())
		if err == nil {
			err = a.SetAside(aside, g.Absent)
		}
		if err != nil {
			return nil, nil, errors.Join(err, held.close())
		}
	}
}

// try opens everything once.
func (a *Assembly) try(ctx context.Context, held *Held) (g *Group, err error) {
	slots, absent := make([]*Slot, a.Replicas), make([]error, a.Replicas)
	defer func() {
		if err != nil {
			err = errors.Join(err, closeSlots(slots))
		}
	}()
	if err := a.openSlots(slots, absent); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := a.rename(slots); err != nil {
		return nil, err
	}
	opt := a.Options
	opt.Arena = func(g *Group) (Outlived, error) { return a.judge(held, g) }
	opt.Announce = func(g *Group, next journal.Members) { g.Announce(held.Arena, next) }
	return Recover(slots, absent, opt)
}

// openSlots opens what is in the slots' places, but for those that are to be
// replaced.
func (a *Assembly) openSlots(slots []*Slot, absent []error) error {
	for i := range slots {
		if a.Replace&(1<<i) != 0 {
			absent[i] = errReplaced
			continue
		}
		if slots[i], absent[i] = a.OpenSlot(i); absent[i] != nil {
			a.Log(i, "slot does not take part", absent[i])
		}
		if errors.Is(absent[i], ErrInUse) { // the volume is served, whatever is to be had of the others
			return absent[i]
		}
	}
	return nil
}

// rename gives the volume another identity, or finishes what an earlier start has
// begun of that. Every slot that is there announces it before the first one takes
// it; those that are not there stay of the old volume.
func (a *Assembly) rename(slots []*Slot) error {
	next, old := a.NewID, a.OldID
	for _, s := range slots {
		if s != nil && s.super.Renaming != (journal.Volume{}) && next == (journal.Volume{}) {
			next, old = s.super.Renaming, s.super.Volume
		}
	}
	if next == (journal.Volume{}) {
		return nil
	}
	var renamed []*Slot
	for _, s := range slots {
		if s == nil || s.super.Volume != old { // another volume's, or renamed
			continue
		}
		renamed = append(renamed, s)
		if s.super.Renaming == next {
			continue
		}
		if err := s.amend(func(super *journal.Superblock) { super.Renaming = next }); err != nil {
			return fmt.Errorf("announce the new identity: %w", err)
		}
	}
	for _, s := range renamed {
		err := s.amend(func(super *journal.Superblock) {
			super.Rename()
			super.Home, super.Places = a.Known.Home, a.Known.Places
		})
		if err != nil {
			return fmt.Errorf("take the new identity: %w", err)
		}
		a.Log(int(s.ID), fmt.Sprintf("slot is of volume %x from now on", next[:4]), nil)
	}
	return nil
}

// unbelievable returns the slots whose own content is at fault. One that is
// alone is left as it is, and so is one that has lost its superblock: nothing says
// any more whose it is.
func unbelievable(g *Group) (slots []int) {
	for i, err := range g.Absent {
		if Unbelievable(err) && g.Replicas > 1 {
			slots = append(slots, i)
		}
	}
	return slots
}

// EachRotten calls fn for every block that recovery found rotten in a slot.
func (g *Group) EachRotten(fn func(shard, slot int, lba journal.LBA)) {
	for shard, lanes := range g.Lanes {
		for slot, r := range lanes {
			if r == nil {
				continue
			}
			for _, rot := range r.Rotten {
				fn(shard, slot, rot.LBA)
			}
		}
	}
}

// Close closes the slots that take part. Nothing may be under way in them.
func (g *Group) Close() error { return closeSlots(g.Slots) }

func closeSlots(slots []*Slot) error {
	var errs []error
	for _, s := range slots {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}
