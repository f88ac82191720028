package shard

import (
	"fmt"
	"slices"
	"time"

	"trivet/arena"
	"trivet/cache"
	"trivet/disk"
	"trivet/journal"
)

// Slot is a replica's share in carrying out what the shard decides. Like all
// of an Executor its methods must not block.
type Slot interface {
	journal.Executor
	// Read reads blocks of the slot's log and checks them.
	Read(*journal.Read)
	// Kick starts what the shard has handed over. Unlike the others it is
	// called between turns, by any goroutine, and may make system calls.
	Kick(shard uint16)
}

// Config is what a shard is made of.
type Config struct {
	Index      uint16
	Generation journal.Generation
	Arena      *arena.Arena
	Cache      *cache.Cache
	Window     *journal.Window
	Slots      []Slot // by slot ID; nil for one that does not take part
	Quorum     int    // slots that must have a record before it is acknowledged or durable
	// Faulted is called, not under the shard's ownership, when a slot's lane
	// has given up or stands still. The callee answers with Drop, or not.
	Faulted func(slot journal.SlotID, lost bool, err error)
	// Rotten is called, not under the shard's ownership, with a block that the
	// cleaner could not read in a slot. Reading it from there repairs it.
	Rotten func(slot int, lba journal.LBA)
	// Event is called with what an operator should know. It must not block.
	Event func(slot int, what string, err error)
	// StallAfter is how long an operation of a lane may take before the slot
	// is reported.
	StallAfter time.Duration
	// FailAfter is how long a part may take, unless it says otherwise.
	FailAfter time.Duration
}

// The policy of a shard.
const (
	// maxReads bounds the disk reads under way on one slot; more wait in the
	// queue. All slots together have twice as many.
	maxReads = 64
	// eagerWithin: when the last flush came this soon after small writes, the
	// next small write is made durable at once, so that its flush only waits.
	eagerWithin = 5 * time.Millisecond
	// hedgeAfter is how long a flush waits for the quorum that was asked first.
	hedgeAfter = 10 * time.Millisecond
	// eagerRecords is how many records a flush may have covered for that.
	eagerRecords = 4
)

// Counters are a shard's totals since it was activated.
type Counters struct {
	Reads, Writes, Flushes, Trims uint64
	ReadBytes, WriteBytes         uint64
	ReadErrors, WriteErrors       uint64
	FlushErrors                   uint64
	CacheHits, CacheMisses        uint64 // blocks
	Repairs                       uint64
}

// core is the state machine: it is touched by the shard's owner alone.
type core struct {
	cfg     Config
	now     time.Duration
	lanes   []*journal.Lane // by slot; nil for one that never took part
	slots   [journal.MaxSlots]Slot
	connect func(apply func(time.Duration)) (done func())
	live    [journal.MaxSlots]bool // has all that was acknowledged: votes, and is read
	fed     [journal.MaxSlots]bool // gets every record; a live one does, and one that returns
	absent  [journal.MaxSlots]absence
	primary int // slot that is read first
	marks   journal.Marks
	window  *journal.Window
	pending pendingIndex

	waiting  partList // for durability, by ascending target
	unmapped partList // for a map page
	queued   partList // for a disk read to be free
	reading  partList // for a disk read under way
	turns    turns
	freeOps  []*readOp
	readOps  []*readOp // all of them
	out      [journal.MaxSlots]outstanding
	detained [journal.MaxSlots][]arena.Page // what a dropped slot's disk may still read

	soonest time.Duration // no part has an earlier deadline; 0: none has any
	halted  bool          // quiet and closing: nothing is done any more

	stopped  error       // why nothing is written any more
	atLeast  journal.LSN // what every flush must cover: the note of the last drop
	reported [journal.MaxSlots]bool
	common   [journal.MaxSlots]time.Duration // when it was last seen to stand still together with its peers
	told     [journal.MaxSlots]error         // the lane's last error, once it was told

	sinceFlush int // records
	eager      bool
	lastFlush  time.Duration

	done     partList                // completed in this turn
	faults   []fault                 // to be reported after this turn
	fills    [journal.MaxSlots]*fill // copies to slots that return
	filling  int                     // of them, that are not over
	quiet    []func()                // called once everything is checkpointed and nothing is under way
	rotten   []rot                   // to be read, and so repaired, after this turn
	calls    []func()                // answers, to be given after this turn
	progress bool                    // an operation has come back in this turn
	counters Counters
}

