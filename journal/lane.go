package journal

import (
	"errors"
	"fmt"
	"time"
)

// The lane's policy. Times are small against a request's deadline.
const (
	maxOutstanding  = 3                      // operations handed to the executor
	maxSyncing      = 1                      // of them, for small durable batches: what waits meanwhile goes in one
	batchBytes      = 1 << 20                // a batch goes out when this much waits
	batchDelay      = 10 * time.Millisecond  // or when its first record has waited this long
	syncBytes       = 8 << 20                // unsynced bytes after which the lane syncs by itself
	syncDelay       = 500 * time.Millisecond // or the time after which it does
	markDelay       = 100 * time.Millisecond // idle time before the last mark
	retryDelay      = 10 * time.Millisecond  // doubled with every failure
	maxRetryDelay   = time.Second
	maxFailures     = 7 // in a row, before the lane gives up: about two seconds
	loadBatch       = 64
	smallSync       = 64 // blocks a sync: below this average, segments are prepared with zeros
	tinySync        = 8  // below this one, zeros are also written ahead in the open segment
	zeroAheadBlocks = 128
)

// ErrGone tells that records which a failed lane would have to write again are
// no longer in memory.
var ErrGone = errors.New("records to be written again are no longer pinned")

// Marks are what every descriptor of a shard's lanes carries. Owner: the shard.
type Marks struct {
	Epoch uint64
	// Durable is, by slot, the last record known durable there. Each lane keeps
	// its own. It is not Lane.Durable as long as nothing of the generation is
	// durable: a generation may begin behind numbers that were lost, and a mark
	// that claimed those would make recovery look for them.
	Durable [MaxSlots]LSN
	Suspect [MaxSlots]LSN
	// Generation is that of the records from Began on. One that begins while the
	// volume is served has a peer's return as its reason.
	Generation Generation
	Began      LSN
}

// Config is what a lane is made of.
type Config struct {
	ID            LaneID
	Volume        Volume
	SegmentBlocks uint32
	// CheckpointBytes is the length of log after which the map is stored.
	CheckpointBytes int64
	// MapBytes is what the map's pages may take in memory.
	MapBytes int
	// Policy decides what is cleaned; nil: nothing is.
	Policy Policy
	// ShareBlocks is the lane's part of the volume, and Regions are all of it.
	ShareBlocks int64
	Regions     uint64
}

// Lane is one slot's share of one shard: its log and its block map. Owner: the
// shard; see the package comment.
type Lane struct {
	cfg        Config
	exec       Executor
	window     *Window
	marks      *Marks
	memory     func(page uint32) []byte // the arena's payload
	generation Generation               // of the last batch written
	incomplete bool                     // see Recovery.Incomplete
	returned   bool                     // it was incomplete when it was activated

	segments *segmentTable
	blocks   *blockMap
	open     *Open
	ready    *Open          // prepared, not yet used
	tail     LSN            // goes into the next segment's header
	chained  uint32         // life that the next segment continues
	issued   replayPosition // behind the last batch handed over
	position replayPosition // behind the last written batch
	settled  replayPosition // behind the last durable batch

	found, skipped                     LSN // the last record recovered, the last number before the generation
	batched, planned, written, durable LSN
	want                               LSN    // to be made durable
	batchedItem                        uint64 // window item behind the last batched record
	unsynced                           int64  // bytes appended since the last sync was issued
	named, vouched                     LSN    // own durable mark in the last, and the last durable, descriptor
	rewriting                          LSN    // records up to it were batched before a failure

	ops           [maxOutstanding + 2]IO
	outstanding   int
	failing       bool
	failures      int
	prepareFails  int
	lastErr       error
	fault         error
	notBefore     time.Duration // no append earlier, after a failure
	prepareAfter  time.Duration
	lagSince      time.Duration // see LagSince
	pendingSince  time.Duration // 0: nothing waits to be batched
	unsyncedSince time.Duration
	changed       time.Duration // when the last batch was written

	syncAverage int // blocks of the last syncs

	preparing Prepare
	loading   Load
	loadAfter time.Duration
	loadFails int
	ckpt      checkpoint
	cleaner   cleaning
	filling   filling
}

