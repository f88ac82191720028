package meta

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// stores are the implementations that share this suite.
var stores = []struct {
	name string
	make func(t testing.TB) place
}{
	{"memory", func(testing.TB) place { return &memoryPlace{m: &Memory{}} }},
	{"badger", func(t testing.TB) place {
		return &directory{t: t, dir: t.TempDir(), openDir: func(dir string, x Expect) (Store, error) {
			opt := testBadger
			opt.Expect = x
			return OpenBadger(dir, opt)
		}}
	}},
	{"helper", func(t testing.TB) place {
		return &directory{t: t, dir: t.TempDir(), openDir: func(dir string, x Expect) (Store, error) {
			opt := testHelper(dir)
			opt.Badger.Expect = x
			return StartHelper(opt)
		}}
	}},
}

// place is where a store is, empty at first.
type place interface {
	// open opens the store; the one before was closed.
	open(Expect) (Store, error)
	// look returns what is there, and put makes something else be there. nil is
	// an empty place. No store may be open.
	look() any
	put(any)
}

type memoryPlace struct{ m *Memory }

func (p *memoryPlace) open(x Expect) (Store, error) {
	p.m = p.m.Crash(0)
	return p.m, p.m.Open(x)
}
func (p *memoryPlace) look() any { return p.m.Look() }
func (p *memoryPlace) put(c any) {
	contents, _ := c.(Contents)
	p.m.Replace(contents)
}

type directory struct {
	t       testing.TB
	dir     string
	openDir func(dir string, x Expect) (Store, error)
}

func (d *directory) open(x Expect) (Store, error) { return d.openDir(d.dir, x) }
func (d *directory) look() any                    { return readFiles(d.t, d.dir) }
func (d *directory) put(c any) {
	if err := os.RemoveAll(d.dir); err != nil {
		d.t.Fatal(err)
	}
	all, _ := c.(files)
	all.write(d.t, d.dir)
}

// testBadger makes a store of ours where there is none.
var testBadger = BadgerOptions{MinFreeBytes: 32 << 20, ReserveBytes: -1, Expect: Expect{Owner: ours, Create: true}}

func testHelper(dir string) HelperOptions {
	self := selfPath()
	return HelperOptions{
		Dir: dir, Badger: testBadger, Command: []string{self}, Env: []string{helperEnv},
	}
}

