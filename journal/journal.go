// Package journal is a lane's store: one replica's share of one shard. The log
// is the store; there is no second copy of the data.
//
// A lane appends batches to segments. A batch is one descriptor block followed
// by the data blocks that it describes, and goes out in one write:
//
//	segment   ┌────────┬──────┬──────┬──────┬──────┬──────┬──────┬─ ─ ─┐
//	          │ header │ desc │ data │ data │ desc │ data │ desc │ old │
//	          └────────┴──────┴──────┴──────┴──────┴──────┴──────┴─ ─ ─┘
//	          block 0    1      2      3      4      5      6 (a mark: no data)
//
// What a crash leaves. A process that is killed loses nothing that was
// written. After a power cut every batch up to the lane's durable LSN is
// there; the first batch behind it that is torn ends the log. Which of the two
// a damaged batch is, a torn tail or rot, is told by the durable marks that
// every descriptor carries for all slots of its shard. Recovery always begins
// a new segment and deletes nothing.
//
// Lane is a state machine without I/O, clock or goroutine: its owner, the
// shard, calls it with what happened and the time, and it hands operations to
// an Executor, which reports back through the shard. Everything a Lane holds
// is touched by the shard's owner alone.
package journal

import "hash/crc32"

// BlockSize is the unit of the map and of the log, in bytes.
const BlockSize = 4096

// RegionBlocks is the number of blocks in a region (1 MiB): the unit in which
// the address space is spread over shards and the block map is stored.
const RegionBlocks = 256

// MaxSlots is the number of replicas that a descriptor has room for.
const MaxSlots = 3

// LBA is the address of a block of the device: its byte offset / BlockSize.
type LBA uint64

// Region returns the region that the block lies in.
func (a LBA) Region() Region { return Region(a / RegionBlocks) }

// Index returns the block's place in its region.
func (a LBA) Index() int { return int(a % RegionBlocks) }

// Region is the number of a region: its byte offset / 1 MiB.
type Region uint64

// First returns the region's first block.
func (r Region) First() LBA { return LBA(r) * RegionBlocks }

// LSN numbers the records of a shard, from 1 on, without gaps inside a
// generation. 0 is 'nothing yet'.
type LSN uint64

// Generation is incremented by every activation of the volume, from 1 on.
type Generation uint64

// SlotID is one of the three replicas: 0, 1 or 2.
type SlotID uint8

// LaneID names one slot's share of one shard.
type LaneID struct {
	Slot  SlotID
	Shard uint16
}

// Stamp tells which record was the last to change something. Stamps are
// ordered by generation, then by LSN.
type Stamp struct {
	Generation Generation
	LSN        LSN
}

// Less tells whether s is older than t.
func (s Stamp) Less(t Stamp) bool {
	if s.Generation != t.Generation {
		return s.Generation < t.Generation
	}
	return s.LSN < t.LSN
}

// Volume identifies the volume that a file belongs to.
type Volume [16]byte

// Kind is what a record does to its blocks.
type Kind uint8

// The kinds of a record. The zero Kind is invalid, so that zeroed memory is
// never taken for a record.
const (
	KindWrite Kind = iota + 1 // blocks with payload
	KindTrim                  // the blocks become holes
	KindZero                  // the blocks read as zeros and stay allocated
	KindNote                  // no blocks: it exists to carry a descriptor
	KindCopy                  // blocks copied from a peer; consumes no LSN
)

func (k Kind) valid() bool      { return k >= KindWrite && k <= KindCopy }
func (k Kind) hasPayload() bool { return k == KindWrite || k == KindCopy }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC32C of a block's content.
func Checksum(block []byte) uint32 { return crc32.Checksum(block, castagnoli) }
