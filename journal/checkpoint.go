package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A checkpoint stores the map as it was after the record ckpt.lsn, in one
// atomic commit: the pages that changed, the segment table, and where replay
// begins. It runs beside appends: a page that is about to change is encoded
// first. It is committed only after the log is durable up to that LSN, and
// segments that it no longer names are recycled only after the commit.
//
// Keys in the slot's metadata (big-endian, so that a scan is in order):
//
//	'l' shard           the lane record: see laneRecord
//	'p' shard region    a map page
//	'd' shard region    what changed in it since
//	's' shard segment   an entry of the segment table
//	'b' shard chunk     which of 32,768 regions have a page: a bit for each
const (
	keyLane    = 'l'
	keyPage    = 'p'
	keyDelta   = 'd'
	keySegment = 's'
	keyChunk   = 'b'
)

const (
	// encodePages is how many pages one step encodes.
	encodePages = 16
	// emptySegments is how many segments without live blocks make a checkpoint
	// worth while, which frees them; of a long log it is a 44th part. At full
	// pressure one is enough. Package reclaim counts with a few more.
	emptySegments = 4
	// emptyDelay is how long fewer of them wait for it.
	emptyDelay = 5 * time.Second
)

type checkpoint struct {
	op        Commit
	record    laneRecord // what the commit says of the lane
	active    bool
	requested bool
	lsn       LSN
	pages     []*page  // encoded, waiting for the commit
	chunks    []uint32 // of the stored-regions set, changed since the last commit that succeeded
	since     int64    // bytes of log since the last one began
	before    int64    // and since the one that is durable, when that one began
	failures  int
	notBefore time.Duration
	completed LSN // of the last one that is durable

	incomplete bool // what the last one that is durable says of the lane
	storing    bool // what the one under way says

	emptySince time.Duration // when a segment lost its last live block; 0: none has
}

// wanted tells whether a checkpoint is under way or due.
func (c *checkpoint) wanted(l *Lane) bool {
	return c.active || c.requested || c.incomplete && !l.incomplete || c.since >= l.cfg.CheckpointBytes || l.blocks.crowded() ||
		l.segments.empty() >= max(emptySegments, len(l.segments.order)/44) || l.segments.empty() > 0 && l.cleaner.pressure >= FullPressure
}

// noteEmpty requests a checkpoint for a few empty segments after a while.
func (c *checkpoint) noteEmpty(empty int, now time.Duration) {
	switch {
	case empty == 0:
		c.emptySince = 0
	case c.emptySince == 0:
		c.emptySince = now
	case now >= c.emptySince+emptyDelay && !c.active:
		c.requested, c.emptySince = true, now
	}
}

// RequestCheckpoint asks for a checkpoint of everything written so far, unless
// one is under way.
func (l *Lane) RequestCheckpoint() { l.ckpt.requested = l.ckpt.requested || !l.ckpt.active }

// Checkpointed tells whether the last checkpoint holds everything up to lsn.
func (l *Lane) Checkpointed(lsn LSN) bool {
	return !l.ckpt.active && !l.ckpt.requested && l.ckpt.completed >= lsn
}

// checkpoint moves the checkpoint under way on, or begins one.
func (l *Lane) checkpoint(now time.Duration) {
	c := &l.ckpt
	c.noteEmpty(l.segments.empty(), now)
	if c.op.busy || now < c.notBefore || !c.wanted(l) || l.isUntouched() {
		return
	}
	if !c.active {
		if l.written < l.rewriting {
			return // the map is ahead of the log: it names places that failed
		}
		l.beginCheckpoint()
	}
	for n, p := 0, l.blocks.frozen.oldest; p != nil && n < encodePages; n++ {
		next := p.newer
		if p.loaded {
			l.encodePage(p)
		}
		p = next
	}
	if l.blocks.frozen.len > 0 {
		return // more in the next step, or after a load
	}
	if l.durable < c.lsn {
		l.Want(c.lsn)
		return
	}
	l.putSegments()
	l.putChunks()
	l.putRecord(c.record)
	c.op.busy, c.op.Err = true, nil
	l.exec.Commit(&c.op)
}

// isUntouched tells whether there is nothing that a checkpoint could store: a lane
// without a record may still have segments to free, or have become complete.
func (l *Lane) isUntouched() bool {
	return l.written == 0 && l.segments.hollow == 0 && !l.ckpt.incomplete
}

// Encoding tells whether another Pump would move a checkpoint on at once.
func (l *Lane) Encoding() bool {
	f := l.blocks.frozen
	return l.fault == nil && !l.failing && l.ckpt.active && !l.ckpt.op.busy && f.oldest != nil && f.oldest.loaded
}

