package journal

import (
	"time"
	"unsafe"
)

// append hands over the next append or sync that is due. It returns false
// when there is none, or no room to have another under way.
func (l *Lane) append(now time.Duration) bool {
	if l.outstanding >= maxOutstanding || now < l.notBefore {
		return false
	}
	switch {
	case l.batchDue(now) && l.hasRoom(): // without, what was written can still be synced
		return l.cut(now)
	case l.syncDue(now):
		l.sync(now)
		return true
	case l.markWanted() && now >= l.changed+markDelay:
		return l.cut(now)
	}
	return false
}

// batchDue tells whether waiting records should be written now: somebody waits
// for them and no other sync is under way, they are many, they are late, or they
// are written again.
func (l *Lane) batchDue(now time.Duration) bool {
	if l.window.Last() <= l.batched {
		return false
	}
	next := l.batched + 1
	return next <= l.want && l.outstanding < maxSyncing || next <= l.rewriting ||
		l.outstanding == 0 && now >= l.pendingSince+batchDelay ||
		int64(l.window.itemNext-l.batchedItem)*BlockSize >= batchBytes
}

// syncDue tells whether what was written should be made durable now.
func (l *Lane) syncDue(now time.Duration) bool {
	if l.planned >= l.batched || l.open == nil {
		return false
	}
	return l.want > l.planned || l.unsynced >= syncBytes ||
		l.outstanding == 0 && now >= l.unsyncedSince+syncDelay
}

// markWanted tells whether the lane is idle, and its last batch is durable
// without any descriptor that says so.
func (l *Lane) markWanted() bool {
	mark := l.marks.Durable[l.cfg.ID.Slot]
	return l.outstanding == 0 && l.durable == l.window.Last() && l.vouched < mark && l.named < mark
}

// cut writes one batch of the records that wait; none make a mark.
func (l *Lane) cut(now time.Duration) bool {
	if !l.room(now) {
		return false
	}
	io := l.free(now)
	io.generation = l.generation
	if l.batched+1 >= l.marks.Began {
		io.generation = l.marks.Generation
	}
	var e encoder
	e.begin(io.block)
	if l.open.next == 0 {
		l.writeHeader(io)
	}
	io.Offset = l.open.Base + int64(l.open.next)*BlockSize
	descriptorAt := max(l.open.next, 1)
	io.Bufs = append(io.Bufs, io.block)
	io.place = descriptorAt + 1
	io.first = l.batched + 1
	l.gather(io, &e)
	d := descriptor{
		position:   position{volume: l.cfg.Volume, lane: l.cfg.ID, segment: l.open.Index, life: l.open.Life, offset: descriptorAt},
		generation: io.generation, epoch: l.marks.Epoch,
		firstLSN: io.first, durable: l.marks.Durable, suspect: l.marks.Suspect,
		previous: l.open.chain,
	}
	if e.records == 0 {
		d.firstLSN, io.last = l.batched, 0
	}
	io.named = l.marks.Durable[l.cfg.ID.Slot]
	l.open.chain = e.finish(&d)
	l.open.next = io.place + uint32(e.blocks)
	io.after = replayPosition{segment: l.open.Index, life: l.open.Life, offset: l.open.next, chain: l.open.chain}
	l.named, l.issued = io.named, io.after
	l.submitAppend(io, e.blocks)
	return true
}

// gather takes records from the window until the batch or the segment is full, or
// a generation begins.
func (l *Lane) gather(io *IO, e *encoder) {
	w, space := l.window, int(l.open.Blocks-io.place)
	for lsn := io.first; lsn <= w.Last(); lsn++ {
		r := w.At(lsn)
		payload := 0
		if r.Kind.hasPayload() {
			payload = int(r.Count)
		}
		if !e.fits(r.Kind, int(r.Count)) || e.blocks+payload > space || lsn == l.marks.Began && lsn > io.first {
			break
		}
		e.add(r.Kind, r.LBA, int(r.Count))
		for i := range payload {
			it := w.ItemAt(r, i)
			e.checksum(it.CRC)
			io.Bufs = appendAdjacent(io.Bufs, l.memory(it.Page))
		}
		io.last = lsn
		l.batchedItem = r.item + uint64(r.items)
	}
	if io.last != 0 {
		l.batched = io.last
	}
	l.pendingSince = 0
	if w.Last() > l.batched {
		l.pendingSince = io.Issued
	}
}

