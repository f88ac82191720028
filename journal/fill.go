package journal

import (
	"errors"
	"fmt"
	"time"

	"trivet/disk"
)

// A lane is filled while its shard is served: it gets every record from one on,
// and what it lacks of those before from the lane of a peer, region by region.
//
// Compare says, in one turn, what the lane lacks of a region. The shard has the
// blocks read from the peer's slot, and a Fill append them to segments of the
// copy's own, which stand outside of the log's chain like the cleaner's and count
// through checkpoints alone. Then, in another turn, Accept enters all of the region
// at once, but for what a record has changed since Compare.
//
// Until then the region's page is patchy from the first fed record on: its stamp
// is that record's, and would hide what is missing. Which regions are left to do
// can be told from the stored pages, whenever the process ends.

// Fill is what a lane asks its executor for: to append blocks, all of which are
// durable when it succeeds. After an error nothing of it counts.
type Fill struct {
	Lane   LaneID
	Blocks []FillBlock
	Last   bool // nothing follows: the open segment is closed
	Err    error
	Done   func() // called by the executor, once

	cfg        *Config
	generation Generation
	open       *Open        // goes on with the next operation
	written    []SegmentUse // what this one appended to, as it is now
	closed     []uint32     // those of them that are full, and with Last the open one
	busy       bool
	issued     time.Duration
}

// FillBlock is a block of a Fill.
type FillBlock struct {
	LBA LBA
	CRC uint32
	Buf []byte // BlockSize bytes, aligned
	To  Entry  // set by the executor
}

// filling is what a lane knows of its being filled. Owner: the shard, but for op
// while it is busy.
type filling struct {
	op     Fill
	behind Stamp // the record behind which the lane is fed
	left   int   // regions that it lacks
}

// Lack tells an incomplete lane which regions it lacks records of that came before
// the next one: it has all of the others. The lane keeps the set.
func (l *Lane) Lack(regions RegionSet) {
	l.blocks.lacksAll, l.blocks.lacking = false, regions
	l.filling.left = regions.Len()
	l.filling.behind = Stamp{l.marks.Generation, l.window.Last()}
}

// Lacks returns how many regions the lane lacks.
func (l *Lane) Lacks() int { return l.filling.left }

// NextLacking returns the first region from g on that the lane lacks; ok is false
// when there is none.
func (l *Lane) NextLacking(g Region) (next Region, ok bool) { return l.blocks.lacking.Next(g) }

// HasWritten reports whether the lane's map has every record up to lsn, and names
// no place whose append has failed: it can be copied from.
func (l *Lane) HasWritten(lsn LSN) bool {
	return l.fault == nil && !l.failing && l.written >= lsn && l.written >= l.rewriting
}

// Lacking is what a lane lacks of a region.
type Lacking struct {
	Region Region

	stamp  Stamp // that the region has once it was copied
	theirs [RegionBlocks]Entry
	differ entrySet
	until  LSN // of the records that the lane has to write before the region is whole
	same   bool
	off    bool
}

// IsEmpty reports whether the lane lacks nothing of the region, and waits for nothing.
func (k *Lacking) IsEmpty() bool { return k.differ == entrySet{} && k.until == 0 }

// PutOff gives the region up, which is to be compared again later.
func (k *Lacking) PutOff() { k.off, k.differ = true, entrySet{} }

// IsPutOff reports whether the region was given up.
func (k *Lacking) IsPutOff() bool { return k.off }

// Next returns the first block from index i on that the lane lacks, as the source
// has it; ok is false when there is none.
func (k *Lacking) Next(i int) (index int, e Entry, ok bool) {
	if index = k.differ.next(i); index == RegionBlocks {
		return 0, Entry{}, false
	}
	return index, k.theirs[index], true
}

// Lacks reports whether the lane still lacks the block with the index.
func (k *Lacking) Lacks(index int) bool { return k.differ.has(index) }

// Overtake leaves n blocks from an index on to the record that changes them. The
// region is not whole before that one is written: a crash may take it from all slots.
func (k *Lacking) Overtake(index, n int, by LSN) {
	for i := index; i < index+n; i++ {
		if k.differ.has(i) {
			k.differ.remove(i)
			k.until = max(k.until, by)
		}
	}
}

// Give says what is to be entered for a block that the lane lacks.
func (k *Lacking) Give(index int, e Entry) { k.theirs[index] = e }

