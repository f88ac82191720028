package cache

import (
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// model is a cache checked against a plain map. The map holds what was last
// written for every address; the cache may have forgotten any of it, but must
// never return anything else.
type model struct {
	cache   *Cache
	written map[uint64]uint64 // address → content, for what may be in the cache
	out     map[Frame]bool    // detached frames
	version uint64            // makes every content unique
}

func fill(frame []byte, content uint64) {
	for at := 0; at < FrameSize; at += 512 {
		binary.LittleEndian.PutUint64(frame[at:], content)
	}
}

func holds(frame []byte, content uint64) bool {
	for at := 0; at < FrameSize; at += 512 {
		if binary.LittleEndian.Uint64(frame[at:]) != content {
			return false
		}
	}
	return len(frame) == FrameSize && cap(frame) == FrameSize
}

func drawLBA(t *rapid.T) uint64 { return rapid.Uint64Range(0, 40).Draw(t, "lba") }

func (m *model) drawOut(t *rapid.T) Frame {
	if len(m.out) == 0 {
		t.Skip("no frame is out")
	}
	frames := make([]Frame, 0, len(m.out))
	for f := range Frame(m.cache.Cap()) {
		if m.out[f] {
			frames = append(frames, f)
		}
	}
	return rapid.SampledFrom(frames).Draw(t, "frame")
}

func (m *model) lookup(t *rapid.T) {
	lba := drawLBA(t)
	frame, ok := m.cache.Lookup(lba)
	if !ok {
		return
	}
	if content, known := m.written[lba]; !known || !holds(frame, content) {
		t.Fatalf("block %d: found something that was not written there last", lba)
	}
}

func (m *model) insert(t *rapid.T) {
	lba := drawLBA(t)
	frame := m.cache.Insert(lba)
	if frame == nil {
		if len(m.out) != m.cache.Cap() {
			t.Fatalf("no frame with %d of %d out", len(m.out), m.cache.Cap())
		}
		return
	}
	m.version++
	fill(frame, m.version)
	m.written[lba] = m.version
	if got, ok := m.cache.Lookup(lba); !ok || !holds(got, m.version) {
		t.Fatalf("block %d: not found right after Insert", lba)
	}
}

func (m *model) detach(t *rapid.T) {
	f, ok := m.cache.Detach()
	if ok == (len(m.out) == m.cache.Cap()) {
		t.Fatalf("Detach reports %v with %d of %d out", ok, len(m.out), m.cache.Cap())
	}
	if !ok {
		return
	}
	if m.out[f] {
		t.Fatalf("frame %d handed out twice", f)
	}
	m.out[f] = true
	m.version++
	fill(m.cache.Bytes(f), m.version) // must not show through any block
}

func (m *model) attach(t *rapid.T) {
	f, lba := m.drawOut(t), drawLBA(t)
	m.version++
	fill(m.cache.Bytes(f), m.version)
	_, present := m.cache.find(lba)
	if m.cache.Attach(lba, f) == present {
		t.Fatalf("block %d: Attach indexes %v over a block that is there %v", lba, !present, present)
	}
	if !present {
		m.written[lba] = m.version
	}
	delete(m.out, f)
}

func (m *model) release(t *rapid.T) {
	f := m.drawOut(t)
	m.cache.Release(f)
	delete(m.out, f)
}

func (m *model) dropRange(t *rapid.T) {
	lba, n := drawLBA(t), rapid.IntRange(0, 50).Draw(t, "n")
	m.cache.DropRange(lba, n)
	for i := range uint64(n) {
		m.forgotten(t, lba+i)
	}
}

func (m *model) drop(t *rapid.T) {
	lba := drawLBA(t)
	m.cache.Drop(lba)
	m.forgotten(t, lba)
}

func (m *model) forgotten(t *rapid.T, lba uint64) {
	if _, ok := m.cache.Lookup(lba); ok {
		t.Fatalf("block %d is there after it was dropped", lba)
	}
	delete(m.written, lba)
}

// check holds the structure against what the operations did: every frame is
// in exactly one place, and the counts agree.
func (m *model) check(t *rapid.T) {
	c := m.cache
	seen := make(map[link]bool)
	for b := range c.buckets {
		for l := c.buckets[b]; l != 0; l = c.entries[l-1].next {
			if seen[l] || !c.entries[l-1].indexed() || c.bucket(c.entries[l-1].lba) != &c.buckets[b] {
				t.Fatalf("bucket %d: frame %d is twice, not indexed or misplaced", b, l-1)
			}
			seen[l] = true
		}
	}
	if len(seen) != c.Len() || c.Len()+len(m.out) > c.Cap() || c.Detached() != len(m.out) {
		t.Fatalf("%d indexed, Len %d, %d out, Detached %d, Cap %d", len(seen), c.Len(), len(m.out), c.Detached(), c.Cap())
	}
	for l := c.vacant; l != 0; l = c.entries[l-1].next {
		if seen[l] || m.out[Frame(l-1)] {
			t.Fatalf("frame %d is vacant and in use", l-1)
		}
		seen[l] = true
	}
	if len(seen)+len(m.out) != c.fresh {
		t.Fatalf("%d of %d used frames are accounted for", len(seen)+len(m.out), c.fresh)
	}
}

// TestModel drives a small cache with random operations.
func TestModel(t *testing.T) {
	memory, err := Reserve(64 * FrameSize)
	if err != nil {
		t.Fatal(err)
	}
	defer closeMemory(t, memory)
	rapid.Check(t, func(t *rapid.T) {
		mem := memory.usable[:rapid.IntRange(0, 40).Draw(t, "pages")*FrameSize]
		clear(mem)
		m := &model{cache: New(mem), written: map[uint64]uint64{}, out: map[Frame]bool{}}
		t.Repeat(map[string]func(*rapid.T){
			"lookup": m.lookup, "insert": m.insert, "detach": m.detach, "attach": m.attach,
			"release": m.release, "drop": m.drop, "dropRange": m.dropRange, "": m.check,
		})
	})
}
