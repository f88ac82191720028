package replica

import (
	"errors"
	"fmt"
	"math/bits"

	"trivet/journal"
)

// Nothing is believed because it is there: before any slot is changed, the slots
// in sight are held against each other and against what is known of the volume.
// Each check leaves out what does not belong, with the reason; none of them
// makes, fills or removes anything.

// The reasons for which a slot of the volume does not take part.
var (
	// ErrRetired: another incarnation has taken the slot's place.
	ErrRetired = errors.New("it was replaced")
	// ErrOtherLife: the slot took part in a generation of which its peers know
	// nothing.
	ErrOtherLife = errors.New("it is of another life of the volume")
	// ErrWentBack: the slot is behind what it had started.
	ErrWentBack = errors.New("it went back in time")
	// ErrCopy: the volume in another directory has the same identity.
	ErrCopy = errors.New("it is a copy of a volume that is still there")
)

// Known is what is known of a volume beside its slots.
type Known struct {
	Volume  journal.Volume  // its ID; zero: whatever most slots say
	Members journal.Members // as they last were; zero: whatever the slots say
	Home    string          // its directory
	Whole   bool            // and that it holds all slots
	// Places are where slots were looked for, and Recorded where they were before:
	// a place in which none was found is not remembered.
	Places, Recorded [journal.MaxSlots]string
	// Elsewhere reports whether a directory is another one than Home, and still
	// holds the volume. nil: none does.
	Elsewhere func(home string, v journal.Volume) bool
}

// agree decides which volume this is, and leaves out the slots of others.
func (g *Group) agree() error {
	reference := g.majority()
	if reference == nil {
		return g.because(ErrNoVolume)
	}
	g.Geometry = reference.Geometry()
	if g.Replicas != len(g.Slots) {
		return fmt.Errorf("the volume has %d replicas, %d slots were given: %w", g.Replicas, len(g.Slots), ErrMismatch)
	}
	g.each(func(i int, s *Slot) {
		if s.Geometry() != g.Geometry {
			g.exclude(i, fmt.Errorf("slot %d in %s is of volume %x, not of %x: %w", i, s.Where, s.super.Volume[:4], g.Volume[:4], ErrMismatch))
		}
	})
	return g.checkHome()
}

// majority returns a slot of the volume that is known, or of the one that most
// slots are of; nil when there is none. Of two slots that disagree neither is.
func (g *Group) majority() (s *Slot) {
	most := 0
	for _, candidate := range g.Slots {
		if candidate == nil || g.opt.Known.Volume != (journal.Volume{}) && candidate.super.Volume != g.opt.Known.Volume {
			continue
		}
		alike := 0
		g.each(func(_ int, peer *Slot) {
			if peer.Geometry() == candidate.Geometry() {
				alike++
			}
		})
		switch {
		case alike > most:
			s, most = candidate, alike
		case alike == most && candidate.Geometry() != s.Geometry():
			return nil
		}
	}
	return s
}

// checkHome refuses a copy beside its original: each would go on with what is the
// other's.
func (g *Group) checkHome() (err error) {
	elsewhere := g.opt.Known.Elsewhere
	g.each(func(i int, s *Slot) {
		if home := s.super.Home; err == nil && elsewhere != nil && home != "" && elsewhere(home, g.Volume) {
			err = fmt.Errorf("slot %d in %s belongs to the volume in %s: %w; serve that one, or give this copy an identity of its own with --new-identity", i, s.Where, home, ErrCopy)
		}
	})
	return err
}

// checkMembers takes the members that were named last, by any slot or from
// outside, and leaves out who is none of them.
func (g *Group) checkMembers() {
	g.Members = g.opt.Known.Members
	g.each(func(_ int, s *Slot) {
		if s.super.Members.Number > g.Members.Number {
			g.Members = s.super.Members
		}
	})
	if made := g.opt.made; made != nil && made.Number > g.Members.Number {
		g.Members = *made // by this start, which has to begin again
	}
	g.settled = g.Members
	g.each(func(i int, s *Slot) {
		if err := g.isMember(s); err != nil {
			g.exclude(i, err)
		}
	})
}

// isMember returns why a slot is none of the members, nil when it is.
func (g *Group) isMember(s *Slot) error {
	if !s.super.Retired && s.super.Incarnation == g.Members.Slots[s.ID] {
		return nil
	}
	return fmt.Errorf("slot %d in %s is %v: %w by %v", s.ID, s.Where, s.super.Incarnation, ErrRetired, g.Members.Slots[s.ID])
}

