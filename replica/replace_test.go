package replica

import (
	"errors"
	"testing"

	"trivet/disk"
	"trivet/journal"
)

// TestStartRemembers: a slot that was filled knows the life that it now shares, and
// every slot knows which of them have started the generation, before anything of it
// is served.
func TestStartRemembers(t *testing.T) {
	g := groupOf(t, [3]life{{history: "5a 6b:012"}, {filling: true, incarnation: 4}, {history: "5a 6b:012"}}, Options{Known: Known{Home: "/home"}})
	g.Geometry = smallGeometry
	g.ID, g.Generation, g.Starts = idOf("7c"), 7, make([]journal.LSN, smallGeometry.Shards)
	g.Members = journal.Members{Number: 2, Slots: [3]journal.Incarnation{incarnations(0, 0), incarnations(1, 4), incarnations(2, 0)}}
	g.each(func(_ int, s *Slot) {
		if err := s.promise(g.ID); err != nil {
			t.Fatal(err)
		}
	})
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	g.each(func(i int, s *Slot) {
		for _, id := range []string{"5a", "6b", "7c"} {
			if !s.super.History.Knows(idOf(id)) {
				t.Errorf("slot %d does not know generation %s", i, id)
			}
		}
		last := s.super.History.Last()
		if last.GenerationID != g.ID || last.Slots != 0b111 || s.super.Filling != 0 || s.super.Members != g.Members || s.super.Home != "/home" {
			t.Errorf("slot %d: last %+v, filling %d, members %+v, home %s", i, last, s.super.Filling, s.super.Members, s.super.Home)
		}
	})
}

// replacing is a group in which an operator wants slot 1 replaced. said gets what
// is done, in order.
func replacing(t *testing.T, others [2]life, said *[]string) *Group {
	g := groupOf(t, [3]life{others[0], {absent: true}, others[1]}, Options{})
	g.Geometry = smallGeometry
	g.Absent[1], g.Generation, g.usable = errReplaced, 7, make([]bool, 3)
	g.each(func(i int, s *Slot) { g.usable[i] = !s.blank() })
	g.Members = g.Slots[0].super.Members
	g.opt.Draw = func(b []byte) { b[0], b[1] = 2, 9 }
	g.opt.Announce = func(_ *Group, next journal.Members) { *said = append(*said, "announced "+next.Slots[1].String()) }
	g.opt.MakeSlot = func(super *journal.Superblock) (*Slot, error) {
		*said = append(*said, "made "+super.Incarnation.String())
		if super.Filling != 7 || super.Original || super.Members.Number != 2 {
			t.Errorf("the new slot is %+v", super)
		}
		return MakeSlot(disk.Memory(1, disk.MemoryOptions{}), "slot", super)
	}
	return g
}

// TestReplaceSlots: the arena is told of the new members before any superblock names
// them, and the slot that takes a place counts for nothing.
func TestReplaceSlots(t *testing.T) {
	var said []string
	whole := life{history: "6b"}
	g := replacing(t, [2]life{whole, whole}, &said)
	if err := g.replaceSlots(); err != nil {
		t.Fatal(err)
	}
	if len(said) != 2 || said[0] != "announced 02090000" || said[1] != "made 02090000" {
		t.Errorf("done: %q", said)
	}
	if g.Members.Number != 2 || g.Slots[1] != nil || !errors.Is(g.Absent[1], ErrFilling) {
		t.Errorf("members %+v, slot 1: %v", g.Members, g.Absent[1])
	}
}

// TestReplaceNeedsPeers: no slot is replaced while one of the others is not whole.
func TestReplaceNeedsPeers(t *testing.T) {
	var said []string
	g := replacing(t, [2]life{{history: "6b"}, {history: "6b", filling: true}}, &said)
	if err := g.replaceSlots(); !errors.Is(err, ErrNotWhole) || len(said) > 0 {
		t.Errorf("replaced: %v, %q", err, said)
	}
}
