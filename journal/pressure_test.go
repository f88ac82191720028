package journal

import "testing"

// TestPressureOfMap: while a checkpoint is not confirmed, pages cannot go. Before
// they take more than the budget, nothing may be written; and once it succeeds,
// everything may. A lane that is written to all the same, because its peers store
// theirs, is given up.
func TestPressureOfMap(t *testing.T) {
	cfg := smallWorld(1, 1)
	cfg.still, cfg.regions, cfg.mapBytes, cfg.checkpointBytes = true, 4000, 256<<10, 1<<40
	w := startWorld(t, cfg)
	l := w.lanes[0]
	next := Region(0)
	write := func() {
		for range 16 {
			w.add(KindWrite, next.First()+7, 1)
			next++
		}
		w.settle()
	}
	l.held = true
	for l.lane.Pressure() < FullPressure {
		if write(); next == 2000 {
			t.Fatalf("no pressure at %d bytes of %d", l.lane.blocks.unstored(), cfg.mapBytes)
		}
	}
	if n := l.lane.blocks.unstored(); l.commit == nil || n > cfg.mapBytes+16*(pageOverhead+pairOverhead+entryBytes) {
		t.Errorf("at full pressure %d bytes of %d are not stored; a commit waits: %v", n, cfg.mapBytes, l.commit != nil)
	}
	l.held = false
	if w.idle(); l.lane.Pressure() != 0 || l.lane.Fault() != nil {
		t.Errorf("pressure %d, fault %v after the commit", l.lane.Pressure(), l.lane.Fault())
	}
	w.checkAll()

	l.held = true
	for l.lane.Fault() == nil {
		if write(); int(next) > cfg.regions-16 {
			t.Fatalf("%d bytes of %d are not stored, and the lane goes on", l.lane.blocks.unstored(), cfg.mapBytes)
		}
	}
}

// TestPressureOfReplay: what a restart would have to replay is bounded, though the
// checkpoint that ends it takes its time.
func TestPressureOfReplay(t *testing.T) {
	cfg := smallWorld(1, 1)
	cfg.still = true
	w := startWorld(t, cfg)
	l := w.lanes[0]
	l.held = true
	blocks := 0
	for ; l.lane.Pressure() < FullPressure; blocks += 2 {
		w.add(KindWrite, 7, 1) // and its descriptor
		w.settle()
		if blocks > 1000 {
			t.Fatal("no pressure")
		}
	}
	if got := l.lane.ckpt.before + l.lane.ckpt.since; got < cfg.checkpointBytes || got > cfg.checkpointBytes*3/2 {
		t.Errorf("at full pressure %d bytes would be replayed; a checkpoint is made at %d", got, cfg.checkpointBytes)
	}
	l.held = false
	if w.idle(); l.lane.Pressure() != 0 {
		t.Errorf("pressure %d after the commit", l.lane.Pressure())
	}
	w.checkAll()
}