// checkLives leaves out the slots that took part in what the others know nothing
// of, or knew of what these have done since. A life that is behind one in sight
// is not chosen by being in the majority.
func (g *Group) checkLives() error {
	anchor := g.anchor()
	if anchor == nil {
		return nil // nothing was ever started
	}
	last := anchor.super.History.Last()
	survivor := g.survivor()
	chosen := survivor != nil && anchor.super.History.Shares(survivor.super.History.Last())
	var ahead error
	g.each(func(i int, s *Slot) {
		switch other := s.super.History.Last(); {
		case anchor.super.History.Shares(other):
			return
		case other.Number > last.Number && !chosen:
			ahead = errors.Join(ahead, fmt.Errorf("slot %d took part in generation %v, of which slot %d, at generation %v, knows nothing", i, other.GenerationID, anchor.ID, last.GenerationID))
		default:
			g.exclude(i, fmt.Errorf("slot %d in %s took part in generation %v, of which slot %d knows nothing: %w", i, s.Where, other.GenerationID, anchor.ID, ErrOtherLife))
		}
	})
	if ahead != nil {
		return fmt.Errorf("%w: %w; take away the slots of the life that does not count, or name one of the life that does: --survivor ID", ErrOtherLife, ahead)
	}
	g.checkAge()
	return nil
}

// anchor returns the slot whose life counts: the one that knows of most others, and
// among those the latest; or the operator's choice, if that is not enough for a
// quorum of which the choice is one.
func (g *Group) anchor() (best *Slot) {
	most := 0
	g.each(func(_ int, s *Slot) {
		known := 0
		g.each(func(_ int, peer *Slot) {
			if s.super.History.Shares(peer.super.History.Last()) {
				known++
			}
		})
		if s.Started() > 0 && (known > most || known == most && s.Started() > best.Started()) {
			best, most = s, known
		}
	})
	choice := g.survivor()
	if choice == nil || best != nil && g.isEnough(best, choice) {
		return best
	}
	return choice
}

// survivor returns the operator's choice, nil for none.
func (g *Group) survivor() *Slot {
	if i := g.opt.Survivor - 1; i >= 0 && i < len(g.Slots) {
		return g.Slots[i]
	}
	return nil
}

// isEnough reports whether the life of a slot has a quorum of slots that lack
// nothing, and one of them is the operator's choice.
func (g *Group) isEnough(anchor, choice *Slot) bool {
	n, chosen := 0, false
	g.each(func(_ int, s *Slot) {
		if s.blank() || !anchor.super.History.Shares(s.super.History.Last()) || g.startedMore(s) > 0 {
			return
		}
		n, chosen = n+1, chosen || s == choice
	})
	return chosen && n >= g.Quorum()
}

// startedMore returns the generation that a peer knows a slot to have started, if
// that is behind it; else 0.
func (g *Group) startedMore(s *Slot) (had journal.Generation) {
	g.each(func(_ int, peer *Slot) { had = max(had, peer.super.History.Behind(s.ID)) })
	if s.super.Filling != 0 || had <= s.Started() {
		return 0 // of one that is being filled, what it was is given up
	}
	return had
}

// checkAge marks the slots that are behind a generation which a peer knows them
// to have started. They hold less than they did, and are filled like blank ones.
func (g *Group) checkAge() {
	g.each(func(i int, s *Slot) {
		if had := g.startedMore(s); had > 0 && i != g.opt.Survivor-1 {
			g.wentBack[i] = true
			g.opt.Log(i, fmt.Sprintf("slot is at generation %d, and had started %d", s.Started(), had), ErrWentBack)
		}
	})
}

// participants returns a bit for each slot that takes part.
func (g *Group) participants() (slots uint8) {
	g.each(func(i int, _ *Slot) { slots |= 1 << i })
	return slots
}

// passed returns the generation that every slot has started, 0 when one of them
// is away: what that one has started is not known.
func (g *Group) passed() (p journal.Generation) {
	if bits.OnesCount8(g.participants()) < g.Replicas {
		return 0
	}
	p = g.ID.Number
	g.each(func(_ int, s *Slot) { p = min(p, s.Started()) })
	return p
}

// Places returns where the slots are, or were when they were last seen.
func (g *Group) Places() [journal.MaxSlots]string {
	places := g.opt.Known.Places
	for i, was := range g.opt.Known.Recorded {
		if i < len(g.Slots) && g.Slots[i] == nil && was != "" && !errors.Is(g.Absent[i], ErrFilling) {
			places[i] = was
		}
	}
	return places
}
