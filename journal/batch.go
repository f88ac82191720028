package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A descriptor is the first block of a batch. All integers are little-endian.
//
//	  0  8  magic "TrivetBt"
//	  8  2  version; checked first, so that a newer format is named as such
//	 10  1  slot           what this batch belongs to: a block of another
//	 11  1  zero           volume, lane, segment or life is never taken for
//	 12  2  shard          a part of this log, even when it parses
//	 14  2  number of records
//	 16 16  volume
//	 32  8  generation in which it was written
//	 40  8  epoch: number of flushes the shard had seen
//	 48  4  segment        index in the slot
//	 52  4  life           of the segment; recycling gives it a new one
//	 56  4  offset         of this descriptor in the segment, in blocks
//	 60  4  data blocks that follow
//	 64  8  LSN of the first record; of the last one before it when there is none
//	 72 24  durable marks  by slot: every LSN up to it was known durable there
//	 96 24  suspect marks  by slot: from this LSN on, what that slot holds is
//	                       not to be trusted (0: all of it is)
//	120  4  CRC of the descriptor before it in the segment, or of its header
//	124  4  CRC32C of this block without these four bytes
//	128     records: LBA (8), blocks (2), kind (1), zero (1); for a kind with
//	        payload one CRC32C (4) for each block
const (
	descriptorMagic   = 0x7442746576697254 // "TrivetBt"
	descriptorVersion = 1
	descriptorFixed   = 128
	recordFixed       = 12
)

// maxBatchBlocks bounds the data of a batch so that header, descriptor and
// data fit the kernel's 1024 I/O vectors even when nothing is contiguous.
const maxBatchBlocks = 1020

// The ways in which a block is not the expected descriptor or header.
var (
	// ErrVersion: written by a newer Trivet.
	ErrVersion = errors.New("unknown format version")
	// ErrNotThis: no descriptor of this place in this log: never written,
	// torn, rotten, or left over from another life.
	ErrNotThis = errors.New("not the expected block")
)

// position is where a descriptor or header lies, and whose it is.
type position struct {
	volume  Volume
	lane    LaneID
	segment uint32
	life    uint32
	offset  uint32 // blocks from the start of the segment
}

// descriptor is a decoded (or to be encoded) batch descriptor.
type descriptor struct {
	position
	generation Generation
	epoch      uint64
	firstLSN   LSN
	durable    [MaxSlots]LSN
	suspect    [MaxSlots]LSN
	previous   uint32 // CRC
	dataBlocks uint32
	records    []batchRecord
	crc        uint32 // of the block itself; the next one's previous
}

// batchRecord is one record of a batch.
type batchRecord struct {
	lba   LBA
	count uint16
	kind  Kind
	crcs  []uint32 // one for each block when the kind has payload
}

// lastLSN returns the LSN of the batch's last record.
func (d *descriptor) lastLSN() LSN {
	last := d.firstLSN
	counted := 0
	for i := range d.records {
		if d.records[i].kind != KindCopy {
			counted++
		}
	}
	if counted > 0 {
		last += LSN(counted) - 1
	}
	return last
}

// isMark tells whether the batch carries no record that has an LSN.
func (d *descriptor) isMark() bool {
	for i := range d.records {
		if d.records[i].kind != KindCopy {
			return false
		}
	}
	return true
}

// encoder fills a descriptor block record by record.
type encoder struct {
	block   []byte // BlockSize bytes, aligned
	end     int    // bytes used
	records int
	blocks  int // data blocks
}

// begin starts a new descriptor in block.
func (e *encoder) begin(block []byte) {
	clear(block)
	*e = encoder{block: block, end: descriptorFixed}
}

// fits tells whether a record of count blocks can still be added.
func (e *encoder) fits(kind Kind, count int) bool {
	size := recordFixed
	if kind.hasPayload() {
		if e.blocks+count > maxBatchBlocks {
			return false
		}
		size += 4 * count
	}
	return e.end+size <= BlockSize
}

// add appends a record's fixed part. For a kind with payload the caller adds
// count checksums.
func (e *encoder) add(kind Kind, lba LBA, count int) {
	b := e.block[e.end:]
	binary.LittleEndian.PutUint64(b, uint64(lba))
	binary.LittleEndian.PutUint16(b[8:], uint16(count))
	b[10] = byte(kind)
	e.end += recordFixed
	e.records++
	if kind.hasPayload() {
		e.blocks += count
	}
}

// checksum appends the CRC of one payload block of the record added last.
func (e *encoder) checksum(crc uint32) {
	binary.LittleEndian.PutUint32(e.block[e.end:], crc)
	e.end += 4
}

// finish writes the fixed part from d and seals the block. It returns the
// block's CRC, which the next descriptor names.
func (e *encoder) finish(d *descriptor) uint32 {
	le, b := binary.LittleEndian, e.block
	le.PutUint64(b, descriptorMagic)
	le.PutUint16(b[8:], descriptorVersion)
	b[10] = byte(d.lane.Slot)
	le.PutUint16(b[12:], d.lane.Shard)
	le.PutUint16(b[14:], uint16(e.records))
	copy(b[16:], d.volume[:])
	le.PutUint64(b[32:], uint64(d.generation))
	le.PutUint64(b[40:], d.epoch)
	le.PutUint32(b[48:], d.segment)
	le.PutUint32(b[52:], d.life)
	le.PutUint32(b[56:], d.offset)
	le.PutUint32(b[60:], uint32(e.blocks))
	le.PutUint64(b[64:], uint64(d.firstLSN))
	for i := range d.durable {
		le.PutUint64(b[72+8*i:], uint64(d.durable[i]))
		le.PutUint64(b[96+8*i:], uint64(d.suspect[i]))
	}
	le.PutUint32(b[120:], d.previous)
	return sealBlock(b, 124)
}

