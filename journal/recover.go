package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"trivet/disk"
)

// ErrDamaged tells that a lane's log or map lacks what was durable there. What
// is left is correct up to the LSN that recovery reports.
var ErrDamaged = errors.New("records that were durable are missing")

// Source is where a lane is recovered from. Every error ends the recovery of
// the lane, with nothing changed.
type Source interface {
	// ReadSegment fills buf from a block offset in a segment, past the page
	// cache: what was cached before a failed sync proves nothing.
	ReadSegment(segment uint32, buf []byte, block uint32) error
	// Scan calls fn for every pair of the slot's metadata with the prefix.
	Scan(prefix []byte, fn func(key, value []byte) error) error
	// Load returns the values of keys, nil for an absent one.
	Load(keys [][]byte) ([][]byte, error)
}

// Header is what recovery learns of a segment from its first block.
type Header struct{ h header }

// Lane returns the lane that the segment belongs to.
func (h Header) Lane() LaneID { return h.h.lane }

// Segment and Life name the segment.
func (h Header) Segment() uint32 { return h.h.segment }

// Life returns the segment's life.
func (h Header) Life() uint32 { return h.h.life }

// DecodeHeader reads the first two blocks of a segment. ok is false when they
// hold no header of this volume and slot, which is no error: it was never used,
// or its first write was torn. A header that is lost while the descriptor
// behind it is whole is told of too: what that segment holds cannot be
// replayed, but may prove that it is missed.
func DecodeHeader(blocks []byte, volume Volume, slot SlotID, segment uint32) (h Header, ok bool, err error) {
	err = decodeHeader(blocks[:BlockSize], &h.h)
	switch {
	case errors.Is(err, ErrVersion):
		return h, false, fmt.Errorf("segment %d: %w", segment, err)
	case err != nil:
		return decodeOrphan(blocks[BlockSize:], volume, slot, segment)
	}
	ok = h.h.volume == volume && h.h.lane.Slot == slot && h.h.segment == segment
	return h, ok, nil
}

// decodeOrphan makes a header of the first descriptor of a segment without one.
func decodeOrphan(block []byte, volume Volume, slot SlotID, segment uint32) (h Header, ok bool, err error) {
	if len(block) < BlockSize {
		return h, false, nil
	}
	var claimed, d descriptor
	claimed.decodePlace(block)
	want := position{volume: volume, lane: LaneID{slot, claimed.lane.Shard}, segment: segment, life: claimed.life, offset: 1}
	if decodeDescriptor(block[:BlockSize], want, &d) != nil {
		return h, false, nil
	}
	h.h = header{position: want, orphan: true}
	h.h.offset = 0
	return h, true, nil
}

// Rot is a data block whose checksum did not match although it was durable.
type Rot struct {
	LBA   LBA
	Entry Entry
}

// Recovery is a lane as it was found on disk.
type Recovery struct {
	Lane *Lane
	// Stamp is the last record found; every earlier one is there.
	Stamp Stamp
	// Incomplete: a copy from a peer did not finish, or the lane did not get all
	// that it missed; it counts for nothing.
	Incomplete bool
	// Fed: it was left incomplete when it came back while its peers served, or has
	// been copied since and not served. What it had made durable before was in both
	// of them then.
	Fed bool
	// Filled: it was fed, and became complete while its peers served. It may have been
	// served since; until then what holds of Fed holds of it.
	Filled bool
	// Damage is nil, or why the log ends before what is known to be durable.
	Damage error
	// Known is, by slot, what this lane's descriptors know durable there.
	Known [MaxSlots]Known
	// Began is the generation of the segment at which replay began, or 0: what
	// any generation before it had made durable in this lane is in the
	// checkpoint, or counted no more when the lane was copied from a peer. Marks
	// of those generations vouch for nothing in the log.
	Began Generation
	// Suspect is, by slot, the LSN from which that slot must not be trusted,
	// or 0, as of the lane's last descriptor.
	Suspect [MaxSlots]LSN
	// Rotten are blocks to be repaired from a peer.
	Rotten []Rot
	// Adopted are the segments replayed: not known to be durable.
	Adopted []uint32
	// Bytes is how much log was replayed.
	Bytes int64

	source  Source
	headers []header // of this lane, by ascending life
	scan    scanner
	segment *header // being replayed
	offset  uint32
	chain   uint32
	stopped *descriptor // a batch with bad data: torn, or rotten if vouched for
	bad     []int       // its bad data blocks
	batches []replayed  // of segment, in order
	entered LSN         // the last one before them
	whole   bool        // segment is replayed from its first batch on
	vouched LSN         // the highest that Vouch was told
}

