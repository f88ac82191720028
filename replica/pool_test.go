package replica

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"trivet/disk"
	"trivet/journal"
)

// TestFileCutShort: a kill while a log file is made leaves a short one. It held
// nothing, so the slot opens without it, and makes it anew when it grows.
func TestFileCutShort(t *testing.T) {
	dir := t.TempDir()
	files, err := disk.Real(dir, disk.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := files.MkdirAll(logDir); err != nil {
		t.Fatal(err)
	}
	grown := newPool(files, 512)
	for range grown.perFile + 1 { // two files
		if _, _, _, err := grown.take(cleaner); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(dir, fileName(1)), 0); err != nil {
		t.Fatal(err)
	}
	p := newPool(files, 512)
	if err := p.discover(); err != nil || p.files != 1 {
		t.Fatalf("%d files, %v", p.files, err)
	}
	var all []uint32
	for s := range p.perFile {
		all = append(all, s)
	}
	if err := p.seed(append(all, p.perFile), all, 1); !errors.Is(err, journal.ErrDamaged) {
		t.Fatalf("a segment in a file that is too short is in use: %v", err)
	}
	if err := p.seed(all, all, 1); err != nil {
		t.Fatal(err)
	}
	s, _, _, err := p.take(cleaner)
	if err != nil || s != p.perFile {
		t.Fatalf("segment %d, %v", s, err)
	}
	if info, err := os.Stat(filepath.Join(dir, fileName(1))); err != nil || info.Size() != p.segmentBytes()*int64(p.perFile) {
		t.Errorf("the file that was made anew: %v, %v", info, err)
	}
	// One that is missing among them is damage.
	if err := os.Rename(filepath.Join(dir, fileName(0)), filepath.Join(dir, fileName(7))); err != nil {
		t.Fatal(err)
	}
	if err := p.discover(); !errors.Is(err, journal.ErrDamaged) {
		t.Errorf("a file that is missing: %v", err)
	}
}

// prunePool makes an empty pool in memory.
func prunePool(t *testing.T) *pool {
	t.Helper()
	files := disk.Memory(1, disk.MemoryOptions{})
	if err := files.MkdirAll(logDir); err != nil {
		t.Fatal(err)
	}
	return newPool(files, 512)
}

// takeN takes n segments.
func takeN(t *testing.T, p *pool, n int) (all []uint32) {
	t.Helper()
	for range n {
		s, _, _, err := p.take(cleaner)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

// TestPruneAfterDiscard: whoever returns the segment that is one too many, the
// next recycle has the pool pruned.
func TestPruneAfterDiscard(t *testing.T) {
	p := prunePool(t)
	all := takeN(t, p, 40)
	for len(p.free) < keptSegments {
		if p.recycle(all[:1]) {
			t.Fatal("to be pruned already")
		}
		all = all[1:]
	}
	p.put(all[:1]) // as a piece of cleaning that failed does
	prune := false
	for _, s := range all[1:] {
		prune = p.recycle([]uint32{s}) || prune
	}
	if !prune {
		t.Errorf("%d segments are free, %d are kept, and nobody is told to prune", len(p.free), keptSegments)
	}
}

// TestPruneKeepsNeeded: what was needed in between is kept, what was not is given
// back, and it goes on until only so many are free as are kept.
func TestPruneKeepsNeeded(t *testing.T) {
	p := prunePool(t)
	all := takeN(t, p, 40)
	if !p.recycle(all[:30]) || p.recycle(all[30:32]) {
		t.Fatal("to be pruned once")
	}
	used := takeN(t, p, 20) // down to some
	low := len(p.free)
	p.put(used)
	again, err := p.prune()
	if err != nil || !again || len(p.holes) != low-p.kept() && len(p.holes) != low-keptSegments {
		t.Fatalf("again %v, %v: %d holes, %d were the fewest free", again, err, len(p.holes), low)
	}
	again, err = p.prune()
	if err != nil || again || len(p.free) != p.kept() {
		t.Fatalf("again %v, %v, %d free", again, err, len(p.free))
	}
	if p.recycle(takeN(t, p, 5)) != (len(p.free) > p.kept()) {
		t.Fatalf("%d are free, %d are kept", len(p.free), p.kept())
	}
}
