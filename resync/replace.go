package resync

import (
	"errors"
	"fmt"

	"trivet/journal"
	"trivet/replica"
	"trivet/shard"
)

// ErrNotSpared: the slot is still in use, or its peers have not made durable yet all
// that it had. It may be tried again.
var ErrNotSpared = errors.New("slot cannot be spared yet")

// Replace makes a new slot in the place of one that takes no part, on an
// operator's word, while the others serve. next is the generation that begins with
// the new members, higher than any before. create makes the slot: it calls what it
// is given for the superblock. The slot then comes back as one does that has lost
// everything.
func (v *Volume) Replace(slot int, next journal.Generation, create func(replica.Replaced) error) error {
	live := v.Live()
	for _, s := range live {
		if int(s.ID) == slot {
			return fmt.Errorf("slot %d takes part: %w", slot, replica.ErrInUse)
		}
	}
	if len(live) < v.Group.Replicas-1 || v.Group.Replicas == 1 {
		return fmt.Errorf("slot %d cannot be replaced: %w", slot, replica.ErrNotWhole)
	}
	if err := v.each(func(_ int, sh *shard.Shard, answer func(error)) { sh.Spare(slot, answer) }); err != nil {
		return fmt.Errorf("%w: %w", ErrNotSpared, err)
	}
	members := v.Group.NextMembers(slot)
	v.Group.Announce(v.Arena, members)
	before := v.Group.Members
	v.Group.Members = members // also when what follows fails: the new slot may name them
	if err := create(func() *journal.Superblock { return v.Group.Replacement(slot, members, next) }); err != nil {
		if errors.Is(err, replica.ErrNotMade) {
			v.Group.Members = before
		}
		return err
	}
	return v.renew(next, live)
}

// renew begins a generation with the slots that are live, and the present members.
func (v *Volume) renew(g journal.Generation, live []*replica.Slot) error {
	id := v.Group.NextID(g)
	if err := replica.Promise(id, live); err != nil {
		return err
	}
	v.Arena.SetOwner(v.Group.Owner(id))
	starts := make([]journal.LSN, len(v.Shards))
	err := v.each(func(i int, sh *shard.Shard, answer func(error)) {
		sh.Renew(g, func(start journal.LSN, err error) { starts[i] = start; answer(err) })
	})
	if err != nil {
		return err
	}
	if err := v.Group.StartNext(id, starts, live); err != nil {
		return err
	}
	v.Group.Settle()
	v.Arena.SetOwner(v.Group.Owner(id))
	return nil
}
