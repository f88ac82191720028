package journal

import (
	"errors"
	"fmt"

	"trivet/disk"
)

// CleanSource is the slot as the cleaner sees it.
type CleanSource interface {
	ReadSegment(segment uint32, buf []byte, block uint32) error
	ReadBlocks([]ReadBlock)
	// Cold returns a segment to copy into. Keep closes its handle; Discard
	// returns it unused, too.
	Cold() (*Open, error)
	Keep(*Open) error
	Discard(*Open) error
}

// Run carries the operation out. It may be called from any goroutine.
func (c *Clean) Run(source CleanSource) {
	if len(c.Scan) > 0 {
		c.Err = c.list(source)
		return
	}
	o, err := source.Cold()
	if err != nil {
		c.Err = fmt.Errorf("prepare a segment: %w", err)
		return
	}
	w := coldWriter{clean: c, source: source, open: o}
	if err := w.copy(); err != nil {
		c.Err = errors.Join(fmt.Errorf("copy into segment %d: %w", o.Index, err), source.Discard(o))
		return
	}
	c.into = SegmentUse{Index: o.Index, Life: o.Life, Used: o.next}
	c.Err = source.Keep(o)
}

// listBlocks is how much is read to find a descriptor: what lies between large
// batches is skipped, small ones come several at a time.
const listBlocks = 16

// list reads the descriptors of the segments and lists the blocks that they
// hold, live or not. Where the chain of a segment ends before its used blocks
// do, at what a crash has torn or at rot, the rest cannot be listed.
func (c *Clean) list(source CleanSource) error {
	scan := scanner{source: scanSource{source}, piece: listBlocks}
	c.broken = c.broken[:0]
	for _, s := range c.Scan {
		want := position{volume: c.cfg.Volume, lane: c.Lane, segment: s.Index, life: s.Life}
		block, err := scan.block(s.Index, 0, s.Used)
		if err != nil {
			return err
		}
		var h header
		whole := decodeHeader(block, &h) == nil && h.position == want
		if whole {
			if whole, err = c.listBatches(&scan, s, want, h.crc); err != nil {
				return err
			}
		}
		if !whole {
			c.broken = append(c.broken, s)
		}
	}
	return nil
}

// listBatches lists a segment's batches; whole is false when the chain ends
// early.
func (c *Clean) listBatches(scan *scanner, s SegmentUse, want position, chain uint32) (whole bool, err error) {
	var d descriptor
	for want.offset = 1; want.offset < s.Used; want.offset += 1 + d.dataBlocks {
		block, err := scan.block(s.Index, want.offset, s.Used)
		if err != nil {
			return false, err
		}
		if decodeDescriptor(block, want, &d) != nil || d.previous != chain {
			return false, nil
		}
		chain = d.crc
		at := uint16(want.offset + 1)
		for _, r := range d.records {
			for i, crc := range r.crcs {
				c.Moves = append(c.Moves, Move{LBA: r.lba + LBA(i), From: Entry{Segment: s.Index, Life: s.Life, Block: at, Content: Data, CRC: crc}})
				at++
			}
		}
	}
	return true, nil
}

// scanSource lets a scanner read a slot that is in service.
type scanSource struct{ CleanSource }

func (scanSource) Scan([]byte, func(key, value []byte) error) error { return errors.ErrUnsupported }
func (scanSource) Load([][]byte) ([][]byte, error)                  { return nil, errors.ErrUnsupported }

// coldWriter copies blocks into a segment of the cleaner's, in batches like
// those of a lane but outside of its chain: the header continues the segment's
// own life, which no log ever does, and the records count through checkpoints
// alone.
type coldWriter struct {
	clean   *Clean
	source  CleanSource
	open    *Open
	payload []byte
	blocks  []ReadBlock
	bufs    [][]byte
}

const (
	// coldBatch is how many blocks a batch of the cleaner holds: as many as a
	// descriptor names when no two lie side by side.
	coldBatch = (BlockSize - descriptorFixed) / (recordFixed + 4)
	// coldSpan is how many blocks of a segment are read at once, to get at least
	// coldDense of them.
	coldSpan  = 2 * coldBatch
	coldDense = coldBatch / 8
)

