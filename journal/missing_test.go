package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"trivet/meta"
)

// withoutKey takes a key out of the lane's store, as though the store had lost it
// without a word, and returns what puts everything back.
func (l *testLane) withoutKey(key string) (restore func()) {
	l.w.t.Helper()
	before := l.store.Look()
	id, err := l.store.Identity(context.Background())
	if err == nil {
		err = l.store.Commit(context.Background(), meta.Commit{Sequence: id.Last.Sequence + 1}, []meta.Pair{{Key: []byte(key)}})
	}
	if err != nil {
		l.w.t.Fatal(err)
	}
	return func() { l.store.Replace(before) }
}

// checkpointedWorld has one lane, killed, with everything in its checkpoint.
func checkpointedWorld(t *testing.T, seed uint64) (*world, *testLane) {
	w := startWorld(t, smallWorld(seed, 1))
	for range 250 {
		w.step()
	}
	l := w.lanes[0]
	w.settle()
	l.lane.RequestCheckpoint()
	w.idle()
	w.crash(false)
	return w, l
}

// TestKeysMissed: whatever a lane's store loses of a checkpoint is missed, when the
// lane is recovered or when it is asked for; nothing is taken for a hole (hazard 28).
// What a delta says is missed as long as the lane knows that there is one.
func TestKeysMissed(t *testing.T) {
	kinds := make(map[byte]int)
	for seed := range seeds(4) {
		w, l := checkpointedWorld(t, seed)
		for key := range l.pairs() {
			if key[0] == keyDelta {
				continue
			}
			kinds[key[0]]++
			restore := l.withoutKey(key)
			r, err := l.recover()
			if key[0] == keyPage && err == nil {
				region := Region(binary.BigEndian.Uint64([]byte(key[3:])))
				if found := inspected(t, r); !strings.Contains(fmt.Sprint(found), fmt.Sprintf("region %d: ", region)) {
					t.Errorf("seed %d: a check does not miss the page of region %d: %v", seed, region, found)
				}
				_, err = recovered(r)(region)
			}
			if !errors.Is(err, ErrNotThis) {
				t.Errorf("seed %d: key %x is not missed: %v", seed, key, err)
			}
			restore()
		}
		w.activate(w.recoverAll())
		w.checkAll()
	}
	for _, kind := range []byte{keyLane, keySegment, keyChunk, keyPage} {
		if kinds[kind] == 0 {
			t.Errorf("no key of kind %c was there", kind)
		}
	}
}

// TestPageMissedAtOnce: a lane that runs gives up at the first load that does not
// find what must be there, and at the first load or commit that meets rot.
func TestPageMissedAtOnce(t *testing.T) {
	for what, spoil := range map[string]func(w *world, l *testLane, key string) error{
		"missing": func(_ *world, l *testLane, key string) error { l.withoutKey(key); return nil },
		"rotten": func(_ *world, l *testLane, _ string) error {
			l.store.Inject(func(op meta.Op) error { return fmt.Errorf("%w: %w", ErrNotThis, meta.ErrCorrupt) })
			return meta.ErrCorrupt
		},
		"rotten commit": func(w *world, l *testLane, _ string) error {
			l.store.Inject(func(op meta.Op) error {
				if op != meta.OpCommit {
					return nil
				}
				return fmt.Errorf("%w: %w", ErrNotThis, meta.ErrCorrupt)
			})
			w.add(KindWrite, 0, 1)
			l.lane.RequestCheckpoint()
			w.idle()
			return meta.ErrCorrupt
		},
	} {
		t.Run(what, func(t *testing.T) {
			w, l := checkpointedWorld(t, 1)
			w.activate(w.recoverAll())
			w.idle()
			for key := range l.pairs() {
				region := Region(0)
				if key[0] == keyPage {
					region = Region(binary.BigEndian.Uint64([]byte(key[3:])))
				}
				if p := l.lane.blocks.pages[region]; key[0] != keyPage || p != nil && p.loaded {
					continue
				}
				want := spoil(w, l, key)
				if _, err := l.running()(region); !errors.Is(err, ErrNotThis) || want != nil && !errors.Is(err, want) {
					t.Errorf("region %d reads as something: %v", region, err)
				}
				if n := l.lane.loadFails + l.lane.ckpt.failures; n > 1 {
					t.Errorf("it was tried %d times", n)
				}
				return
			}
			t.Error("every page is loaded")
		})
	}
}

// TestDeltaMissed: a lane that knows that a page has a delta misses it.
func TestDeltaMissed(t *testing.T) {
	missed := 0
	for seed := range seeds(8) {
		cfg := smallWorld(seed, 1)
		cfg.mapBytes = 0 // pages are evicted as soon as they are stored
		w := startWorld(t, cfg)
		for range 300 {
			w.step()
		}
		l := w.lanes[0]
		w.settle()
		l.lane.RequestCheckpoint()
		w.idle()
		for key := range l.pairs() {
			if key[0] != keyDelta {
				continue
			}
			region := Region(binary.BigEndian.Uint64([]byte(key[3:])))
			if l.lane.blocks.pages[region] != nil || !l.lane.blocks.deltas.Has(region) {
				continue
			}
			l.withoutKey(key)
			if _, err := l.running()(region); !errors.Is(err, ErrNotThis) {
				t.Errorf("seed %d: region %d without its delta reads as something: %v", seed, region, err)
			}
			missed++
			break
		}
	}
	if missed == 0 {
		t.Error("no delta was there to be missed")
	}
}
