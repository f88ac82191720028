package sim

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

var (
	flagSeed  = flag.Uint64("sim.seed", 1, "first seed")
	flagN     = flag.Uint64("sim.n", defaultSeeds, "number of seeds")
	flagTrace = flag.Bool("sim.trace", false, "print the whole trace of every seed")
)

// arenaDir returns a directory on tmpfs, if there is one.
func arenaDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "sim-of-trivet-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestSim runs seeds. A failure prints the end of its trace; the whole of it
// comes with -sim.seed=SEED -sim.n=1 -sim.trace.
func TestSim(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // nothing lives long
	dir, cover := arenaDir(t), make(Coverage)
	failed := 0
	for seed := *flagSeed; seed < *flagSeed+*flagN; seed++ {
		opt := Options{Dir: dir}
		if *flagTrace {
			opt.Trace = os.Stdout
		}
		c, err := Run(seed, opt)
		if err != nil {
			t.Errorf("%v\n%s", err, tail(t, seed, dir))
			if failed++; failed == 3 {
				break
			}
			continue
		}
		cover.Add(c)
	}
	for _, name := range slices.Sorted(maps.Keys(cover)) {
		t.Logf("%9d %s", cover[name], name)
	}
	if failed == 0 && *flagN >= 1000 {
		checkCoverage(t, cover)
	}
}

// mustHappen is what a thousand seeds have to have seen: a fault that was never
// hit proves nothing.
var mustHappen = []string{
	"log.append error", "log.append torn", "log.append lost", "log.append misdirect", "log.append flip", "log.sync error",
	"segment.read error", "segment.read flip", "segment.alloc error", "superblock error", "any error", "any crash",
	"metadata call fails", "hang", "bursts", "bytes flipped", "slots blanked", "slots dropped", "slots replaced",
	"slots returned", "returns that failed", "pieces of returns", "pieces copied", "trouble after a return",
	"kills", "power cuts", "clean closes", "killed inside a step", "killed while adopting", "killed while opening", "open failed", "opened with two slots",
	"records that outlived a kill", "segments recycled", "pieces cleaned", "blocks written in part", "arena full", "requests refused: stopped",
}

func checkCoverage(t *testing.T, cover Coverage) {
	for _, name := range mustHappen {
		if cover[name] == 0 {
			t.Errorf("%s: never happened", name)
		}
	}
}

// TestReplay runs a seed twice: the traces must be the same.
func TestReplay(t *testing.T) {
	dir := arenaDir(t)
	for seed := uint64(1); seed <= 5; seed++ {
		var traces [2]bytes.Buffer
		for i := range traces {
			if _, err := Run(seed, Options{Dir: dir, Trace: &traces[i]}); err != nil {
				t.Fatal(err)
			}
			removeAll(t, dir)
		}
		if !bytes.Equal(traces[0].Bytes(), traces[1].Bytes()) {
			t.Errorf("seed %d: two runs differ", seed)
		}
	}
}

// removeAll empties the directory: a run that failed leaves its arena.
func removeAll(t *testing.T, dir string) {
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
}

// tail runs the seed again and returns the last lines of its trace.
func tail(t *testing.T, seed uint64, dir string) string {
	removeAll(t, dir)
	var trace bytes.Buffer
	_, err := Run(seed, Options{Dir: dir, Trace: &trace})
	removeAll(t, dir)
	lines := strings.Split(trace.String(), "\n")
	return fmt.Sprintf("again: %v\n%d lines of trace, the last:\n%s", err, len(lines), strings.Join(lines[max(0, len(lines)-60):], "\n"))
}
