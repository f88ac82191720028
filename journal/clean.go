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
	// Choose returns the segments to be cleaned next, best first, or none.
	Choose(Table) []SegmentUse
	// Pressure tells how short of space the lane is: 0 while there is no need
	// to hurry, 1000 when nothing may be written before space was reclaimed.
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
	Segments      int          // all that the lane holds or has accepted for, prepared and dead ones included
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

// Clean is what a lane asks the cleaner's executor for: to list what segments
// hold, or to copy blocks into a new segment.
type Clean struct {
	Lane  LaneID
	Scan  []SegmentUse // not empty: list these into Moves
	Moves []Move       // else: copy these, and set To or Err
	Err   error
	Done  func() // called by the executor, once

	cfg        *Config
	generation Generation
	into       SegmentUse   // where the copies are
	broken     []SegmentUse // could not be listed to their end
	busy       bool
}

// cleanSteps is how many blocks or regions one step looks at.
const cleanSteps = 256

// cleanPhase is what the cleaner is about.
type cleanPhase uint8

const (
	cleanIdle      cleanPhase = iota
	cleanScanning             // the executor lists what the victims hold
	cleanFiltering            // the lane looks which of that is live
	cleanSweeping             // the lane collects what lies scattered
	cleanCopying              // the executor copies
	cleanApplying             // the lane moves the map
)

// cleaning is a lane's cleaner. Owner: the shard, but for op while it is busy.
type cleaning struct {
	op        Clean
	phase     cleanPhase
	look      bool // the table has changed since the policy was last asked
	stop      bool // no more: the lane is closing
	at        int  // of op.Moves: the next to look at
	kept      int  // of op.Moves: live ones, at the front
	victims   []SegmentUse
	cursor    Region // sweep: the next region
	moved     bool   // the log has grown since the sweep last began
	failures  int
	notBefore time.Duration
	pressure  int
	rotten    []Rot // to be repaired from a peer
	moves     uint64
}

// Pressure is what the policy said last, 0 to 1000.
func (l *Lane) Pressure() int { return l.cleaner.pressure }

// Moved returns how many blocks the cleaner has moved.
func (l *Lane) Moved() uint64 { return l.cleaner.moves }

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
		l.applyMoves()
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
	t := Table{Share: l.cfg.ShareBlocks, Live: l.segments.live, Last: l.written, SegmentBlocks: int64(l.cfg.SegmentBlocks), Segments: len(l.segments.order)}
	if l.ready != nil || l.preparing.busy {
		t.Segments++
	}
	t.Segments += int(l.BacklogBytes() / (uint64(l.cfg.SegmentBlocks) * BlockSize)) // accepted, on its way
	return t
}

// table describes the lane to its policy.
func (l *Lane) table() Table {
	t := l.usage()
	for _, s := range l.segments.order {
		if s.state == segmentSealed && s.lastLSN <= l.durable && s.live > 0 && !s.stuck && s.pins == 0 {
			t.Sealed = append(t.Sealed, SegmentUse{Index: s.index, Life: s.life, Used: s.used, Live: uint32(s.live), Last: s.lastLSN, Cold: s.previous == s.life})
		}
	}
	return t
}

// chooseClean asks the policy, if something has changed.
func (l *Lane) chooseClean(now time.Duration) {
	c := &l.cleaner
	if !c.look && !l.sweepWanted() || now < c.notBefore || l.written < l.rewriting {
		return
	}
	c.look = false
	t := l.table()
	c.pressure = l.cfg.Policy.Pressure(t)
	if c.stop {
		return
	}
	c.victims = append(c.victims[:0], l.cfg.Policy.Choose(t)...)
	switch {
	case len(c.victims) > 0:
		c.phase = cleanScanning
		c.op.Scan = append(c.op.Scan[:0], c.victims...)
		l.submitClean()
	case l.sweepWanted():
		c.phase, c.op.Moves = cleanSweeping, c.op.Moves[:0]
		c.moved = c.moved && c.cursor != 0
		l.sweep()
	}
}

func (l *Lane) sweepWanted() bool {
	c := &l.cleaner
	return l.cfg.Policy.Always() && !c.stop && (c.moved || c.cursor != 0)
}