// newLane makes a lane with an empty map and log.
func newLane(cfg Config) *Lane {
	l := &Lane{cfg: cfg, syncAverage: 2 * smallSync, segments: newSegmentTable()}
	l.blocks = newBlockMap(cfg.MapBytes, l.segments)
	l.blocks.encodeNow = l.encodePage
	l.preparing.Lane, l.loading.Lane, l.ckpt.op.Lane = cfg.ID, cfg.ID, cfg.ID
	return l
}

// Activation is what a recovered lane needs to take part.
type Activation struct {
	Executor Executor
	Window   *Window
	Marks    *Marks
	Memory   func(page uint32) []byte // a page's BlockSize bytes
	Block    func() []byte            // an aligned block of BlockSize bytes
	// Connect is called once for each operation that the lane may have under
	// way, with what has to be called by the shard's owner after it is done;
	// it returns what the executor calls.
	Connect func(apply func(now time.Duration)) (done func())
}

// Activate attaches the recovered lane to its shard. It takes part from the next
// record on; everything before it counts as written and durable here, so what was
// adopted must have been synced, and a lane that lacks some of that be incomplete.
func (r *Recovery) Activate(a Activation) *Lane {
	l := r.Lane
	l.tail, l.issued, l.settled, l.chained = r.Stamp.LSN, l.position, l.position, l.position.life
	l.ckpt.since = r.Bytes // none after a copy: its commit holds everything
	l.exec, l.window, l.marks, l.memory, l.generation = a.Executor, a.Window, a.Marks, a.Memory, a.Marks.Generation
	l.incomplete, l.returned, l.ckpt.incomplete = r.Incomplete, r.Incomplete, r.Incomplete
	l.blocks.lacksAll, l.blocks.lacking = r.Incomplete, nil
	last := a.Window.Last()
	l.batched, l.planned, l.written, l.durable, l.want = last, last, last, last, last
	l.found, l.skipped, l.batchedItem = r.Stamp.LSN, last, a.Window.itemNext
	l.mark()
	for _, s := range l.segments.order {
		s.former = true
	}
	failed := new(bool)
	for i := range l.ops {
		op := &l.ops[i]
		op.failed = failed
		op.Lane, op.block, op.header = l.cfg.ID, a.Block(), a.Block()
		op.Done = a.Connect(func(now time.Duration) { l.ioDone(op, now) })
	}
	l.preparing.Done = a.Connect(l.prepared)
	l.loading.Done = a.Connect(l.loaded)
	l.ckpt.op.Done = a.Connect(l.committed)
	l.cleaner.op.Done = a.Connect(l.cleaned)
	l.filling.op.Done = a.Connect(l.filled)
	l.cleaner.look, l.cleaner.moved = true, true
	return l
}

// logged returns the last LSN up to lsn that the log holds: a generation may
// skip numbers that were given and lost.
func (l *Lane) logged(lsn LSN) LSN {
	if lsn <= l.skipped {
		return l.found
	}
	return lsn
}

// mark notes the last record known durable here. What a volume went on without is
// not: other records may have its numbers.
func (l *Lane) mark() { l.marks.Durable[l.cfg.ID.Slot] = min(l.logged(l.durable), l.durable) }

// ID returns the lane's name.
func (l *Lane) ID() LaneID { return l.cfg.ID }

// Written returns the LSN up to which the lane has written every record.
func (l *Lane) Written() LSN { return l.written }

// Durable returns the LSN up to which every record is on stable storage here.
func (l *Lane) Durable() LSN { return l.durable }

// Fault returns why the lane has given up, or nil.
func (l *Lane) Fault() error { return l.fault }

// Abandon ends the lane's part in its shard: from now on records may leave the
// window that it has not written. What is under way comes back, and is ignored.
func (l *Lane) Abandon(why error) {
	if l.fault == nil {
		l.fault = why
	}
}

