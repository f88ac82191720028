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

// Reopen recovers the lanes of a slot that comes back while its peers serve, and
// stores that they count for nothing until they are complete. known tells, by
// shard, whether all that the lane lacks was written since the slot was dropped.
// After an error the caller closes the slot.
func (g *Group) Reopen(s *Slot) (lanes []*journal.Recovery, known []bool, err error) {
	if s.Geometry() != g.Geometry {
		return nil, nil, fmt.Errorf("slot %d in %s: %w", s.ID, s.Where, ErrMismatch)
	}
	i := int(s.ID)
	alone := &Group{Geometry: g.Geometry, Generation: g.Generation, Slots: make([]*Slot, g.Replicas), Absent: make([]error, g.Replicas), opt: g.opt}
	alone.Slots[i] = s
	alone.makeLanes()
	err = alone.recoverSlot(i, s)
	if err == nil {
		alone.vouch(func(_ journal.LaneID, failed error) { err = errors.Join(err, failed) })
	}
	if err == nil {
		err = alone.adopt(i, s)
	}
	if err != nil {
		return nil, nil, err
	}
	for shard := range alone.Lanes {
		r := alone.Lanes[shard][i]
		lanes = append(lanes, r)
		known = append(known, s.super.Started == g.Generation && !r.Incomplete && r.Damage == nil && len(r.Rotten) == 0)
		if r.Incomplete && r.Fed {
			continue // it says so already
		}
		if err := alone.copier(r, s).Discount(); err != nil {
			return nil, nil, fmt.Errorf("slot %d shard %d: %w", s.ID, shard, err)
		}
	}
	return lanes, known, nil
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

// Promise stores in every slot that a generation is about to begin.
func Promise(g journal.Generation, slots []*Slot) error {
	for _, s := range slots {
		if err := s.promise(g); err != nil {
			return fmt.Errorf("slot %d: promise generation %d: %w", s.ID, g, err)
		}
	}
	return nil
}

// StartNext stores in one slot after another that the generation has begun, and
// where. The one that returns must be the last: until all others have it, what
// they made durable without it must outrank it.
func StartNext(g journal.Generation, starts []journal.LSN, slots []*Slot) error {
	for _, s := range slots {
		if err := s.start(g, starts); err != nil {
			return fmt.Errorf("slot %d: start generation %d: %w", s.ID, g, err)
		}
	}
	return nil
}
