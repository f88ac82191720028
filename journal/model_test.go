package journal

import (
	"fmt"
	"testing"
)

// TestModel runs random records, flushes, time and checkpoints on one lane with
// tiny segments and few pages, crashes at a random step, recovers, and goes on:
// everything that was durable is there, what is there is a prefix of what was
// written, no segment is named that was given back, and live counts are right.
func TestModel(t *testing.T) {
	for seed := range seeds(80) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runModel(t, smallWorld(seed, 1), 6, 250) })
	}
}

// TestModelLargeRecords is TestModel with records of up to half a segment.
func TestModelLargeRecords(t *testing.T) {
	for seed := range seeds(15) {
		cfg := smallWorld(seed, 1)
		cfg.maxCount, cfg.segmentBlocks, cfg.arenaPages, cfg.checkpointBytes = 20, 44, 256, 400*BlockSize
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runModel(t, cfg, 5, 250) })
	}
}

// TestModelThreeLanes is TestModel with three lanes that share one window.
func TestModelThreeLanes(t *testing.T) {
	for seed := range seeds(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runModel(t, smallWorld(seed, 3), 5, 400) })
	}
}

// runModel lives several lives of up to steps steps.
func runModel(t *testing.T, cfg worldConfig, lives, steps int) {
	w := startWorld(t, cfg)
	for range lives {
		for range w.rng.IntN(steps) {
			w.step()
			w.noFaults()
		}
		if w.rng.IntN(3) == 0 {
			w.checkAll()
		}
		w.restart(w.rng.IntN(4) > 0)
	}
	w.checkAll()
}

func (w *world) noFaults() {
	for _, l := range w.lanes {
		if l.lane != nil && l.lane.LastError() != nil {
			w.t.Fatalf("slot %d: %v", l.id.Slot, l.lane.LastError())
		}
	}
}

// restart crashes, recovers, checks what was found and activates it.
func (w *world) restart(power bool) {
	written := make([]LSN, len(w.lanes))
	for i, l := range w.lanes {
		if l.lane.Fault() == nil && !power && l.lane.Written() >= w.start {
			written[i] = l.lane.Written()
		}
	}
	w.crash(power)
	all := w.recoverAll()
	for i, r := range all {
		w.checkRecovered(w.lanes[i], r, written[i])
	}
	w.bringTogether(all)
	for i, r := range all {
		if err := w.check(w.lanes[i], r.Lane.segments, r.Stamp.LSN, recovered(r), nil); err != nil {
			w.t.Fatalf("slot %d, brought together: %v", i, err)
		}
	}
	w.activate(all)
}

// checkRecovered holds a lane against what a crash without rot may leave.
func (w *world) checkRecovered(l *testLane, r *Recovery, written LSN) {
	w.t.Helper()
	switch {
	case r.Damage != nil || len(r.Rotten) > 0:
		w.t.Fatalf("slot %d: damage %v, rotten %v after a crash", l.id.Slot, r.Damage, r.Rotten)
	case r.Stamp.LSN < l.known:
		w.t.Fatalf("slot %d: recovered up to %d, %d was durable", l.id.Slot, r.Stamp.LSN, l.known)
	case r.Stamp.LSN < written:
		w.t.Fatalf("slot %d: recovered up to %d, %d was written and the process only killed", l.id.Slot, r.Stamp.LSN, written)
	case r.Stamp.LSN > LSN(len(w.history)):
		w.t.Fatalf("slot %d: recovered up to %d, there are %d records", l.id.Slot, r.Stamp.LSN, len(w.history))
	}
	if err := w.check(l, r.Lane.segments, r.Stamp.LSN, recovered(r), nil); err != nil {
		w.t.Fatalf("slot %d: %v", l.id.Slot, err)
	}
	for _, found := range inspected(w.t, r) {
		w.t.Errorf("slot %d: a check of the whole lane finds %s", l.id.Slot, found)
	}
}

// inspected returns what a check of a recovered lane finds.
func inspected(t testing.TB, r *Recovery) (found []string) {
	t.Helper()
	c := Check{Of: r, Found: func(place string, err error) { found = append(found, fmt.Sprintf("%s: %v", place, err)) }, Verified: func(int64) {}}
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	return found
}
