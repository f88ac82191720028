package meta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// files is the content of a store's directory, by relative name; trailing zeros
// of preallocated logs are left out.
type files map[string]fileImage

type fileImage struct {
	size int64
	data []byte
}

func readFiles(t testing.TB, dir string) files {
	t.Helper()
	all := make(files)
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		all[name] = fileImage{int64(len(data)), bytes.TrimRight(data, "\x00")}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (all files) write(t testing.TB, dir string) {
	t.Helper()
	for name, image := range all {
		path := filepath.Join(dir, name)
		if err := errors.Join(
			os.MkdirAll(filepath.Dir(path), 0o700),
			os.WriteFile(path, image.data, 0o600),
			os.Truncate(path, image.size),
		); err != nil {
			t.Fatal(err)
		}
	}
}

// seasonedStore makes a store with tables of two levels, a log, and versions
// that hide older ones, as a killed helper leaves it.
func seasonedStore(t *testing.T) (files, *model) {
	dir, m := t.TempDir(), newModel()
	r := rand.New(rand.NewPCG(7, 8))
	commit := func(s Store, count int) {
		pairs := randomPairs(r, count, 1500)
		if err := s.Commit(context.Background(), named(m.sequence+1), pairs); err != nil {
			t.Fatal(err)
		}
		m.apply(m.sequence+1, pairs)
	}
	for range compactAt + 2 { // each close leaves a table
		s := mustStart(t, testHelper(dir))
		commit(s, 300)
		closeStore(t, s)
	}
	opt := testHelper(dir)
	opt.Restarts = -1
	s := mustStart(t, opt)
	for range 4 {
		commit(s, 100)
	}
	kill(t, s)
	for helperAlive(s) {
	}
	closeStore(t, s)
	return readFiles(t, dir), m
}

var errFellBehind = errors.New("not the last commit")

// exactly is what a caller verifies who knows the last commit.
func exactly(want Identity) func(Identity) error {
	return func(id Identity) error {
		if id != want {
			return fmt.Errorf("%v, expected %v: %w", id, want, errFellBehind)
		}
		return nil
	}
}

// One byte is flipped, in any file, at any place. The store does not open, or
// an error tells, or it has fallen behind, which the caller verifies; what it does
// return is right.
func TestFlippedByte(t *testing.T) {
	all, m := seasonedStore(t)
	r := rand.New(rand.NewPCG(9, 10))
	outcomes := make(map[string]int)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		image := all[name]
		if len(image.data) == 0 {
			continue
		}
		rounds := min(12, len(image.data))
		if strings.HasSuffix(name, ".mem") || strings.HasSuffix(name, "MANIFEST") {
			rounds *= 2
		}
		if strings.HasSuffix(name, ".sst") {
			rounds = min(6, rounds) // there are many
		}
		if raceEnabled {
			rounds = rounds/4 + 1
		}
		for range rounds {
			at := r.IntN(len(image.data))
			if r.IntN(4) == 0 { // headers and footers
				at = (at%64 + max(0, len(image.data)-32)) % len(image.data)
			}
			outcome, err := m.tryFlip(t, all, name, at, byte(1<<r.IntN(8)))
			if err != nil {
				t.Errorf("%s, byte %d of %d: %v", name, at, len(image.data), err)
			}
			outcomes[filepath.Ext(name)+" "+outcome]++
		}
	}
	t.Log(outcomes)
}

func (m *model) tryFlip(t *testing.T, all files, name string, at int, mask byte) (outcome string, err error) {
	dir := t.TempDir()
	all.write(t, dir)
	flipped := bytes.Clone(all[name].data)
	flipped[at] ^= mask
	files{name: {all[name].size, flipped}}.write(t, dir)

	opt := testHelper(dir)
	opt.Restarts, opt.Stderr = -1, io.Discard
	opt.Badger.Expect = Expect{Owner: ours, Verify: exactly(identityAt(m.sequence))}
	s, err := StartHelper(opt)
	if errors.Is(err, errFellBehind) {
		return "fell behind", nil
	}
	if err != nil {
		return "does not open", nil
	}
	defer s.Close()
	return m.checkHonest(s)
}

// checkHonest is check for a store that may return errors, but nothing wrong.
func (m *model) checkHonest(s Store) (outcome string, err error) {
	wrong := func(err error) bool {
		return err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrFailed)
	}
	outcome = "right"
	for _, check := range []func(Store) error{
		m.checkLoads,
		func(s Store) error { return m.checkScan(s, "") },
		func(s Store) error { return m.checkScan(s, "b") },
	} {
		err := check(s)
		if wrong(err) {
			return "wrong", err
		}
		if err != nil {
			outcome = "read error"
		}
	}
	return outcome, nil
}

// Two logs are there after a crash during a flush, and the older one has rotted
// at its end: the sequence, in the newer one, looks right, and only the missing
// transactions tell.
func TestRotBehindNewerLog(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	opt := testHelper(dir)
	opt.Restarts = -1
	grow := func(from, to uint64) files {
		s := mustStart(t, opt)
		for sequence := from; sequence <= to; sequence++ {
			pair := Pair{Key: fmt.Appendf(nil, "%d", sequence), Value: []byte("value")}
			if err := s.Commit(ctx, named(sequence), []Pair{pair}); err != nil {
				t.Fatal(err)
			}
		}
		kill(t, s)
		for helperAlive(s) {
		}
		closeStore(t, s)
		return readFiles(t, dir)
	}
	both := grow(1, 20)
	older := onlyLog(t, both)
	for name, image := range grow(21, 25) {
		if strings.HasSuffix(name, ".mem") {
			both["badger/00009.mem"] = image // Badger began counting anew
		}
	}
	reopen := func(all files) (Identity, error) {
		opt := opt
		opt.Dir = t.TempDir()
		all.write(t, opt.Dir)
		s, err := StartHelper(opt)
		if err != nil {
			return Identity{}, err
		}
		defer closeStore(t, s)
		return s.Identity(ctx)
	}
	if id, err := reopen(both); err != nil || id != identityAt(25) {
		t.Fatalf("two whole logs: %v, %v", id, err)
	}
	rotten := both[older]
	rotten.data = bytes.Clone(rotten.data)
	rotten.data[len(rotten.data)-1000] ^= 1
	both[older] = rotten
	if _, err := reopen(both); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("rotten older log: %v", err)
	}
}

func onlyLog(t *testing.T, all files) string {
	t.Helper()
	log := ""
	for name := range all {
		if strings.HasSuffix(name, ".mem") {
			if log != "" {
				t.Fatalf("two logs, %s and %s", log, name)
			}
			log = name
		}
	}
	return log
}
