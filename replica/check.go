package replica

import (
	"fmt"

	"trivet/journal"
)

// CheckReport is told what Check sees. Its functions are called one at a time.
type CheckReport struct {
	// Found: something is wrong in a slot. place names a file, a segment, a
	// region or a block of the device.
	Found func(slot int, place string, err error)
	// Note: a slot is not what its peers are, which the next start repairs.
	Note func(slot int, what string)
	// Verified: that many more bytes of a slot's data were read.
	Verified func(slot int, sizeBytes int64)
	// AttachStore opens the metadata store of a slot of the volume, and attaches it.
	AttachStore func(*Slot) error
}

// Check verifies slots that nobody serves, each by itself and then against the
// others, and changes nothing in them. slots has one entry for each replica,
// nil for one that is not to be had; what does not belong to the volume is closed
// and left out. The others stay the caller's; they must be
// closed after it, and not be used for anything else.
func Check(slots []*Slot, known Known, report CheckReport) error {
	g := &Group{Slots: slots, Absent: make([]error, len(slots)), wentBack: make([]bool, len(slots))}
	g.opt = Options{Known: known, AttachStore: report.AttachStore, Log: func(slot int, what string, err error) { report.Found(slot, what, err) }}
	if err := g.identify(); err != nil {
		return err
	}
	c := &checker{Group: g, CheckReport: report, owner: make([]map[uint32]uint16, len(slots))}
	g.Lanes = make([][]*journal.Recovery, g.Shards)
	for shard := range g.Lanes {
		g.Lanes[shard] = make([]*journal.Recovery, len(slots))
	}
	g.each(func(i int, s *Slot) {
		c.superblock(i, s)
		c.owner[i] = make(map[uint32]uint16)
		err := g.attach(s)
		if err == nil {
			err = g.recoverSlot(i, s)
		}
		if err != nil {
			c.Found(i, "slot", err)
			for _, lanes := range g.Lanes {
				lanes[i] = nil
			}
		}
	})
	g.vouch(func(l journal.LaneID, err error) {
		c.Found(int(l.Slot), fmt.Sprintf("shard %d", l.Shard), err)
		g.Lanes[l.Shard][l.Slot] = nil
	})
	for shard := range g.Lanes {
		c.shard(uint16(shard))
	}
	return nil
}

// checker is a group of slots that is looked at.
type checker struct {
	*Group
	CheckReport
	owner []map[uint32]uint16 // by slot: which shard's table holds a segment
}

// superblock verifies both copies, and that the slot takes part.
func (c *checker) superblock(i int, s *Slot) {
	for n := range int64(2) {
		if _, err := journal.ReadSuperblockCopy(s.superFile, n); err != nil {
			c.Found(i, fmt.Sprintf("%s copy %d", journal.SuperblockFile, n), err)
		}
	}
	newest := s.Started()
	c.each(func(_ int, peer *Slot) { newest = max(newest, peer.Started()) })
	switch {
	case s.blank() && newest > 0:
		c.Note(i, "is blank: the next start copies everything to it")
	case s.Started() < newest:
		c.Note(i, fmt.Sprintf("last took part in generation %d, its peers in %d", s.Started(), newest))
	}
}

// shard verifies the lanes of one shard and compares those that are at the
// same record.
func (c *checker) shard(shard uint16) {
	lanes := c.Lanes[shard]
	checks := make([]*journal.Check, len(lanes))
	for i, r := range lanes {
		if r == nil {
			continue
		}
		checks[i] = c.lane(shard, i)
	}
	all, best := c.standings(shard)
	for i, r := range lanes {
		if r == nil || i == best || checks[i] == nil || checks[best] == nil {
			continue
		}
		if all[i] != all[best] {
			c.Note(i, fmt.Sprintf("shard %d is at LSN %d, slot %d at %d: the next start brings them together", shard, all[i], best, all[best]))
			continue
		}
		for _, g := range checks[i].Differs(checks[best]) {
			c.Found(i, fmt.Sprintf("region %d", g), fmt.Errorf("other content than in slot %d, at the same LSN %d: %w", best, all[i], ErrMismatch))
		}
	}
}

// standings returns up to which LSN each lane of a shard counts, and the lane
// that has the most.
func (c *checker) standings(shard uint16) (all []journal.LSN, best int) {
	lanes := c.Lanes[shard]
	all, best = make([]journal.LSN, len(lanes)), -1
	for i, r := range lanes {
		if r == nil || c.Slots[i].blank() || r.Incomplete {
			continue
		}
		all[i] = r.Stamp.LSN
		for j, peer := range lanes {
			if peer != nil && j != i && peer.Suspect[i] != 0 && c.Slots[j].Started() >= c.Slots[i].Started() &&
				peer.Stamp.Generation >= c.Slots[i].Started() { // or what it noted is settled
				all[i] = min(all[i], peer.Suspect[i]-1)
			}
		}
		if best < 0 || all[i] > all[best] {
			best = i
		}
	}
	return all, max(best, 0)
}

// lane verifies one lane; nil when it could not be read to its end.
func (c *checker) lane(shard uint16, i int) *journal.Check {
	r := c.Lanes[shard][i]
	if r.Damage != nil {
		c.Found(i, fmt.Sprintf("shard %d", shard), r.Damage)
	}
	if r.Incomplete {
		c.Note(i, fmt.Sprintf("shard %d is an unfinished copy: the next start finishes it", shard))
	}
	for _, segment := range r.Lane.SegmentsInUse() {
		if other, taken := c.owner[i][segment]; taken {
			c.Found(i, fmt.Sprintf("segment %d", segment), fmt.Errorf("it is in the tables of shards %d and %d: %w", other, shard, journal.ErrDamaged))
		}
		c.owner[i][segment] = shard
	}
	check := &journal.Check{
		Of:       r,
		Found:    func(place string, err error) { c.Found(i, fmt.Sprintf("shard %d %s", shard, place), err) },
		Verified: func(sizeBytes int64) { c.Verified(i, sizeBytes) },
	}
	if err := check.Run(); err != nil {
		c.Found(i, fmt.Sprintf("shard %d metadata", shard), err)
		return nil
	}
	return check
}