func (l *Lane) submitClean() {
	op := &l.cleaner.op
	if len(op.Scan) > 0 {
		op.Moves = op.Moves[:0]
	}
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
	c.failures, c.at, c.kept = 0, 0, 0
	if c.phase == cleanScanning {
		c.phase, c.op.Scan = cleanFiltering, c.op.Scan[:0]
		l.noteBroken()
		return
	}
	c.phase = cleanApplying
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

// noteBroken remembers the segments that could not be listed to their end: what
// is found in them is cleaned, once. The rest is read by its places, as ever.
func (l *Lane) noteBroken() {
	for _, v := range l.cleaner.op.broken {
		if s := l.segments.byIndex[v.Index]; s != nil && s.life == v.Life {
			s.stuck = true
		}
	}
}

// cleanFailed gives the work up, and tries again later.
func (l *Lane) cleanFailed(now time.Duration) {
	c := &l.cleaner
	l.lastErr = fmt.Errorf("clean: %w", c.op.Err)
	c.notBefore = now + l.backoff(&c.failures)
	if c.failures > maxFailures { // they cannot be read: others may be
		c.op.broken, c.failures = append(c.op.broken[:0], c.op.Scan...), 0
		l.noteBroken()
	}
	c.phase, c.look, c.op.Scan = cleanIdle, true, c.op.Scan[:0]
}

// filterMoves keeps what the map still names at its place.
func (l *Lane) filterMoves() {
	c := &l.cleaner
	room := int(l.cfg.SegmentBlocks) - 2 - int(l.cfg.SegmentBlocks)/coldBatch
	for n := 0; c.at < len(c.op.Moves) && c.kept < room && n < cleanSteps; n++ {
		m := c.op.Moves[c.at]
		e, known := l.blocks.lookup(m.LBA)
		if !known {
			l.wantAhead(c.op.Moves[c.at:])
			return
		}
		if e.samePlace(m.From) {
			m.From = e
			c.op.Moves[c.kept] = m
			c.kept++
		}
		c.at++
	}
	if c.at == len(c.op.Moves) || c.kept == room {
		c.op.Moves = c.op.Moves[:c.kept]
		l.startCopy()
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
		if c.cursor >= regions || len(c.op.Moves)+RegionBlocks > int(l.cfg.SegmentBlocks)-8-int(l.cfg.SegmentBlocks)/coldBatch {
			break
		}
		if r := c.cursor; l.blocks.stored.has(r) || l.blocks.pages[r] != nil {
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
	for i := range p.entries {
		if e := p.entries[i]; e.Content == Data {
			blocks++
			if i == 0 || !follows(p.entries[i-1], e) {
				runs++
			}
		}
	}
	if runs <= 2+blocks/64 {
		return
	}
	for i, e := range p.entries {
		if e.Content != Data {
			continue
		}
		if s := l.segments.of(e); s == nil || s.state != segmentSealed || s.lastLSN > l.durable {
			continue
		}
		l.cleaner.op.Moves = append(l.cleaner.op.Moves, Move{LBA: p.region.First() + LBA(i), From: e})
	}
}

// applyMoves makes the map name the copies of what has not changed meanwhile.
func (l *Lane) applyMoves() {
	c := &l.cleaner
	for n := 0; c.at < len(c.op.Moves) && n < cleanSteps; n++ {
		m := c.op.Moves[c.at]
		e, known := l.blocks.lookup(m.LBA)
		if !known {
			l.wantAhead(c.op.Moves[c.at:])
			return
		}
		if e.samePlace(m.From) { // else it was overwritten: the copy is dead
			l.applyMove(m)
		}
		c.at++
	}
	if c.at == len(c.op.Moves) {
		s := l.segments.byIndex[c.op.into.Index]
		s.state, s.dirty = segmentSealed, true
		l.endClean()
	}
}

// applyMove moves a block, or leaves one that could not be read where it is, to
// be repaired from a peer. Its segment is not cleaned again: once the block was
// written anew, it empties by itself.
func (l *Lane) applyMove(m Move) {
	c := &l.cleaner
	switch {
	case m.Err == nil:
		l.blocks.set(l.blocks.touch(m.LBA.Region(), Stamp{}), m.LBA.Index(), m.To)
		c.moves++
	case !errors.Is(m.Err, errNoRoom):
		c.rotten = append(c.rotten, Rot{LBA: m.LBA, Entry: m.From})
		l.segments.of(m.From).stuck = true
	}
}

func (l *Lane) endClean() {
	c := &l.cleaner
	c.phase, c.look, c.op.Moves = cleanIdle, true, c.op.Moves[:0]
}
