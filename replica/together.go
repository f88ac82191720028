package replica

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"trivet/journal"
)

// standing is what a lane is worth in its shard.
type standing struct {
	usable  bool
	started journal.Generation // of its slot
	lsn     journal.LSN        // up to which it is to be trusted
	suspect journal.LSN        // from here on it is not; 0: all of it is
	damaged bool               // it lacks what was durable in it, and others have that
}

// unfitError tells that a lane ranks best, that its peers cannot be copied from
// it, and that they do for the shard.
type unfitError struct {
	journal.LaneID
	err error
}

func (e *unfitError) Error() string {
	return fmt.Sprintf("slot %d shard %d: %v", e.Slot, e.Shard, e.err)
}
func (e *unfitError) Unwrap() error { return e.err }

// behind tells whether a ranks below b.
func (a standing) behind(b standing) bool {
	switch {
	case a.usable != b.usable:
		return b.usable
	case a.started != b.started:
		return a.started < b.started
	case a.damaged != b.damaged:
		return a.damaged
	}
	return a.lsn < b.lsn
}

// rank returns the standings of a shard's lanes and the best of them, -1 when
// there is none.
func (g *Group) rank(shard uint16) (all []standing, best int) {
	lanes := g.Lanes[shard]
	all = make([]standing, len(lanes))
	best = -1
	spared := g.silent(shard) < g.Quorum()
	for i, r := range lanes {
		if r == nil {
			continue
		}
		st := standing{usable: g.usable[i] && !g.isUnfit(shard, i), started: g.Slots[i].Started(), lsn: r.Stamp.LSN, damaged: r.Damage != nil && spared}
		for j, peer := range lanes {
			if peer == nil || j == i || !g.usable[j] || g.Slots[j].Started() < g.started {
				continue
			}
			if peer.Stamp.Generation < st.started {
				continue // the slot was brought together since: what the peer noted is settled
			}
			if s := peer.Suspect[i]; s != 0 && s <= r.Stamp.LSN && (st.suspect == 0 || s < st.suspect) {
				st.suspect = s
			}
		}
		if st.suspect != 0 {
			st.lsn = st.suspect - 1
		}
		all[i] = st
	}
	for i, r := range lanes {
		if r != nil && (best < 0 || all[best].behind(all[i])) {
			best = i
		}
	}
	return all, best
}

// bringTogether makes every lane of the shard equal to the best one, also when
// the arena holds what a lane lacks: that is in the arena alone until it has
// been logged again, and what was flushed must outlive a power cut before.
func (g *Group) bringTogether(shard uint16) error {
	lanes := g.Lanes[shard]
	all, best := g.rank(shard)
	if best < 0 {
		return g.recount()
	}
	if err := lanes[best].Damage; err != nil && g.silent(shard) >= g.Quorum() && !g.isInArena(shard, all[best].lsn) && g.opt.Survivor == 0 {
		return fmt.Errorf("slot %d shard %d is the best copy that is left: %w; --survivor %d opens the volume without what is missing", best, shard, err, best)
	}
	for i, r := range lanes {
		if r == nil || i == best {
			continue
		}
		same := all[i].usable == all[best].usable && all[i].started == all[best].started && all[i].suspect == 0
		if same && all[i].lsn == all[best].lsn {
			continue
		}
		err := g.copyLane(shard, i, best, all[i])
		if errors.Is(err, journal.ErrSource) && g.doWithout(shard, best, err) {
			return &unfitError{journal.LaneID{Slot: journal.SlotID(best), Shard: shard}, err}
		}
		if err != nil {
			g.exclude(i, fmt.Errorf("shard %d: bring together with slot %d: %w", shard, best, err))
		}
	}
	return nil
}

func (g *Group) isUnfit(shard uint16, slot int) bool {
	return g.unfit[journal.LaneID{Slot: journal.SlotID(slot), Shard: shard}] != nil
}

// doWithout tells whether the shard has all that was acknowledged as durable
// when nothing is taken from a slot that would rank best. What the arena holds
// besides does not help: until it was logged again, a power cut would lose it.
func (g *Group) doWithout(shard uint16, slot int, why error) bool {
	if g.isUnfit(shard, slot) {
		return false
	}
	lane := journal.LaneID{Slot: journal.SlotID(slot), Shard: shard}
	g.unfit[lane] = why
	defer delete(g.unfit, lane)
	all, best := g.rank(shard)
	return all[best].usable && g.silent(shard) < g.Quorum()
}

// silent counts the lanes that may have made records durable of which they can
// tell nothing any more. As long as those are no quorum by themselves, whatever
// was acknowledged as durable is in another lane as well, and so in the best.
func (g *Group) silent(shard uint16) (n int) {
	for i, r := range g.Lanes[shard] {
		if g.isFed(i) {
			continue // what it had made durable, both others have
		}
		if r == nil || r.Damage != nil || !g.usable[i] || g.isUnfit(shard, i) {
			n++
		}
	}
	return n
}

// isInArena reports whether the arena holds all that a lane at lsn lacks.
func (g *Group) isInArena(shard uint16, lsn journal.LSN) bool {
	return g.outlived != nil && lsn >= g.outlived.Retired(shard)
}

// copyLane copies every region in which two lanes differ, and removes what the
// better one does not have.
func (g *Group) copyLane(shard uint16, to, from int, st standing) error {
	source, target := g.Lanes[shard][from], g.Lanes[shard][to]
	c := g.copier(target, g.Slots[to])
	c.Peers = g.Lanes[shard]
	regions := append(source.Regions(), target.Regions()...)
	slices.Sort(regions)
	regions = slices.Compact(regions)
	g.opt.Log(to, fmt.Sprintf("shard %d: bringing %d regions together with slot %d", shard, len(regions), from), nil)
	doubt := journal.Behind
	if target.Incomplete || g.Slots[to].blank() { // it may have been fed: the newest of a region, and not what is older
		doubt = journal.Patchy
	}
	said := time.Now()
	for i, region := range regions {
		doubt := doubt
		if st.suspect != 0 {
			stamp, err := target.RegionStamp(region)
			if err != nil {
				return err
			}
			if stamp.LSN >= st.suspect {
				doubt = journal.Distrust
			}
		}
		if err := c.Copy(region, source, doubt); err != nil {
			return err
		}
		if time.Since(said) > time.Second {
			said = time.Now()
			g.opt.Log(to, fmt.Sprintf("shard %d: region %d of %d, %d blocks copied", shard, i+1, len(regions), c.Copied), nil)
		}
	}
	if err := c.Finish(source.Stamp); err != nil {
		return err
	}
	g.opt.Log(to, fmt.Sprintf("shard %d: equal to slot %d, %d blocks copied", shard, from, c.Copied), nil)
	return nil
}
