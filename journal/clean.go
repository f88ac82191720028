package journal

import (
	"errors"
	"fmt"
	"time"
)

// Cleaning makes space: the live blocks of a segment are copied into a segment
// of the cleaner's own, and each move is offered to the lane as a
// compare-and-set: if the block is still at the old place, it is now at the new
// one. Moves are not logged. The copies are durable before they are offered;
// the next checkpoint names them, and frees the segment that they were copied
// from. A crash before that finds the old places, whose segments were not
// recycled, and counts the copies as nothing.
//
// A step of the lane chooses, filters and applies a bounded number of blocks;
// reading and writing are the executor's. So cleaning holds nothing that an
// append, a read or a flush could wait for.

// Policy decides what is cleaned. Its methods are pure.
type Policy interface {
	// Choose returns the segments to be cleaned next, best first, or none. It
	// keeps nothing of the table.
	Choose(Table) []SegmentUse
	// Pressure tells how short of space the lane is: 0 while there is no need
	// to hurry, FullPressure when nothing may be written before space was
	// reclaimed.
	Pressure(Table) int
	// Always tells that the cleaner is never to rest: when there is nothing to
	// choose, it sorts the log by address.
	Always() bool
}

// Table is what a policy knows of a lane. Sizes are in blocks.
type Table struct {
	Share         int64 // of the volume, the lane's part
	Live          int64 // blocks that the map names
	Last          LSN   // of the last record
	SegmentBlocks int64
	Segments      int          // all that the lane holds or has accepted for, prepared and empty ones included
	Empty         int          // those without live blocks, which a checkpoint will free
	Sealed        []SegmentUse // those that may be cleaned
}

// SegmentUse is a segment in a Table.
type SegmentUse struct {
	Index, Life uint32
	Used, Live  uint32 // blocks
	Last        LSN    // no block in it was written by a later record
	Cold        bool   // written by the cleaner
}

// Move is a block that the cleaner copies.
type Move struct {
	LBA      LBA
	From, To Entry
	Err      error // the block could not be read: it stays where it is
}

// Clean is what a lane asks the cleaner's executor for: to list what a segment
// holds, or to copy blocks into a new segment.
type Clean struct {
	Lane   LaneID
	Victim SegmentUse // with something used: list it
	Listed []Move     // what the victim holds, or the part of it that was not looked at yet
	Moves  []Move     // else: copy these, and set To or Err
	Err    error
	Done   func() // called by the executor, once

	cfg        *Config
	generation Generation
	into       SegmentUse // where the copies are
	broken     bool       // the victim could not be listed to its end
	busy       bool
}

// cleanSteps is how many blocks or regions one step looks at.
const cleanSteps = 256

// cleanPhase is what the cleaner is about.
type cleanPhase uint8

const (
	cleanIdle      cleanPhase = iota
	cleanListing              // the executor lists what a victim holds
	cleanFiltering            // the lane looks which of that is live
	cleanSweeping             // the lane collects what lies scattered
	cleanCopying              // the executor copies
	cleanApplying             // the lane moves the map
)

// cleaning is a lane's cleaner. Owner: the shard, but for op while it is busy.
type cleaning struct {
	op        Clean
	phase     cleanPhase
	look      bool         // the table has changed since the policy was last asked
	stop      bool         // no more: the lane is closing
	listed    int          // of op.Listed: the next to look at
	applied   int          // of op.Moves: the next to apply
	sealed    []SegmentUse // a table's
	victims   []SegmentUse // still to be listed, best first
	cursor    Region       // sweep: the next region
	moved     bool         // the log has grown since the sweep last began
	failures  int
	notBefore time.Duration
	again     time.Duration // when to look at a segment that was left alone; 0: there is none
	pressure  int
	rotten    []Rot // to be repaired from a peer
}

// TakeRotten returns the blocks that the cleaner could not read.
func (l *Lane) TakeRotten() []Rot {
	r := l.cleaner.rotten
	l.cleaner.rotten = nil
	return r
}

