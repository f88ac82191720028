package meta

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// mine opens a store of ours that was made before, and is at that commit.
func mine(sequence uint64) Expect {
	return Expect{Owner: ours, Verify: exactly(identityAt(sequence))}
}

func eachPlace(t *testing.T, test func(t *testing.T, p place)) {
	for _, s := range stores {
		t.Run(s.name, func(t *testing.T) { test(t, s.make(t)) })
	}
}

// grow opens the store, makes commits up to a sequence, and closes it.
func grow(t *testing.T, p place, x Expect, from, to uint64) {
	t.Helper()
	s, err := p.open(x)
	if err != nil {
		t.Fatal(err)
	}
	for sequence := from; sequence <= to; sequence++ {
		if err := s.Commit(t.Context(), named(sequence), []Pair{{Key: []byte("key"), Value: fmt.Append(nil, sequence)}}); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, s)
}

// mustRefuse opens a store that is not the one expected.
func mustRefuse(t *testing.T, p place, x Expect, what string) {
	t.Helper()
	s, err := p.open(x)
	if err == nil {
		closeStore(t, s)
	}
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("%s: %v", what, err)
	}
}

// A store that is not there, or is not the one that it should be, is never opened,
// nor made in silence (hazard 28).
func TestStoreIdentity(t *testing.T) {
	eachPlace(t, func(t *testing.T, p place) {
		mustRefuse(t, p, Expect{Owner: ours}, "an empty place")
		if all, ok := p.look().(files); ok && len(all) > 0 {
			t.Errorf("what was refused was made: %v", all)
		}
		grow(t, p, testBadger.Expect, 1, 0)
		grow(t, p, mine(0), 1, 3)
		older := p.look()
		grow(t, p, mine(3), 4, 6)
		newest := p.look()
		grow(t, p, mine(6), 7, 6)
		mustRefuse(t, p, Expect{Owner: Owner{9}}, "another owner's store")
		mustRefuse(t, p, Expect{Owner: Owner{9}, Create: true}, "another owner's store, when one may be made")
		grow(t, p, mine(6), 7, 6) // and is as it was
		p.put(older)
		mustRefuse(t, p, mine(6), "an older copy")
		p.put(nil)
		mustRefuse(t, p, mine(6), "a store that was removed")
		p.put(newest)
		grow(t, p, mine(6), 7, 7)
	})
}

// What a helper finds when it is started again is verified before any call is let
// through, and does not get better.
func TestRestartMeetsAnother(t *testing.T) {
	for what, lose := range map[string]func(p place, older, other any){
		"nothing":               func(p place, _, _ any) { p.put(nil) },
		"an older copy":         func(p place, older, _ any) { p.put(older) },
		"another owner's store": func(p place, _, other any) { p.put(other) },
	} {
		for _, kind := range stores {
			if kind.name == "badger" {
				continue
			}
			t.Run(kind.name+" "+what, func(t *testing.T) {
				p, q := kind.make(t), kind.make(t)
				grow(t, q, Expect{Owner: Owner{9}, Create: true}, 1, 5)
				grow(t, p, testBadger.Expect, 1, 4)
				older := p.look()
				mustRefuse(t, p, Expect{Owner: ours, Verify: func(id Identity) error {
					return errors.Join(exactly(identityAt(4))(id), exactly(identityAt(5))(id)) // refuses all
				}}, "what Verify refuses")
				last := uint64(4)
				s, err := p.open(Expect{Owner: ours, Verify: func(id Identity) error { return exactly(identityAt(last))(id) }})
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Commit(t.Context(), named(5), []Pair{{Key: []byte("key"), Value: []byte("5")}}); err != nil {
					t.Fatal(err)
				}
				last = 5 // no restart has been asked for yet
				lose(p, older, q.look())
				if m, ok := s.(*Memory); ok {
					m.Restart(0)
				} else {
					kill(t, s)
				}
				for range 3 {
					id, err := s.Identity(context.Background())
					for errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrFailed) {
						id, err = s.Identity(context.Background())
					}
					if !errors.Is(err, ErrCorrupt) || !errors.Is(err, ErrFailed) {
						t.Errorf("it is taken for ours: %v, %v", id, err)
					}
				}
				if err := s.Commit(t.Context(), named(6), nil); !errors.Is(err, ErrCorrupt) {
					t.Errorf("it takes a commit: %v", err)
				}
				closeStore(t, s)
			})
		}
	}
}

