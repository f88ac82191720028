package replica

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"trivet/disk"
	"trivet/journal"
	"trivet/meta"
)

// storeScript interrupts what a slot does with its superblock and its store, at one
// step. Every effect is a step before it and a step behind it.
type storeScript struct {
	step, at int
	what     storeTrouble
	hit      bool
}

// storeTrouble is what happens at the step.
type storeTrouble uint8

const (
	fails   storeTrouble = iota // the step returns an error, once
	failing                     // it and the next five do
	crashes                     // the host goes down
	lost                        // the helper is killed; a commit under way is lost
	kept                        // the helper is killed; a commit under way is kept
	troubles
)

var errScript = errors.New("scripted")

// hostDown is the panic of a crash.
type hostDown struct{}

func (s *storeScript) now() error {
	s.step++
	last := s.at
	if s.what == failing {
		last += 5
	}
	if s.step < s.at || s.step > last {
		return nil
	}
	s.hit = true
	if s.what == crashes {
		panic(hostDown{})
	}
	return errScript
}

// scriptedFS and scriptedFile are a disk under the script.
type scriptedFS struct {
	disk.FS
	script *storeScript
}

func (f scriptedFS) Open(name string) (disk.File, error) {
	file, err := f.FS.Open(name)
	return scriptedFile{file, f.script}, err
}

type scriptedFile struct {
	disk.File
	script *storeScript
}

func (f scriptedFile) Write(bufs [][]byte, off int64, durable bool) error {
	if err := f.script.now(); err != nil {
		return err
	}
	return errors.Join(f.File.Write(bufs, off, durable), f.script.now())
}

func (f scriptedFile) Sync() error {
	if err := f.script.now(); err != nil {
		return err
	}
	return errors.Join(f.File.Sync(), f.script.now())
}

// scriptedStore is a store in a helper under the script.
type scriptedStore struct {
	*meta.Memory
	script *storeScript
}

// killed reports whether the helper is killed at this step, and starts the next one.
func (s scriptedStore) killed() bool {
	if err := s.script.now(); err == nil {
		return false
	}
	if s.script.what == lost || s.script.what == kept {
		s.Restart(uint64(s.script.what - lost))
	}
	return true
}

func (s scriptedStore) Commit(ctx context.Context, name meta.Commit, pairs []meta.Pair) error {
	if s.killed() {
		return meta.ErrUnavailable
	}
	if err := s.Begin(name, pairs); err != nil {
		return err
	}
	if s.killed() {
		return meta.ErrUnavailable
	}
	if err := s.Finish(); err != nil {
		return err
	}
	if s.killed() {
		return meta.ErrUnavailable
	}
	return nil
}

func (s scriptedStore) Identity(ctx context.Context) (meta.Identity, error) {
	if s.killed() {
		return meta.Identity{}, meta.ErrUnavailable
	}
	return s.Memory.Identity(ctx)
}

// storeWorld is a slot's disk and its store, across crashes.
type storeWorld struct {
	t      *testing.T
	disk   *disk.MemoryFS
	store  *meta.Memory
	script storeScript
	slot   *Slot
	looks  []meta.Contents // after each commit that has succeeded, the empty store first
	made   int             // commits tried
}

func newStoreWorld(t *testing.T) *storeWorld {
	w := &storeWorld{t: t, disk: disk.Memory(1, disk.MemoryOptions{}), store: new(meta.Memory), script: storeScript{at: 1 << 30}}
	g := Geometry{Name: "test", SizeBytes: 64 << 20, Replicas: 1, Shards: 2, SegmentBlocks: 1024}
	s, _, err := openSlot(w.disk, 0, g)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.open(); err != nil {
		t.Fatal(err)
	}
	w.looks = append(w.looks, w.store.Look())
	return w
}