func (l *Lane) beginCheckpoint() {
	c := &l.ckpt
	c.before, c.since = c.before+c.since, 0
	c.active, c.requested, c.lsn = true, false, l.written
	c.pages, c.op.Pairs = nil, nil
	c.storing = l.incomplete
	l.Want(c.lsn)
	l.blocks.freeze()
	c.record = l.record()
	for _, s := range l.segments.order {
		l.segments.setDoomed(s, s.hollow && s.isBehind(c.lsn))
		if !s.doomed {
			c.record.segments++
		}
		s.storing, s.frozen, s.dirty = s.dirty && !s.doomed, s.live, false
	}
}

// putSegments adds the segment table to the commit, as it was when the
// checkpoint began. It comes last, for the counts are right only once every
// frozen page was loaded.
func (l *Lane) putSegments() {
	for _, s := range l.segments.order {
		switch key := segmentKey(l.cfg.ID.Shard, s.index); {
		case s.doomed:
			l.ckpt.put(key, nil)
		case s.storing:
			l.ckpt.put(key, s.encode(nil, s.frozen))
		}
		s.storing = false
	}
}

func (c *checkpoint) put(key, value []byte) {
	c.op.Pairs = append(c.op.Pairs, Pair{key, value})
}

// encodePage adds a frozen page to the checkpoint.
func (l *Lane) encodePage(p *page) {
	before := len(l.ckpt.op.Pairs)
	pairs, plain := p.store(l.ckpt.op.Pairs, l.cfg.ID.Shard, l.blocks.isPlain(p.region))
	for _, pair := range pairs[before:] {
		l.blocks.committing += len(pair.Value) + pairOverhead
	}
	l.ckpt.op.Pairs = pairs
	l.blocks.notePlain(p.region, plain)
	l.ckpt.pages = append(l.ckpt.pages, p)
	l.blocks.thaw(p)
	l.noteStored(p.region)
}

// noteStored adds the region to those that have a page in the store, which it will
// have once the commit under way has succeeded.
func (l *Lane) noteStored(r Region) {
	if l.blocks.stored.Has(r) {
		return
	}
	l.blocks.stored.Add(r)
	l.blocks.unconfirmed[r] = true
	if chunk := uint32(r >> 15); !slices.Contains(l.ckpt.chunks, chunk) {
		l.ckpt.chunks = append(l.ckpt.chunks, chunk)
	}
}

// putChunks adds the changed chunks of the stored-regions set to the commit.
func (l *Lane) putChunks() {
	for _, chunk := range l.ckpt.chunks {
		c := l.blocks.stored[chunk]
		value := make([]byte, 0, len(c.bits)*8)
		for _, w := range c.bits {
			value = binary.LittleEndian.AppendUint64(value, w)
		}
		l.ckpt.put(chunkKey(l.cfg.ID.Shard, chunk), value)
	}
}

// putRecord adds the lane record to the commit. It comes last, for it says how many
// others there are then.
func (l *Lane) putRecord(r laneRecord) {
	r.counted, r.chunks = true, uint32(len(l.blocks.stored))
	l.ckpt.put(laneKey(l.cfg.ID.Shard), r.encode())
}

// committed takes the result of a commit.
func (l *Lane) committed(now time.Duration) {
	c := &l.ckpt
	c.op.busy = false
	if c.op.Err != nil {
		l.lastErr = fmt.Errorf("checkpoint: %w", c.op.Err)
		l.abortCheckpoint()
		c.notBefore = now + l.backoff(&c.failures)
		if c.failures > maxFailures || errors.Is(c.op.Err, ErrNotThis) { // rot: trying again does not help
			l.fault = l.lastErr
		}
		return
	}
	c.active, c.failures, c.completed, c.incomplete, c.before = false, 0, c.lsn, c.storing, 0
	l.blocks.confirm()
	c.pages, c.op.Pairs = nil, nil // they may be large
	c.chunks = c.chunks[:0]
	for _, s := range l.segments.order {
		s.dead = s.dead || s.doomed
	}
	l.recycle()
}

// recycle returns dead segments to the slot once no read pins them.
func (l *Lane) recycle() {
	if free := l.segments.removeDead(); len(free) > 0 && l.exec != nil {
		l.cleaner.look = true
		l.exec.Recycle(free)
	}
}

// abortCheckpoint makes everything dirty again that the checkpoint took.
func (l *Lane) abortCheckpoint() {
	c := &l.ckpt
	c.active, c.requested = false, true
	l.blocks.retract(c.pages)
	c.pages = nil
	l.blocks.unfreeze()
	for _, s := range l.segments.order {
		s.dirty, s.storing = true, false
		l.segments.setDoomed(s, s.dead)
	}
}

