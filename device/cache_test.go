package device

import "testing"

// TestStreamsPassTheCache: what is read from disk in small pieces is kept in
// memory; what is read in large ones is not, and finds what is there.
func TestStreamsPassTheCache(t *testing.T) {
	const size = 4 << 20
	v := newVolume(t, func(o *Options) { o.Memory = 64 << 20 })
	for at := uint64(0); at < size; at += 1 << 20 {
		v.must(v.write(at, pattern(int(at>>20), 1<<20), 0))
	}
	v.reopen()
	misses := func(from, piece uint64) uint64 {
		t.Helper()
		before := v.Snapshot().Counters.CacheMisses
		for at := from; at < from+1<<20; at += piece {
			v.expect(at, pattern(int(from>>20), 1<<20)[at-from:][:piece])
		}
		return v.Snapshot().Counters.CacheMisses - before
	}
	const blocks = 1 << 20 / blockBytes
	for _, c := range []struct {
		name               string
		from, piece, wants uint64
	}{
		{"small reads", 0, 64 << 10, blocks},
		{"the small ones again", 0, 64 << 10, 0},
		{"large reads of it", 0, 1 << 20, 0},
		{"large reads", 1 << 20, 1 << 20, blocks},
		{"the same again", 1 << 20, 1 << 20, blocks},
		{"small reads of it", 1 << 20, 4 << 10, blocks},
		{"those again", 1 << 20, 4 << 10, 0},
	} {
		if got := misses(c.from, c.piece); got != c.wants {
			t.Errorf("%s: %d blocks came from disk, expected %d", c.name, got, c.wants)
		}
	}
}