// StopCleaning ends the cleaner once what it is about is done.
func (l *Lane) StopCleaning() { l.cleaner.stop = true }

// cleanStep moves the cleaner on.
func (l *Lane) cleanStep(now time.Duration) {
	c := &l.cleaner
	if l.cfg.Policy == nil {
		return
	}
	c.pressure = l.cfg.Policy.Pressure(l.usage()) // also while the cleaner hangs
	if c.again != 0 && now >= c.again {
		c.again, c.look = 0, true
	}
	if c.op.busy {
		return
	}
	switch c.phase {
	case cleanIdle:
		l.chooseClean(now)
	case cleanFiltering:
		l.filterMoves()
	case cleanSweeping:
		l.sweep()
	case cleanApplying:
		l.applyMoves(now)
	}
}

// cleanDue tells whether another Pump would move the cleaner on at once.
func (l *Lane) cleanDue(now time.Duration) bool {
	c := &l.cleaner
	switch {
	case l.cfg.Policy == nil || c.op.busy || len(l.blocks.wanted) > 0 || l.loading.busy:
		return false
	case c.phase == cleanIdle:
		return (c.look || l.sweepWanted()) && now >= c.notBefore && l.written >= l.rewriting
	}
	return true
}

// usage describes the lane to its policy, without the segments that may be cleaned.
func (l *Lane) usage() Table {
	t := Table{Share: l.cfg.ShareBlocks, Live: l.segments.live, Last: l.written, SegmentBlocks: int64(l.cfg.SegmentBlocks), Segments: len(l.segments.order), Empty: l.segments.hollow}
	if l.ready != nil || l.preparing.busy {
		t.Segments++
	}
	if l.cleaner.phase == cleanCopying {
		t.Segments++
	}
	t.Segments += int(l.BacklogBytes() / (uint64(l.cfg.SegmentBlocks) * BlockSize)) // accepted, on its way
	return t
}

// table describes the lane to its policy, until it is called again. A condemned
// segment may be cleaned once what failed was written anew.
func (l *Lane) table(now time.Duration) Table {
	t := l.usage()
	t.Sealed = l.cleaner.sealed[:0]
	for _, s := range l.segments.order {
		if (s.state == segmentSealed || s.state == segmentCondemned) && s.isBehind(l.durable) && s.live > 0 && now >= s.stuckUntil && s.pins == 0 {
			t.Sealed = append(t.Sealed, SegmentUse{Index: s.index, Life: s.life, Used: s.used, Live: uint32(s.live), Last: min(s.lastLSN, l.durable), Cold: s.previous == s.life})
		}
	}
	l.cleaner.sealed = t.Sealed
	return t
}

// chooseClean asks the policy, if something has changed.
func (l *Lane) chooseClean(now time.Duration) {
	c := &l.cleaner
	if !c.look && !l.sweepWanted() || now < c.notBefore || l.written < l.rewriting {
		return
	}
	c.look = false
	if c.stop {
		return
	}
	c.victims = l.cfg.Policy.Choose(l.table(now))
	switch {
	case len(c.victims) > 0:
		l.firstAtHand()
		l.nextVictim()
	case l.sweepWanted():
		c.phase = cleanSweeping
		c.moved = c.moved && c.cursor != 0
		l.sweep()
	}
}

// firstAtHand puts the victim first whose blocks are still listed: the last one
// of the round before, which held more than there was room for.
func (l *Lane) firstAtHand() {
	c := &l.cleaner
	for i, v := range c.victims {
		if c.atHand(v) {
			c.victims[0], c.victims[i] = v, c.victims[0]
			return
		}
	}
}

func (c *cleaning) atHand(v SegmentUse) bool {
	return c.listed < len(c.op.Listed) && c.op.Listed[c.listed].From.Segment == v.Index && c.op.Listed[c.listed].From.Life == v.Life
}

