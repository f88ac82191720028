package shard

import (
	"fmt"
	"time"

	"trivet/journal"
)

// What a returning slot lacks is copied to its lane from a peer's, in jobs of
// several regions. A job goes through these stages, each decided in a turn:
//
//  1. choose: the lanes' map pages are compared, region by region. From here on
//     every record of one of these regions overtakes the copy of its blocks.
//  2. read: the blocks that the lane lacks are read from the source; what that
//     cannot read, from another slot that should have the same; what nobody can
//     read is lost.
//  3. write: the lane's executor appends them, and makes them durable.
//  4. enter: the lane's map names them, but for what was overtaken.
//
// A source has written every record that the lane is not fed. That is asked
// whenever regions are compared, so it holds for one that takes over as well.

// The bounds of a copy.
const (
	fillJobs    = 2
	fillStrays  = 2   // that may hang on a source, beside them
	fillRegions = 16  // of a job
	fillBlocks  = 512 // of a job
	// FillBytes is the memory that a copy needs, in bytes, aligned as a block is.
	FillBytes = (fillJobs + fillStrays) * fillBlocks * journal.BlockSize

	fillBytesPerSecond = 128 << 20 // at most; half of it while clients wait
	fillLooks          = 64        // regions that one turn compares
	fillAhead          = 8         // regions whose map pages are asked for ahead
	fillAgain          = 10 * time.Millisecond
	fillReport         = 64 // regions after which a Fill answers
)

// fill is the copy to one slot's lane. Owner: the shard.
type fill struct {
	slot     int
	behind   journal.LSN // the record behind which the lane is fed
	distrust bool        // what the lane's map says of its own blocks
	rotten   journal.RegionSet
	jobs     [fillJobs + fillStrays]fillJob
	writing  *fillJob // whose blocks are being appended
	closing  bool     // the last append of all is under way
	closed   bool     // or over
	over     bool     // the slot was dropped: only what is under way remains
	err      error

	cursor    journal.Region // the next to look at
	notBefore time.Duration  // pace
	lost      int            // blocks that nobody could read
	done      int            // regions since the last answer
	answer    func(done, left int, err error)
}

type fillStage uint8

const (
	fillIdle fillStage = iota
	fillReading
	fillMissing // blocks are left that have to be read elsewhere, once map pages are loaded
	fillRead
	fillWriting
	fillEntering
)

// fillJob is a number of regions on their way. Its memory is the executor's while
// it is read or written.
type fillJob struct {
	stage   fillStage
	source  int
	memory  []byte
	regions []journal.Lacking
	blocks  []fillBlock
	writes  []journal.FillBlock
	entered int // regions that were entered
	given   int // writes that were released

	disk  journal.Read
	asked []int // of blocks: what disk reads
	slot  int   // that it is read from
	tried uint8 // slots, one bit each
	since time.Duration
	stray bool // the read takes too long: the job was given up
}

// fillBlock is a block that a job reads.
type fillBlock struct {
	region int // of the job's
	index  int
	entry  journal.Entry // in the source
	bad    bool          // not read yet
}

// Fill has what the slot lacks copied to its lane, and answers once some of it is
// done, or all. memory, of FillBytes, is the copy's until the slot is live or idle
// again; done and left count regions. One call is under way at a time.
func (s *Shard) Fill(slot int, memory []byte, answer func(done, left int, err error)) {
	s.enter(&event{apply: func(time.Duration) {
		c := &s.core
		f := c.fills[slot]
		if f == nil || f.over || c.stopped != nil || c.halted {
			c.calls = append(c.calls, func() { answer(0, 0, fmt.Errorf("slot %d: %w", slot, ErrAbsent)) })
			return
		}
		if f.jobs[0].memory == nil {
			for i := range f.jobs {
				f.jobs[i].memory = memory[i*len(memory)/len(f.jobs):][:len(memory)/len(f.jobs)]
			}
		}
		f.answer = answer
	}})
}

// newFill makes the copy to a lane that is fed from the next record on.
func (c *core) newFill(slot int, r *journal.Recovery, distrust bool) {
	f := &fill{slot: slot, behind: c.window.Last(), distrust: distrust, rotten: make(journal.RegionSet)}
	for _, rot := range r.Rotten {
		f.rotten.Add(rot.LBA.Region())
	}
	for i := range f.jobs {
		j := &f.jobs[i]
		j.regions, j.blocks = make([]journal.Lacking, 0, fillRegions), make([]fillBlock, 0, fillBlocks)
		j.disk.Done = c.connect(func(time.Duration) { c.fillReadDone(f, j) })
	}
	c.fills[slot] = f
	c.filling++
}