func (w *coldWriter) copy() error {
	w.payload = disk.Alloc(coldSpan * BlockSize)
	moves := w.clean.Moves
	for len(moves) > 0 {
		room := int(w.open.Blocks) - int(max(w.open.next, 1)) - 1
		n := min(coldBatch, len(moves), room)
		dense := denseRun(moves[:max(n, 0)])
		if dense >= coldDense {
			n = dense
		}
		if n <= 0 {
			for i := range moves {
				moves[i].Err = errNoRoom
			}
			break
		}
		w.read(moves[:n], n == dense)
		if err := w.write(moves[:n]); err != nil {
			return err
		}
		moves = moves[n:]
	}
	return w.open.File.Sync()
}

// errNoRoom: the cleaner's segment was full.
var errNoRoom = errors.New("no room in the segment")

// denseRun returns how many of the moves lie in one segment, in order and within
// coldSpan of the first.
func denseRun(moves []Move) (n int) {
	for n < len(moves) {
		first, m := moves[0].From, moves[n].From
		if m.Segment != first.Segment || int(m.Block)-int(first.Block) >= coldSpan || n > 0 && m.Block <= moves[n-1].From.Block {
			break
		}
		n++
	}
	return n
}

// read gets the blocks: dense ones with what lies between them.
func (w *coldWriter) read(moves []Move, dense bool) {
	w.blocks = w.blocks[:0]
	first, last := moves[0].From, moves[len(moves)-1].From
	if dense {
		buf := w.payload[:(int(last.Block-first.Block)+1)*BlockSize]
		dense = w.source.ReadSegment(first.Segment, buf, uint32(first.Block)) == nil
	}
	for i, m := range moves {
		at := i
		if dense {
			at = int(m.From.Block - first.Block)
		}
		w.blocks = append(w.blocks, ReadBlock{Entry: m.From, Buf: w.payload[at*BlockSize : (at+1)*BlockSize]})
	}
	if !dense {
		w.source.ReadBlocks(w.blocks)
		return
	}
	for i := range w.blocks {
		if b := &w.blocks[i]; Checksum(b.Buf) != b.Entry.CRC {
			w.source.ReadBlocks(w.blocks[i : i+1])
		}
	}
}

// write appends a batch of the blocks that were read.
func (w *coldWriter) write(moves []Move) error {
	o, c := w.open, w.clean
	block := disk.Alloc(2 * BlockSize)
	w.bufs = w.bufs[:0]
	if o.next == 0 {
		h := header{
			position:   position{volume: c.cfg.Volume, lane: c.Lane, segment: o.Index, life: o.Life},
			generation: c.generation, blocks: o.Blocks, previous: o.Life,
		}
		o.chain = h.encode(block[BlockSize:])
		w.bufs = append(w.bufs, block[BlockSize:])
	}
	var e encoder
	e.begin(block[:BlockSize])
	w.bufs = append(w.bufs, block[:BlockSize])
	descriptorAt := max(o.next, 1)
	w.encode(&e, moves, descriptorAt+1)
	if e.blocks == 0 {
		return nil
	}
	d := descriptor{
		position:   position{volume: c.cfg.Volume, lane: c.Lane, segment: o.Index, life: o.Life, offset: descriptorAt},
		generation: c.generation, previous: o.chain,
	}
	offset := o.Base + int64(o.next)*BlockSize
	o.chain = e.finish(&d)
	o.next = descriptorAt + 1 + uint32(e.blocks)
	return o.File.Write(w.bufs, offset, false)
}

// encode adds the blocks as records, one for each run of addresses, and tells
// the moves where they go: from block at of the segment on.
func (w *coldWriter) encode(e *encoder, moves []Move, at uint32) {
	for i := 0; i < len(moves); {
		if moves[i].Err = w.blocks[i].Err; moves[i].Err != nil {
			i++
			continue
		}
		n := 1
		for i+n < len(moves) && w.blocks[i+n].Err == nil && moves[i+n].LBA == moves[i].LBA+LBA(n) && moves[i+n].LBA.Region() == moves[i].LBA.Region() {
			n++
		}
		e.add(KindCopy, moves[i].LBA, n)
		for j := i; j < i+n; j++ {
			e.checksum(moves[j].From.CRC)
			w.bufs = appendAdjacent(w.bufs, w.blocks[j].Buf)
			moves[j].To = Entry{Segment: w.open.Index, Life: w.open.Life, Block: uint16(at), Content: Data, CRC: moves[j].From.CRC}
			at++
		}
		i += n
	}
}