// Add adds another shard's totals.
func (c *Counters) Add(o Counters) {
	c.Reads += o.Reads
	c.Writes += o.Writes
	c.Flushes += o.Flushes
	c.Trims += o.Trims
	c.ReadBytes += o.ReadBytes
	c.WriteBytes += o.WriteBytes
	c.ReadErrors += o.ReadErrors
	c.WriteErrors += o.WriteErrors
	c.FlushErrors += o.FlushErrors
	c.CacheHits += o.CacheHits
	c.CacheMisses += o.CacheMisses
	c.Repairs += o.Repairs
}

type fault struct {
	slot journal.SlotID
	lost bool
	err  error
}

// attach makes the core of recovered lanes; nil ones do not take part.
func (c *core) attach(recovered []*journal.Recovery, connect func(apply func(time.Duration)) func()) {
	c.window = c.cfg.Window
	c.pending = pendingIndex{regions: make(map[journal.Region]*pendingRegion), window: c.window}
	c.lanes = make([]*journal.Lane, len(c.cfg.Slots))
	c.marks.Generation = c.cfg.Generation
	c.connect = connect
	for i, r := range recovered {
		if r == nil || c.cfg.Slots[i] == nil {
			c.absent[i] = absence{everything: true}
			continue
		}
		c.engage(i, r, c.cfg.Slots[i])
		c.live[i] = true
	}
	for range 2 * maxReads {
		op := &readOp{}
		op.disk.Done = connect(func(time.Duration) { c.readDone(op) })
		c.readOps = append(c.readOps, op)
	}
	c.freeOps = append(c.freeOps, c.readOps...)
	c.choosePrimary()
}

// engage lets a recovered lane take part from the next record on.
func (c *core) engage(slot int, r *journal.Recovery, s Slot) {
	c.slots[slot] = s
	c.lanes[slot] = r.Activate(journal.Activation{
		Executor: s, Window: c.window, Marks: &c.marks, Connect: c.connect,
		Memory: func(page uint32) []byte { return c.cfg.Arena.Bytes(arena.Page(page)) },
		Block:  func() []byte { return disk.Alloc(journal.BlockSize) },
	})
	c.fed[slot], c.reported[slot], c.told[slot] = true, false, nil
}

// choosePrimary picks the slot that is read first: shards differ, so that the
// load is spread, and one slot's map pages serve a shard's reads.
func (c *core) choosePrimary() {
	for i := range c.lanes {
		if s := (int(c.cfg.Index) + i) % len(c.lanes); c.live[s] {
			c.primary = s
			return
		}
	}
}

// begin handles a part that was submitted.
func (c *core) begin(p *Part) {
	if p.Deadline == 0 {
		p.Deadline = c.now + c.cfg.FailAfter
	}
	if c.soonest == 0 || p.Deadline < c.soonest {
		c.soonest = p.Deadline
	}
	switch p.Op {
	case Read:
		c.counters.Reads++
		c.counters.ReadBytes += uint64(p.Length)
	case Write:
		c.counters.Writes++
		c.counters.WriteBytes += uint64(p.Length)
	case Trim, Zero:
		c.counters.Trims++
	case Flush:
		if c.cfg.Index == 0 { // every shard has its share of each
			c.counters.Flushes++
		}
	}
	c.handle(p)
}

// handle runs a part as far as it goes: to its end, or into a queue.
func (c *core) handle(p *Part) {
	switch p.Op {
	case Read, Cache:
		c.read(p)
	case Write:
		c.write(p)
	case Trim, Zero:
		c.writeRange(p)
	case Flush:
		c.flush(p)
	case Status:
		c.status(p)
	}
}

// finish completes a part; its Done is called when the turn ends.
func (c *core) finish(p *Part, err error) {
	p.Err = err
	if err != nil {
		switch p.Op {
		case Read, Cache, Status:
			c.counters.ReadErrors++
		case Flush:
			c.counters.FlushErrors++
		default:
			c.counters.WriteErrors++
		}
	}
	if p.queue != nil {
		p.queue.remove(p)
	}
	c.turns.release(p)
	c.done.push(p)
}