// endFill ends the copy to a slot. What is under way comes back and is ignored.
func (c *core) endFill(slot int, err error) {
	f := c.fills[slot]
	if f == nil || f.over {
		return
	}
	f.over = true
	c.filling--
	f.tell(c, err)
	c.dropFill(f)
}

// dropFill forgets a copy that is over once nothing of it is under way.
func (c *core) dropFill(f *fill) {
	for i := range f.jobs {
		if f.jobs[i].stage == fillReading {
			return
		}
	}
	if f.over && c.fills[f.slot] == f {
		c.fills[f.slot] = nil
	}
}

// tell answers who waits for the copy.
func (f *fill) tell(c *core, err error) {
	if answer, done := f.answer, f.done; answer != nil {
		left := c.lanes[f.slot].Lacks()
		f.answer, f.done = nil, 0
		c.calls = append(c.calls, func() { answer(done, left, err) })
	}
}

// overtake leaves the blocks of a record that was just added to it, in every region
// that is being copied.
func (c *core) overtake(r *journal.Record) {
	for _, f := range c.fills {
		if f == nil || f.over || r.Count == 0 {
			continue
		}
		for i := range f.jobs {
			for k := range f.jobs[i].regions {
				if region := &f.jobs[i].regions[k]; region.Region == r.LBA.Region() {
					region.Overtake(r.LBA.Index(), int(r.Count), r.LSN)
				}
			}
		}
	}
}

// copySteps moves every copy on. It returns when it has to look again, or 0.
func (c *core) copySteps() (wake time.Duration) {
	if c.filling == 0 {
		return 0
	}
	for _, f := range c.fills {
		if f == nil || f.over || f.jobs[0].memory == nil || c.stopped != nil {
			continue
		}
		if at := c.copyStep(f); at != 0 && (wake == 0 || at < wake) {
			wake = at
		}
	}
	return wake
}

func (c *core) copyStep(f *fill) (wake time.Duration) {
	at := func(t time.Duration) {
		if t != 0 && (wake == 0 || t < wake) {
			wake = t
		}
	}
	if f.err == nil {
		f.err = c.lanes[f.slot].FillError()
	}
	if f.err != nil {
		f.tell(c, f.err)
		return 0
	}
	c.finishWrite(f)
	for i := range f.jobs {
		at(c.moveJob(f, &f.jobs[i]))
	}
	at(c.closeFill(f))
	switch l := c.lanes[f.slot]; {
	case l.Lacks() == 0 && f.closed, l.Lacks() > 0 && f.done >= fillReport:
		f.tell(c, nil)
	}
	return wake
}

// moveJob moves a job on as far as it goes.
func (c *core) moveJob(f *fill, j *fillJob) (wake time.Duration) {
	for {
		before := j.stage
		switch before {
		case fillIdle:
			wake = c.choose(f, j)
		case fillReading:
			wake = c.divertJob(f, j)
		case fillMissing:
			c.readElsewhere(f, j)
		case fillRead:
			c.writeJob(f, j)
		case fillEntering:
			c.enterJob(f, j)
		}
		switch {
		case j.stage == before:
			return wake
		case j.stage == fillIdle:
			return c.now + 1
		}
	}
}

// source returns the slot that is copied from now, and is not the one to be left, or
// -1 while there is none.
func (c *core) source(f *fill, but int) int {
	for i := range c.lanes {
		s := (c.primary + i) % len(c.lanes)
		if s != but && c.live[s] && c.out[s].strays == 0 && c.lanes[s].HasWritten(f.behind) {
			return s
		}
	}
	return -1
}

