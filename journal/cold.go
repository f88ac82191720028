package journal

import (
	"errors"
	"fmt"
	"sync"

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
	if c.Victim.Used > 0 {
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

// list reads the descriptors of the victim and lists the blocks that it holds,
// live or not. Where the chain ends before its used blocks do, at what a crash
// has torn or at rot, the rest cannot be listed.
func (c *Clean) list(source CleanSource) error {
	scan := scanner{source: scanSource{source}, piece: listBlocks}
	s := c.Victim
	want := position{volume: c.cfg.Volume, lane: c.Lane, segment: s.Index, life: s.Life}
	block, err := scan.block(s.Index, 0, s.Used)
	if err != nil {
		return err
	}
	var h header
	whole := decodeHeader(block, &h) == nil && h.position == want
	if whole {
		whole, err = c.listBatches(&scan, s, want, h.crc)
	}
	c.broken = !whole
	return err
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
				c.Listed = append(c.Listed, Move{LBA: r.lba + LBA(i), From: Entry{Segment: s.Index, Life: s.Life, Block: at, Content: Data, CRC: crc}})
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
	// coldSpan is how many blocks are read for a batch at most. What lies between
	// two blocks is read with them when it is no more than coldGap.
	coldSpan = 3 * coldBatch
	coldGap  = 16
)

// coldBuffers are what batches are read into, as many as the cleaner has workers.
var coldBuffers = sync.Pool{New: func() any {
	b := disk.Alloc(coldSpan * BlockSize)
	return &b
}}

func (w *coldWriter) copy() error {
	buffer := coldBuffers.Get().(*[]byte)
	defer coldBuffers.Put(buffer)
	w.payload = *buffer
	moves := w.clean.Moves
	for len(moves) > 0 {
		room := int(w.open.Blocks) - int(max(w.open.next, 1)) - 1
		n := w.gather(moves[:min(coldBatch, len(moves), max(room, 0))])
		if n == 0 {
			for i := range moves {
				moves[i].Err = errNoRoom
			}
			break
		}
		if err := w.write(moves[:n]); err != nil {
			return err
		}
		moves = moves[n:]
	}
	return w.open.File.Sync()
}

// errNoRoom: the cleaner's segment was full.
var errNoRoom = errors.New("no room in the segment")

// gather reads the blocks, as many as fit the buffer, and returns their number.
func (w *coldWriter) gather(moves []Move) (n int) {
	w.blocks = w.blocks[:0]
	for free := w.payload; n < len(moves) && len(free) > 0; {
		span := moves[n:][:spanOf(moves[n:], len(free)/BlockSize)]
		blocks := int(span[len(span)-1].From.Block-span[0].From.Block) + 1
		w.read(span, free[:blocks*BlockSize])
		n, free = n+len(span), free[blocks*BlockSize:]
	}
	return n
}

// spanOf returns how many of the moves are read in one go: those that lie close
// behind each other in one segment, within so many blocks.
func spanOf(moves []Move, blocks int) (n int) {
	first := moves[0].From
	for n = 1; n < len(moves); n++ {
		last, next := moves[n-1].From, moves[n].From
		if next.Segment != first.Segment || next.Block <= last.Block || next.Block-last.Block > coldGap || int(next.Block-first.Block) >= blocks {
			break
		}
	}
	return n
}

// read gets a span with what lies between its blocks, and those one by one that
// are not as they should be.
func (w *coldWriter) read(span []Move, buf []byte) {
	first := span[0].From
	whole := w.source.ReadSegment(first.Segment, buf, uint32(first.Block)) == nil
	for _, m := range span {
		at := int(m.From.Block-first.Block) * BlockSize
		w.blocks = append(w.blocks, ReadBlock{Entry: m.From, Buf: buf[at:][:BlockSize]})
		if last := len(w.blocks) - 1; !whole || Checksum(w.blocks[last].Buf) != m.From.CRC {
			w.source.ReadBlocks(w.blocks[last:])
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