// appendAdjacent adds b to bufs, lengthening the last buffer when b follows it
// in memory. All of b's memory is of one mapping, the arena's.
func appendAdjacent(bufs [][]byte, b []byte) [][]byte {
	if n := len(bufs); n > 1 {
		last := bufs[n-1]
		if unsafe.Pointer(unsafe.SliceData(b)) == unsafe.Add(unsafe.Pointer(unsafe.SliceData(last)), len(last)) {
			bufs[n-1] = unsafe.Slice(unsafe.SliceData(last), len(last)+len(b))
			return bufs
		}
	}
	return append(bufs, b)
}

// submitAppend hands the batch over, as a durable write when somebody wants it
// durable and everything before it is or will be: durability is a prefix.
func (l *Lane) submitAppend(io *IO, blocks int) {
	mark := io.last == 0
	io.Durable = mark || l.want >= io.first && l.planned == io.first-1
	if io.Durable && !mark {
		l.planned, io.through = io.last, io.last
		l.noteSync(blocks)
	}
	if !io.Durable {
		if l.unsynced == 0 {
			l.unsyncedSince = io.Issued
		}
		l.unsynced += int64(blocks+1) * BlockSize
	}
	if !mark {
		l.zeroAhead(io)
	}
	l.exec.IO(io)
}

// zeroAhead makes the append write zeros to the segment's next blocks first,
// when small appends are made durable one by one on blocks that were never
// written: each would otherwise cost a commit of the filesystem's journal,
// which takes several times as long as the write (docs/design.md).
func (l *Lane) zeroAhead(io *IO) {
	o := l.open
	if !o.Fresh || o.next <= o.zeroed || l.syncAverage >= tinySync {
		return
	}
	from := uint32((io.Offset - o.Base) / BlockSize)
	o.zeroed = min(o.Blocks, o.next+zeroAheadBlocks)
	io.Zero = int64(o.zeroed-from) * BlockSize
}

// noteSync keeps the moving average of what a sync covers.
func (l *Lane) noteSync(blocks int) {
	l.syncAverage = (3*l.syncAverage + min(blocks, 16*smallSync)) / 4
}

// sync makes everything durable that was handed over before.
func (l *Lane) sync(now time.Duration) {
	io := l.free(now)
	io.Durable, io.through, io.named, io.after = true, l.batched, l.named, l.issued
	l.noteSync(int(l.unsynced / BlockSize))
	l.planned, l.unsynced = l.batched, 0
	l.exec.IO(io)
}

// room makes sure that the open segment can take a batch, rolling over to the
// prepared one. It returns false while there is none.
func (l *Lane) room(now time.Duration) bool {
	if l.fits() {
		return true
	}
	if l.ready == nil || l.outstanding >= maxOutstanding-1 {
		return false
	}
	if l.open != nil {
		l.seal(now)
	}
	l.open, l.ready = l.ready, nil
	l.cleaner.look, l.cleaner.moved = true, true
	l.segments.add(&segmentInfo{
		index: l.open.Index, life: l.open.Life, previous: l.chained,
		firstLSN: l.batched + 1, lastLSN: l.batched,
	})
	l.prepare(now)
	return true
}

// fits tells whether the open segment can take a batch of the next record, or
// a mark.
func (l *Lane) fits() bool {
	if l.open == nil {
		return false
	}
	need := uint32(1)
	if l.window.Last() > l.batched {
		if r := l.window.At(l.batched + 1); r.Kind.hasPayload() {
			need += uint32(r.Count)
		}
	}
	return max(l.open.next, 1)+need <= l.open.Blocks
}

// hasRoom tells whether the next batch has somewhere to go.
func (l *Lane) hasRoom() bool { return l.ready != nil || l.fits() }