func mustOpen(t testing.TB, p place) Store {
	t.Helper()
	s, err := p.open(testBadger.Expect)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustStart(t testing.TB, opt HelperOptions) Store {
	t.Helper()
	s, err := StartHelper(opt)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func eachStore(t *testing.T, test func(t *testing.T, open func() Store)) {
	for _, s := range stores {
		t.Run(s.name, func(t *testing.T) {
			p := s.make(t)
			test(t, func() Store { return mustOpen(t, p) })
		})
	}
}

func closeStore(t testing.TB, s Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// model is what a store should hold.
type model struct {
	pairs    map[string]string
	sequence uint64
}

// named is the name that the tests give to the commit of a sequence.
func named(sequence uint64) Commit { return Commit{sequence, sequence*0x9e3779b97f4a7c15 + 1} }

// ours is the owner of the stores under test.
var ours = Owner{1, 2, 3, 15: 4}

// identityAt is the identity of a store of ours.
func identityAt(sequence uint64) Identity {
	if sequence == 0 {
		return Identity{Owner: ours}
	}
	return Identity{Owner: ours, Last: named(sequence)}
}

func newModel() *model { return &model{pairs: make(map[string]string)} }

func (m *model) apply(sequence uint64, pairs []Pair) {
	for _, p := range pairs {
		if p.Value == nil {
			delete(m.pairs, string(p.Key))
		} else {
			m.pairs[string(p.Key)] = string(p.Value)
		}
	}
	m.sequence = sequence
}

func (m *model) clone() *model {
	return &model{pairs: maps.Clone(m.pairs), sequence: m.sequence}
}

// check compares everything: the sequence, a scan, and loads of present and
// absent keys.
func (m *model) check(s Store) error {
	ctx := context.Background()
	id, err := s.Identity(ctx)
	if err != nil {
		return err
	}
	if id != identityAt(m.sequence) {
		return fmt.Errorf("identity %v, expected %v", id, identityAt(m.sequence))
	}
	if err := m.checkScan(s, ""); err != nil {
		return err
	}
	return m.checkLoads(s)
}

func (m *model) checkLoads(s Store) error {
	keys := [][]byte{[]byte("no such key")}
	for key := range m.pairs {
		keys = append(keys, []byte(key))
	}
	values, err := s.Load(context.Background(), keys)
	if err != nil {
		return err
	}
	for i, key := range keys {
		want, present := m.pairs[string(key)]
		if string(values[i]) != want || (values[i] != nil) != present {
			return fmt.Errorf("load %q: %d bytes (present %v), expected %d (%v)",
				key, len(values[i]), values[i] != nil, len(want), present)
		}
	}
	return nil
}

func (m *model) checkScan(s Store, prefix string) error {
	var want, found []string
	for key := range m.pairs {
		if len(key) >= len(prefix) && key[:len(prefix)] == prefix {
			want = append(want, key)
		}
	}
	slices.Sort(want)
	err := s.Scan(context.Background(), []byte(prefix), func(key, value []byte) error {
		if m.pairs[string(key)] != string(value) {
			return fmt.Errorf("scan %q: wrong value of %q", prefix, key)
		}
		found = append(found, string(key))
		return nil
	})
	if err != nil {
		return err
	}
	if !slices.Equal(found, want) {
		return fmt.Errorf("scan %q: %d keys, expected %d", prefix, len(found), len(want))
	}
	return nil
}

// randomPairs draws count pairs from a key space that makes them collide.
func randomPairs(r *rand.Rand, count, maxValue int) []Pair {
	pairs := make([]Pair, count)
	for i := range pairs {
		key := fmt.Appendf(nil, "%c%05d", 'a'+r.IntN(4), r.IntN(4*count+10))
		pairs[i] = Pair{Key: key}
		if r.IntN(8) != 0 {
			pairs[i].Value = bytes.Repeat(binary.LittleEndian.AppendUint64(nil, r.Uint64()), maxValue/8+1)[:r.IntN(maxValue+1)]
		}
	}
	return pairs
}

func TestStoreFollowsModel(t *testing.T) {
	eachStore(t, func(t *testing.T, open func() Store) {
		r := rand.New(rand.NewPCG(1, 2))
		m, s := newModel(), open()
		for step := range 60 {
			pairs := randomPairs(r, r.IntN(100), 2000)
			if step%20 == 19 {
				pairs = randomPairs(r, 3000, 2000) // beyond one transaction
			}
			sequence := m.sequence + 1 + r.Uint64N(3)
			if err := s.Commit(context.Background(), named(sequence), pairs); err != nil {
				t.Fatal(err)
			}
			m.apply(sequence, pairs)
			if step%10 == 9 {
				closeStore(t, s)
				s = open()
			}
			if step%5 != 4 {
				continue
			}
			if err := m.checkLoads(s); err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
			if err := m.checkScan(s, string(rune('a'+step%4))); err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
		}
		if err := m.check(s); err != nil {
			t.Fatal(err)
		}
		closeStore(t, s)
	})
}

func TestStoreLimits(t *testing.T) {
	ctx := context.Background()
	largest := []Pair{{Key: bytes.Repeat([]byte{'k'}, MaxKeyBytes), Value: make([]byte, MaxValueBytes)}, {Key: []byte{}, Value: []byte{}}}
	eachStore(t, func(t *testing.T, open func() Store) {
		s := open()
		defer closeStore(t, s)
		if err := s.Commit(ctx, named(1), largest); err != nil {
			t.Fatal(err)
		}
		values, err := s.Load(ctx, [][]byte{largest[0].Key, {}})
		if err != nil || !bytes.Equal(values[0], largest[0].Value) || values[1] == nil || len(values[1]) != 0 {
			t.Fatalf("largest and empty pair: %v", err)
		}
		tooLong := append(largest[0].Key, 'k')
		for _, pair := range []Pair{{Key: tooLong, Value: []byte{}}, {Value: make([]byte, MaxValueBytes+1)}} {
			if err := s.Commit(ctx, named(2), []Pair{pair}); !errors.Is(err, ErrTooLarge) {
				t.Fatalf("key of %d, value of %d bytes: %v", len(pair.Key), len(pair.Value), err)
			}
		}
		if _, err := s.Load(ctx, [][]byte{tooLong}); !errors.Is(err, ErrTooLarge) {
			t.Fatalf("load of a key too long: %v", err)
		}
		for _, sequence := range []uint64{0, 1} {
			if err := s.Commit(ctx, named(sequence), nil); !errors.Is(err, ErrSequence) {
				t.Fatalf("commit %d after 1: %v", sequence, err)
			}
		}
		if err := s.Commit(ctx, named(2), nil); err != nil {
			t.Fatalf("empty commit: %v", err)
		}
	})
}

func TestStoreContextAndClose(t *testing.T) {
	eachStore(t, func(t *testing.T, open func() Store) {
		s := open()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		calls := map[string]func(context.Context) error{
			"load":     func(ctx context.Context) error { _, err := s.Load(ctx, [][]byte{{1}}); return err },
			"scan":     func(ctx context.Context) error { return s.Scan(ctx, nil, nil) },
			"commit":   func(ctx context.Context) error { return s.Commit(ctx, named(1), nil) },
			"identity": func(ctx context.Context) error { _, err := s.Identity(ctx); return err },
		}
		for name, call := range calls {
			if err := call(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("%s with an ended context: %v", name, err)
			}
		}
		closeStore(t, s)
		closeStore(t, s)
		for name, call := range calls {
			if err := call(context.Background()); !errors.Is(err, ErrClosed) {
				t.Errorf("%s after close: %v", name, err)
			}
		}
	})
}

// A scan sees one state: neither a commit made from within it, nor half of one.
func TestStoreScanIsSnapshot(t *testing.T) {
	eachStore(t, func(t *testing.T, open func() Store) {
		ctx, s := context.Background(), open()
		defer closeStore(t, s)
		pairs := make([]Pair, 2000)
		for i := range pairs {
			pairs[i] = Pair{Key: fmt.Appendf(nil, "%05d", i), Value: bytes.Repeat([]byte{1}, 1000)}
		}
		if err := s.Commit(ctx, named(1), pairs); err != nil {
			t.Fatal(err)
		}
		seen := 0
		err := s.Scan(ctx, nil, func(_, value []byte) error {
			if seen == 0 {
				for i := range pairs {
					pairs[i].Value = bytes.Repeat([]byte{2}, 1000)
				}
				if err := s.Commit(ctx, named(2), pairs[:1500]); err != nil {
					return err
				}
			}
			if seen++; value[0] != 1 {
				return fmt.Errorf("pair %d is of commit %d", seen, value[0])
			}
			return nil
		})
		if err != nil || seen != len(pairs) {
			t.Fatalf("%d pairs: %v", seen, err)
		}
		stop := errors.New("stop")
		if err := s.Scan(ctx, nil, func(_, _ []byte) error { return stop }); !errors.Is(err, stop) {
			t.Fatalf("scan returned %v", err)
		}
	})
}

// Readers never see half of a large commit while it is applied.
func TestStoreReadersDuringCommits(t *testing.T) {
	eachStore(t, func(t *testing.T, open func() Store) {
		ctx, s := context.Background(), open()
		defer closeStore(t, s)
		stop := make(chan struct{})
		var readers sync.WaitGroup
		for range 3 {
			readers.Go(func() { checkUniform(t, s, stop) })
		}
		for sequence := uint64(1); sequence <= 4; sequence++ {
			pairs := make([]Pair, 3000)
			for i := range pairs {
				pairs[i] = Pair{Key: fmt.Appendf(nil, "%05d", i), Value: bytes.Repeat([]byte{byte(sequence)}, 1000)}
			}
			if err := s.Commit(ctx, named(sequence), pairs); err != nil {
				t.Error(err)
			}
		}
		close(stop)
		readers.Wait()
	})
}

func checkUniform(t *testing.T, s Store, stop chan struct{}) {
	keys := [][]byte{[]byte("00000"), []byte("01500"), []byte("02999")}
	for {
		values, err := s.Load(context.Background(), keys)
		if err != nil || !bytes.Equal(values[0], values[1]) || !bytes.Equal(values[0], values[2]) {
			t.Errorf("half a commit: %v", err)
			return
		}
		select {
		case <-stop:
			return
		case <-time.After(time.Millisecond):
		}
	}
}