// A store whose database vanishes, or is exchanged, while it rests is not opened by
// the next request.
func TestExchangedAtRest(t *testing.T) {
	for what, lose := range map[string]func(d *directory, older any){
		"removed":   func(d *directory, _ any) { must(t, os.RemoveAll(filepath.Join(d.dir, "badger"))) },
		"exchanged": func(d *directory, older any) { d.put(older) },
	} {
		t.Run(what, func(t *testing.T) {
			d := &directory{t: t, dir: t.TempDir()}
			opt := testHelper(d.dir)
			opt.Badger.RestAfter = time.Millisecond
			d.openDir = func(_ string, x Expect) (Store, error) { opt.Badger.Expect = x; return StartHelper(opt) }
			grow(t, d, testBadger.Expect, 1, 3)
			older := d.look()
			grow(t, d, mine(3), 4, 5)
			s, err := d.open(Expect{Owner: ours, Verify: exactly(identityAt(5))})
			if err != nil {
				t.Fatal(err)
			}
			defer closeStore(t, s)
			for logs := []string{"any"}; len(logs) > 0; { // at rest it has none
				logs, err = filepath.Glob(filepath.Join(d.dir, "badger", "*.mem"))
				must(t, err)
			}
			lose(d, older)
			_, err = s.Load(t.Context(), [][]byte{[]byte("key")})
			for errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrCorrupt) {
				_, err = s.Load(t.Context(), [][]byte{[]byte("key")})
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("a load: %v", err)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// makeOlder makes a store of version 1 at a sequence: its state has no names.
func makeOlder(t *testing.T, dir string, sequence uint64) {
	t.Helper()
	e, err := openEngine(dir, testBadger)
	must(t, err)
	b, err := e.begin(Commit{Sequence: sequence})
	must(t, err)
	must(t, b.append(appendPair(nil, Pair{Key: []byte("key"), Value: []byte("older")})))
	must(t, b.commit(func() {}))
	value := state{Identity: Identity{Last: Commit{Sequence: sequence}}, transaction: e.state.transaction}.encodeOlder()
	must(t, e.db.Update(func(txn *badger.Txn) error {
		return txn.Set([]byte{keyState}, seal([]byte{keyState}, value))
	}))
	must(t, e.close())
}

func (s state) encodeOlder() []byte {
	b := s.encode()
	return slices.Concat(b[8:16], b[24:32], b[32:40])
}

// A store of a version without names is opened as one of nobody's; its next commit
// names it.
func TestOlderStore(t *testing.T) {
	eachPlace(t, func(t *testing.T, p place) {
		older := Identity{Last: Commit{Sequence: 5}}
		if d, ok := p.(*directory); ok {
			makeOlder(t, d.dir, 5)
		} else {
			p.put(Contents{pairs: map[string][]byte{"key": []byte("older")}, identity: older})
		}
		s, err := p.open(Expect{Owner: ours, Verify: exactly(older)})
		must(t, err)
		id, err := s.Identity(t.Context())
		if err != nil || !id.Unnamed() || id != older {
			t.Fatalf("%v, %v", id, err)
		}
		values, err := s.Load(t.Context(), [][]byte{[]byte("key")})
		if err != nil || string(values[0]) != "older" {
			t.Fatalf("%q, %v", values, err)
		}
		closeStore(t, s)
		grow(t, p, Expect{Owner: ours, Verify: exactly(older)}, 6, 6)
		grow(t, p, mine(6), 7, 7)
	})
}

// The state record, byte by byte, and one of a later version.
func TestStateRecord(t *testing.T) {
	s := state{Identity: Identity{Owner: ours, Last: Commit{1, 2}}, transaction: 3, applying: Commit{4, 5}}
	want := slices.Concat([]byte{2, 0, 0, 0, 0, 0, 0, 0}, eight(1), eight(2), eight(3), eight(4), eight(5), ours[:])
	if got := s.encode(); !slices.Equal(got, want) {
		t.Errorf("%x, expected %x", got, want)
	}
	if again, err := decodeState(want); err != nil || again != s {
		t.Errorf("%+v, %v", again, err)
	}
	want[0]++
	if _, err := decodeState(want); !errors.Is(err, errVersion) || errors.Is(err, ErrCorrupt) {
		t.Errorf("version 3: %v", err)
	}
	for n := range want {
		if n == stateBytesFirst {
			continue
		}
		want[0] = 2
		if _, err := decodeState(want[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	older := slices.Concat(eight(7), eight(8), eight(0))
	if s, err := decodeState(older); err != nil || s != (state{Identity: Identity{Last: Commit{7, 0}}, transaction: 8}) {
		t.Errorf("version 1: %+v, %v", s, err)
	}
}

func eight(v byte) []byte { return []byte{v, 0, 0, 0, 0, 0, 0, 0} }

// A redo file is applied to the store that it was written for, at the commit that
// it follows, and to nothing else.
func TestRedoOfAnother(t *testing.T) {
	run := appendPair(nil, Pair{Key: []byte("key"), Value: []byte("redone")})
	right := redoTitle{commit: named(6), owner: ours, before: named(5)}
	for what, c := range map[string]struct {
		title redoTitle
		older bool
		want  error
		last  uint64
	}{
		"right":               {title: right, last: 6},
		"applied":             {title: redoTitle{commit: named(5), owner: ours, before: named(4)}, last: 5},
		"of long ago":         {title: redoTitle{commit: named(3), owner: ours, before: named(2)}, last: 5},
		"another owner's":     {title: redoTitle{commit: named(6), owner: Owner{9}, before: named(5)}, want: ErrCorrupt},
		"of another day":      {title: redoTitle{commit: named(8), owner: ours, before: named(7)}, want: ErrCorrupt},
		"of another life":     {title: redoTitle{commit: named(6), owner: ours, before: Commit{5, 99}}, want: ErrCorrupt},
		"with another name":   {title: redoTitle{commit: Commit{5, 99}, owner: ours, before: named(4)}, want: ErrCorrupt},
		"of an older version": {title: right, older: true, want: ErrCorrupt},
	} {
		t.Run(what, func(t *testing.T) {
			d := &directory{t: t, dir: t.TempDir(), openDir: stores[1].make(t).(*directory).openDir}
			grow(t, d, testBadger.Expect, 1, 5)
			r, err := openRedo(filepath.Join(d.dir, "redo"))
			must(t, err)
			must(t, r.begin())
			must(t, r.append(run))
			must(t, r.writeHeader(c.title))
			must(t, r.file.Close())
			if c.older {
				data, err := os.ReadFile(filepath.Join(d.dir, "redo"))
				must(t, err)
				must(t, os.WriteFile(filepath.Join(d.dir, "redo"), olderRedo(data), 0o600))
			}
			s, err := d.open(Expect{Owner: ours})
			if c.want != nil {
				if !errors.Is(err, c.want) {
					t.Errorf("it was applied: %v", err)
				}
				if info, err := os.Stat(filepath.Join(d.dir, "redo")); err != nil || info.Size() == 0 {
					t.Errorf("it was emptied: %v", err)
				}
				return
			}
			must(t, err)
			defer closeStore(t, s)
			if id, err := s.Identity(t.Context()); err != nil || id != identityAt(c.last) {
				t.Errorf("%v, %v", id, err)
			}
		})
	}
}

// TestMadeDurable: a store that is made is durable, its directory's entry in the slot's
// included, before it is open: the superblock relies on that from its first commit on.
func TestMadeDurable(t *testing.T) {
	slot := t.TempDir()
	dir := filepath.Join(slot, "meta")
	synced := make(map[string]bool)
	opt := testBadger
	opt.synced = func(dir string) {
		if _, err := os.Stat(filepath.Join(slot, "meta", "badger", badger.ManifestFilename)); err == nil {
			synced[dir] = true
		}
	}
	s, err := OpenBadger(dir, opt)
	must(t, err)
	defer closeStore(t, s)
	for _, dir := range []string{slot, dir, filepath.Join(dir, "badger")} {
		if !synced[dir] {
			t.Errorf("%s was not synced", dir)
		}
	}
}
