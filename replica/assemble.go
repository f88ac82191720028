package replica

import (
	"context"
	"errors"
	"fmt"

	"trivet/arena"
	"trivet/journal"
	"trivet/meta"
)

// Assembly puts a volume's slots and its arena together when it is opened. A
// server and the simulator differ in the functions that it calls, and in
// nothing else.
type Assembly struct {
	Options      // Arena is the assembly's to set
	Replicas int // how many slots there are
	// OpenSlot opens a slot, or makes it where there never was one, with its
	// metadata store attached.
	OpenSlot func(id int) (*Slot, error)
	// SetAside makes blank, without loss, the slots whose own content is at
	// fault; why is by ID. All slots are closed when it is called.
	SetAside func(ids []int, why []error) error
	// OpenArena opens the volume's arena; ArenaAside makes room for another one
	// when it cannot be used, which is why. It is closed then.
	OpenArena  func() (*arena.Arena, error)
	ArenaAside func(why error) error
}

// Held is a volume's arena and what a killed server has left in it.
type Held struct {
	Arena   *arena.Arena
	Records [][]arena.Recovered // by shard, in order; nil when it holds nothing
}

// Retired implements Outlived.
func (h *Held) Retired(s uint16) journal.LSN { return journal.LSN(h.Arena.RetiredLSN(s)) }

// Last implements Outlived.
func (h *Held) Last(s uint16) journal.LSN {
	if n := len(h.Records[s]); n > 0 {
		return journal.LSN(h.Records[s][n-1].Record.LSN)
	}
	return 0
}

// Open opens the slots and the arena, and makes the slots equal, as Recover
// does. A slot that cannot be believed is set aside and made anew from its
// peers, once. After an error everything is closed; it wraps ErrInUse when
// another process serves any of the slots.
func (a *Assembly) Open(ctx context.Context) (*Group, *Held, error) {
	for attempt := 0; ; attempt++ {
		g, held, err := a.try(ctx)
		if err != nil {
			return nil, nil, err
		}
		aside := unbelievable(g)
		if attempt > 0 || len(aside) == 0 {
			return g, held, nil
		}
		a.Log(-1, fmt.Sprintf("slots %v are set aside and copied anew", aside), nil)
		if err := errors.Join(g.Close(), held.Arena.Close(), ctx.Err()); err != nil {
			return nil, nil, err
		}
		if err := a.SetAside(aside, g.Absent); err != nil {
			return nil, nil, err
		}
	}
}

// try opens everything once.
func (a *Assembly) try(ctx context.Context) (g *Group, held *Held, err error) {
	slots, absent := make([]*Slot, a.Replicas), make([]error, a.Replicas)
	held = new(Held)
	defer func() {
		if err != nil {
			err = errors.Join(err, closeSlots(slots), held.close())
		}
	}()
	for i := range slots {
		if slots[i], absent[i] = a.OpenSlot(i); absent[i] != nil {
			a.Log(i, "slot does not take part", absent[i])
		}
		if errors.Is(absent[i], ErrInUse) { // the volume is served, whatever is to be had of the others
			return nil, held, absent[i]
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, held, err
	}
	if err := a.hold(held, slots); err != nil {
		return nil, held, err
	}
	opt := a.Options
	if held.Records != nil {
		opt.Arena = held
	}
	g, err = Recover(slots, absent, opt)
	return g, held, err
}

// hold opens the arena and finds what outlived the last server. One that cannot
// be used is set aside, never overwritten; so is one of an earlier generation
// than was started since: its writes were lost then, and others have taken
// their place.
func (a *Assembly) hold(held *Held, slots []*Slot) (err error) {
	held.Arena, err = a.OpenArena()
	if errors.Is(err, arena.ErrCorrupt) || errors.Is(err, arena.ErrStale) {
		return a.holdAnother(held, err)
	}
	if err != nil || held.Arena.Created() {
		return err
	}
	records, err := held.Arena.Recover()
	if err != nil || len(records) == 0 {
		return err
	}
	shards, started := 0, journal.Generation(0)
	for _, s := range slots {
		if s != nil {
			shards, started = s.Geometry().Shards, max(started, s.Started())
		}
	}
	if has := held.Arena.Generation(); has < uint64(started) {
		return a.holdAnother(held, fmt.Errorf("%d records of generation %d; generation %d was started without them", len(records), has, started))
	}
	if shards == 0 {
		return nil // there is nobody to give them to; Recover says so
	}
	held.Records = make([][]arena.Recovered, shards)
	for _, r := range records {
		if r.Err != nil {
			a.Log(-1, "a record of acknowledged data in shared memory is damaged", r.Err)
			continue
		}
		held.Records[r.Record.Shard] = append(held.Records[r.Record.Shard], r)
	}
	return nil
}

// holdAnother opens an arena in the place of one that cannot be used.
func (a *Assembly) holdAnother(held *Held, why error) (err error) {
	if err := errors.Join(held.close(), a.ArenaAside(why)); err != nil {
		return err
	}
	held.Arena, err = a.OpenArena()
	return err
}

func (h *Held) close() error {
	if h.Arena == nil {
		return nil
	}
	return h.Arena.Close()
}

// unbelievable returns the slots whose own content is at fault. One that is
// alone is left as it is.
func unbelievable(g *Group) (slots []int) {
	for i, err := range g.Absent {
		for _, why := range []error{meta.ErrCorrupt, journal.ErrNotThis, journal.ErrDamaged, journal.ErrNoSuperblock} {
			if errors.Is(err, why) && g.Replicas > 1 {
				slots = append(slots, i)
				break
			}
		}
	}
	return slots
}

// EachRotten calls fn for every block that recovery found rotten in a slot.
func (g *Group) EachRotten(fn func(shard, slot int, lba journal.LBA)) {
	for shard, lanes := range g.Lanes {
		for slot, r := range lanes {
			if r == nil {
				continue
			}
			for _, rot := range r.Rotten {
				fn(shard, slot, rot.LBA)
			}
		}
	}
}

// Close closes the slots that take part. Nothing may be under way in them.
func (g *Group) Close() error { return closeSlots(g.Slots) }

func closeSlots(slots []*Slot) error {
	var errs []error
	for _, s := range slots {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}