// nextVictim has the next victim listed, while there is room for its blocks.
func (l *Lane) nextVictim() {
	c := &l.cleaner
	if len(c.victims) == 0 || len(c.op.Moves) == l.cleanRoom() {
		l.startCopy()
		return
	}
	v := c.victims[0]
	c.victims = c.victims[1:]
	if c.atHand(v) {
		c.phase = cleanFiltering
		return
	}
	c.phase, c.op.Victim, c.op.Listed, c.listed = cleanListing, v, c.op.Listed[:0], 0
	l.submitClean()
}

// cleanRoom is how many blocks are copied into a segment.
func (l *Lane) cleanRoom() int {
	return int(l.cfg.SegmentBlocks) - 2 - int(l.cfg.SegmentBlocks)/coldBatch
}

func (l *Lane) sweepWanted() bool {
	c := &l.cleaner
	return l.cfg.Policy.Always() && !c.stop && (c.moved || c.cursor != 0)
}

func (l *Lane) submitClean() {
	op := &l.cleaner.op
	op.Lane, op.cfg, op.generation, op.busy, op.Err = l.cfg.ID, &l.cfg, l.generation, true, nil
	l.exec.Clean(op)
}

// cleaned takes the result of an operation.
func (l *Lane) cleaned(now time.Duration) {
	c := &l.cleaner
	c.op.busy = false
	if c.op.Err != nil {
		l.cleanFailed(now)
		return
	}
	if c.phase == cleanListing {
		if c.op.broken {
			l.giveUp(c.op.Victim, now)
		}
		c.phase, c.op.Victim = cleanFiltering, SegmentUse{}
		return
	}
	c.phase, c.applied, c.failures = cleanApplying, 0, 0
	into := c.op.into
	l.segments.add(&segmentInfo{
		index: into.Index, life: into.Life, previous: into.Life, used: into.Used, state: segmentFilling,
		lastLSN: l.youngest(c.op.Moves),
	})
}

// youngest returns the last record that may have written one of the blocks: what
// was copied is as old as it was.
func (l *Lane) youngest(moves []Move) (last LSN) {
	for _, m := range moves {
		if s := l.segments.of(m.From); s != nil {
			last = max(last, s.lastLSN)
		}
	}
	return min(last, l.durable)
}

// stuckFor is how long a segment is left alone that could not be cleaned.
const stuckFor = 30 * time.Second

// giveUp remembers a segment that could not be listed to its end: what was found
// in it is cleaned. The rest is read by its places, as ever.
func (l *Lane) giveUp(v SegmentUse, now time.Duration) {
	if s := l.segments.byIndex[v.Index]; s != nil && s.life == v.Life {
		l.leaveAlone(s, now)
	}
}

// leaveAlone has the cleaner pass by a segment for a while.
func (l *Lane) leaveAlone(s *segmentInfo, now time.Duration) {
	s.stuckUntil = now + stuckFor
	l.cleaner.again = s.stuckUntil
}

// cleanFailed gives the work up, and tries again later.
func (l *Lane) cleanFailed(now time.Duration) {
	c := &l.cleaner
	l.lastErr = fmt.Errorf("clean: %w", c.op.Err)
	c.notBefore = now + l.backoff(&c.failures)
	if c.failures > maxFailures && c.phase == cleanListing { // it cannot be read: others may be
		l.giveUp(c.op.Victim, now)
		c.failures = 0
	}
	c.op.Victim, c.op.Listed = SegmentUse{}, c.op.Listed[:0]
	l.endClean()
}

// filterMoves keeps what the map still names at its place.
func (l *Lane) filterMoves() {
	c := &l.cleaner
	room := l.cleanRoom()
	for n := 0; c.listed < len(c.op.Listed) && len(c.op.Moves) < room && n < cleanSteps; n++ {
		m := c.op.Listed[c.listed]
		e, known := l.blocks.lookup(m.LBA)
		if !known {
			l.wantAhead(c.op.Listed[c.listed:])
			return
		}
		if e.samePlace(m.From) {
			m.From = e
			c.op.Moves = append(c.op.Moves, m)
		}
		c.listed++
	}
	if c.listed == len(c.op.Listed) || len(c.op.Moves) == room {
		l.nextVictim()
	}
}