// Known is what durable marks tell of one slot's lane: for each generation that
// still matters, the highest LSN. Later generations have lower LSNs in it.
type Known []Stamp

// add notes a mark: the LSN, and the generation that it was written in.
func (k *Known) add(mark Stamp) {
	if mark.LSN == 0 {
		return
	}
	covers := func(a, b Stamp) bool { return a.Generation >= b.Generation && a.LSN >= b.LSN }
	for _, other := range *k {
		if covers(other, mark) {
			return
		}
	}
	*k = append(slices.DeleteFunc(*k, func(other Stamp) bool { return covers(mark, other) }), mark)
}

// Since returns the highest LSN known durable by marks of the generation and
// later ones; 0 for none.
func (k Known) Since(g Generation) (lsn LSN) {
	for _, mark := range k {
		if mark.Generation >= g {
			lsn = max(lsn, mark.LSN)
		}
	}
	return lsn
}

// Recover loads the lane's checkpoint and replays its log behind it. It stops
// at the first batch that is not whole; Vouch tells it what is known of it.
func Recover(cfg Config, source Source, headers []Header) (*Recovery, error) {
	r := &Recovery{Lane: newLane(cfg), source: source}
	for _, h := range headers {
		if h.h.lane == cfg.ID {
			r.headers = append(r.headers, h.h)
		}
	}
	slices.SortFunc(r.headers, func(a, b header) int { return int(int64(a.life) - int64(b.life)) })
	if err := r.loadCheckpoint(); err != nil {
		return nil, fmt.Errorf("slot %d shard %d: checkpoint: %w", cfg.ID.Slot, cfg.ID.Shard, err)
	}
	r.scan = scanner{source: source}
	if err := r.replay(); err != nil {
		return nil, fmt.Errorf("slot %d shard %d: replay: %w", cfg.ID.Slot, cfg.ID.Shard, err)
	}
	return r, nil
}

// loadCheckpoint reads the lane record, the segment table and the set of
// stored regions. Map pages are loaded on demand.
func (r *Recovery) loadCheckpoint() error {
	l, shard := r.Lane, r.Lane.cfg.ID.Shard
	values, err := r.source.Load([][]byte{laneKey(shard)})
	if err != nil {
		return err
	}
	record := laneRecord{counted: true} // a lane without a record has nothing else
	if values[0] != nil {
		if record, err = decodeLaneRecord(values[0]); err != nil {
			return err
		}
		r.Stamp, r.Incomplete, r.Fed, r.Filled, l.position = record.stamp, record.incomplete, record.fed, record.filled, record.position
		// What follows in the log was fed, and the log does not say what had been copied.
		l.blocks.lacksAll, l.blocks.unsure = record.incomplete, record.unsure
	}
	if err := r.loadSegments(); err != nil {
		return err
	}
	if err := r.loadChunks(); err != nil {
		return err
	}
	segments, chunks := len(l.segments.order), len(l.blocks.stored)
	if record.counted && (segments != int(record.segments) || chunks != int(record.chunks)) {
		return fmt.Errorf("the store has %d segments and %d chunks of stored regions, the lane record says %d and %d: %w",
			segments, chunks, record.segments, record.chunks, ErrNotThis)
	}
	return nil
}

func (r *Recovery) loadSegments() error {
	table := r.Lane.segments
	err := r.source.Scan(segmentKey(r.Lane.cfg.ID.Shard, 0)[:3], func(key, value []byte) error {
		s, err := decodeSegment(binary.BigEndian.Uint32(key[3:]), value)
		if err != nil {
			return err
		}
		s.state = segmentSealed
		table.byIndex[s.index] = s
		table.order = append(table.order, s)
		table.live += int64(s.live)
		table.noteHollow(s)
		return nil
	})
	slices.SortFunc(table.order, func(a, b *segmentInfo) int { return int(int64(a.life) - int64(b.life)) })
	return err
}

