// Package resync brings a slot back while its peers serve: one that was dropped,
// or was not to be had when the volume was opened.
//
// The slot is opened anew and recovered by itself. Its metadata then says that it
// counts for nothing, and it gets every record from there on (shard.Feed). What it
// lacks of those before is copied from the lanes of its peers, which write nothing
// for it (shard.Fill). Once everything is durable there, a generation begins, as
// when the volume is opened, from which on nobody suspects the slot.
//
// # What is promised on a crash
//
// Until the new generation is stored everywhere the slot votes for nothing and is
// not read, and an opening finds it incomplete, or behind, and copies what it
// lacks. A slot that fails here is dropped once more, and goes on later with what its
// last checkpoint says that it lacks. While it is fed it can hold up writes as any
// slow slot can: until it is dropped, by the same budgets.
package resync

import (
	"errors"
	"fmt"
	"slices"

	"trivet/arena"
	"trivet/disk"
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
	// Wait calls start, and returns once done was called, or with an error when
	// nobody wants to wait any more.
	Wait func(start func(done func())) error
	// Progress is told how many regions were brought up to date, and how many of the
	// present shard are left.
	Progress func(done, left int)
}

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
	lanes, err := v.Group.Reopen(s)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	err = v.complete(slot, next, s, lanes)
	if err != nil && slices.ContainsFunc(lanes, replica.Returning.IsSpoilt) {
		// Its metadata no longer say what is bad in it: it is filled from nothing.
		err = &replica.ContentError{Err: err}
	}
	return err
}

// complete gives the slot what it lacks, and begins the generation in which it
// counts.
func (v *Volume) complete(slot int, next journal.Generation, s *replica.Slot, lanes []replica.Returning) error {
	executor := v.Start(s)
	feed := func(i int, sh *shard.Shard, answer func(error)) {
		l := lanes[i]
		sh.Feed(slot, shard.Comeback{Lane: l.Recovery, To: executor, Known: l.Known, Distrust: l.Distrust}, answer)
	}
	if err := v.each(feed); err != nil {
		return err
	}
	if err := v.fill(slot); err != nil {
		return err
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

// fill has what the slot lacks copied to it, one shard after another.
func (v *Volume) fill(slot int) error {
	total := 0
	for i, sh := range v.Shards {
		memory := disk.Alloc(shard.FillBytes) // a read that hangs may still write to the last shard's
		for left := 1; left > 0; {
			err := v.answered(func(answer func(error)) {
				sh.Fill(slot, memory, func(done, more int, err error) {
					total, left = total+done, more
					answer(err)
				})
			})
			if err != nil {
				return fmt.Errorf("shard %d: %w", i, err)
			}
			v.Progress(total, left)
		}
	}
	return nil
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
