package meta

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// residentKiB returns fields of a process's smaps_rollup: Rss, Pss, and so on.
func residentKiB(t testing.TB, pid int) map[string]int {
	t.Helper()
	file, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Skip(err)
	}
	defer file.Close()
	fields := make(map[string]int)
	for lines := bufio.NewScanner(file); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		var kib int
		if _, err := fmt.Sscanf(rest, "%d kB", &kib); err == nil {
			fields[name] = kib
		}
	}
	return fields
}

// What an idle helper keeps resident: of a fresh store, and after 20,000 pairs.
func TestHelperMemory(t *testing.T) {
	s := mustStart(t, testHelper(t.TempDir()))
	defer closeStore(t, s)
	show := func(when string) int {
		m := residentKiB(t, helperPid(s))
		t.Logf("%s: Rss %d KiB, Pss %d, anonymous %d, private dirty %d", when, m["Rss"], m["Pss"], m["Anonymous"], m["Private_Dirty"])
		return m["Rss"]
	}
	show("empty")
	r := rand.New(rand.NewPCG(15, 16))
	if err := s.Commit(context.Background(), named(1), randomPairs(r, 64, 1024)); err != nil {
		t.Fatal(err)
	}
	fresh := show("64 pairs")
	if raceEnabled {
		t.Skip("the race detector's own memory hides the store's")
	}
	for sequence := uint64(2); sequence < 8; sequence++ {
		if err := s.Commit(context.Background(), named(sequence), randomPairs(r, 20_000, 1024)); err != nil {
			t.Fatal(err)
		}
	}
	show("after 6 commits of 20,000 pairs")
	if limit := 20 << 10; fresh > limit {
		t.Errorf("%d KiB resident with a small store, at most %d expected", fresh, limit)
	}
}

// A store nobody asks anything rests: its log is gone from the directory. It
// answers as before, and rests again.
func TestHelperRests(t *testing.T) {
	opt := testHelper(t.TempDir())
	opt.Badger.RestAfter = 20 * time.Millisecond
	s, m := mustStart(t, opt), newModel()
	r := rand.New(rand.NewPCG(17, 18))
	for sequence := uint64(1); sequence <= 8; sequence++ {
		pairs := randomPairs(r, 300, 1500)
		if err := s.Commit(context.Background(), named(sequence), pairs); err != nil {
			t.Fatal(err)
		}
		m.apply(sequence, pairs)
		awaitRest(t, opt.Dir)
		if err := m.check(s); err != nil {
			t.Fatal(err)
		}
	}
	awaitRest(t, opt.Dir)
	use := residentKiB(t, helperPid(s))
	t.Logf("at rest: Rss %d KiB, Pss %d, anonymous %d", use["Rss"], use["Pss"], use["Anonymous"])
	closeStore(t, s)
	s = mustStart(t, opt)
	if err := m.check(s); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
}

func awaitRest(t *testing.T, dir string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for {
		logs, err := filepath.Glob(filepath.Join(dir, "badger", "*.mem"))
		if err != nil {
			t.Fatal(err)
		}
		if len(logs) == 0 {
			return
		}
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatal("the store never rested")
		}
	}
}
