package replica

import (
	"fmt"
	"time"

	"trivet/journal"
)

// cleanWorkers is how much is cleaned at a time in one slot, on a pool of its
// own: neither a checkpoint nor a read waits for the cleaner, nor it for them.
const cleanWorkers = 2

// pruneAfter is how long a free segment is not needed before its blocks go back to
// the filesystem: checkpoints free many at once, which the log then fills again.
const pruneAfter = 5 * time.Second

// Recycle returns segments to the slot's pool, and has those pruned after a
// while that are too many.
func (e *Engine) Recycle(segments []uint32) {
	if e.slot.Recycle(segments) {
		e.prune.Reset(pruneAfter)
	}
}

// pruneNow is called by the timer. While the engine closes nothing is pruned: the
// next start does.
func (e *Engine) pruneNow() {
	e.cleaners.call(func() {
		if again, _ := e.slot.RunPrune(); again {
			e.prune.Reset(pruneAfter)
		}
	}, func(error) {})
}

// stepper is a file system that fault rules apply to.
type stepper interface {
	// Reclaim and Checkpoint meet the rules for a step of reclaim, and for a commit.
	Reclaim() error
	Checkpoint() error
}

// RunClean carries out a piece of cleaning.
func (s *Slot) RunClean(c *journal.Clean) {
	if f, ok := s.fs.(stepper); ok {
		c.Err = f.Reclaim()
	}
	if c.Err == nil {
		c.Run(cleanSource{s})
	}
	if c.Err != nil {
		c.Err = fmt.Errorf("slot %d: %w", s.ID, c.Err)
	}
	c.Done()
}

// cleanSource is the slot as the cleaner sees it.
type cleanSource struct{ *Slot }

func (s cleanSource) ReadBlocks(blocks []journal.ReadBlock) { s.readBlocks(blocks) }

func (s cleanSource) Cold() (*journal.Open, error) { return s.prepare(cleaner) }

func (s cleanSource) Keep(o *journal.Open) error {
	s.forget(o)
	if err := o.File.Close(); err != nil {
		return fmt.Errorf("close segment %d: %w", o.Index, err)
	}
	return nil
}

// Discard returns a segment of which nobody knows: what was written to it names
// a life that ends here.
func (s cleanSource) Discard(o *journal.Open) error {
	err := s.Keep(o)
	s.pool.put([]uint32{o.Index})
	return err
}
