// Package resync brings a slot back while its peers serve: one that was dropped,
// or was not to be had when the volume was opened.
//
// The slot is opened anew and recovered by itself. Its metadata then says that it
// counts for nothing, and it gets every record from there on (shard.Feed). What it
// has missed is logged again, region by region, as it is: for the slots that had
// it that is a rewrite, for the one that returns it is news, and since it is
// ordered among all other writes it never brings back what was overwritten. Once
// everything is durable there, a generation begins, as when the volume is opened,
// from which on nobody suspects the slot.
//
// # What is promised on a crash
//
// Until the new generation is stored everywhere the slot votes for nothing and is
// not read, and an opening finds it incomplete, or behind, and copies what it
// lacks. A slot that fails here is dropped once more. While it is fed it can hold up
// writes as any slow slot can: until it is dropped, by the same budgets.
package resync

import (
	"errors"
	"fmt"

	"trivet/arena"
	"trivet/journal"
	"trivet/replica"
	"trivet/shard"
)

// Volume is what a slot comes back to. A server and the simulator differ in the
// functions, and in nothing else.
type Volume struct {
	Group  *replica.Group
	Shards []*shard.Shard
	Arena  *arena.Arena
	// Members decides who takes part.
	Members *replica.Membership
	// Live are the slots that take part now.
	Live func() []*replica.Slot
	// Open closes what is left of the slot, and opens it anew.
	Open func() (*replica.Slot, error)
	// Start begins to carry out what the shards decide for the slot.
	Start func(*replica.Slot) shard.Slot
	// Refresh logs a region again, and calls done.
	Refresh func(g journal.Region, done func(error))
	// Wait calls start, and returns once done was called, or with an error when
	// nobody wants to wait any more.
	Wait func(start func(done func())) error
	// Progress is told how many regions were refreshed, and how many are left.
	Progress func(done, left int)
}

// refreshTries is how often a region is tried for which there was no room.
const refreshTries = 10

// Return brings the slot back. next is the generation that it begins, higher than
// any before. After an error the slot is dropped, if it had got as far as that.
func (v *Volume) Return(slot int, next journal.Generation) error {
	v.Members.Return(slot)
	err := v.bring(slot, next)
	if err == nil && !v.Members.Admit(slot) {
		err = shard.ErrAbsent
	}
	if err != nil {
		v.Members.Report(slot, true)
		for _, sh := range v.Shards {
			sh.Drop(journal.SlotID(slot), err)
		}
	}
	return err
}

func (v *Volume) bring(slot int, next journal.Generation) error {
	if err := v.each(func(_ int, sh *shard.Shard, answer func(error)) { sh.Spare(slot, answer) }); err != nil {
		return err
	}
	s, err := v.Open()
	if err != nil {
		return err
	}
	lanes, known, err := v.Group.Reopen(s)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	executor := v.Start(s)
	if err := v.each(func(i int, sh *shard.Shard, answer func(error)) { sh.Feed(slot, lanes[i], executor, known[i], answer) }); err != nil {
		return err
	}
	done := 0
	for i, sh := range v.Shards {
		if err := v.fill(slot, sh, &done); err != nil {
			return fmt.Errorf("shard %d: %w", i, err)
		}
	}
	if err := v.each(func(_ int, sh *shard.Shard, answer func(error)) { sh.Complete(slot, answer) }); err != nil {
		return err
	}
	return v.begin(slot, next, append(v.Live(), s))
}

// each asks one shard after another, and waits for its answer.
func (v *Volume) each(ask func(i int, sh *shard.Shard, answer func(error))) error {
	for i, sh := range v.Shards {
		if err := v.answered(func(answer func(error)) { ask(i, sh, answer) }); err != nil {
			return fmt.Errorf("shard %d: %w", i, err)
		}
	}
	return nil
}

// answered waits for an answer.
func (v *Volume) answered(ask func(answer func(error))) error {
	var answer error
	if err := v.Wait(func(done func()) { ask(func(err error) { answer = err; done() }) }); err != nil {
		return err
	}
	return answer
}

// fill refreshes every region of the shard that the slot has missed.
func (v *Volume) fill(slot int, sh *shard.Shard, done *int) error {
	for {
		var region journal.Region
		var left int
		var more bool
		err := v.answered(func(answer func(error)) {
			sh.Missed(slot, func(g journal.Region, n int, ok bool, err error) {
				region, left, more = g, n, ok
				answer(err)
			})
		})
		if err != nil || !more {
			return err
		}
		if err := v.refresh(region); err != nil {
			return err
		}
		*done++
		v.Progress(*done, left)
	}
}

// refresh logs a region again, which may take several tries while the log or the
// arena is short of room.
func (v *Volume) refresh(g journal.Region) (err error) {
	for range refreshTries {
		if err = v.answered(func(answer func(error)) { v.Refresh(g, answer) }); err == nil {
			return nil
		}
	}
	return fmt.Errorf("region %d: %w", g, err)
}

// begin begins a generation in which the slot takes part, the last of slots. The
// arena learns of it first: what it holds is believed only if no later generation
// was started.
func (v *Volume) begin(slot int, g journal.Generation, slots []*replica.Slot) error {
	if len(slots) < v.Group.Replicas { // one that is about to be dropped may still vote
		return fmt.Errorf("%w: another slot does not take part", replica.ErrQuorum)
	}
	id := v.Group.NextID(g)
	if err := replica.Promise(id, slots); err != nil {
		return err
	}
	v.Arena.SetOwner(v.Group.Owner(id))
	starts := make([]journal.LSN, len(v.Shards))
	err := v.each(func(i int, sh *shard.Shard, answer func(error)) {
		sh.Begin(slot, g, func(start journal.LSN, err error) { starts[i] = start; answer(err) })
	})
	if err != nil {
		return err
	}
	if err := v.Group.StartNext(id, starts, slots); err != nil {
		return err
	}
	return v.each(func(_ int, sh *shard.Shard, answer func(error)) { sh.Admit(slot, answer) })
}