// sealBlock stores at offset at the CRC of the block without these four bytes.
func sealBlock(block []byte, at int) uint32 {
	crc := blockSeal(block, at)
	binary.LittleEndian.PutUint32(block[at:], crc)
	return crc
}

func blockSeal(block []byte, at int) uint32 {
	crc := crc32.Update(0, castagnoli, block[:at])
	return crc32.Update(crc, castagnoli, block[at+4:])
}

// continues tells whether a descriptor of a newer version claims to be the one
// at want, behind the descriptor with the CRC chain: data that imitate one
// cannot know the chain. Newer versions keep these fields where they are.
func continues(block []byte, want position, chain uint32) bool {
	var d descriptor
	d.decodePlace(block)
	return d.position == want && d.previous == chain
}

// decodePlace reads where a descriptor says that it lies, and behind which.
func (d *descriptor) decodePlace(block []byte) {
	le := binary.LittleEndian
	d.lane = LaneID{Slot: SlotID(block[10]), Shard: le.Uint16(block[12:])}
	copy(d.volume[:], block[16:])
	d.segment = le.Uint32(block[48:])
	d.life = le.Uint32(block[52:])
	d.offset = le.Uint32(block[56:])
	d.previous = le.Uint32(block[120:])
}

// checkVersion compares the version of a block whose checksum is at offset at
// with the one that is understood. A block that would check with that version
// is not newer: its version field is rotten.
func checkVersion(block []byte, at int, understood uint16) error {
	le := binary.LittleEndian
	v := le.Uint16(block[8:])
	if v == understood {
		return nil
	}
	crc := crc32.Update(0, castagnoli, block[:8])
	crc = crc32.Update(crc, castagnoli, []byte{byte(understood), byte(understood >> 8)})
	crc = crc32.Update(crc, castagnoli, block[10:at])
	if crc32.Update(crc, castagnoli, block[at+4:]) == le.Uint32(block[at:]) {
		return fmt.Errorf("version %d is rotten: %w", v, ErrNotThis)
	}
	return fmt.Errorf("version %d, expected %d: %w", v, understood, ErrVersion)
}

// decodeDescriptor reads the descriptor at want, into d. It trusts nothing:
// every length is checked against the block. The error wraps ErrVersion or
// ErrNotThis. It does not look at the chain: see descriptor.previous.
func decodeDescriptor(block []byte, want position, d *descriptor) error {
	le := binary.LittleEndian
	if len(block) != BlockSize || le.Uint64(block) != descriptorMagic {
		return fmt.Errorf("descriptor magic: %w", ErrNotThis)
	}
	if err := checkVersion(block, 124, descriptorVersion); err != nil {
		return fmt.Errorf("descriptor %w", err)
	}
	crc := blockSeal(block, 124)
	if stored := le.Uint32(block[124:]); stored != crc {
		return fmt.Errorf("descriptor checksum %08x, expected %08x: %w", stored, crc, ErrNotThis)
	}
	*d = descriptor{records: d.records[:0], crc: crc}
	d.decodePlace(block)
	d.generation = Generation(le.Uint64(block[32:]))
	d.epoch = le.Uint64(block[40:])
	d.dataBlocks = le.Uint32(block[60:])
	d.firstLSN = LSN(le.Uint64(block[64:]))
	for i := range d.durable {
		d.durable[i] = LSN(le.Uint64(block[72+8*i:]))
		d.suspect[i] = LSN(le.Uint64(block[96+8*i:]))
	}
	if d.position != want {
		return fmt.Errorf("descriptor of %+v, expected %+v: %w", d.position, want, ErrNotThis)
	}
	return d.decodeRecords(block, int(le.Uint16(block[14:])))
}

// decodeRecords reads n records and checks that they add up.
func (d *descriptor) decodeRecords(block []byte, n int) error {
	le := binary.LittleEndian
	at, blocks := descriptorFixed, 0
	for range n {
		if at+recordFixed > BlockSize {
			return fmt.Errorf("record at byte %d is cut off: %w", at, ErrNotThis)
		}
		r := batchRecord{
			lba:   LBA(le.Uint64(block[at:])),
			count: le.Uint16(block[at+8:]),
			kind:  Kind(block[at+10]),
		}
		at += recordFixed
		if !r.kind.valid() || int(r.count) > RegionBlocks || r.lba.Index()+int(r.count) > RegionBlocks {
			return fmt.Errorf("record of kind %d, %d blocks at %d: %w", r.kind, r.count, r.lba, ErrNotThis)
		}
		if r.kind.hasPayload() {
			if at+4*int(r.count) > BlockSize {
				return fmt.Errorf("checksums at byte %d are cut off: %w", at, ErrNotThis)
			}
			r.crcs = make([]uint32, r.count)
			for i := range r.crcs {
				r.crcs[i] = le.Uint32(block[at+4*i:])
			}
			at += 4 * int(r.count)
			blocks += int(r.count)
		}
		d.records = append(d.records, r)
	}
	if blocks != int(d.dataBlocks) || blocks > maxBatchBlocks {
		return fmt.Errorf("records hold %d blocks, descriptor says %d: %w", blocks, d.dataBlocks, ErrNotThis)
	}
	return nil
}