// Compare says what the lane lacks of the region, in which it is not trusted to
// hold what its map says if distrust is set. known is false while a map page of
// either lane has to be loaded.
//
// Pages of the same stamp hold the same. A patchy one is compared by checksums: it
// may have records of an earlier return, which a crash has taken from the source.
func (l *Lane) Compare(k *Lacking, source *Lane, g Region, distrust bool) (known bool) {
	ours, theirs := l.blocks.resident(g), source.blocks.resident(g)
	l.blocks.want(ours)
	source.blocks.want(theirs)
	if !ours.loaded || !theirs.loaded {
		return false
	}
	k.Region, k.differ, k.until, k.off = g, entrySet{}, 0, false
	k.stamp = theirs.stamp
	if l.isFed(k.stamp) {
		// Nobody knows any more which record was the last one before. What is copied
		// is exactly what came up to there, so that is a stamp of it as well.
		k.stamp = l.filling.behind
	}
	if k.same = !distrust && !l.blocks.unsure && !ours.patchy && ours.stamp == theirs.stamp; k.same {
		return true
	}
	k.theirs = theirs.all()
	for i, e := range ours.all() {
		if distrust || !e.covers(k.theirs[i]) {
			k.differ.add(i)
		}
	}
	return true
}

// covers reports whether a block of the lane needs nothing of the source's.
func (e Entry) covers(theirs Entry) bool {
	return e.SameContent(theirs) || theirs.Content == Lost && e.Content == Data && e.CRC == theirs.CRC
}

// isFed reports whether the stamp is that of a record which the lane is fed.
func (l *Lane) isFed(s Stamp) bool { return l.filling.behind.Less(s) }

// Accept enters what the lane lacked of a region, all of it, and the region is
// whole. It returns false while the map page has to be loaded, or a record that has
// overtaken some of it to be written.
func (l *Lane) Accept(k *Lacking) (done bool) {
	p := l.blocks.resident(k.Region)
	if l.blocks.want(p); !p.loaded || l.written < k.until {
		return false
	}
	if !k.same || p.patchy {
		l.blocks.touch(k.Region, Stamp{})
		for i, e, ok := k.Next(0); ok; i, e, ok = k.Next(i + 1) {
			l.blocks.set(p, i, e)
		}
		if !l.isFed(p.stamp) {
			p.stamp = k.stamp
		}
		p.patchy, p.whole = false, Stamp{}
	}
	if l.blocks.lacking.Has(k.Region) {
		l.blocks.lacking.Remove(k.Region)
		l.filling.left--
	}
	return true
}

// IsFilling reports whether a Fill is under way.
func (l *Lane) IsFilling() bool { return l.filling.op.busy }

// Fill has blocks appended; last: nothing follows. None is under way, and the
// blocks stay as they are until it is over.
func (l *Lane) Fill(blocks []FillBlock, last bool, now time.Duration) {
	op := &l.filling.op
	op.Lane, op.cfg, op.generation = l.cfg.ID, &l.cfg, l.generation
	op.Blocks, op.Last, op.Err, op.busy, op.issued = blocks, last, nil, true, now
	l.exec.Fill(op)
}

// FillError returns why the last Fill has failed; nil while one is under way, which
// the executor writes to.
func (l *Lane) FillError() error {
	if l.filling.op.busy {
		return nil
	}
	return l.filling.op.Err
}

// filled takes the result of a Fill.
func (l *Lane) filled(time.Duration) {
	op := &l.filling.op
	op.busy = false
	if op.Err != nil || l.fault != nil {
		return
	}
	for _, use := range op.written {
		s := l.segments.byIndex[use.Index]
		if s == nil || s.life != use.Life {
			// Nothing in it was written behind the record where the feed began.
			s = &segmentInfo{index: use.Index, life: use.Life, previous: use.Life, state: segmentFilling, lastLSN: min(l.filling.behind.LSN, l.durable)}
			l.segments.add(s)
		}
		s.used, s.dirty = use.Used, true
	}
	for _, b := range op.Blocks {
		l.segments.of(b.To).held++
	}
	for _, index := range op.closed {
		s := l.segments.byIndex[index]
		s.closed = true
		l.sealFilled(s)
	}
}

// Release tells that an appended block was entered, or never will be. There is one
// call for each block of a Fill that has succeeded.
func (l *Lane) Release(e Entry) {
	if s := l.segments.of(e); s != nil && s.held > 0 {
		s.held--
		l.sealFilled(s)
	}
}

// sealFilled makes a segment of the copy one like any other, which may be cleaned
// and freed, once nothing will name more of it.
func (l *Lane) sealFilled(s *segmentInfo) {
	if s.closed && s.held == 0 {
		s.state, s.dirty = segmentSealed, true
		l.segments.noteHollow(s)
		l.cleaner.look = true
	}
}

// FillTarget is the slot that a Fill appends to.
type FillTarget interface {
	// Fresh returns a segment to append to. Keep closes its handle.
	Fresh() (*Open, error)
	Keep(*Open) error
}

