package journal

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Version 1 of the superblock, which is read and no longer written: two copies of
// 4 KiB, without incarnation, members, places, or names of generations.
//
//	  0..51   as in version 2, but for the flags, which are zero
//	 52  4  zero
//	 56  8  promised
//	 64  8  started
//	 72  8  checkpoint   sequence of the metadata store's last commit
//	 80 64  name
//	144     by shard, where the generation begins that was started (8)
//	4092 4  CRC32C of the rest
const (
	superblock1Starts = 144
	superblock1CRC    = BlockSize - 4
	superblock1Size   = 2 * BlockSize
)

// decodeSuperblock1 reads a copy of version 1. What it does not say is computed:
// every slot of a volume then says the same of all of them, in whatever order
// they are migrated. The slot is believed to be an original; a start that has seen
// its peers knows better.
func decodeSuperblock1(b []byte) (*Superblock, error) {
	le := binary.LittleEndian
	crc := blockSeal(b, superblock1CRC)
	if stored := le.Uint32(b[superblock1CRC:]); stored != crc {
		return nil, fmt.Errorf("superblock checksum %08x, expected %08x: %w", stored, crc, ErrNotThis)
	}
	s := &Superblock{
		Slot: SlotID(b[10]), Replicas: b[11], Shards: le.Uint16(b[12:]),
		Volume: Volume(b[16:32]), Signed: Volume(b[16:32]), Sequence: le.Uint64(b[32:]),
		SizeBytes: le.Uint64(b[40:]), SegmentBlocks: le.Uint32(b[48:]),
		Promised:   GenerationID{Number: Generation(le.Uint64(b[56:]))},
		Checkpoint: StoreCommit{Sequence: le.Uint64(b[72:])},
		Name:       padded(b[80 : 80+superblockName]), Original: true, older: true,
	}
	if err := s.validate(); err != nil {
		return nil, err
	}
	s.Members.Number = 1
	for i := range s.Members.Slots {
		s.Members.Slots[i] = unnamedIncarnation(s.Volume, SlotID(i))
	}
	s.Incarnation = s.Members.Slots[s.Slot]
	if started := Generation(le.Uint64(b[64:])); started > 0 {
		begin := Begin{GenerationID: GenerationID{Number: started}, Started: true}
		for i := range int(s.Shards) {
			begin.LSNs = append(begin.LSNs, LSN(le.Uint64(b[superblock1Starts+8*i:])))
		}
		s.History = History{begin}
	}
	return s, nil
}

// unnamedIncarnation is that of a slot of version 1.
func unnamedIncarnation(v Volume, slot SlotID) Incarnation {
	sum := sha256.Sum256(append([]byte("trivet slot\x00"), append(v[:], byte(slot))...))
	return Incarnation(sum[:16])
}
