package cache

import (
	"fmt"
	"math/bits"
	"sort"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the size that transparent huge pages need as alignment on the
// machines we run on. Elsewhere it only wastes a little address space.
const hugePage = 2 << 20

// Memory is address space for the caches of all shards, mapped once at start.
// It becomes resident page by page as the caches use it.
type Memory struct {
	mapped []byte // what munmap takes
	usable []byte // from the first huge-page boundary on
}

// Reserve maps sizeBytes of anonymous memory without reserving or touching it.
// 0 is allowed and gives caches that hold nothing.
func Reserve(sizeBytes int64) (*Memory, error) {
	if sizeBytes < 0 {
		return nil, fmt.Errorf("cache: reserve %d bytes: want 0 or more", sizeBytes)
	}
	if sizeBytes == 0 {
		return &Memory{}, nil
	}
	mapped, err := unix.Mmap(-1, 0, int(sizeBytes)+hugePage,
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("cache: reserve %d bytes: mmap: %w", sizeBytes, err)
	}
	// A core dump of the server need not carry the cache. Advice that the
	// kernel does not know costs nothing but its benefit.
	_ = unix.Madvise(mapped, unix.MADV_DONTDUMP)
	skip := int(-uintptr(unsafe.Pointer(&mapped[0])) % hugePage)
	return &Memory{mapped: mapped, usable: mapped[skip : skip+int(sizeBytes)]}, nil
}

// Carve divides the memory into n equal parts, one for New each. Frames are
// put on huge pages, because faulting in 4 KiB at a time costs a third of the
// write throughput; the index is not, because its accesses are spread, and two
// huge pages a shard for the first few blocks would not be idle memory.
func (m *Memory) Carve(n int) [][]byte {
	size := len(m.usable) / n
	if size >= hugePage {
		size -= size % hugePage
	} else {
		size -= size % FrameSize
	}
	parts := make([][]byte, n)
	for i := range parts {
		part := m.usable[i*size : (i+1)*size : (i+1)*size]
		parts[i] = part
		if l := layoutOf(size); l.frames > 0 {
			_ = unix.Madvise(part[:l.entriesAt], unix.MADV_HUGEPAGE)
			_ = unix.Madvise(part[l.entriesAt:], unix.MADV_NOHUGEPAGE)
		}
	}
	return parts
}

// Close unmaps the memory. No cache in it may be used any more, and no read
// may be under way into one of its frames.
func (m *Memory) Close() error {
	if m.mapped == nil {
		return nil
	}
	err := unix.Munmap(m.mapped)
	*m = Memory{}
	if err != nil {
		return fmt.Errorf("cache: munmap: %w", err)
	}
	return nil
}

// layout says where the three arrays of a cache begin in its memory, in bytes;
// the frames begin at 0.
type layout struct {
	frames, buckets      int // counts
	entriesAt, bucketsAt int
}

const (
	entrySize = int(unsafe.Sizeof(entry{}))
	linkSize  = int(unsafe.Sizeof(link(0)))
	maxFrames = 1<<31 - 1 // a link, a frame's number plus one, has 32 bits
)

// layoutOf fits as many frames as possible, with their index, into sizeBytes.
func layoutOf(sizeBytes int) layout {
	atMost := min(sizeBytes/FrameSize, maxFrames)
	frames := sort.Search(atMost, func(n int) bool { return layoutFor(n+1).sizeBytes() > sizeBytes })
	return layoutFor(frames)
}

// layoutFor places n frames and a bucket for each, rounded up to a power of
// two, so that chains have one link on average at the most.
func layoutFor(n int) layout {
	return layout{
		frames:    n,
		buckets:   max(2, 1<<bits.Len(uint(max(n-1, 0)))),
		entriesAt: n * FrameSize,
		bucketsAt: n * (FrameSize + entrySize),
	}
}

func (l layout) sizeBytes() int { return l.bucketsAt + l.buckets*linkSize }