// open opens the slot and its store.
func (w *storeWorld) open() error {
	s, err := ReadSlot(scriptedFS{w.disk, &w.script}, 0, "test")
	if err != nil {
		return err
	}
	if err := w.store.Open(s.Expect()); err != nil {
		return errors.Join(err, s.Close())
	}
	s.Attach(scriptedStore{w.store, &w.script})
	if err := s.checkStore(); err != nil {
		return errors.Join(err, s.Close())
	}
	w.slot = s
	return nil
}

// commits makes commits until the script crashes the host, or there are six.
func (w *storeWorld) commits() {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(hostDown); !ok {
				panic(p)
			}
		}
	}()
	for range 6 {
		w.made++
		key := []byte{'l', 0, byte(w.made % 2)}
		if err := w.slot.commit([]journal.Pair{{Key: key, Value: []byte{byte(w.made)}}}); err == nil {
			w.looks = append(w.looks, w.store.Look())
		}
	}
}

// crash is what a power cut leaves.
func (w *storeWorld) crash(seed uint64) {
	w.disk, w.store = w.disk.CrashClone(seed), w.store.Crash(seed)
	w.script = storeScript{at: 1 << 30}
}

// refused checks that the slot takes no store that was there before its last commit.
func (w *storeWorld) refused() {
	w.t.Helper()
	present := w.store.Look()
	if len(w.looks) == 1 {
		return
	}
	others := append([]meta.Contents{{}, w.twin()}, w.looks[:len(w.looks)-1]...)
	for i, look := range others {
		w.store.Replace(look)
		if err := w.open(); !errors.Is(err, meta.ErrCorrupt) {
			w.t.Fatalf("store %d of %d (none, one of another life, then older ones) is taken: %v", i, len(others), err)
		}
		w.store = w.store.Crash(0)
	}
	w.store.Replace(present)
}