// settle ends a turn: lanes hand over what is due, what became safe is
// released, and who waited for it completes. It returns when it wants to run
// again even if nothing happens, or 0.
func (c *core) settle() (wake time.Duration) {
	if c.halted {
		return 0
	}
	at := func(t time.Duration) {
		if t != 0 && (wake == 0 || t < wake) {
			wake = max(t, c.now+1)
		}
	}
	if c.progress {
		c.progress = false
		c.retryUnmapped()
	}
	at(c.hedge())
	at(c.copySteps())
	c.heedReturns()
	for i, l := range c.lanes {
		if !c.fed[i] {
			continue
		}
		if len(c.quiet) > 0 {
			l.StopCleaning()
			if !l.Checkpointed(c.window.Last()) {
				l.RequestCheckpoint() // again, if it had not written everything the last time
			}
		}
		at(l.Pump(c.now))
		if l.Encoding() {
			at(c.now + 1)
		}
		c.takeRotten(i, l)
		at(c.supervise(journal.SlotID(i), l))
		at(c.superviseLag(i, l))
	}
	c.takeTurns()
	c.advance()
	c.release()
	at(c.divertSlow())
	c.wakeQueues()
	at(c.expire())
	if c.turns.freed {
		at(c.now + 1)
	}
	return wake
}

// isQuiet tells whether every live lane's checkpoint holds everything, and the
// executor has nothing of the shard any more.
func (c *core) isQuiet() bool {
	for i, l := range c.lanes {
		if l == nil {
			continue
		}
		if l.Busy() || c.fed[i] && c.stopped == nil && !l.Checkpointed(c.window.Last()) {
			return false
		}
	}
	return len(c.freeOps) == len(c.readOps) && c.fills == [journal.MaxSlots]*fill{}
}

// checkpoint makes every live lane store its map, and calls fn once that is
// done and nothing is under way.
func (c *core) checkpoint(fn func()) { c.quiet = append(c.quiet, fn) }

// supervise reports a lane that met an error, gave up, or stands still. It
// returns when it has to look again.
func (c *core) supervise(slot journal.SlotID, l *journal.Lane) time.Duration {
	if err := l.LastError(); err != c.told[slot] && l.Fault() == nil {
		c.told[slot] = err
		c.cfg.Event(int(slot), "an operation of the log or its map failed, and is tried again", err)
	}
	if err := l.Fault(); err != nil {
		if !c.reported[slot] {
			c.reported[slot] = true
			c.faults = append(c.faults, fault{slot, true, err})
		}
		return 0
	}
	oldest := c.oldest(int(slot))
	if oldest == 0 {
		return 0
	}
	due := oldest + c.stallBudget()
	switch {
	case c.now < due:
		return due
	case !c.standsAlone(int(slot)):
		c.common[slot] = c.now
		c.cfg.Event(int(slot), "slot is slow, but so are its peers", stalled(c.now-oldest))
	case c.common[slot] != 0 && c.now < c.common[slot]+c.stallBudget()/4:
		return c.common[slot] + c.stallBudget()/4 // who answers last is no worse, either
	default:
		c.faults = append(c.faults, fault{slot, false, stalled(c.now - oldest)})
	}
	return c.now + c.cfg.StallAfter/4
}

// superviseLag reports a lane that has held up all writes for as long as an
// operation may take, because its checkpoints do not keep up, while those of a
// quorum of its peers do. It returns when it has to look again, or 0.
func (c *core) superviseLag(slot int, l *journal.Lane) time.Duration {
	since := l.LagSince()
	if since == 0 || l.Fault() != nil {
		return 0
	}
	if due := since + c.cfg.StallAfter; c.now < due {
		return due
	}
	if c.quorumBeside(slot, func(peer int) bool { return c.lanes[peer].Lag() < journal.FullPressure/2 }) {
		c.faults = append(c.faults, fault{journal.SlotID(slot), false, lagged(c.now - since)})
	}
	return c.now + c.cfg.StallAfter/4
}

// oldest returns since when the slot has had the operation that it has had for
// longest, or 0.
func (c *core) oldest(slot int) time.Duration {
	oldest := c.lanes[slot].Oldest()
	if o := &c.out[slot]; o.strays > 0 && (oldest == 0 || o.strayed < oldest) {
		oldest = o.strayed
	}
	return oldest
}

