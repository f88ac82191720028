package device

// The bounds of what Options.Memory is divided into. The arena and the map's
// pages get a quarter each, until they have what serves any load; the block
// cache, which can use any memory, gets the rest.
const (
	defaultArenaBytes = 64 << 20
	leastArenaBytes   = 8 << 20
	mostPageBytes     = 96 << 20
	leastPageBytes    = 8 << 20
	leastCacheBytes   = 8 << 20
)

// MinMemory is the least Options.Memory in bytes; less counts as that.
const MinMemory = leastArenaBytes + leastPageBytes + leastCacheBytes

// arenaBytes is the size of an arena that is made.
func (d *Device) arenaBytes() int64 {
	if d.opt.Memory == 0 {
		return defaultArenaBytes
	}
	return int64(max(leastArenaBytes, min(defaultArenaBytes, d.opt.Memory/4)))
}

// mapBytes is what the map's pages may take, over all lanes.
func (o *Options) mapBytes() uint64 {
	if o.Memory == 0 {
		return mostPageBytes
	}
	return max(leastPageBytes, min(mostPageBytes, o.Memory/4))
}

// cacheShare is what the arena and the map's pages leave to the block cache;
// without a budget, what can be of use and the machine can spare.
func (o *Options) cacheShare(arenaBytes, volumeBytes uint64) uint64 {
	if o.Memory == 0 {
		return max(leastCacheBytes, min(volumeBytes+volumeBytes/32, physicalMemory()/8))
	}
	taken := arenaBytes + o.mapBytes()
	return max(leastCacheBytes, o.Memory-min(o.Memory, taken))
}

// MapShare is how much of a budget the map's pages may take, in bytes: they are
// on the Go heap, while arena and cache are mapped.
func MapShare(memory uint64) uint64 { return (&Options{Memory: memory}).mapBytes() }
