package replica

import (
	"errors"
	"fmt"
	"slices"

	"trivet/journal"
)

// ErrFenced: a slot has promised a later generation, or another one of the same
// number.
var ErrFenced = errors.New("another generation was promised")

// Geometry returns what the superblock says of the volume.
func (s *Slot) Geometry() Geometry { return GeometryOf(&s.super) }

// GeometryOf returns what a superblock says of its volume.
func GeometryOf(super *journal.Superblock) Geometry {
	return Geometry{
		Volume: super.Volume, Name: super.Name, SizeBytes: super.SizeBytes, Replicas: int(super.Replicas),
		Shards: int(super.Shards), SegmentBlocks: super.SegmentBlocks,
	}
}

// Started returns the last generation that the slot took part in, 0 for none.
func (s *Slot) Started() journal.Generation { return s.super.Started() }

// blank reports whether the slot has nothing of the volume, or not all of it: it
// never took part in a generation, or is being filled.
func (s *Slot) blank() bool { return s.super.Started() == 0 || s.super.Filling != 0 }

// fresh reports whether the slot was made with the volume and never took part in
// a generation.
func (s *Slot) fresh() bool {
	return s.super.Original && s.super.Started() == 0 && s.super.Filling == 0
}

// history returns what the slot knows of generations. It never waits.
func (s *Slot) history() journal.History {
	if h := s.lives.Load(); h != nil {
		return *h
	}
	return nil
}

// knows reports whether the slot shares the life in which a generation started.
func (s *Slot) knows(g journal.GenerationID) bool { return s.history().Knows(g) }

// save stores the superblock in its older copy, or in both when it takes trust
// away: then none that trusts more is left. One of an older version is migrated.
// The caller holds commitMu, or is alone.
func (s *Slot) save(both bool) error {
	defer s.publish()
	switch {
	case s.super.Older():
		f, err := s.super.Migrate(s.fs)
		if err != nil {
			return err
		}
		old := s.superFile
		s.superFile = f
		return old.Close()
	case both:
		return s.super.WriteBoth(s.superFile)
	}
	return s.super.Write(s.superFile)
}

// publish shows what others ask for without the lock.
func (s *Slot) publish() {
	h := slices.Clone(s.super.History)
	s.lives.Store(&h)
	s.published.Store(s.super.Checkpoint.Sequence)
}

// amend changes the superblock and stores it in both copies.
func (s *Slot) amend(change func(*journal.Superblock)) error {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	change(&s.super)
	return s.save(true)
}

// Retire stores that another incarnation takes the slot's place. It never takes
// part again.
func (s *Slot) Retire() error {
	return s.amend(func(super *journal.Superblock) { super.Retired = true })
}

// promise stores the generation below which the slot never serves again, unless
// a later one was promised, or another one of this number: the error then wraps
// ErrFenced. A promise that is asked for again was given.
func (s *Slot) promise(g journal.GenerationID) error {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	before := s.super.Promised
	switch {
	case g == before:
		return nil
	case g.Number <= before.Number:
		return fmt.Errorf("slot %d: generation %v is refused, %v was promised: %w", s.ID, g, before, ErrFenced)
	}
	if before.Number > s.super.Started() {
		s.super.History = s.super.History.Add(journal.Begin{GenerationID: before})
	}
	s.super.Promised = g
	return s.save(true)
}

// start stores that the slot takes part in the generation that it has promised,
// and what changes with it. A slot that was filled is whole from then on.
func (s *Slot) start(b journal.Begin, o outlook) error {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	if b.GenerationID != s.super.Promised {
		return fmt.Errorf("slot %d: generation %v cannot start, %v was promised: %w", s.ID, b.GenerationID, s.super.Promised, ErrFenced)
	}
	b.Started = true
	s.super.History = s.super.History.Join(o.history).Add(b)
	changed := s.super.Members != o.members || s.super.Sole != o.sole
	s.super.Members, s.super.Sole, s.super.Filling = o.members, o.sole, 0
	s.super.Home, s.super.Places = o.home, o.places
	return s.save(changed)
}

// confirm stores which slots have started the generation, before anything of it
// is acknowledged: one that is behind it later has gone back in time.
func (s *Slot) confirm(g journal.GenerationID, slots uint8, passed journal.Generation) error {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	begin := s.super.History.Find(g)
	if begin == nil {
		return fmt.Errorf("slot %d: generation %v was not started: %w", s.ID, g, ErrFenced)
	}
	begin.Slots = slots
	s.super.Sole = 0
	s.super.History = s.super.History.Forget(passed, int(s.super.Shards))
	return s.save(false)
}

// outlook is what a start stores besides the generation.
type outlook struct {
	history journal.History // of the life that goes on
	members journal.Members
	sole    uint64
	home    string
	places  [journal.MaxSlots]string
}