// Appending tells whether an append of the record is under way: its payload is
// being read.
func (l *Lane) Appending(lsn LSN) bool {
	for i := range l.ops {
		if op := &l.ops[i]; op.busy && len(op.Bufs) > 0 && op.first <= lsn && lsn <= op.last {
			return true
		}
	}
	return false
}

// LastError returns the last error that the lane met, or nil.
func (l *Lane) LastError() error { return l.lastErr }

// Complete tells the lane that it has all that its peers have up to the last
// record written: from its next checkpoint on it counts, and IsComplete. Lacks is 0.
func (l *Lane) Complete() {
	if l.blocks.lacksAll || l.filling.left > 0 {
		panic("journal: a lane is complete that lacks regions")
	}
	l.incomplete, l.blocks.unsure = false, false
}

// IsComplete tells whether the last checkpoint says that the lane counts.
func (l *Lane) IsComplete() bool { return !l.incomplete && !l.ckpt.incomplete }

// Want asks for everything up to lsn to be made durable.
func (l *Lane) Want(lsn LSN) { l.want = max(l.want, lsn) }

// Oldest returns when the oldest operation under way was handed over that
// somebody may wait for, or 0: a segment that is being prepared counts only
// once records have nowhere else to go.
func (l *Lane) Oldest() time.Duration {
	var oldest time.Duration
	at := func(t time.Duration) {
		if oldest == 0 || t < oldest {
			oldest = t
		}
	}
	for i := range l.ops {
		if op := &l.ops[i]; op.busy {
			at(op.Issued)
		}
	}
	if l.loading.busy {
		at(l.loading.issued)
	}
	if l.filling.op.busy {
		at(l.filling.op.issued)
	}
	if l.preparing.busy && l.pendingSince != 0 && !l.hasRoom() {
		at(max(l.preparing.issued, l.pendingSince))
	}
	return oldest
}

// Busy tells whether the executor still has an operation of this lane.
func (l *Lane) Busy() bool {
	return l.outstanding > 0 || l.preparing.busy || l.loading.busy || l.ckpt.op.busy || l.cleaner.op.busy || l.filling.op.busy
}

// Pump hands over whatever is due at now. It returns when it wants to be
// called again even if nothing happens until then, or 0.
func (l *Lane) Pump(now time.Duration) (wake time.Duration) {
	if l.fault != nil {
		return 0
	}
	l.noteLag(now)
	if l.failing {
		if l.outstanding > 0 {
			return 0
		}
		if l.rewind(now); l.fault != nil {
			return 0
		}
	}
	if l.window.Last() > l.batched && l.pendingSince == 0 {
		l.pendingSince = now
	}
	l.prepare(now)
	l.load(now)
	l.checkpoint(now) // before the appends, for it may want a sync
	l.cleanStep(now)
	for l.append(now) {
	}
	return l.nextWake(now)
}

// nextWake returns the earliest time at which waiting alone makes work due.
func (l *Lane) nextWake(now time.Duration) time.Duration {
	var wake time.Duration
	at := func(t time.Duration, if_ bool) {
		if if_ && (wake == 0 || t < wake) {
			wake = max(t, now+1)
		}
	}
	at(l.notBefore, now < l.notBefore)
	at(l.prepareAfter, l.ready == nil && !l.preparing.busy && now < l.prepareAfter)
	idle := l.outstanding == 0 && now >= l.notBefore
	at(l.unsyncedSince+syncDelay, idle && l.planned < l.batched)
	idle = idle && l.hasRoom() // a segment that becomes ready is an event of its own
	at(l.pendingSince+batchDelay, idle && l.pendingSince != 0)
	at(l.changed+markDelay, idle && l.markWanted())
	at(l.loadAfter, len(l.blocks.wanted) > 0 && !l.loading.busy)
	at(l.ckpt.emptySince+emptyDelay, l.ckpt.emptySince != 0 && !l.ckpt.active)
	at(now+1, l.cleanDue(now))
	at(l.cleaner.notBefore, l.cleaner.look && now < l.cleaner.notBefore)
	at(l.cleaner.again, l.cleaner.again != 0)
	at(l.ckpt.notBefore, l.ckpt.wanted(l) && !l.ckpt.op.busy && now < l.ckpt.notBefore)
	return wake
}

