package device

import (
	"math/bits"
	"runtime"

	"trivet/journal"
)

// What a volume has open, besides the files of the log that it has read from.
const (
	volumeDescriptors = 32 // of the process: standard files, polling, events, the arena
	slotDescriptors   = 8  // superblock, lock, helper, completions
	laneDescriptors   = 4  // segments: the open one, the next, the last, and the cleaner's
)

// Descriptors returns how many file descriptors the volume needs at least, with how
// many shards and slots that is. More are needed to read from a long log.
func Descriptors(o Options) (count, shards, slots int) {
	shards, slots = o.Shards, o.Replicas
	if slots == 0 {
		slots = journal.MaxSlots
	}
	// What cannot be read now is for Open to judge.
	if l, err := (&Device{opt: o}).locate(); err == nil {
		shards, slots = l.geometry.Shards, l.geometry.Replicas
	}
	if shards == 0 {
		shards = defaultShards()
	}
	return volumeDescriptors + slots*(slotDescriptors+laneDescriptors*shards), shards, slots
}

// defaultShards is how many shards a new volume has by the number of cores.
func defaultShards() int { return max(2, 1<<bits.Len(uint(runtime.NumCPU()-1))) }
