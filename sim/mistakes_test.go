package sim

import (
	"os"
	"testing"
)

// runMistakes runs one seed: a volume is written, stopped, killed or loses power,
// an operator makes a mistake, and takes it back.
func runMistakes(seed uint64, opt Options) (Coverage, error) {
	w := newWorld(seed, opt)
	w.calm = true
	err := w.attempt(func() {
		w.create()
		if err := w.open(-1); err != nil {
			w.fail("open a new volume: %v", err)
		}
		w.started, w.line = true, new(line)
		w.opened()
		var past []*image
		for range 6 {
			past = w.mistaken(past)
		}
		w.finish()
	})
	return w.cover, err
}

// mistaken lets the volume be used, and one mistake be made with it at rest. The
// volume is served before and after it.
func (w *world) mistaken(past []*image) []*image {
	w.use()
	if w.rng.IntN(3) == 0 {
		past = append(past, w.image()) // of the volume as it runs
		w.use()
	}
	end := w.rng.IntN(3)
	if end == endClose {
		w.quieten()
		w.srv.close()
	} else {
		w.crash(end == endCut)
	}
	m := w.image()
	past = append(past, m)
	switch draw := w.rng.IntN(6); {
	case draw == 0 && end == endClose:
		w.survive()
	case draw == 1:
		w.replaceKilled()
	default:
		v := w.mistake(m, past)
		served := w.start(v)
		if served && v.newer {
			w.crash(true)
		} else if served {
			w.use()
			odd := w.image()
			odd.whole = false
			past = append(past, odd)
			w.srv.close()
		}
		if v.undo || !served || w.rng.IntN(2) == 0 {
			w.undo(m)
		}
	}
	w.reopen()
	w.line = &line{before: w.line}
	w.verify(0)
	return past
}

// use lets a client write, trim and flush.
func (w *world) use() {
	c := w.clients[0]
	for range 1 + w.rng.IntN(12) {
		c.issue()
		if w.rng.IntN(3) == 0 {
			w.drain()
		}
	}
	w.drain()
	if w.rng.IntN(2) == 0 {
		c.flush()
		w.drain()
	}
}

// TestSimMistakes: whatever an operator does to the slots at rest, the volume
// serves the bytes of one life, or refuses and changes nothing.
func TestSimMistakes(t *testing.T) {
	dir, cover := arenaDir(t), make(Coverage)
	failed := 0
	for seed := *flagSeed; seed < *flagSeed+(*flagN+3)/4 && failed < 3; seed++ {
		opt := Options{Dir: dir}
		if *flagTrace {
			opt.Trace = os.Stdout
		}
		c, err := runMistakes(seed, opt)
		if err != nil {
			t.Errorf("seed %d %v", seed, err)
			failed++
			continue
		}
		cover.Add(c)
	}
	for _, name := range []string{
		"served", "refused", "two slots lost", "slots put back from a copy", "volumes put back from a copy", "two slots put back, the third there",
		"two slots put back, the third away", "two slots swapped", "one slot away", "one slot emptied", "killed while a survivor was opened",
		"killed while a slot was replaced", "arenas set aside", "stores put back from a copy",
		"stores that are another slot's, or empty", "slots set aside", "killed at a store in the arena",
	} {
		t.Logf("%9d %s", cover[name], name)
		if cover[name] == 0 && failed == 0 && *flagN >= 1000 {
			t.Errorf("%s: never happened", name)
		}
	}
}