// prepare keeps one segment ready.
func (l *Lane) prepare(now time.Duration) {
	if l.ready != nil || l.preparing.busy || now < l.prepareAfter {
		return
	}
	p := &l.preparing
	p.busy, p.issued, p.Got, p.Err = true, now, nil, nil
	p.Zero = l.syncAverage < smallSync
	l.exec.Prepare(p)
}

func (l *Lane) prepared(now time.Duration) {
	p := &l.preparing
	p.busy = false
	if p.Err == nil {
		l.ready, l.prepareFails = p.Got, 0
		return
	}
	l.lastErr = fmt.Errorf("prepare a segment: %w", p.Err)
	l.prepareAfter = now + l.backoff(&l.prepareFails)
	if l.prepareFails > maxFailures {
		l.fault = l.lastErr
	}
}

// backoff counts a failure and returns how long to wait before the next try.
func (l *Lane) backoff(failures *int) time.Duration {
	delay := retryDelay << min(*failures, 10)
	*failures++
	return min(delay, maxRetryDelay)
}

// load asks for the pages that lookups and changes have missed.
func (l *Lane) load(now time.Duration) {
	b := l.blocks
	if l.loading.busy || len(b.wanted) == 0 || now < l.loadAfter {
		return
	}
	op := &l.loading
	n := min(len(b.wanted), loadBatch)
	op.regions = append(op.regions[:0], b.wanted[:n]...)
	b.wanted = b.wanted[n:]
	op.Keys, op.Values = op.Keys[:0], nil
	for _, r := range op.regions {
		op.Keys = storedPageKeys(op.Keys, l.cfg.ID.Shard, r, b.isPlain(r))
	}
	op.busy, op.issued, op.Err = true, now, nil
	l.exec.Load(op)
}

func (l *Lane) loaded(now time.Duration) {
	op := &l.loading
	op.busy = false
	err := op.Err
	keys, values := op.Keys, op.Values
	for _, r := range op.regions {
		if err != nil {
			break
		}
		err = l.blocks.install(r, cutStoredPage(&keys, &values))
	}
	if err == nil {
		l.loadFails = 0
		return
	}
	l.lastErr = fmt.Errorf("load map pages: %w", err)
	if errors.Is(err, ErrNotThis) { // rot: asking again does not help
		l.fault = l.lastErr
		return
	}
	b := l.blocks
	b.wanted = append(b.wanted, op.regions...) // install skips what is loaded
	l.loadAfter = now + l.backoff(&l.loadFails)
	if l.loadFails > maxFailures {
		l.fault = l.lastErr
	}
}

// rewind begins again behind the last durable record, in a new segment, after
// an append or sync failed: the range that failed is never trusted again.
func (l *Lane) rewind(now time.Duration) {
	l.failing = false
	if l.open != nil {
		l.release(l.open, now)
		l.open = nil
	}
	for _, s := range l.segments.order {
		if !s.isBehind(l.durable) || s.state == segmentOpen {
			s.state, s.dirty = segmentCondemned, true
			l.segments.noteHollow(s)
		}
	}
	l.notBefore = now + l.backoff(&l.failures)
	switch {
	case l.failures > maxFailures:
		l.fault = l.lastErr
		return
	case l.durable+1 < l.window.First():
		l.fault = fmt.Errorf("%w: LSN %d is durable, the window begins at %d: %w", ErrGone, l.durable, l.window.First(), l.lastErr)
		return
	}
	if l.ckpt.active && l.ckpt.lsn > l.durable {
		l.abortCheckpoint()
	}
	l.rewriting = max(l.rewriting, l.batched)
	l.batched, l.planned, l.written = l.durable, l.durable, l.durable
	l.issued, l.position, l.chained = l.settled, l.settled, l.settled.life
	l.tail, l.unsynced, l.named = l.logged(l.durable), 0, l.vouched
	l.batchedItem = l.window.itemNext
	if l.durable < l.window.Last() {
		l.batchedItem = l.window.At(l.durable + 1).item
		l.pendingSince = now
	}
}