// seal syncs the open segment as the last operation on it, so that durability
// stays a prefix across segments.
func (l *Lane) seal(now time.Duration) {
	l.chained, l.tail = l.open.Life, l.logged(l.batched)
	io := l.free(now)
	io.Durable, io.Close, io.through, io.named, io.after = true, true, l.batched, l.named, l.issued
	l.planned, l.unsynced = l.batched, 0
	l.exec.IO(io)
}

// release closes the handle of a segment that failed, without a sync.
func (l *Lane) release(o *Open, now time.Duration) {
	io := l.free(now)
	io.Segment, io.Close = o, true
	l.exec.IO(io)
}

// writeHeader puts the segment's header in front of its first batch.
func (l *Lane) writeHeader(io *IO) {
	h := header{
		position:   position{volume: l.cfg.Volume, lane: l.cfg.ID, segment: l.open.Index, life: l.open.Life},
		generation: io.generation, blocks: l.open.Blocks,
		previous: l.chained, firstLSN: l.batched + 1, tail: l.tail,
	}
	l.open.chain = h.encode(io.header)
	io.Bufs = append(io.Bufs, io.header)
}

// free returns an operation that is not under way, emptied. There is always
// one: appends stop at maxOutstanding, and only a roll or a release adds one.
func (l *Lane) free(now time.Duration) *IO {
	for i := range l.ops {
		io := &l.ops[i]
		if io.busy {
			continue
		}
		clear(io.Bufs)
		io.Bufs = io.Bufs[:0]
		io.Segment, io.Offset, io.Zero, io.Durable, io.Close, io.Err = l.open, 0, 0, false, false, nil
		io.first, io.last, io.through, io.named, io.place = 0, 0, 0, 0, 0
		io.Issued, io.busy = now, true
		l.outstanding++
		return io
	}
	panic("journal: no free operation")
}

// ioDone takes the result of an append or sync. After a failure the results of
// what was under way no longer count.
func (l *Lane) ioDone(io *IO, now time.Duration) {
	l.outstanding--
	io.busy = false
	released := len(io.Bufs) == 0 && !io.Durable // nothing is lost with a handle that failed
	if io.Err != nil && !released && !l.failing {
		l.failing, l.lastErr = true, io.Err
	}
	if l.failing || l.fault != nil { // the window may have gone on without the lane
		return
	}
	if len(io.Bufs) > 0 {
		l.appended(io, now)
	}
	if io.through > l.durable {
		l.durable, l.failures = io.through, 0
		l.mark()
	}
	if io.Durable {
		l.settled = io.after
		l.vouched = max(l.vouched, io.named)
	}
	if io.Close && io.Durable { // not earlier: an append under way must not meet a recycled segment
		s := l.segments.byIndex[io.Segment.Index]
		s.state, s.dirty = segmentSealed, true
		l.segments.noteHollow(s)
	}
}

// appended enters a written batch into the map.
func (l *Lane) appended(io *IO, now time.Duration) {
	s := l.segments.byIndex[io.Segment.Index]
	s.used, s.dirty = io.after.offset, true
	l.position = io.after
	l.changed = now
	if io.last == 0 {
		return
	}
	s.lastLSN, l.generation = io.last, io.generation
	at := io.place
	for lsn := io.first; lsn <= io.last; lsn++ {
		at += l.place(l.window.At(lsn), s, at)
	}
	l.written = io.last
	l.ckpt.since += int64(io.after.offset-io.place+1) * BlockSize
}

// place enters a record, whose payload begins at block at of the segment, into
// the map. It returns the number of payload blocks.
func (l *Lane) place(r *Record, s *segmentInfo, at uint32) uint32 {
	if r.Kind == KindNote {
		return 0
	}
	p := l.blocks.touch(r.LBA.Region(), Stamp{l.generation, r.LSN})
	index, count := r.LBA.Index(), int(r.Count)
	switch r.Kind {
	case KindTrim:
		l.blocks.fill(p, index, count, Hole)
	case KindZero:
		l.blocks.fill(p, index, count, Zero)
	default:
		for i := range count {
			e := Entry{Segment: s.index, Life: s.life, Block: uint16(at) + uint16(i), Content: Data, CRC: l.window.ItemAt(r, i).CRC}
			l.blocks.set(p, index+i, e)
		}
		return uint32(count)
	}
	return 0
}