// Run carries the operation out. It may be called from any goroutine.
func (f *Fill) Run(target FillTarget) {
	f.written, f.closed = f.written[:0], f.closed[:0]
	w := fillWriter{fill: f, target: target}
	err := w.write()
	if err == nil && f.Last {
		err = w.close()
	}
	if err != nil && f.open != nil {
		err = errors.Join(err, target.Keep(f.open))
		f.open = nil
	}
	f.Err = err
}

// fillWriter appends the blocks of a Fill, in batches of KindCopy records. The
// header continues the segment's own life, which no log ever does.
type fillWriter struct {
	fill   *Fill
	target FillTarget
	block  []byte // the descriptor, and behind it the header
	bufs   [][]byte
}

func (w *fillWriter) write() error {
	for rest := w.fill.Blocks; len(rest) > 0; {
		n, err := w.room()
		if err != nil {
			return err
		}
		n = min(n, coldBatch, len(rest))
		if err := w.batch(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	if w.fill.open == nil || len(w.fill.Blocks) == 0 {
		return nil
	}
	return w.sync()
}

// room returns how many blocks fit the open segment, of which there is one then.
func (w *fillWriter) room() (blocks int, err error) {
	f := w.fill
	if f.open != nil {
		if n := int(f.open.Blocks) - int(f.open.next) - 1; n > 0 {
			return n, nil
		}
		if err := w.close(); err != nil {
			return 0, err
		}
	}
	if f.open, err = w.target.Fresh(); err != nil {
		return 0, fmt.Errorf("prepare a segment: %w", err)
	}
	return int(f.open.Blocks) - 2, nil
}

// close makes the open segment durable and closes it.
func (w *fillWriter) close() error {
	f := w.fill
	if f.open == nil {
		return nil
	}
	if err := w.sync(); err != nil {
		return err
	}
	o := f.open
	f.open = nil
	f.closed = append(f.closed, o.Index)
	return w.target.Keep(o)
}

func (w *fillWriter) sync() error {
	o := w.fill.open
	if err := o.File.Sync(); err != nil {
		return fmt.Errorf("sync copies in segment %d: %w", o.Index, err)
	}
	return nil
}

// batch appends blocks, and says where each of them is.
func (w *fillWriter) batch(blocks []FillBlock) error {
	f, o := w.fill, w.fill.open
	if w.block == nil {
		w.block = disk.Alloc(2 * BlockSize)
	}
	place := position{volume: f.cfg.Volume, lane: f.Lane, segment: o.Index, life: o.Life}
	offset := o.Base + int64(o.next)*BlockSize
	w.bufs = w.bufs[:0]
	if o.next == 0 {
		h := header{position: place, generation: f.generation, blocks: o.Blocks, previous: o.Life}
		o.chain = h.encode(w.block[BlockSize:])
		w.bufs = append(w.bufs, w.block[BlockSize:])
	}
	place.offset = max(o.next, 1)
	var e encoder
	e.begin(w.block[:BlockSize])
	w.bufs = append(w.bufs, w.block[:BlockSize])
	w.encode(&e, blocks, place.offset+1)
	o.chain = e.finish(&descriptor{position: place, generation: f.generation, previous: o.chain})
	o.next = place.offset + 1 + uint32(len(blocks))
	if err := o.File.Write(w.bufs, offset, false); err != nil {
		return fmt.Errorf("append copies to segment %d: %w", o.Index, err)
	}
	w.note(SegmentUse{Index: o.Index, Life: o.Life, Used: o.next})
	return nil
}

// encode adds the blocks as records, one for each run of addresses; the first lies
// in block at of the segment.
func (w *fillWriter) encode(e *encoder, blocks []FillBlock, at uint32) {
	for i := 0; i < len(blocks); {
		n := 1
		for i+n < len(blocks) && blocks[i+n].LBA == blocks[i].LBA+LBA(n) && blocks[i+n].LBA.Region() == blocks[i].LBA.Region() {
			n++
		}
		e.add(KindCopy, blocks[i].LBA, n)
		for j := i; j < i+n; j++ {
			b := &blocks[j]
			e.checksum(b.CRC)
			w.bufs = append(w.bufs, b.Buf)
			b.To = Entry{Segment: w.fill.open.Index, Life: w.fill.open.Life, Block: uint16(at), Content: Data, CRC: b.CRC}
			at++
		}
		i += n
	}
}

// note remembers what a segment holds now.
func (w *fillWriter) note(use SegmentUse) {
	if n := len(w.fill.written); n > 0 && w.fill.written[n-1].Index == use.Index {
		w.fill.written[n-1] = use
		return
	}
	w.fill.written = append(w.fill.written, use)
}
