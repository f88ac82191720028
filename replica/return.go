package replica

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"trivet/disk"
	"trivet/journal"
)

// returnBytes must be free where a slot is that comes back, and two segments for
// each shard, or it would be dropped at once.
const returnBytes = 64 << 20

// RoomToReturn tells whether there is room for a slot to come back.
func (g Geometry) RoomToReturn(files disk.FS) error {
	need := reservedBytes + returnBytes + 2*int64(g.Shards)*int64(g.SegmentBlocks)*journal.BlockSize
	if free, _, err := files.Usage(); err == nil && free < need {
		return fmt.Errorf("%d bytes are free, %d are needed: %w", free, need, unix.ENOSPC)
	}
	return nil
}

// Returning is a lane of a slot that comes back.
type Returning struct {
	*journal.Recovery // incomplete
	// Known: all that the lane lacks was written since the slot was dropped.
	Known bool
	// Distrust: the lane may not hold what its map says, for its log is damaged.
	Distrust bool
}

// IsSpoilt reports whether the lane holds what cannot be read, or lacks what it had.
func (r Returning) IsSpoilt() bool { return r.Distrust || len(r.Rotten) > 0 }

// Reopen recovers the lanes, by shard, of a slot that comes back while its peers
// serve, and stores that they count for nothing until they are complete. After an
// error, a ContentError if what the slot holds is at fault, the caller closes the
// slot.
func (g *Group) Reopen(s *Slot) (lanes []Returning, err error) {
	if err := g.Welcomes(s); err != nil {
		return nil, err
	}
	if err = g.attach(s); err == nil {
		lanes, err = g.reopen(s)
	}
	if Unbelievable(err) {
		err = &ContentError{err}
	}
	return lanes, err
}

func (g *Group) reopen(s *Slot) (lanes []Returning, err error) {
	i := int(s.ID)
	alone := &Group{Geometry: g.Geometry, Generation: g.Generation, Slots: make([]*Slot, g.Replicas), Absent: make([]error, g.Replicas), opt: g.opt}
	alone.Slots[i] = s
	alone.wentBack = make([]bool, g.Replicas)
	alone.makeLanes()
	err = alone.recoverSlot(i, s)
	if err == nil {
		alone.vouch(func(_ journal.LaneID, failed error) { err = errors.Join(err, failed) })
	}
	if err == nil {
		err = alone.adopt(i, s)
	}
	if err != nil {
		return nil, err
	}
	for shard := range alone.Lanes {
		r := alone.Lanes[shard][i]
		lanes = append(lanes, Returning{
			Recovery: r, Distrust: r.Damage != nil,
			Known: s.Started() == g.Generation && !s.blank() && !r.Incomplete && r.Damage == nil && len(r.Rotten) == 0,
		})
		if r.Incomplete && r.Fed {
			continue // it says so already
		}
		if err := alone.copier(r, s).Discount(); err != nil {
			return nil, fmt.Errorf("slot %d shard %d: %w", s.ID, shard, err)
		}
	}
	return lanes, nil
}

// copier appends copies to a recovered lane of the slot.
func (g *Group) copier(to *journal.Recovery, s *Slot) *journal.Copier {
	return &journal.Copier{
		To: to, Generation: g.Generation,
		Prepare: func() (*journal.Open, error) { return s.prepare(appender) },
		Commit:  s.commit,
		Closed:  s.forget,
	}
}

// Welcomes returns why a slot cannot come back, nil when it can: it is of this
// volume and its members, and knows of nothing that its peers do not.
func (g *Group) Welcomes(s *Slot) error {
	if s.Geometry() != g.Geometry {
		return fmt.Errorf("slot %d in %s: %w", s.ID, s.Where, ErrMismatch)
	}
	if s.super.Members.Number > g.Members.Number {
		return fmt.Errorf("slot %d in %s knows of later members, %d: %w", s.ID, s.Where, s.super.Members.Number, ErrOtherLife)
	}
	if err := g.isMember(s); err != nil {
		return err
	}
	last := s.super.History.Last()
	known := false
	for _, peer := range g.Slots {
		known = known || peer != nil && peer != s && peer.history().Shares(last)
	}
	if !known {
		return fmt.Errorf("slot %d in %s took part in generation %v, of which its peers know nothing: %w; 'trivet slot replace %d' makes another", s.ID, s.Where, last.GenerationID, ErrOtherLife, s.ID)
	}
	return nil
}

// NextID names a generation that is to begin.
func (g *Group) NextID(number journal.Generation) journal.GenerationID {
	return journal.GenerationID{Number: number, Name: drawName(g.opt.Draw)}
}

// Promise stores in every slot that a generation is about to begin.
func Promise(g journal.GenerationID, slots []*Slot) error {
	for _, s := range slots {
		if err := s.promise(g); err != nil {
			return fmt.Errorf("slot %d: promise generation %v: %w", s.ID, g, err)
		}
	}
	return nil
}

// StartNext stores in one slot after another that the generation has begun, and
// where, and then in each that it has begun in all of them. The one that returns
// must be the last: until all others have it, what they made durable without it
// must outrank it.
func (g *Group) StartNext(id journal.GenerationID, starts []journal.LSN, slots []*Slot) error {
	o := outlook{members: g.Members, home: g.opt.Known.Home, places: g.Places()}
	mask := uint8(0)
	for _, s := range slots {
		o.history = o.history.Join(s.history())
		mask |= 1 << s.ID
	}
	for _, s := range slots {
		if err := s.start(journal.Begin{GenerationID: id, LSNs: starts}, o); err != nil {
			return fmt.Errorf("start generation %v: %w", id, err)
		}
	}
	for _, s := range slots {
		if err := s.confirm(id, mask, 0); err != nil {
			return fmt.Errorf("confirm generation %v: %w", id, err)
		}
	}
	return nil
}

// RunFill appends what was copied from a peer.
func (s *Slot) RunFill(f *journal.Fill) {
	if f.Run(fillTarget{s}); f.Err != nil {
		f.Err = fmt.Errorf("slot %d: %w", s.ID, f.Err)
	}
	f.Done()
}

// fillTarget is the slot as a copy sees it.
type fillTarget struct{ *Slot }

func (s fillTarget) Fresh() (*journal.Open, error) { return s.prepare(appender) }

func (s fillTarget) Keep(o *journal.Open) error { return cleanSource(s).Keep(o) }
