package device

import (
	"cmp"
	"slices"
	"time"

	"trivet/arena"
	"trivet/journal"
	"trivet/replica"
	"trivet/shard"
)

// Snapshot describes the device at one instant.
type Snapshot struct {
	replica.Geometry
	Generation journal.Generation
	Stopped    error // why nothing is written any more
	Inflight   int   // requests
	// Pressure is how much writes are slowed in the shard where they are most: 0
	// when they enter unhindered, up to shard.Full, when none do. Lagging tells
	// whether that is for checkpoints that lag behind, not for log space.
	Pressure   int
	Lagging    bool
	Slots      []SlotSnapshot
	Asides     []Aside // what was set aside, as it was a while ago
	Counters   shard.Counters
	Latencies  []Latency // by Op; of kinds that there were none of lately, none
	ArenaKind  string
	ArenaNote  string
	ArenaBytes uint64
	ArenaFree  uint64
	CacheBytes uint64
	CacheUsed  uint64
	Errors     []ErrorCount
}

// SlotSnapshot describes one slot.
type SlotSnapshot struct {
	ID            int
	Where         string
	Live          bool
	Returning     bool   // gets every record, and is given what it missed
	Missing       int    // regions of those that it still misses
	Reason        error  // why it is not live
	LogBytes      uint64 // written in the segments in use, descriptors included
	LiveBytes     uint64 // of those, what the map names: the rest is the cleaner's
	Pressure      int    // how short of log space its worst lane is, 0 to shard.Full
	Lag           int    // how far the checkpoints of its worst lane are behind, 0 to shard.Full
	Segments      int
	SegmentsFree  int
	BacklogBytes  uint64 // of records that it has not written
	UnsyncedBytes uint64 // of records that are written there, not durable
	Checkpoint    uint64
	LastError     error
}

// Snapshot asks every shard. It does no I/O, and works after Close.
func (d *Device) Snapshot() Snapshot {
	s := Snapshot{
		Geometry: d.group.Geometry, Inflight: int(d.inflight.Load()),
		ArenaKind: d.arenaKind, ArenaNote: d.arenaNote, ArenaBytes: d.arenaPages * arena.PageSize,
		CacheBytes: d.cacheBytes, Errors: d.events.counts(), Latencies: d.latencies.recent(d.now()),
	}
	d.addSlots(&s)
	d.inspect(func(v *shard.View) { s.add(v) })
	for i := range d.shards {
		if p := d.door.pressure(i); p > s.Pressure {
			s.Pressure, s.Lagging = p, d.door.lagging(i)
		}
	}
	if !d.closing.Load() {
		s.ArenaFree = uint64(d.arena.FreePages()) * arena.PageSize
	}
	return s
}

// addSlots adds what is known of the slots without asking the shards.
func (d *Device) addSlots(s *Snapshot) {
	live := d.membership.Live()
	d.slotsMu.Lock()
	defer d.slotsMu.Unlock()
	s.Generation = d.group.Generation
	if s.Asides = d.asides; len(s.Asides) > 0 {
		d.returns.notify() // who looks again sees what was removed meanwhile
	}
	for i := range d.group.Replicas {
		slot := SlotSnapshot{ID: i, Where: d.layout.dirs[i], Live: live[i], Reason: d.group.Absent[i]}
		if e := d.engines[i]; e != nil {
			slot.Segments, slot.SegmentsFree = e.Slot().Segments()
			slot.Checkpoint = e.Slot().CheckpointSequence()
		}
		s.Slots = append(s.Slots, slot)
	}
}

// inspect calls fn in a turn of each shard, one after another.
func (d *Device) inspect(fn func(*shard.View)) {
	done := make(chan struct{}, 1)
	for _, sh := range d.shards {
		sh.Inspect(func(v *shard.View) {
			fn(v)
			done <- struct{}{}
		})
		<-done
	}
}

// add takes account of one shard.
func (s *Snapshot) add(v *shard.View) {
	c := v.Counters()
	s.Counters.Add(c)
	s.CacheUsed += uint64(v.CacheBlocks()) * blockBytes
	if err := v.Stopped(); err != nil {
		s.Stopped = err
	}
	for i := range s.Slots {
		l, ok := v.Lane(i)
		if !ok {
			continue
		}
		slot := &s.Slots[i]
		slot.LogBytes += uint64(l.Usage.LogBytes)
		slot.LiveBytes += uint64(l.Usage.LiveBytes)
		slot.Pressure, slot.Lag = max(slot.Pressure, l.Pressure), max(slot.Lag, l.Lag)
		slot.BacklogBytes += l.BacklogBytes
		slot.UnsyncedBytes += l.UnsyncedBytes
		if l.LastError != nil {
			slot.LastError = l.LastError
		}
		switch {
		case l.Fed && !l.Live:
			slot.Returning = true
			slot.Missing += l.Missed
		case !slot.Live && slot.Reason == nil:
			slot.Reason = l.Fault
		}
	}
}

// InflightPart is a part of a request that waits for something.
type InflightPart struct {
	Shard  int
	Op     string
	Offset uint64 // bytes
	Length int    // bytes
	Stage  string // where it is
	Waits  string // for what
	Age    time.Duration
	// StageAge is how long it has been there; Age where that is not known.
	StageAge time.Duration
}

// The stages of a part.
const (
	inAdmission = "admission" // at the door
	inShard     = "shard"
)

// maxInflight bounds what Inflight lists by shard, and of those at the door.
const maxInflight = 256

// Inflight lists what has not completed, the oldest first. A part that enters
// its shard meanwhile may be listed twice, but none is left out.
func (d *Device) Inflight() []InflightPart {
	now := d.now()
	var all []InflightPart
	add := func(w shard.Waiting, i int, stage string) {
		p := InflightPart{
			Shard: i, Op: w.Op.String(), Offset: uint64(w.LBA)*blockBytes + uint64(w.Skip), Length: w.Length,
			Stage: stage, Waits: w.For, Age: now - (w.Deadline - d.opt.Deadline),
		}
		p.StageAge = p.Age
		if w.Since != 0 {
			p.StageAge = now - w.Since
		}
		all = append(all, p)
	}
	d.door.inflight(maxInflight, func(w shard.Waiting, i int) { add(w, i, inAdmission) })
	i := 0
	d.inspect(func(v *shard.View) {
		for _, w := range v.Inflight(nil, maxInflight) {
			add(w, i, inShard)
		}
		i++
	})
	slices.SortFunc(all, func(a, b InflightPart) int { return cmp.Compare(b.Age, a.Age) })
	return all
}

// Events returns what happened last, the oldest first.
func (d *Device) Events() []Event { return d.events.last() }
