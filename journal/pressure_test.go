package journal

import "testing"

// TestLagOfMap: while a checkpoint is not confirmed, pages cannot go. Before
// they take more than the budget, nothing may be written; and once it succeeds,
// everything may.
func TestLagOfMap(t *testing.T) {
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
	for l.lane.Lag() < FullPressure {
		if write(); next == 2000 {
			t.Fatalf("no lag at %d bytes of %d", l.lane.blocks.unstored(), cfg.mapBytes)
		}
	}
	if n := l.lane.blocks.unstored(); l.commit == nil || n > cfg.mapBytes+16*(pageOverhead+pairOverhead+entryBytes) {
		t.Errorf("at full lag %d bytes of %d are not stored; a commit waits: %v", n, cfg.mapBytes, l.commit != nil)
	}
	l.held = false
	if w.idle(); l.lane.Lag() != 0 || l.lane.Fault() != nil {
		t.Errorf("lag %d, fault %v after the commit", l.lane.Lag(), l.lane.Fault())
	}
	w.checkAll()
}

// TestLagOfReplay: what a restart would have to replay is bounded, though the
// checkpoint that ends it takes its time.
func TestLagOfReplay(t *testing.T) {
	cfg := smallWorld(1, 1)
	cfg.still = true
	w := startWorld(t, cfg)
	l := w.lanes[0]
	l.held = true
	blocks := 0
	for ; l.lane.Lag() < FullPressure; blocks += 2 {
		w.add(KindWrite, 7, 1) // and its descriptor
		w.settle()
		if blocks > 1000 {
			t.Fatal("no lag")
		}
	}
	if got := l.lane.ckpt.before + l.lane.ckpt.since; got < cfg.checkpointBytes || got > cfg.checkpointBytes*5/2 {
		t.Errorf("at full lag %d bytes would be replayed; a checkpoint is made at %d", got, cfg.checkpointBytes)
	}
	l.held = false
	if w.idle(); l.lane.Lag() != 0 {
		t.Errorf("lag %d after the commit", l.lane.Lag())
	}
	w.checkAll()
}

// TestLagOfLoads: a page that was asked for takes as much as those that were loaded
// of late, so a volume whose regions are full lags before its overlays, which are
// small, have become pages that no memory holds; also after a restart in the midst
// of it, and with less memory.
func TestLagOfLoads(t *testing.T) {
	cfg := smallWorld(1, 1)
	cfg.still, cfg.regions, cfg.mapBytes, cfg.checkpointBytes, cfg.records = true, 2000, 1<<20, 1<<40, 512
	w := startWorld(t, cfg)
	l := w.lanes[0]
	for g := range Region(cfg.regions) {
		w.add(KindZero, g.First(), RegionBlocks)
		if g%64 == 63 {
			w.settle()
		}
	}
	l.lane.RequestCheckpoint()
	w.settle()
	l.unloaded = true
	for next := Region(0); l.lane.Lag() < FullPressure; next++ {
		w.add(KindWrite, next.First(), 1)
		if w.settle(); int(next) == cfg.regions/2 {
			t.Fatalf("no lag with %d pages to be loaded, %d bytes", l.lane.blocks.loading, l.lane.blocks.unstored())
		}
	}
	if n := l.lane.blocks.unstored(); n > cfg.mapBytes*5/4 {
		t.Errorf("at full lag %d bytes of %d are not stored", n, cfg.mapBytes)
	}
	l.unloaded, w.cfg.mapBytes = false, cfg.mapBytes/8
	w.restart(false)
	if w.idle(); l.lane.Lag() != 0 || l.lane.Fault() != nil || l.lane.blocks.loading != 0 {
		t.Errorf("lag %d, fault %v, %d loading after a restart", l.lane.Lag(), l.lane.Fault(), l.lane.blocks.loading)
	}
	w.checkAll()
}
