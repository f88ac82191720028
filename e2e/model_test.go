package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
)

// The model knows, for every 4 KiB block of a device, what a read may return.
// Requests are aligned to sectors, so a block is eight of them, and each
// sector holds the version of the write that put it there; 0 is zeros.
const (
	sectorSize      = 512
	blockSize       = 4096
	sectorsPerBlock = blockSize / sectorSize
)

// A state is what a block holds.
type state [sectorsPerBlock]uint32

// A span is a run of sectors.
type span struct{ first, count int }

// blocks is the run of blocks that the span touches.
func (s span) blocks() (first, end int) {
	return s.first / sectorsPerBlock, (s.first+s.count-1)/sectorsPerBlock + 1
}

// acked is a state that was acknowledged, and when.
type acked struct {
	state
	at uint64 // model.clock
}

// A block's model. At most one request on a block is in flight, so that what
// may be found after a crash is known exactly.
type block struct {
	busy    bool
	history []acked // [0] is durable, the last is what a read returns
	pending *state  // what the write in flight makes of it
	allowed []state // after a crash, until it was read: one of these
	older   []acked // after a kill: what a power cut may bring back, until a flush
}

// model is safe for concurrent use.
type model struct {
	mu      sync.Mutex
	blocks  []block
	dirty   map[int]bool // blocks with more than one state in their history
	version uint32       // of the last write
	clock   uint64       // counts acknowledgements
}

// newModel is the model of a device of zeros.
func newModel(sizeBytes uint64) *model {
	m := &model{blocks: make([]block, sizeBytes/blockSize), dirty: map[int]bool{}}
	for i := range m.blocks {
		m.blocks[i].history = []acked{{}}
	}
	return m
}

// claim reserves the blocks of a span for one request, or returns false when
// one of them is taken. known is false when some block has not been read since
// the last crash.
func (m *model) claim(s span) (claimed, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	first, end := s.blocks()
	known = true
	for i := first; i < end; i++ {
		if m.blocks[i].busy {
			return false, false
		}
		known = known && m.blocks[i].allowed == nil
	}
	for i := first; i < end; i++ {
		m.blocks[i].busy = true
	}
	return true, known
}

// releaseLocked gives the blocks of a span back.
func (m *model) releaseLocked(s span) {
	first, end := s.blocks()
	for i := first; i < end; i++ {
		m.blocks[i].busy = false
	}
}

// begin notes that a claimed span is about to be written, or zeroed, and
// returns the version to write.
func (m *model) begin(s span, zero bool) uint32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	version := uint32(0)
	if !zero {
		m.version++
		version = m.version
	}
	first, end := s.blocks()
	for i := first; i < end; i++ {
		b := &m.blocks[i]
		next := b.history[len(b.history)-1].state
		for k := range next {
			if at := i*sectorsPerBlock + k; at >= s.first && at < s.first+s.count {
				next[k] = version
			}
		}
		b.pending = &next
	}
	return version
}

// ack notes that the write was acknowledged, and releases the span.
func (m *model) ack(s span, durable bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	first, end := s.blocks()
	for i := first; i < end; i++ {
		b := &m.blocks[i]
		if durable {
			b.history = b.history[:0]
		}
		b.history = append(b.history, acked{*b.pending, m.clock})
		b.pending = nil
		if len(b.history) > 1 {
			m.dirty[i] = true
		}
	}
	m.releaseLocked(s)
}

// now is the time to give to flushed: a flush covers what was acknowledged
// before it was sent.
func (m *model) now() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.clock
}

// flushed notes that a flush, sent at the given time, was acknowledged.
func (m *model) flushed(at uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.dirty {
		b := &m.blocks[i]
		b.older = nil // what outlived the kill is covered, too
		keep := 0
		for k, h := range b.history {
			if h.at <= at {
				keep = k
			}
		}
		b.history = b.history[keep:]
		if len(b.history) == 1 {
			delete(m.dirty, i)
		}
	}
}

// crash notes that the server died with nothing more to come of what was in
// flight. What was acknowledged is kept unless the power went, too; then what
// was durable is kept, and of the rest each block has any one state. What
// outlives a kill is no more durable than it was: until the next flush, a power
// cut may still take it.
func (m *model) crash(powerLost bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.blocks {
		b := &m.blocks[i]
		b.busy = false
		if b.allowed != nil { // a state that was not read yet stays as unknown as it was, or more so
			if powerLost {
				for _, h := range b.older {
					b.allowed = append(b.allowed, h.state)
				}
				b.older = nil
			}
			continue
		}
		if b.pending == nil && len(b.history) == 1 {
			continue
		}
		from := len(b.history) - 1
		if powerLost {
			from = 0
		}
		b.older = append([]acked(nil), b.history[:from]...)
		for _, h := range b.history[from:] {
			b.allowed = append(b.allowed, h.state)
		}
		if b.pending != nil {
			b.allowed = append(b.allowed, *b.pending)
			b.pending = nil
		}
	}
	for i := range m.dirty {
		if m.blocks[i].older == nil {
			delete(m.dirty, i)
		}
	}
}

// check compares what was read of claimed blocks with what may be there. What
// is found after a power cut was made durable before the server served again,
// and counts from then on.
func (m *model) check(first int, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := 0; i < len(data)/blockSize; i++ {
		found, err := decode(first+i, data[i*blockSize:][:blockSize])
		if err != nil {
			return err
		}
		if err := m.blocks[first+i].settle(found); err != nil {
			return fmt.Errorf("block %d: %w", first+i, err)
		}
	}
	return nil
}

// settle takes a state that was read, or explains why it cannot be.
func (b *block) settle(found state) error {
	if b.allowed == nil {
		if want := b.history[len(b.history)-1].state; found != want {
			return fmt.Errorf("read versions %v, acknowledged %v", found, want)
		}
		return nil
	}
	for _, a := range b.allowed {
		if found == a {
			b.allowed = nil
			b.history = append(b.older, acked{state: found})
			if n := len(b.older); n > 0 { // acknowledged before the kill, so the next flush covers it
				b.history[n].at = b.older[n-1].at
			}
			b.older = nil
			return nil
		}
	}
	return fmt.Errorf("read versions %v after the crash, expected one of %v", found, b.allowed)
}

// encode fills data, which begins at a sector, with a version's pattern: each
// sector says which version it is and where it belongs, and no two are alike.
func encode(data []byte, firstSector int, version uint32) {
	for i := 0; i < len(data)/sectorSize; i++ {
		encodeSector(data[i*sectorSize:][:sectorSize], firstSector+i, version)
	}
}

func encodeSector(data []byte, sector int, version uint32) {
	x := uint64(version)<<32 | uint64(sector)
	binary.LittleEndian.PutUint64(data, x)
	for k := 8; k < sectorSize; k += 8 {
		x = x*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(data[k:], x)
	}
}

// zeroSector is what version 0 looks like.
var zeroSector [sectorSize]byte

// decode tells which versions a block holds; any other byte is an error.
func decode(index int, data []byte) (state, error) {
	var s state
	var expected [sectorSize]byte
	for k := range s {
		sector := data[k*sectorSize:][:sectorSize]
		if bytes.Equal(sector, zeroSector[:]) {
			continue
		}
		head := binary.LittleEndian.Uint64(sector)
		s[k] = uint32(head >> 32)
		encodeSector(expected[:], index*sectorsPerBlock+k, s[k])
		if s[k] == 0 || !bytes.Equal(sector, expected[:]) {
			return s, fmt.Errorf("block %d, sector %d: garbage that claims to be version %d of sector %d", index, k, s[k], uint32(head))
		}
	}
	return s, nil
}
