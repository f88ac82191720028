package replica

import (
	"errors"
	"fmt"

	"trivet/journal"
	"trivet/meta"
)

// RunIO carries out an append, a sync or a close.
func (s *Slot) RunIO(io *journal.IO) {
	f := io.Segment.File
	io.Execute()
	if io.Err != nil {
		io.Err = fmt.Errorf("slot %d segment %d: %w", s.ID, io.Segment.Index, io.Err)
	}
	if io.Close {
		s.handleMu.Lock()
		if s.appends[f] {
			delete(s.appends, f)
			// What is durable was synced on this handle; closing adds nothing.
			if err := f.Close(); err != nil && io.Durable && io.Err == nil {
				io.Err = fmt.Errorf("slot %d segment %d: close: %w", s.ID, io.Segment.Index, err)
			}
		}
		s.handleMu.Unlock()
	}
	io.Done()
}

// RunPrepare makes a segment ready.
func (s *Slot) RunPrepare(p *journal.Prepare) {
	who := appender
	if p.Zero {
		who = zeroingAppender
	}
	if p.Got, p.Err = s.prepare(who); p.Err != nil {
		p.Err = fmt.Errorf("slot %d: %w", s.ID, p.Err)
	}
	p.Done()
}

// RunLoad reads map pages.
func (s *Slot) RunLoad(l *journal.Load) {
	if l.Values, l.Err = s.Load(l.Keys); l.Err != nil {
		l.Err = fmt.Errorf("slot %d: %w", s.ID, unbelieved(l.Err))
	}
	l.Done()
}

// RunCommit stores a checkpoint.
func (s *Slot) RunCommit(c *journal.Commit) {
	if c.Err = s.commit(c.Pairs); c.Err != nil {
		c.Err = fmt.Errorf("slot %d: %w", s.ID, unbelieved(c.Err))
	}
	c.Done()
}

// unbelieved makes an error that says that the store cannot be trusted one that a
// lane knows as such: it gives up at once, for asking again does not help.
func unbelieved(err error) error {
	if errors.Is(err, meta.ErrCorrupt) && !errors.Is(err, journal.ErrNotThis) {
		return fmt.Errorf("%w: %w", journal.ErrNotThis, err)
	}
	return err
}

// Recycle returns segments to the pool. It tells whether RunPrune is due after a
// while.
func (s *Slot) Recycle(segments []uint32) (prune bool) { return s.pool.recycle(segments) }

// RunPrune gives the blocks of segments back to the filesystem that stayed free
// since Recycle told of it, or since the last call, and tells whether another one
// is due after a while. That it could not is no harm: they are free all the same.
func (s *Slot) RunPrune() (again bool, err error) {
	if again, err = s.pool.prune(); err != nil {
		return false, fmt.Errorf("slot %d: prune the log: %w", s.ID, err)
	}
	return again, nil
}

// RunRead reads a whole operation and reports it.
func (s *Slot) RunRead(r *journal.Read) {
	s.readBlocks(r.Blocks)
	r.Done()
}

// adjacent tells whether b lies behind a on disk.
func adjacent(a, b journal.Entry) bool {
	return a.Segment == b.Segment && a.Life == b.Life && a.Block+1 == b.Block
}

// readBlocks reads blocks, neighbours on disk in one go, and checks each.
func (s *Slot) readBlocks(blocks []journal.ReadBlock) {
	for len(blocks) > 0 {
		n := 1
		for n < len(blocks) && adjacent(blocks[n-1].Entry, blocks[n].Entry) {
			n++
		}
		if !s.readRun(blocks[:n]) && n > 1 {
			for i := range n { // tell which of them it is
				s.readRun(blocks[i : i+1])
			}
		}
		blocks = blocks[n:]
	}
}

// readRun reads blocks that lie one behind the other, and sets the error of
// each. A mismatch is read once more before it is called rot. It returns false
// when they could not be read at all.
func (s *Slot) readRun(run []journal.ReadBlock) bool {
	var few [16][]byte
	bufs := few[:0]
	for i := range run {
		bufs = append(bufs, run[i].Buf)
	}
	first := run[0].Entry
	f, base, err := s.reader(first.Segment)
	if err == nil {
		err = f.Read(bufs, base+int64(first.Block)*journal.BlockSize)
	}
	if err != nil {
		err = fmt.Errorf("slot %d segment %d block %d: %w", s.ID, first.Segment, first.Block, err)
	}
	for i := range run {
		b := &run[i]
		if b.Err = err; err != nil {
			continue
		}
		if journal.Checksum(b.Buf) != b.Entry.CRC {
			b.Err = s.readAgain(b)
		}
	}
	return err == nil
}

func (s *Slot) readAgain(b *journal.ReadBlock) error {
	if err := s.ReadSegment(b.Entry.Segment, b.Buf, uint32(b.Entry.Block)); err != nil {
		return err
	}
	if crc := journal.Checksum(b.Buf); crc != b.Entry.CRC {
		return fmt.Errorf("slot %d segment %d block %d: checksum %08x, expected %08x: %w",
			s.ID, b.Entry.Segment, b.Entry.Block, crc, b.Entry.CRC, journal.ErrChecksum)
	}
	return nil
}
