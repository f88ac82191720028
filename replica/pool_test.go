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