func (r *Recovery) loadChunks() error {
	return r.source.Scan(chunkKey(r.Lane.cfg.ID.Shard, 0)[:3], func(key, value []byte) error {
		c := new(regionChunk)
		if len(value) != len(c.bits)*8 {
			return fmt.Errorf("set of stored regions: %d bytes: %w", len(value), ErrNotThis)
		}
		for i := range c.bits {
			c.bits[i] = binary.LittleEndian.Uint64(value[8*i:])
		}
		r.Lane.blocks.stored[binary.BigEndian.Uint32(key[3:])] = c
		return nil
	})
}

// replay follows the log from the present position to its end.
func (r *Recovery) replay() error {
	l := r.Lane
	if r.segment == nil {
		r.segment, r.offset, r.chain = r.find(l.position.life, l.position.segment), l.position.offset, l.position.chain
		if r.segment != nil {
			r.Began = r.segment.generation
		}
		r.entered = r.Stamp.LSN
	}
	life := l.position.life
	for {
		next := r.successor(life)
		if r.segment != nil {
			limit := ^LSN(0)
			if next != nil { // it was begun after everything up to its tail was synced
				limit = next.tail
				r.Known[l.cfg.ID.Slot].add(Stamp{next.generation, limit})
			}
			if err := r.replaySegment(limit); err != nil {
				return err
			}
		}
		if next == nil || r.stopped != nil {
			return r.inspectEnd(life)
		}
		if next.tail > r.Stamp.LSN {
			r.Damage = fmt.Errorf("%w: the log ends at LSN %d, segment %d continues it behind %d", ErrDamaged, r.Stamp.LSN, next.segment, next.tail)
			return nil
		}
		r.enter(next)
		life = next.life
	}
}

// enter begins with the first batch of a segment.
func (r *Recovery) enter(h *header) {
	l := r.Lane
	r.segment, r.offset, r.chain = h, 1, h.crc
	r.batches, r.entered, r.whole = r.batches[:0], r.Stamp.LSN, true
	// A checkpoint that began while the segment was open and empty holds it.
	if s := l.segments.byIndex[h.segment]; s == nil || s.life != h.life {
		l.segments.add(&segmentInfo{index: h.segment, life: h.life, previous: h.previous, firstLSN: h.firstLSN, lastLSN: h.tail, used: 1, state: segmentSealed})
	}
	l.position = replayPosition{segment: h.segment, life: h.life, offset: 1, chain: h.crc}
	r.Adopted = append(r.Adopted, h.segment)
}

// find returns the header of a life of a segment, or nil when it was recycled.
func (r *Recovery) find(life, segment uint32) *header {
	for i := range r.headers {
		if h := &r.headers[i]; h.life == life && h.segment == segment && !h.orphan {
			r.Adopted = append(r.Adopted, segment)
			return h
		}
	}
	l := r.Lane
	s := l.segments.byIndex[segment]
	if s == nil || s.life != life {
		return nil
	}
	// The checkpoint that replay begins at holds the segment, so its header was
	// durable and is rotten. The segment table knows all that is needed of it.
	r.Adopted = append(r.Adopted, segment)
	return &header{
		position: position{volume: l.cfg.Volume, lane: l.cfg.ID, segment: segment, life: life},
		blocks:   l.cfg.SegmentBlocks, previous: s.previous, firstLSN: s.firstLSN,
	}
}

// successor returns the newest segment that continues the one with the life.
func (r *Recovery) successor(life uint32) *header {
	for i := len(r.headers) - 1; i >= 0; i-- {
		if h := &r.headers[i]; h.previous == life && h.life > life && !h.orphan {
			return h
		}
	}
	return nil
}

// hasHeader tells whether the header of a life is there.
func (r *Recovery) hasHeader(life uint32) bool {
	return slices.ContainsFunc(r.headers, func(h header) bool { return h.life == life && !h.orphan })
}

// replaySegment applies the batches of the segment up to limit.
func (r *Recovery) replaySegment(limit LSN) error {
	for r.offset < r.segment.blocks {
		d, err := r.next()
		if err != nil || d == nil || d.firstLSN > limit {
			return err
		}
		if !d.isMark() && d.firstLSN > r.Stamp.LSN+1 && d.firstLSN != r.segment.firstLSN {
			return nil
		}
		bad, err := r.verify(d)
		if err != nil {
			return err
		}
		if len(bad) > 0 {
			r.stopped, r.bad = d, bad
			return nil
		}
		r.apply(d)
	}
	return nil
}

