package replica

import (
	"errors"
	"fmt"
	"io/fs"

	"trivet/arena"
	"trivet/journal"
)

// A slot is replaced by an operator's word alone. Its new incarnation makes new
// members, which are named first in the arena, then in the superblock of the new
// slot, and count once both slots that stay have started a generation with them.
// Until that slot has got everything it is being filled, and counts for nothing.

var (
	// ErrFilling: the slot is new, and is filled while its peers serve.
	ErrFilling = errors.New("slot is new, and is filled while its peers serve")
	// ErrNotWhole: a slot cannot be replaced, because its peers are not whole.
	ErrNotWhole = errors.New("the other slots are not whole")

	// ErrNotMade: nothing of a new slot was made.
	ErrNotMade = errors.New("nothing was made")

	errReplaced = errors.New("it is to be replaced")
)

// replaceSlots makes the slots that an operator wants replaced: those that were
// named, or for a survivor those of which nothing is left in their places.
func (g *Group) replaceSlots() error {
	ids := g.toReplace()
	if len(ids) == 0 {
		return nil
	}
	if err := g.mayReplace(ids); err != nil {
		return err
	}
	next := g.NextMembers(ids...)
	g.opt.Announce(g, next)
	for _, id := range ids {
		if err := g.makeReplacement(id, next); err != nil {
			return err
		}
	}
	g.Members = next
	if g.opt.made != nil {
		*g.opt.made = next
	}
	if g.opt.Survivor == 0 {
		return nil
	}
	if len(ids) == g.Replicas-1 { // else another member may hold what the survivor lacks
		g.sole = next.Number
	}
	return g.Slots[g.opt.Survivor-1].amend(func(s *journal.Superblock) { s.Members, s.Sole = next, g.sole })
}

// toReplace returns the slots to be replaced.
func (g *Group) toReplace() (ids []int) {
	for i, absent := range g.Absent {
		switch {
		case g.Slots[i] != nil:
		case errors.Is(absent, errReplaced), g.opt.Survivor > 0 && errors.Is(absent, fs.ErrNotExist):
			ids = append(ids, i)
		}
	}
	return ids
}

// mayReplace refuses to take a slot's place while its peers are no quorum without
// it, unless an operator has named the survivor.
func (g *Group) mayReplace(ids []int) error {
	if g.opt.Survivor > 0 {
		return nil
	}
	whole := 0
	g.each(func(i int, _ *Slot) {
		if g.usable[i] {
			whole++
		}
	})
	if whole < g.Replicas-1 || g.Replicas == 1 {
		return g.because(fmt.Errorf("slot %d cannot be replaced: %w", ids[0], ErrNotWhole))
	}
	return nil
}

// Announce names in the arena the members that are about to take over. Nothing is
// adopted from it meanwhile by slots that are neither.
func (g *Group) Announce(a *arena.Arena, next journal.Members) {
	o := g.Owner(g.ID)
	if o.Next = named(next); g.settled.Number > 0 {
		o.Members = named(g.settled)
	}
	if old, err := a.Owner(); err == nil && old.Generation != 0 {
		o.Generation, o.Name = old.Generation, old.Name // it is not used in another one yet
	}
	a.SetOwner(o)
}

// NextMembers returns the members with other incarnations of some slots.
func (g *Group) NextMembers(ids ...int) journal.Members {
	next := g.Members
	next.Number++
	for _, id := range ids {
		g.opt.Draw(next.Slots[id][:])
	}
	return next
}

// Replaced returns the superblock of a slot that takes another one's place.
type Replaced func() *journal.Superblock

// SetPlace says where a slot is from now on, as it is stored.
func (g *Group) SetPlace(slot int, place string) { g.opt.Known.Places[slot] = place }

// Replacement returns the superblock of a slot that takes another one's place. It
// is filled from generation since on.
func (g *Group) Replacement(id int, next journal.Members, since journal.Generation) *journal.Superblock {
	s := g.superblock(journal.SlotID(id), next, g.opt.Draw)
	s.Filling, s.Home, s.Places = since, g.opt.Known.Home, g.opt.Known.Places
	return s
}

// makeReplacement makes a slot. For a survivor it is one of those that make a
// quorum, once it was filled; else its peers serve without it.
func (g *Group) makeReplacement(id int, next journal.Members) error {
	s, err := g.opt.MakeSlot(g.Replacement(id, next, g.Generation))
	if err != nil {
		return fmt.Errorf("slot %d cannot be replaced: %w", id, err)
	}
	if g.opt.Survivor == 0 {
		g.Absent[id] = ErrFilling
		return s.Close()
	}
	g.Slots[id], g.Absent[id] = s, nil
	if err := g.attach(s); err != nil {
		return err
	}
	if err := g.recoverSlot(id, s); err != nil {
		return err
	}
	return g.adopt(id, s)
}