// twin is a store that was at the commit before the last one, and has made another
// one since: as far as numbers go, it is where the slot's own is.
func (w *storeWorld) twin() meta.Contents {
	m := new(meta.Memory)
	m.Replace(w.looks[len(w.looks)-2])
	last, err := w.store.Identity(w.t.Context())
	if err == nil {
		err = m.Commit(w.t.Context(), meta.Commit{Sequence: last.Last.Sequence, Name: 4}, nil)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return m.Look()
}

// TestStoreAnnounced: whatever is cut short while a slot commits, and however, the
// slot knows its own store afterwards, and takes no earlier one for it (hazards 28
// and 40).
func TestStoreAnnounced(t *testing.T) {
	for what := range troubles {
		t.Run(fmt.Sprint("trouble ", what), func(t *testing.T) {
			for at := 1; interrupted(t, at, what); at++ {
				if at > 500 {
					t.Fatal("the script has no end")
				}
			}
		})
	}
}

// interrupted makes commits, the step at of them in trouble, and looks what is left.
// It reports whether there was such a step.
func interrupted(t *testing.T, at int, what storeTrouble) (hit bool) {
	for seed := range uint64(3) {
		w := newStoreWorld(t)
		w.script = storeScript{at: at, what: what}
		w.commits()
		hit = w.script.hit
		w.crash(seed)
		w.refused()
		if err := w.open(); err != nil {
			t.Fatalf("step %d, seed %d: the slot's own store is refused: %v", at, seed, err)
		}
		before := len(w.looks)
		w.commits()
		if n := len(w.looks) - before; n != 6 {
			t.Fatalf("step %d, seed %d: %d of 6 commits succeed afterwards", at, seed, n)
		}
		w.store.Replace(w.looks[len(w.looks)-2])
		w.store.Restart(0)
		if err := w.slot.commit(nil); !errors.Is(err, meta.ErrCorrupt) {
			t.Fatalf("step %d, seed %d: a store that goes back while it is served is taken: %v", at, seed, err)
		}
	}
	if !hit && at < 30 {
		t.Fatalf("only %d steps", at)
	}
	return hit
}

// TestStoreOutcomeUnknown: as long as nobody can tell whether a commit was made, no
// other is announced: the superblock has room for one, and the store may be at it.
func TestStoreOutcomeUnknown(t *testing.T) {
	for _, made := range []bool{false, true} {
		w := newStoreWorld(t)
		w.commits()
		announced := w.slot.super.Announced
		mute := errors.New("mute")
		w.store.Inject(func(op meta.Op) error {
			if op == meta.OpIdentity || (op == meta.OpCommit) != made {
				return mute
			}
			return nil
		})
		for range 3 {
			if err := w.slot.commit(nil); !errors.Is(err, mute) {
				t.Fatalf("commit with an outcome that is not known: %v", err)
			}
			if a := w.slot.super.Announced; announced != (journal.StoreCommit{}) && a != announced {
				t.Fatalf("%v is announced while %v may have been made", a, announced)
			}
			announced = w.slot.super.Announced
		}
		w.store.Inject(nil)
		if err := w.slot.commit(nil); err != nil {
			t.Fatal(err)
		}
		if last := w.slot.super.Checkpoint; last.Sequence <= announced.Sequence || last.Name == announced.Name {
			t.Errorf("commit %v after %v", last, announced)
		}
	}
}

// TestStoreOfOlderSlot: a slot of a version without names takes its store if it is not
// behind, and names it with its first commit.
func TestStoreOfOlderSlot(t *testing.T) {
	older := func(sequence uint64) meta.Contents {
		m := meta.NewMemory()
		for n := range sequence {
			if err := m.Commit(t.Context(), meta.Commit{Sequence: n + 1}, []meta.Pair{{Key: []byte{'l', 0, 0}, Value: []byte{1}}}); err != nil {
				t.Fatal(err)
			}
		}
		return m.Look()
	}
	w := newStoreWorld(t)
	w.slot.super.Checkpoint, w.slot.super.Announced, w.slot.super.StoreOwner = journal.StoreCommit{Sequence: 7}, journal.StoreCommit{}, [16]byte{}
	if err := w.slot.save(true); err != nil {
		t.Fatal(err)
	}
	w.crash(0)
	w.store.Replace(older(6))
	if err := w.open(); !errors.Is(err, meta.ErrCorrupt) {
		t.Fatalf("a store that is behind: %v", err)
	}
	w.store = new(meta.Memory)
	w.store.Replace(older(9))
	if err := w.open(); err != nil {
		t.Fatalf("a store that is ahead: %v", err)
	}
	if err := w.slot.commit(nil); err != nil {
		t.Fatal(err)
	}
	if id, err := w.store.Identity(t.Context()); err != nil || id.Unnamed() || id.Last.Sequence != 10 || id.Owner == (meta.Owner{}) {
		t.Fatalf("%+v, %v", id, err)
	}
	w.crash(0)
	w.store.Replace(older(11))
	if err := w.open(); !errors.Is(err, meta.ErrCorrupt) {
		t.Fatalf("a store without a name in the place of one that has one: %v", err)
	}
}

// TestLaneRecordsMissed: a lane record that is gone is missed, and so is what says
// which there are.
func TestLaneRecordsMissed(t *testing.T) {
	for _, key := range [][]byte{{'l', 0, 1}, {'n'}} {
		w := newStoreWorld(t)
		w.commits()
		last := w.slot.super.Checkpoint
		// As though Badger had lost the key in the last commit, without a word.
		err := w.store.Commit(t.Context(), meta.Commit{Sequence: last.Sequence + 1, Name: 5}, []meta.Pair{{Key: key}})
		if err != nil {
			t.Fatal(err)
		}
		w.slot.super.Checkpoint = journal.StoreCommit{Sequence: last.Sequence + 1, Name: 5}
		if err := w.slot.save(true); err != nil {
			t.Fatal(err)
		}
		w.crash(0)
		if err := w.open(); !errors.Is(err, journal.ErrNotThis) {
			t.Errorf("key %q: %v", key, err)
		}
	}
}
