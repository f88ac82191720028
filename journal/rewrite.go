package journal

import (
	"encoding/binary"
	"errors"
	"fmt"

	"trivet/disk"
)

// replayed is a batch with records in the segment that was replayed last.
type replayed struct {
	offset            uint32 // of its descriptor, in blocks
	blocks            uint32 // with its data
	firstLSN, lastLSN LSN
}

// ErrNoSegment tells that there was no segment to write to. Nothing has changed.
var ErrNoSegment = errors.New("no segment to write to")

// Rewriter writes the end of a recovered lane's log anew. What lies behind the
// last record that is known durable was read, but nobody can tell from where: a
// sync that failed may have left it in a cache that no later sync writes.
//
// That end lies in one segment, for a segment is begun when the one before it is
// durable. It goes to another, which continues the log behind the last record
// known durable, as a segment does after a failed append. Its header is
// written last: until it is durable, the end counts where it was.
type Rewriter struct {
	// Prepare returns the segment to write to. Closed, when set, is told that its
	// file is closed.
	Prepare func() (*Open, error)
	Closed  func(*Open)
}

// Rewrite writes anew what the lane holds behind the LSN that it was vouched for,
// and returns how many batches that were. A damaged lane is left as it is. After
// an error that is not ErrNoSegment the lane must not be used: its map may name
// what does not count.
func (w *Rewriter) Rewrite(r *Recovery) (batches int, err error) {
	tail := r.batches
	settled := r.entered
	for len(tail) > 0 && tail[0].lastLSN <= r.vouched {
		settled, tail = tail[0].lastLSN, tail[1:]
	}
	if len(tail) == 0 || r.Damage != nil {
		return 0, nil
	}
	o, err := w.Prepare()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNoSegment, err)
	}
	err = r.moveTail(tail, settled, o)
	if w.Closed != nil {
		w.Closed(o)
	}
	if err = errors.Join(err, o.File.Close()); err != nil {
		return 0, err
	}
	return len(tail), nil
}

// moveTail writes the batches to the segment, makes them durable and enters
// them into the map at their new place.
func (r *Recovery) moveTail(tail []replayed, settled LSN, o *Open) error {
	old := r.segment
	h := header{
		position:   position{volume: r.Lane.cfg.Volume, lane: r.Lane.cfg.ID, segment: o.Index, life: o.Life},
		generation: r.Stamp.Generation, // the highest of the segment's batches
		blocks:     o.Blocks, previous: old.life, firstLSN: tail[0].firstLSN, tail: settled,
	}
	if r.whole && len(tail) == len(r.batches) { // it continues what the segment did
		h.previous, h.tail = old.previous, old.tail
	}
	block, buf := disk.Alloc(BlockSize), disk.Alloc((1+maxBatchBlocks)*BlockSize)
	r.segment, r.offset, r.chain, r.batches = &h, 1, h.encode(block), nil
	for _, b := range tail {
		d, err := r.readBatch(old, b, buf)
		if err != nil {
			return err
		}
		r.readdress(d, buf[:BlockSize])
		if err := o.File.Write([][]byte{buf[:b.blocks*BlockSize]}, o.Base+int64(r.offset)*BlockSize, false); err != nil {
			return fmt.Errorf("append to segment %d: %w", o.Index, err)
		}
		r.apply(d)
	}
	if r.offset < h.blocks {
		// An attempt that a crash cut short may have left the same batches here, in
		// the same life, and more of them: the next one would continue the chain.
		if err := o.File.Write([][]byte{disk.Alloc(BlockSize)}, o.Base+int64(r.offset)*BlockSize, false); err != nil {
			return fmt.Errorf("end of segment %d: %w", o.Index, err)
		}
	}
	if err := o.File.Sync(); err != nil {
		return fmt.Errorf("sync segment %d: %w", o.Index, err)
	}
	if err := o.File.Write([][]byte{block}, o.Base, true); err != nil {
		return fmt.Errorf("header of segment %d: %w", o.Index, err)
	}
	return nil
}

// readBatch reads a batch that was replayed, and checks it again.
func (r *Recovery) readBatch(h *header, b replayed, buf []byte) (*descriptor, error) {
	buf = buf[:b.blocks*BlockSize]
	if err := r.source.ReadSegment(h.segment, buf, b.offset); err != nil {
		return nil, err
	}
	want := h.position
	want.offset = b.offset
	d := new(descriptor)
	if err := decodeDescriptor(buf[:BlockSize], want, d); err != nil {
		return nil, err
	}
	bad, err := d.mismatches(func(i int) ([]byte, error) { return buf[(1+i)*BlockSize:][:BlockSize], nil })
	if err != nil {
		return nil, err
	}
	if len(bad) > 0 {
		return nil, fmt.Errorf("segment %d block %d, read again: %w", h.segment, b.offset+1+uint32(bad[0]), ErrChecksum)
	}
	return d, nil
}

// readdress makes the batch, whose descriptor is block, one of the present place.
func (r *Recovery) readdress(d *descriptor, block []byte) {
	d.position = r.segment.position
	d.offset, d.previous = r.offset, r.chain
	le := binary.LittleEndian
	le.PutUint32(block[48:], d.segment)
	le.PutUint32(block[52:], d.life)
	le.PutUint32(block[56:], d.offset)
	le.PutUint32(block[120:], d.previous)
	d.crc = sealBlock(block, 124)
}
