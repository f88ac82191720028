package journal

import (
	"encoding/binary"
	"fmt"
)

// A header is the first block of a segment's present life. It is written
// together with the segment's first batch.
//
//	 0  8  magic "TrivetSg"
//	 8  2  version
//	10  1  slot
//	11  1  zero
//	12  2  shard
//	14  2  zero
//	16 16  volume
//	32  8  generation
//	40  4  segment   index in the slot
//	44  4  life      counts up with every segment that the slot opens
//	48  4  blocks    size of the segment
//	52  4  previous life of the lane's log: which segment this one continues
//	56  8  first LSN it may hold; smaller than the previous segment's last one
//	       when that one failed and its tail was written again
//	64  4  CRC32C of this block without these four bytes
const (
	headerMagic   = 0x6753746576697254 // "TrivetSg"
	headerVersion = 1
)

// header is a decoded segment header.
type header struct {
	position   // offset is 0
	generation Generation
	blocks     uint32
	previous   uint32 // life
	firstLSN   LSN
	tail       LSN
	crc        uint32
	orphan     bool // not a header, but what the first descriptor tells without one
}

// encode fills block and returns its CRC.
func (h *header) encode(block []byte) uint32 {
	clear(block)
	le := binary.LittleEndian
	le.PutUint64(block, headerMagic)
	le.PutUint16(block[8:], headerVersion)
	block[10] = byte(h.lane.Slot)
	le.PutUint16(block[12:], h.lane.Shard)
	copy(block[16:], h.volume[:])
	le.PutUint64(block[32:], uint64(h.generation))
	le.PutUint32(block[40:], h.segment)
	le.PutUint32(block[44:], h.life)
	le.PutUint32(block[48:], h.blocks)
	le.PutUint32(block[52:], h.previous)
	le.PutUint64(block[56:], uint64(h.firstLSN))
	le.PutUint64(block[64:], uint64(h.tail))
	h.crc = sealBlock(block, 72)
	return h.crc
}

// decodeHeader reads a segment header. The caller compares volume, slot and
// segment with where it was found. The error wraps ErrVersion or ErrNotThis.
func decodeHeader(block []byte, h *header) error {
	le := binary.LittleEndian
	if len(block) != BlockSize || le.Uint64(block) != headerMagic {
		return fmt.Errorf("segment header magic: %w", ErrNotThis)
	}
	if err := checkVersion(block, 72, headerVersion); err != nil {
		return fmt.Errorf("segment header %w", err)
	}
	crc := blockSeal(block, 72)
	if stored := le.Uint32(block[72:]); stored != crc {
		return fmt.Errorf("segment header checksum %08x, expected %08x: %w", stored, crc, ErrNotThis)
	}
	*h = header{crc: crc}
	h.lane = LaneID{Slot: SlotID(block[10]), Shard: le.Uint16(block[12:])}
	copy(h.volume[:], block[16:])
	h.generation = Generation(le.Uint64(block[32:]))
	h.segment = le.Uint32(block[40:])
	h.life = le.Uint32(block[44:])
	h.blocks = le.Uint32(block[48:])
	h.previous = le.Uint32(block[52:])
	h.firstLSN = LSN(le.Uint64(block[56:]))
	h.tail = LSN(le.Uint64(block[64:]))
	return nil
}
