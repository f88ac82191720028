package replica

import (
	"errors"
	"fmt"

	"trivet/arena"
	"trivet/journal"
)

// The reasons for which a volume's arena is not taken.
var (
	// ErrArenaElsewhere: the directory that the arena belongs to is another one.
	ErrArenaElsewhere = errors.New("the arena belongs to a volume that is still there")
	// ErrArenaDamaged: acknowledged writes in the arena are not what they were.
	ErrArenaDamaged = errors.New("acknowledged writes in shared memory are damaged")
	// errNotOurs: the arena is of other slots, of another life, or of a later hour.
	errNotOurs = errors.New("it is not of these slots as they are")
)

// Held is a volume's arena and what a killed server has left in it.
type Held struct {
	Arena   *arena.Arena
	Records [][]arena.Recovered // by shard, in order; nil when it holds nothing of this volume
	retired []journal.LSN       // by shard
}

// Retired implements Outlived.
func (h *Held) Retired(s uint16) journal.LSN { return h.retired[s] }

// Last implements Outlived.
func (h *Held) Last(s uint16) journal.LSN {
	if n := len(h.Records[s]); n > 0 {
		return journal.LSN(h.Records[s][n-1].Record.LSN)
	}
	return 0
}

func (h *Held) close() error {
	if h.Arena == nil {
		return nil
	}
	return h.Arena.Close()
}

// outlived returns what the arena holds for the volume, nil for nothing.
func (h *Held) outlived() Outlived {
	if h.Records == nil {
		return nil
	}
	return h
}

// judge opens the arena and decides whether what it holds is the volume's. That
// is done once: the slots that it is held against have not been changed yet. An
// arena that cannot be used, or is not the volume's, is set aside as it is.
func (a *Assembly) judge(held *Held, g *Group) (Outlived, error) {
	if held.Arena != nil {
		return held.outlived(), nil
	}
	err := a.hold(held, g)
	if errors.Is(err, arena.ErrCorrupt) || errors.Is(err, arena.ErrStale) || errors.Is(err, errNotOurs) || a.AcceptLoss && errors.Is(err, ErrArenaDamaged) {
		err = a.holdAnother(held, g, err)
	}
	return held.outlived(), err
}

// hold opens the arena and finds what outlived the last server.
func (a *Assembly) hold(held *Held, g *Group) (err error) {
	if held.Arena, err = a.OpenArena(g.Geometry); err != nil {
		return err
	}
	if held.Arena.Created() {
		return nil
	}
	records, err := held.Arena.Recover()
	if err != nil {
		return err
	}
	if len(records) == 0 {
		held.Arena.Reset()
		return nil
	}
	owner, err := held.Arena.Owner()
	if err != nil {
		return err
	}
	if err := g.ownsArena(&owner); err != nil {
		return fmt.Errorf("%d records of generation %d: %w", len(records), owner.Generation, err)
	}
	if home := owner.Elsewhere(g.opt.Known.Home); home != "" && !a.AdoptArena {
		return fmt.Errorf("%w: %s holds %d acknowledged records of %s, and this is %s; serve the volume there, or give --adopt-arena to log them here",
			ErrArenaElsewhere, held.Arena.Path(), len(records), home, g.opt.Known.Home)
	}
	retired, err := g.reach(held.Arena)
	if err != nil {
		return err
	}
	byShard, err := split(records, g.Shards)
	if err == nil {
		held.retired, held.Records = retired, byShard
	}
	return err
}

// split returns the records by shard. One that is damaged spoils them all: nobody
// knows which of the others it had overwritten.
func split(records []arena.Recovered, shards int) ([][]arena.Recovered, error) {
	byShard := make([][]arena.Recovered, shards)
	for _, r := range records {
		if r.Err != nil {
			return nil, fmt.Errorf("%w: %w; --accept-loss sets them aside, all of them", ErrArenaDamaged, r.Err)
		}
		byShard[r.Record.Shard] = append(byShard[r.Record.Shard], r)
	}
	return byShard, nil
}

// ownsArena returns why an arena is not of these slots, nil when it is: it names
// every slot that holds data, one of them has promised the generation in which it
// was used last, and none has started a later one.
func (g *Group) ownsArena(o *arena.Owner) (err error) {
	id := journal.GenerationID{Number: journal.Generation(o.Generation), Name: o.Name}
	promised := false
	g.each(func(i int, s *Slot) {
		super := &s.super
		switch {
		case s.blank():
		case !o.Unnamed() && !o.Names(super.Incarnation):
			err = fmt.Errorf("slot %d is %v, which they do not name: %w", i, super.Incarnation, errNotOurs)
		case s.Started() > id.Number:
			err = fmt.Errorf("generation %v was started without them: %w", super.History.Last().GenerationID, errNotOurs)
		}
		promised = promised || super.Promised == id || super.History.Find(id) != nil || o.Unnamed() && super.Promised.Number >= id.Number
	})
	if err == nil && !promised {
		err = fmt.Errorf("no slot has promised generation %v: %w", id, errNotOurs)
	}
	return err
}

// reach returns up to where the arena has released each shard's records, if the
// slots have those: else it is of a later hour, and what lies between is nowhere.
func (g *Group) reach(a *arena.Arena) ([]journal.LSN, error) {
	retired := make([]journal.LSN, g.Shards)
	for shard := range g.Shards {
		lsn, err := a.RetiredLSN(uint16(shard))
		if err != nil {
			return nil, fmt.Errorf("%w: %w; --accept-loss sets them aside", ErrArenaDamaged, err)
		}
		retired[shard] = journal.LSN(lsn)
		var best journal.LSN
		for _, r := range g.Lanes[shard] {
			if r != nil {
				best = max(best, r.Stamp.LSN)
			}
		}
		if best < retired[shard] {
			return nil, fmt.Errorf("shard %d has released records up to LSN %d, and the slots have it up to %d: %w", shard, lsn, best, errNotOurs)
		}
	}
	return retired, nil
}

// holdAnother opens an arena in the place of one that cannot be used.
func (a *Assembly) holdAnother(held *Held, g *Group, why error) (err error) {
	if err := errors.Join(held.close(), a.ArenaAside(g.Geometry, why)); err != nil {
		return err
	}
	held.Arena, err = a.OpenArena(g.Geometry)
	return err
}

// Owner says whose an arena is that the group's server uses in a generation. Members
// that are about to change are named beside those that are to come: a kill may leave
// the slots as either.
func (g *Group) Owner(id journal.GenerationID) arena.Owner {
	o := arena.Owner{
		Generation: uint64(id.Number), Name: id.Name, Members: named(g.Members),
		Home: g.opt.Known.Home, Whole: g.opt.Known.Whole,
	}
	if g.settled.Number > 0 && g.settled != g.Members {
		o.Members, o.Next = named(g.settled), named(g.Members)
	}
	return o
}

// Settle notes that a generation was started with the present members, on every slot
// that took part in it.
func (g *Group) Settle() { g.settled = g.Members }

// named returns members as an arena has them.
func named(m journal.Members) arena.Members {
	n := arena.Members{Number: m.Number}
	for i, slot := range m.Slots {
		n.Slots[i] = slot
	}
	return n
}
