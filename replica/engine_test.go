package replica

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"trivet/disk"
	"trivet/inject"
	"trivet/journal"
	"trivet/meta"
)

// testSlot makes a blank slot in a directory of its own, with an in-process
// store, and rules for its disk.
func testSlot(t *testing.T) (*Slot, *inject.Set) {
	t.Helper()
	faults := inject.NewSet(1, time.Now)
	real, err := disk.Real(t.TempDir(), disk.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	files := disk.Faulty(real, faults, 0, disk.FaultyOptions{})
	g := Geometry{Name: "test", SizeBytes: 64 << 20, Replicas: 3, Shards: 2, SegmentBlocks: 1024}
	s, _, err := openSlot(files, 0, g)
	if err != nil {
		t.Fatal(err)
	}
	store := new(meta.Memory)
	if err := store.Open(s.Expect()); err != nil {
		t.Fatal(err)
	}
	s.Attach(store)
	return s, faults
}

// TestEngineErrors holds that the error of an operation is the worker's: what
// the submitter learnt from the pool must not replace it, or a checkpoint that
// was not stored would count as stored.
func TestEngineErrors(t *testing.T) {
	s, faults := testSlot(t)
	e := StartEngine(s)
	rule, err := inject.Parse("segment.alloc error=ENOSPC")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := faults.Add(rule); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		done := make(chan struct{})
		p := &journal.Prepare{Done: func() { close(done) }}
		e.Prepare(p)
		<-done
		if !errors.Is(p.Err, syscall.ENOSPC) || p.Got != nil {
			t.Fatalf("prepare on a full disk: segment %v, error %v; expected ENOSPC", p.Got, p.Err)
		}
	}
	faults.Clear()
	if !e.Close(5 * time.Second) {
		t.Fatal("the engine's goroutines have not ended")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	p := &journal.Prepare{Done: func() { close(done) }}
	if e.Prepare(p); p.Err == nil {
		t.Error("prepare after close has no error")
	}
	<-done
}