// next decodes the descriptor at the present offset; nil when there is none.
func (r *Recovery) next() (*descriptor, error) {
	block, err := r.scan.block(r.segment.segment, r.offset, r.segment.blocks)
	if err != nil {
		return nil, err
	}
	d := new(descriptor)
	want := r.segment.position
	want.offset = r.offset
	switch err := decodeDescriptor(block, want, d); {
	case errors.Is(err, ErrVersion):
		if continues(block, want, r.chain) {
			return nil, err
		}
		return nil, nil // what a guest or an earlier life has left here
	case err != nil, d.previous != r.chain, r.offset+1+d.dataBlocks > r.segment.blocks:
		return nil, nil
	}
	return d, nil
}

// verify returns which data blocks of the batch do not match their checksums.
func (r *Recovery) verify(d *descriptor) (bad []int, err error) {
	return d.mismatches(func(i int) ([]byte, error) {
		return r.scan.block(r.segment.segment, r.offset+1+uint32(i), r.segment.blocks)
	})
}

// mismatches returns which of the batch's data blocks, as block returns them, do
// not match their checksums. Those of copies count only through a checkpoint.
func (d *descriptor) mismatches(block func(i int) ([]byte, error)) (bad []int, err error) {
	at := 0
	for i := range d.records {
		if d.records[i].kind == KindCopy {
			at += len(d.records[i].crcs)
			continue
		}
		for _, crc := range d.records[i].crcs {
			b, err := block(at)
			if err != nil {
				return nil, err
			}
			if Checksum(b) != crc {
				bad = append(bad, at)
			}
			at++
		}
	}
	return bad, nil
}

// apply enters a batch into the map and moves on behind it.
func (r *Recovery) apply(d *descriptor) {
	l := r.Lane
	s := l.segments.byIndex[r.segment.segment]
	if s == nil || s.life != r.segment.life { // freed by the checkpoint that replay begins at
		s = &segmentInfo{index: r.segment.segment, life: r.segment.life, previous: r.segment.previous, firstLSN: r.segment.firstLSN, state: segmentSealed}
		l.segments.add(s)
	}
	at, lsn := r.offset+1, d.firstLSN
	for i := range d.records {
		rec := &d.records[i]
		if rec.kind == KindCopy { // counts only through the checkpoint that ends a copy
			at += uint32(len(rec.crcs))
			continue
		}
		at += l.replayRecord(rec, Stamp{d.generation, lsn}, s, at)
		lsn++
	}
	if !d.isMark() {
		r.Stamp = Stamp{d.generation, max(r.Stamp.LSN, d.lastLSN())}
		r.batches = append(r.batches, replayed{r.offset, 1 + d.dataBlocks, d.firstLSN, d.lastLSN()})
	}
	for i := range d.durable {
		r.Known[i].add(Stamp{d.generation, d.durable[i]})
	}
	r.Suspect = d.suspect
	r.offset += 1 + d.dataBlocks
	r.chain = d.crc
	r.Bytes += int64(1+d.dataBlocks) * BlockSize
	s.used, s.lastLSN, s.dirty = r.offset, max(s.lastLSN, r.Stamp.LSN), true
	l.position = replayPosition{segment: s.index, life: s.life, offset: r.offset, chain: r.chain}
}

// replayRecord is place for a record that comes from the log.
func (l *Lane) replayRecord(rec *batchRecord, stamp Stamp, s *segmentInfo, at uint32) uint32 {
	if rec.kind == KindNote {
		return 0
	}
	p := l.blocks.touch(rec.lba.Region(), stamp)
	switch rec.kind {
	case KindTrim:
		l.blocks.fill(p, rec.lba.Index(), int(rec.count), Hole)
	case KindZero:
		l.blocks.fill(p, rec.lba.Index(), int(rec.count), Zero)
	default:
		for i, crc := range rec.crcs {
			l.blocks.set(p, rec.lba.Index()+i, Entry{Segment: s.index, Life: s.life, Block: uint16(at) + uint16(i), Content: Data, CRC: crc})
		}
	}
	return uint32(len(rec.crcs))
}

