package shard

import (
	"time"

	"trivet/journal"
)

// View is what Inspect shows of a shard. It is valid during the call alone.
type View struct{ core *core }

// Counters returns the shard's totals.
func (v *View) Counters() Counters { return v.core.counters }

// Stopped returns why nothing is written any more, or nil.
func (v *View) Stopped() error { return v.core.stopped }

// CacheBlocks returns how many blocks the cache holds.
func (v *View) CacheBlocks() int { return v.core.cfg.Cache.Len() }

// LaneView is the state of one lane.
type LaneView struct {
	Live             bool
	Fed              bool   // gets every record: a live slot's does, and one's that returns
	Idle             bool   // nothing of it is under way
	Missed           int    // regions that a slot that returns has still to be given
	BacklogBytes     uint64 // of records that the lane has not written
	UnsyncedBytes    uint64 // of records that it has written, not durable
	Written, Durable journal.LSN
	Usage            journal.Usage
	Pressure         int // how short of log space the lane is, 0 to Full
	Lag              int // how far its checkpoints are behind, 0 to Full
	Pins             int // reads under way
	LastError        error
	Fault            error // why the lane has given up, or its slot was dropped
}

// Lane returns the state of the slot's lane; ok is false when it has none.
func (v *View) Lane(slot int) (view LaneView, ok bool) {
	c := v.core
	l := c.lanes[slot]
	if l == nil {
		return view, false
	}
	return LaneView{
		Live: c.live[slot], Fed: c.fed[slot], Idle: c.isIdle(slot), Missed: l.Lacks(),
		BacklogBytes: l.BacklogBytes(), UnsyncedBytes: l.UnsyncedBytes(),
		Written: l.Written(), Durable: l.Durable(), Usage: l.Usage(), Pressure: l.Pressure(), Lag: l.Lag(), Pins: l.Pins(), LastError: l.LastError(), Fault: l.Fault(),
	}, true
}

// Last returns the LSN of the newest record.
func (v *View) Last() journal.LSN { return v.core.window.Last() }

// Waiting is a part that has not completed.
type Waiting struct {
	Op       Op
	LBA      journal.LBA
	Skip     int           // bytes of the first block before the part
	Length   int           // bytes
	For      string        // what it waits for
	Since    time.Duration // when it began to wait for that, on the shard's clock; 0: not known
	Deadline time.Duration // on the shard's clock
}

// Inflight appends the parts that wait for something, at most max of them.
func (v *View) Inflight(to []Waiting, max int) []Waiting {
	c := v.core
	queues := [...]struct {
		list *partList
		what string
	}{
		{&c.waiting, "durability"},
		{&c.unmapped, "map page"},
		{&c.queued, "free read"},
		{&c.reading, "disk read"},
		{&c.turns.behind, "an older write of the same blocks"},
	}
	for _, q := range queues {
		for p := q.list.oldest; p != nil && len(to) < max; p = p.newer {
			w := Waiting{Op: p.Op, LBA: p.LBA, Skip: p.Skip, Length: p.Length, For: q.what, Deadline: p.Deadline}
			if q.list == &c.waiting {
				w.Since = p.since
			}
			to = append(to, w)
		}
	}
	return to
}