// wantAhead asks for the map pages of the next blocks, which one load brings.
func (l *Lane) wantAhead(moves []Move) {
	for i := range min(len(moves), loadBatch) {
		l.blocks.lookup(moves[i].LBA)
	}
}

func (l *Lane) startCopy() {
	c := &l.cleaner
	if len(c.op.Moves) == 0 {
		l.endClean()
		return
	}
	c.phase = cleanCopying
	l.submitClean()
}

// sweep collects the regions that lie scattered, in the order of addresses,
// until a segment is full.
func (l *Lane) sweep() {
	c := &l.cleaner
	regions := Region(l.cfg.Regions)
	for n := 0; n < cleanSteps; n++ {
		if c.cursor >= regions || len(c.op.Moves)+RegionBlocks > l.cleanRoom() {
			break
		}
		if r := c.cursor; l.blocks.stored.Has(r) || l.blocks.pages[r] != nil {
			p := l.blocks.resident(r)
			if !p.loaded {
				l.blocks.want(p)
				return
			}
			l.collect(p)
		}
		c.cursor++
		if n == cleanSteps-1 {
			return // more in the next step
		}
	}
	if c.cursor >= regions {
		c.cursor = 0
	}
	l.startCopy()
}

// collect adds the blocks of a region unless they lie together already.
func (l *Lane) collect(p *page) {
	runs, blocks := 0, 0
	entries := p.all()
	for i, e := range entries {
		if e.Content == Data {
			blocks++
			if i == 0 || !follows(entries[i-1], e) {
				runs++
			}
		}
	}
	if runs <= 2+blocks/64 {
		return
	}
	for i, e := range entries {
		if e.Content != Data {
			continue
		}
		if s := l.segments.of(e); s == nil || s.state != segmentSealed || !s.isBehind(l.durable) {
			continue
		}
		l.cleaner.op.Moves = append(l.cleaner.op.Moves, Move{LBA: p.region.First() + LBA(i), From: e})
	}
}

// applyMoves makes the map name the copies of what has not changed meanwhile.
func (l *Lane) applyMoves(now time.Duration) {
	c := &l.cleaner
	for n := 0; c.applied < len(c.op.Moves) && n < cleanSteps; n++ {
		m := c.op.Moves[c.applied]
		e, known := l.blocks.lookup(m.LBA)
		if !known {
			l.wantAhead(c.op.Moves[c.applied:])
			return
		}
		if e.samePlace(m.From) { // else it was overwritten: the copy is dead
			l.applyMove(m, now)
		}
		c.applied++
	}
	if c.applied == len(c.op.Moves) {
		s := l.segments.byIndex[c.op.into.Index]
		s.state, s.dirty = segmentSealed, true
		l.segments.noteHollow(s)
		l.endClean()
	}
}

// applyMove moves a block, or leaves one that could not be read where it is, to
// be repaired from a peer. Its segment is left alone for a while: once the block was
// written anew, it empties by itself.
func (l *Lane) applyMove(m Move, now time.Duration) {
	c := &l.cleaner
	switch {
	case m.Err == nil:
		l.blocks.set(l.blocks.touch(m.LBA.Region(), Stamp{}), m.LBA.Index(), m.To)
	case !errors.Is(m.Err, errNoRoom):
		c.rotten = append(c.rotten, Rot{LBA: m.LBA, Entry: m.From})
		l.leaveAlone(l.segments.of(m.From), now)
	}
}

func (l *Lane) endClean() {
	c := &l.cleaner
	c.phase, c.look, c.op.Moves = cleanIdle, true, c.op.Moves[:0]
}
