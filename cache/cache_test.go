package cache

import (
	"fmt"
	"os"
	"testing"
)

func closeMemory(t testing.TB, m *Memory) {
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// newCache returns a cache of exactly n frames.
func newCache(t testing.TB, n int) *Cache {
	size := layoutFor(n).sizeBytes()
	memory, err := Reserve(int64(size) + hugePage)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeMemory(t, memory) })
	c := New(memory.Carve(1)[0][:size])
	if c.Cap() != n {
		t.Fatalf("Cap is %d, want %d", c.Cap(), n)
	}
	return c
}

func TestSecondChance(t *testing.T) {
	c := newCache(t, 8)
	for lba := range uint64(8) {
		c.Insert(lba)
	}
	c.Lookup(0)
	c.Lookup(1)
	c.Insert(100)
	if _, ok := c.Lookup(2); ok {
		t.Error("block 2, the first that was not used, is still there")
	}
	for _, lba := range []uint64{0, 1, 3, 100} {
		if _, ok := c.Lookup(lba); !ok {
			t.Errorf("block %d was evicted in place of block 2", lba)
		}
	}
}

// TestScanSparesUsed reads a long range through a cache that holds a few used
// blocks: they must survive.
func TestScanSparesUsed(t *testing.T) {
	c := newCache(t, 256)
	for lba := range uint64(4096) {
		for hot := range uint64(16) {
			if _, ok := c.Lookup(1<<40 + hot); !ok && lba > 0 {
				t.Fatalf("used block %d was evicted by a scan at %d", hot, lba)
			} else if !ok {
				c.Insert(1<<40 + hot)
			}
		}
		c.Insert(lba)
	}
}

// TestEvictionIsBounded proves that one eviction spares maxScan blocks at the
// most, even when all are in use.
func TestEvictionIsBounded(t *testing.T) {
	c := newCache(t, 4*maxScan)
	for lba := range uint64(c.Cap()) {
		c.Insert(lba)
		c.Lookup(lba)
	}
	c.Insert(1 << 30)
	if c.hand != maxScan+1 {
		t.Errorf("the hand moved by %d, want %d", c.hand, maxScan+1)
	}
}

func TestMisuseIsCaught(t *testing.T) {
	c := newCache(t, 4)
	f, _ := c.Detach()
	c.Release(f)
	for name, misuse := range map[string]func(){
		"released twice":    func() { c.Release(f) },
		"attached released": func() { c.Attach(1, f) },
		"misaligned memory": func() { New(c.frames[512:]) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("want a panic")
				}
			}()
			misuse()
		})
	}
}

func TestWithoutFrames(t *testing.T) {
	memory, err := Reserve(0)
	if err != nil {
		t.Fatal(err)
	}
	defer closeMemory(t, memory)
	for _, mem := range append(memory.Carve(4), nil, make([]byte, 100)) {
		c := New(mem)
		c.Drop(1)
		c.DropRange(0, 100)
		_, detached := c.Detach()
		_, found := c.Lookup(1)
		if c.Insert(1) != nil || detached || found || c.Cap() != 0 {
			t.Error("a cache without frames gave one")
		}
	}
}

func TestLayoutFits(t *testing.T) {
	for size := 0; size < 3000*FrameSize; size += 1999 {
		l := layoutOf(size)
		if l.frames > 0 && l.sizeBytes() > size {
			t.Fatalf("%d bytes: the index ends at %d", size, l.sizeBytes())
		}
		if layoutFor(l.frames+1).sizeBytes() <= size {
			t.Fatalf("%d bytes: %d frames, one more would fit", size, l.frames)
		}
	}
}

// residentBytes returns the process's resident set.
func residentBytes(t *testing.T) int {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize()
}

// TestIdleIsFree reserves 4 GiB for 16 shards: nothing may become resident, and
// the first blocks only a little.
func TestIdleIsFree(t *testing.T) {
	before := residentBytes(t)
	memory, err := Reserve(4 << 30)
	if err != nil {
		t.Fatal(err)
	}
	defer closeMemory(t, memory)
	caches := make([]*Cache, 0, 16)
	for _, mem := range memory.Carve(16) {
		caches = append(caches, New(mem))
	}
	if grown := residentBytes(t) - before; grown > 2<<20 {
		t.Errorf("%d bytes became resident, want under 2 MiB", grown)
	}
	for i, c := range caches {
		for lba := range uint64(4) {
			fill(c.Insert(lba<<20), uint64(i))
		}
	}
	if grown := residentBytes(t) - before; grown > 16*3<<20 {
		t.Errorf("%d bytes became resident for 64 blocks, want under 3 MiB a shard", grown)
	}
	if c := caches[15].Cap(); c < 65000 {
		t.Errorf("256 MiB make %d frames, want 65000 or more", c)
	}
}

// TestSteadyStateDoesNotAllocate runs every operation on a full cache.
func TestSteadyStateDoesNotAllocate(t *testing.T) {
	c := newCache(t, 128)
	lba := uint64(0)
	if n := testing.AllocsPerRun(1000, func() {
		lba++
		c.Insert(lba)
		c.Lookup(lba)
		if f, ok := c.Detach(); ok && !c.Attach(lba+1<<20, f) {
			t.Error("not attached")
		}
		if f, ok := c.Detach(); ok {
			c.Release(f)
		}
		c.DropRange(lba-3, 2)
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}