// laneRecord is what a checkpoint says of the lane itself. Little-endian:
// version (2), flags (2: bit 0 incomplete, bit 1 fed, bit 2 unsure, bit 3 filled), generation (8),
// LSN (8), segment (4), life (4), offset (4), chain (4), segments (4), chunks (4).
type laneRecord struct {
	stamp      Stamp // up to which the map is complete
	position   replayPosition
	incomplete bool // a copy from a peer is under way: counts for nothing
	fed        bool // while the volume is served; see Recovery.Fed
	filled     bool // and has got everything since; see Recovery.Filled
	unsure     bool // incomplete, and pages may be patchy that do not say so

	// How many entries of the segment table and chunks of stored regions the store
	// has beside the record: one that is gone is missed.
	segments, chunks uint32
	counted          bool // versions before 4 do not say
}

// replayPosition is where the first batch behind a checkpoint lies.
type replayPosition struct {
	segment, life, offset uint32
	chain                 uint32 // CRC of the descriptor or header before it
}

const (
	laneRecordVersion = 5
	laneRecordCounted = 4 // the first with counts
	laneRecordPatchy  = 5 // the first whose pages say that they are patchy
	laneRecordOldest  = 2 // had no deltas
	laneRecordSize    = 44
	laneRecordShort   = 36 // without counts
)

func (l *Lane) record() laneRecord {
	return laneRecord{stamp: Stamp{l.generation, l.written}, position: l.position, incomplete: l.incomplete, fed: l.incomplete, filled: l.returned && !l.incomplete, unsure: l.incomplete && l.blocks.unsure}
}

func (r laneRecord) encode() []byte {
	le := binary.LittleEndian
	b := le.AppendUint16(nil, laneRecordVersion)
	flags := uint16(0)
	if r.incomplete {
		flags |= 1
	}
	if r.fed {
		flags |= 2
	}
	if r.unsure {
		flags |= 4
	}
	if r.filled {
		flags |= 8
	}
	b = le.AppendUint16(b, flags)
	b = le.AppendUint64(b, uint64(r.stamp.Generation))
	b = le.AppendUint64(b, uint64(r.stamp.LSN))
	b = le.AppendUint32(b, r.position.segment)
	b = le.AppendUint32(b, r.position.life)
	b = le.AppendUint32(b, r.position.offset)
	b = le.AppendUint32(b, r.position.chain)
	b = le.AppendUint32(b, r.segments)
	return le.AppendUint32(b, r.chunks)
}

func decodeLaneRecord(b []byte) (r laneRecord, err error) {
	le := binary.LittleEndian
	if len(b) >= 2 {
		if v := le.Uint16(b); v < laneRecordOldest || v > laneRecordVersion {
			return r, fmt.Errorf("lane record version %d, expected %d to %d: %w", v, laneRecordOldest, laneRecordVersion, ErrVersion)
		}
	}
	size := laneRecordSize
	if r.counted = len(b) >= 2 && le.Uint16(b) >= laneRecordCounted; !r.counted {
		size = laneRecordShort
	}
	if len(b) != size {
		return r, fmt.Errorf("lane record of %d bytes, expected %d: %w", len(b), size, ErrNotThis)
	}
	flags := le.Uint16(b[2:])
	r.incomplete, r.fed, r.unsure, r.filled = flags&1 != 0, flags&2 != 0, flags&4 != 0, flags&8 != 0
	r.unsure = r.unsure || r.incomplete && le.Uint16(b) < laneRecordPatchy
	r.stamp = Stamp{Generation(le.Uint64(b[4:])), LSN(le.Uint64(b[12:]))}
	r.position = replayPosition{le.Uint32(b[20:]), le.Uint32(b[24:]), le.Uint32(b[28:]), le.Uint32(b[32:])}
	if r.counted {
		r.segments, r.chunks = le.Uint32(b[36:]), le.Uint32(b[40:])
	}
	return r, nil
}

func laneKey(shard uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{keyLane}, shard)
}

func pageKey(shard uint16, r Region) []byte  { return regionKey(keyPage, shard, r) }
func deltaKey(shard uint16, r Region) []byte { return regionKey(keyDelta, shard, r) }

func regionKey(kind byte, shard uint16, r Region) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint16([]byte{kind}, shard), uint64(r))
}

func segmentKey(shard uint16, index uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16([]byte{keySegment}, shard), index)
}

func chunkKey(shard uint16, chunk uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16([]byte{keyChunk}, shard), chunk)
}