// Vouch tells that the lane is known to have been durable up to lsn. A batch
// that recovery stopped at because of its data is rotten, not torn, when it
// lies below: it is applied, its bad blocks are noted, and replay goes on. A
// log that ends before lsn is damaged.
func (r *Recovery) Vouch(lsn LSN) error {
	r.vouched = max(r.vouched, lsn)
	for r.stopped != nil && r.stopped.lastLSN() <= lsn {
		d := r.stopped
		r.noteRot(d)
		r.stopped = nil
		r.apply(d)
		if err := r.replay(); err != nil {
			return err
		}
	}
	if r.Damage == nil && r.Stamp.LSN < lsn {
		r.Damage = fmt.Errorf("%w: the log ends at LSN %d, %d was durable", ErrDamaged, r.Stamp.LSN, lsn)
	}
	return nil
}

// noteRot remembers the bad blocks of a batch.
func (r *Recovery) noteRot(d *descriptor) {
	at := 0
	for i := range d.records {
		rec := &d.records[i]
		for j, crc := range rec.crcs {
			if slices.Contains(r.bad, at) {
				e := Entry{Segment: d.segment, Life: d.life, Block: uint16(d.offset+1) + uint16(at), Content: Data, CRC: crc}
				r.Rotten = append(r.Rotten, Rot{LBA: rec.lba + LBA(j), Entry: e})
			}
			at++
		}
	}
}

// inspectEnd looks behind the last good batch for evidence that the log went
// on: batches or segments of later date whose marks vouch for what is missing.
func (r *Recovery) inspectEnd(life uint32) error {
	for i := range r.headers {
		h := &r.headers[i]
		switch {
		case h.life <= life:
		case h.orphan:
			if err := r.inspect(h, 1, r.Lane.cfg.SegmentBlocks); err != nil {
				return err
			}
		case r.stopped == nil && h.previous > life && h.previous < h.life && !r.hasHeader(h.previous):
			r.Damage = fmt.Errorf("%w: segment %d continues life %d, of which the header is gone", ErrDamaged, h.segment, h.previous)
			return nil
		case h.tail > r.Stamp.LSN && r.stopped == nil:
			r.Damage = fmt.Errorf("%w: the log ends at LSN %d, segment %d begins behind %d", ErrDamaged, r.Stamp.LSN, h.segment, h.tail)
			return nil
		}
	}
	if r.segment == nil {
		return nil
	}
	return r.inspect(r.segment, r.offset, r.segment.blocks)
}

// inspect learns what the descriptors in a segment from a block on know to be
// durable in this slot, whether they are chained or not.
func (r *Recovery) inspect(h *header, from, blocks uint32) error {
	own := r.Lane.cfg.ID.Slot
	var d descriptor
	for at := from; at < blocks; at++ {
		block, err := r.scan.block(h.segment, at, blocks)
		if err != nil {
			return err
		}
		want := h.position
		want.offset = at
		if binary.LittleEndian.Uint64(block) == descriptorMagic && decodeDescriptor(block, want, &d) == nil {
			r.Known[own].add(Stamp{d.generation, d.durable[own]})
		}
	}
	return nil
}

// scanner reads blocks of segments in long pieces.
type scanner struct {
	source  Source
	buf     []byte
	segment uint32
	first   uint32 // block offset of buf
	blocks  uint32 // valid in buf
	piece   uint32 // blocks that one read takes; 0: scanBlocks
}

// scanBlocks is how much one read takes when everything is read.
const scanBlocks = 256

// block returns a block of a segment of size blocks, valid until the next call.
func (s *scanner) block(segment, at, size uint32) ([]byte, error) {
	if s.blocks == 0 || s.segment != segment || at < s.first || at >= s.first+s.blocks {
		if s.buf == nil {
			if s.piece == 0 {
				s.piece = scanBlocks
			}
			s.buf = disk.Alloc(int(s.piece) * BlockSize)
		}
		n := min(s.piece, size-at)
		s.blocks = 0
		if err := s.source.ReadSegment(segment, s.buf[:n*BlockSize], at); err != nil {
			return nil, err
		}
		s.segment, s.first, s.blocks = segment, at, n
	}
	off := (at - s.first) * BlockSize
	return s.buf[off : off+BlockSize], nil
}