// choose fills a job with regions of which the lane lacks something. Those of which
// it lacks nothing are done at once.
func (c *core) choose(f *fill, j *fillJob) (wake time.Duration) {
	l := c.lanes[f.slot]
	if l.Lacks() == 0 || f.active() == fillJobs {
		return 0
	}
	if c.now < f.notBefore {
		return f.notBefore
	}
	if j.source = c.source(f, -1); j.source < 0 {
		f.notBefore = c.now + fillAgain
		return f.notBefore
	}
	for looks := 0; ; looks++ {
		g, ok := l.NextLacking(f.cursor)
		switch {
		case !ok && len(j.regions) == 0:
			return c.wrap(f)
		case !ok || len(j.regions) == fillRegions || looks == fillLooks && len(j.regions) > 0:
			return c.startJob(f, j)
		case looks == fillLooks:
			return c.now + 1
		}
		fits, known := c.take(f, j, g)
		switch {
		case !known:
			c.lookAhead(f, j.source, g)
			if len(j.regions) == 0 {
				return 0 // until the page is loaded
			}
			return c.startJob(f, j)
		case !fits:
			return c.startJob(f, j)
		}
		f.cursor = g + 1
	}
}

// active returns how many jobs are under way, without those that hang.
func (f *fill) active() (n int) {
	for i := range f.jobs {
		if j := &f.jobs[i]; j.stage != fillIdle && !j.stray {
			n++
		}
	}
	return n
}

// wrap begins again with the regions that were put off, once no job is under way.
func (c *core) wrap(f *fill) time.Duration {
	if f.active() > 0 {
		return 0
	}
	f.cursor, f.notBefore = 0, c.now+fillAgain
	return f.notBefore
}

// lookAhead asks for the map pages of the regions that come next.
func (c *core) lookAhead(f *fill, source int, g journal.Region) {
	l := c.lanes[f.slot]
	for range fillAhead {
		next, ok := l.NextLacking(g)
		if !ok {
			return
		}
		l.Lookup(next.First())
		c.lanes[source].Lookup(next.First())
		g = next + 1
	}
}

// take adds a region to the job. fits is false when the job has no room for it, and
// known while a map page has to be loaded.
func (c *core) take(f *fill, j *fillJob, g journal.Region) (fits, known bool) {
	n := len(j.regions)
	j.regions = j.regions[:n+1]
	k := &j.regions[n]
	l := c.lanes[f.slot]
	fits = true
	if known = l.Compare(k, c.lanes[j.source], g, f.distrust || f.rotten.Has(g)); known {
		c.leaveToFeed(f, k)
		fits = c.addBlocks(j, n)
	}
	done := known && k.IsEmpty() && l.Accept(k)
	if done {
		f.done++
	}
	if !known || !fits || done {
		j.regions = j.regions[:n]
	}
	return fits, known
}

// leaveToFeed overtakes the blocks whose newest record is in the window, and is one
// that the lane is fed.
func (c *core) leaveToFeed(f *fill, k *journal.Lacking) {
	region := c.pending.lookup(k.Region)
	if region == nil {
		return
	}
	for i, _, ok := k.Next(0); ok; i, _, ok = k.Next(i + 1) {
		if ref := region.refs[i]; ref != 0 && c.pending.lsn(ref) > f.behind {
			k.Overtake(i, 1, c.pending.lsn(ref))
		}
	}
}

// addBlocks adds the data that the lane lacks of the job's last region; false when
// there is no room for all of them.
func (c *core) addBlocks(j *fillJob, region int) bool {
	before, room := len(j.blocks), len(j.memory)/journal.BlockSize
	k := &j.regions[region]
	for i, e, ok := k.Next(0); ok; i, e, ok = k.Next(i + 1) {
		if e.Content != journal.Data && e.Content != journal.Lost {
			continue
		}
		if len(j.blocks) == room {
			j.blocks = j.blocks[:before]
			return false
		}
		j.blocks = append(j.blocks, fillBlock{region: region, index: i, entry: e, bad: true})
	}
	return true
}

// startJob sends a job on its way.
func (c *core) startJob(f *fill, j *fillJob) time.Duration {
	bytes := time.Duration(len(j.blocks)) * journal.BlockSize
	pace := time.Second * bytes / fillBytesPerSecond
	if c.reading.len+c.queued.len+c.waiting.len > 0 {
		pace *= 2
	}
	f.notBefore = c.now + pace
	j.tried, j.entered, j.given, j.writes = 0, 0, 0, j.writes[:0]
	j.stage = fillMissing
	return 0
}

// buffer returns where the i-th block of the job is read to.
func (j *fillJob) buffer(i int) []byte {
	return j.memory[i*journal.BlockSize:][:journal.BlockSize]
}