// standsAlone tells whether a quorum of the other live slots answers. When all
// stand still it is the host that does, and who was noticed first is no worse than
// the others.
func (c *core) standsAlone(slot int) bool {
	return c.quorumBeside(slot, func(peer int) bool {
		oldest := c.oldest(peer)
		return oldest == 0 || c.now-oldest < c.stallBudget()/2
	})
}

// quorumBeside tells whether a quorum of the other live slots does well.
func (c *core) quorumBeside(slot int, well func(peer int) bool) bool {
	n := 0
	for i := range c.lanes {
		if i != slot && c.live[i] && well(i) {
			n++
		}
	}
	return n >= c.cfg.Quorum
}

type rot struct {
	slot int
	lba  journal.LBA
}

// takeRotten gathers what the cleaner could not read.
func (c *core) takeRotten(slot int, l *journal.Lane) {
	for _, r := range l.TakeRotten() {
		c.cfg.Event(slot, fmt.Sprintf("block %d was found rotten by the cleaner", r.LBA), nil)
		c.rotten = append(c.rotten, rot{slot, r.LBA})
	}
}

// pressure is how much writes have to slow down. By log space it is that of the
// quorum: a slot that alone is short does not count. By lag it is that of the
// last, which is waited for as long as an operation is: see superviseLag.
func (c *core) pressure() (pressure int, lagging bool) {
	var lanes [journal.MaxSlots]int
	live, lag := 0, 0
	for i, l := range c.lanes {
		if c.fed[i] {
			lag = max(lag, l.Lag())
		}
		if c.live[i] {
			lanes[live] = l.Pressure()
			live++
		}
	}
	space := quorumPressure(lanes[:live], c.cfg.Quorum)
	return max(space, lag), lag > space
}

// quorumPressure returns the lowest pressure that a quorum of the live lanes
// does not exceed; 0 without a quorum. It puts the lanes in ascending order.
func quorumPressure(live []int, quorum int) int {
	if len(live) < quorum {
		return 0
	}
	slices.Sort(live)
	return live[quorum-1]
}

// stallBudget is shorter once the lane holds up everybody: it then pins
// nearly all of the arena.
func (c *core) stallBudget() time.Duration {
	if c.arenaLow() {
		return c.cfg.StallAfter / 8
	}
	return c.cfg.StallAfter
}

func (c *core) arenaLow() bool { return c.cfg.Arena.FreePages() < c.cfg.Arena.Pages()/4 }

// wakeQueues lets parts go on that waited for a free read, up to the first one
// that finds none.
func (c *core) wakeQueues() {
	for n := c.queued.len; n > 0 && len(c.freeOps) > 0; n-- {
		p := c.queued.pop()
		if c.handle(p); p.queue == &c.queued {
			return
		}
	}
}

// retryUnmapped lets every part look again that waited for a map page.
func (c *core) retryUnmapped() {
	for n := c.unmapped.len; n > 0; n-- {
		c.handle(c.unmapped.pop())
	}
}

// expire fails the parts whose deadline has passed and returns the next one.
// The lists are looked through only when some part's deadline may have passed.
func (c *core) expire() (next time.Duration) {
	if c.soonest == 0 || c.now < c.soonest {
		return c.soonest
	}
	c.soonest = 0
	for _, l := range [...]*partList{&c.waiting, &c.unmapped, &c.queued, &c.reading, &c.turns.behind} {
		for p := l.oldest; p != nil; {
			newer := p.newer
			switch {
			case p.Deadline <= c.now:
				c.abandon(p)
			case c.soonest == 0 || p.Deadline < c.soonest:
				c.soonest = p.Deadline
			}
			p = newer
		}
	}
	return c.soonest
}

// abandon fails a part at its deadline. What the kernel may still write to
// stays where it is until its system call has returned.
func (c *core) abandon(p *Part) {
	if p.op != nil {
		c.stray(p.op)
		p.op = nil
	}
	c.refuse(p, ErrDeadline)
}

// refuse fails a part, and frees the pages of one that was not logged.
func (c *core) refuse(p *Part, err error) {
	switch {
	case p.Op == Write && p.target == 0:
		c.cfg.Arena.Free(p.Pages[:p.blocks()]...)
	case (p.Op == Trim || p.Op == Zero) && p.target == 0:
		c.cfg.Arena.Free(p.Pages[0])
	}
	c.finish(p, err)
}
