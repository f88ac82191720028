package journal

import (
	"encoding/binary"
	"errors"
	"fmt"

	"trivet/disk"
)

// A slot's superblock says whose slot it is, and holds what must not be lost
// with the metadata store. Two copies of 4 KiB; the one with the higher
// sequence that checks is the present one, and the other is written next.
//
//	  0  8  magic "TrivetSb"
//	  8  2  version
//	 10  1  slot
//	 11  1  replicas of the volume: 1 or 3
//	 12  2  shards, a power of two
//	 14  2  zero
//	 16 16  volume
//	 32  8  sequence     which copy is newer
//	 40  8  size of the volume in bytes
//	 48  4  segment size in blocks
//	 52  4  zero
//	 56  8  promised     no lower generation is ever served
//	 64  8  started      the last generation that this slot took part in
//	 72  8  checkpoint   sequence of the metadata store's last commit: a store
//	                     that is behind it has lost keys
//	 80 64  name of the volume, zero-padded
//	144     starts: by shard, the LSN at which the started generation begins (8)
//	4092 4  CRC32C of the rest
const (
	superblockMagic   = 0x6253746576697254 // "TrivetSb"
	superblockVersion = 1
	superblockStarts  = 144
	superblockName    = 64
	// SuperblockFile is the superblock's name in the slot's directory.
	SuperblockFile = "superblock"
	// SuperblockSize is its length in bytes.
	SuperblockSize = 2 * BlockSize
)

// MaxShards is the most shards that a superblock has room for.
const MaxShards = 256

// ErrNoSuperblock: neither copy of the superblock can be read as one.
var ErrNoSuperblock = errors.New("no valid superblock")

// Superblock is a slot's superblock.
type Superblock struct {
	Volume        Volume
	Name          string
	Slot          SlotID
	Replicas      uint8
	Shards        uint16
	SizeBytes     uint64
	SegmentBlocks uint32
	Sequence      uint64
	Promised      Generation
	Started       Generation
	Checkpoint    uint64
	Starts        []LSN // by shard
}

func (s *Superblock) encode(block []byte) {
	clear(block)
	le := binary.LittleEndian
	le.PutUint64(block, superblockMagic)
	le.PutUint16(block[8:], superblockVersion)
	block[10], block[11] = byte(s.Slot), s.Replicas
	le.PutUint16(block[12:], s.Shards)
	copy(block[16:], s.Volume[:])
	le.PutUint64(block[32:], s.Sequence)
	le.PutUint64(block[40:], s.SizeBytes)
	le.PutUint32(block[48:], s.SegmentBlocks)
	le.PutUint64(block[56:], uint64(s.Promised))
	le.PutUint64(block[64:], uint64(s.Started))
	le.PutUint64(block[72:], s.Checkpoint)
	copy(block[80:80+superblockName], s.Name)
	for i, lsn := range s.Starts {
		le.PutUint64(block[superblockStarts+8*i:], uint64(lsn))
	}
	sealBlock(block, BlockSize-4)
}

// DecodeSuperblock reads one copy of a superblock. The error wraps ErrVersion
// or ErrNotThis.
func DecodeSuperblock(block []byte) (*Superblock, error) {
	le := binary.LittleEndian
	if len(block) != BlockSize || le.Uint64(block) != superblockMagic {
		return nil, fmt.Errorf("superblock magic: %w", ErrNotThis)
	}
	if err := checkVersion(block, BlockSize-4, superblockVersion); err != nil {
		return nil, fmt.Errorf("superblock %w", err)
	}
	crc := blockSeal(block, BlockSize-4)
	if stored := le.Uint32(block[BlockSize-4:]); stored != crc {
		return nil, fmt.Errorf("superblock checksum %08x, expected %08x: %w", stored, crc, ErrNotThis)
	}
	s := &Superblock{
		Slot: SlotID(block[10]), Replicas: block[11], Shards: le.Uint16(block[12:]),
		Sequence: le.Uint64(block[32:]), SizeBytes: le.Uint64(block[40:]), SegmentBlocks: le.Uint32(block[48:]),
		Promised: Generation(le.Uint64(block[56:])), Started: Generation(le.Uint64(block[64:])),
		Checkpoint: le.Uint64(block[72:]),
	}
	copy(s.Volume[:], block[16:])
	name := block[80 : 80+superblockName]
	for i, c := range name {
		if c == 0 {
			name = name[:i]
			break
		}
	}
	s.Name = string(name)
	if err := s.validate(); err != nil {
		return nil, err
	}
	for i := range s.Shards {
		s.Starts = append(s.Starts, LSN(le.Uint64(block[superblockStarts+8*int(i):])))
	}
	return s, nil
}

func (s *Superblock) validate() error {
	switch {
	case s.Slot >= MaxSlots || s.Replicas != 1 && s.Replicas != MaxSlots || uint8(s.Slot) >= s.Replicas:
		return fmt.Errorf("superblock of slot %d of %d: %w", s.Slot, s.Replicas, ErrNotThis)
	case s.Shards == 0 || s.Shards > MaxShards || s.Shards&(s.Shards-1) != 0:
		return fmt.Errorf("superblock with %d shards: %w", s.Shards, ErrNotThis)
	case s.SizeBytes == 0 || s.SizeBytes%BlockSize != 0:
		return fmt.Errorf("superblock of a volume of %d bytes: %w", s.SizeBytes, ErrNotThis)
	case s.SegmentBlocks < RegionBlocks+2 || s.SegmentBlocks > 1<<16:
		return fmt.Errorf("superblock with segments of %d blocks: %w", s.SegmentBlocks, ErrNotThis)
	}
	return nil
}

// ReadSuperblock returns the present superblock of a file. damaged tells that
// one copy could not be read as a superblock. When neither can, the error
// wraps ErrNoSuperblock, or ErrVersion.
func ReadSuperblock(f disk.File) (s *Superblock, damaged bool, err error) {
	var lost error
	block := disk.Alloc(BlockSize)
	for i := range int64(2) {
		if err := f.Read([][]byte{block}, i*BlockSize); err != nil {
			return nil, false, fmt.Errorf("read superblock: %w", err)
		}
		c, err := DecodeSuperblock(block)
		switch {
		case errors.Is(err, ErrVersion):
			return nil, false, err
		case err != nil:
			lost = err
		case s == nil || c.Sequence > s.Sequence:
			s = c
		}
	}
	if s == nil {
		return nil, false, fmt.Errorf("%w: %w", ErrNoSuperblock, lost)
	}
	return s, lost != nil, nil
}

// Write stores the superblock with the next sequence, over the older copy, and
// returns once it is durable. After an error that copy may hold anything, and
// the next Write is to the same one.
func (s *Superblock) Write(f disk.File) error {
	s.Sequence++
	block := disk.Alloc(BlockSize)
	s.encode(block)
	err := f.Write([][]byte{block}, int64(s.Sequence%2)*BlockSize, false)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		s.Sequence--
		return fmt.Errorf("write superblock %d: %w", s.Sequence+1, err)
	}
	return nil
}
