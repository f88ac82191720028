package device

import "trivet/journal"

// The device's cut: a part lies in one region, and with data in one chunk.
const (
	blockBytes  = journal.BlockSize
	regionBytes = journal.RegionBlocks * journal.BlockSize
	chunkBytes  = 256 << 10
)

// shardOf returns the shard of a byte offset: regions go round the shards.
func (d *Device) shardOf(offset uint64) int {
	return int(offset/regionBytes) & (len(d.shards) - 1)
}
