package disk_test

import (
	"bytes"
	"errors"
	"math/bits"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"trivet/disk"
	"trivet/inject"
)

// faultySlot is slot 1 with a log file of 8 blocks of 1, durable, and rules.
type faultySlot struct {
	memory  *disk.MemoryFS
	set     *inject.Set
	fs      *disk.FaultyFS
	log     disk.File
	crashes int
}

func newFaultySlot(t *testing.T, rules ...string) *faultySlot {
	t.Helper()
	s := &faultySlot{memory: disk.Memory(1, disk.MemoryOptions{}), set: inject.NewSet(1, time.Now)}
	must(t, s.memory.MkdirAll("log"))
	write(t, create(t, s.memory, "log/0", 8*bs), 0, true, blocks(8, 1))
	s.fs = disk.Faulty(s.memory, s.set, 1, disk.FaultyOptions{Crash: func() { s.crashes++ }})
	s.log = reopen(t, s.fs, "log/0")
	for _, rule := range rules {
		s.add(t, rule)
	}
	t.Cleanup(func() {
		if left := s.set.Unhit(); len(left) > 0 {
			t.Errorf("rules that were never hit: %v", left)
		}
	})
	return s
}

func (s *faultySlot) add(t *testing.T, rule string) inject.ID {
	t.Helper()
	id, err := s.set.Add(inject.MustParse(rule))
	must(t, err)
	return id
}

// raw reads the log past the faults.
func (s *faultySlot) raw(t *testing.T) []byte {
	t.Helper()
	return read(t, reopen(t, s.memory, "log/0"), 0, 8*bs)
}

func expect(t *testing.T, got []byte, parts ...[]byte) {
	t.Helper()
	wantBytes(t, "the log", got, bytes.Join(parts, nil))
}

// TestSites fails each operation by the rule for its site, and by no other.
func TestSites(t *testing.T) {
	twos := [][]byte{block(2)}
	ops := map[string]func(*faultySlot) error{
		"write":        func(s *faultySlot) error { return s.log.Write(twos, 0, false) },
		"write-fua":    func(s *faultySlot) error { return s.log.Write(twos, 0, true) },
		"sync":         func(s *faultySlot) error { return s.log.Sync() },
		"read":         func(s *faultySlot) error { return s.log.Read(twos, 0) },
		"zero":         func(s *faultySlot) error { return s.log.Zero(0, bs) },
		"size":         func(s *faultySlot) error { _, err := s.log.Size(); return err },
		"create":       func(s *faultySlot) error { _, err := s.fs.Create("log/1", bs); return err },
		"create-super": func(s *faultySlot) error { _, err := s.fs.Create("superblock-a", bs); return err },
		"create-other": func(s *faultySlot) error { _, err := s.fs.Create("other", bs); return err },
		"open":         func(s *faultySlot) error { _, err := s.fs.Open("log/0"); return err },
		"list":         func(s *faultySlot) error { _, err := s.fs.List("log"); return err },
		"mkdir":        func(s *faultySlot) error { return s.fs.MkdirAll("log/x") },
		"usage":        func(s *faultySlot) error { _, _, err := s.fs.Usage(); return err },
		"lock":         func(s *faultySlot) error { _, err := s.fs.Lock("lock"); return err },
		"remove":       func(s *faultySlot) error { return s.fs.Remove("log/0") },
	}
	for rule, hit := range map[string]string{
		"log.append error=EIO":                    "write write-fua",
		"log.append slot=1 block=0 error=EIO":     "write write-fua",
		"log.sync error=EIO":                      "write-fua sync",
		"log.sync block=0-3 error=EIO":            "write-fua",
		"segment.read op=read error=EIO":          "read",
		"segment.alloc error=EIO":                 "create zero",
		"segment.alloc op=create error=EIO":       "create",
		"superblock error=EIO":                    "create-super",
		"any slot=1 error=EIO":                    "",
		"any op=lock error=EIO":                   "lock",
		"any op=sync block=0 nth=1 error=EIO":     "write-fua",
		"log.append slot=0 error=EIO":             "none",
		"segment.read block=1-7 error=EIO":        "none",
		"log.append shard=0 error=EIO":            "none",
		"checkpoint error=EIO":                    "none",
		"superblock op=read error=EIO":            "none",
		"log.sync nth=2 error=EIO":                "none",
		"log.append op=write block=1-3 error=EIO": "none",
	} {
		for name, op := range ops {
			s := newFaultySlot(t)
			id := s.add(t, rule)
			err := op(s)
			want := hit == "" || strings.Contains(" "+hit+" ", " "+name+" ")
			if got := errors.Is(err, unix.EIO); got != want || !want && err != nil {
				t.Errorf("%s, %s: error %v", rule, name, err)
			}
			if (s.set.Hits(id) == 1) != want {
				t.Errorf("%s, %s: %d hits", rule, name, s.set.Hits(id))
			}
			s.set.Clear()
		}
	}
}

func TestErrorLeavesTheDiskAlone(t *testing.T) {
	s := newFaultySlot(t, "log.append error=ENOSPC")
	wantErr(t, "write", s.log.Write([][]byte{block(2)}, 0, true), unix.ENOSPC)
	expect(t, s.raw(t), blocks(8, 1))
}

// TestFailedSync is what the rule against asking again is made for: the second
// sync succeeds, the file reads as written, and the power cut shows the truth.
func TestFailedSync(t *testing.T) {
	for name, fail := range map[string]func(*testing.T, *faultySlot){
		"sync": func(t *testing.T, s *faultySlot) {
			write(t, s.log, 0, false, blocks(8, 2))
			wantErr(t, "sync", s.log.Sync(), unix.EIO)
		},
		"durable write": func(t *testing.T, s *faultySlot) {
			write(t, s.log, bs, false, blocks(7, 2))
			wantErr(t, "write", s.log.Write([][]byte{block(2)}, 0, true), unix.EIO)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFaultySlot(t, "log.sync count=1 error=EIO")
			fail(t, s)
			must(t, s.log.Sync())
			expect(t, read(t, s.log, 0, 8*bs), blocks(8, 2))
			if lost := s.lostInCrashes(t, 2); lost < 10 {
				t.Errorf("lost in %d of 100 crashes, although its sync had failed", lost)
			}
			write(t, s.log, 0, false, blocks(8, 3)) // writing it again makes it good
			must(t, s.log.Sync())
			if lost := s.lostInCrashes(t, 3); lost > 0 {
				t.Errorf("lost in %d of 100 crashes after it was written and synced again", lost)
			}
		})
	}
}

// lostInCrashes counts the crashes after which the log does not hold value.
func (s *faultySlot) lostInCrashes(t *testing.T, value byte) (lost int) {
	for seed := range uint64(100) {
		after := read(t, reopen(t, s.memory.CrashClone(seed), "log/0"), 0, 8*bs)
		if !bytes.Equal(after, blocks(8, value)) {
			lost++
		}
	}
	return lost
}

func TestLostSync(t *testing.T) {
	s := newFaultySlot(t, "log.sync lost")
	write(t, s.log, 0, true, blocks(4, 2))
	write(t, s.log, 4*bs, false, blocks(4, 2))
	must(t, s.log.Sync())
	if lost := s.lostInCrashes(t, 2); lost < 10 {
		t.Errorf("lost in %d of 100 crashes, although its sync was", lost)
	}
}

func TestLostAndMisdirectedWrites(t *testing.T) {
	s := newFaultySlot(t, "log.append count=1 lost")
	write(t, s.log, 0, true, block(2))
	expect(t, s.raw(t), blocks(8, 1))

	s = newFaultySlot(t, "log.append misdirect")
	write(t, s.log, bs, true, blocks(2, 2))
	expect(t, s.raw(t), blocks(2, 1), blocks(2, 2), blocks(4, 1))
	write(t, s.log, 6*bs, true, blocks(2, 3)) // at the end, the other way
	expect(t, s.raw(t), blocks(2, 1), blocks(2, 2), block(1), blocks(2, 3), block(1))
	write(t, s.log, 0, true, blocks(8, 4)) // nowhere else to go
	expect(t, s.raw(t), blocks(2, 1), blocks(2, 2), block(1), blocks(2, 3), block(1))
}

func TestMisdirectedRead(t *testing.T) {
	s := newFaultySlot(t)
	write(t, s.log, bs, true, block(2))
	s.add(t, "segment.read misdirect")
	wantBytes(t, "a read of block 0", read(t, s.log, 0, bs), block(2))
	wantBytes(t, "a read of block 7", read(t, s.log, 7*bs, bs), block(1))
	wantBytes(t, "a read of all", read(t, s.log, 0, 8*bs), blocks(8, 0))
}

// TestTornWrite: a prefix in whole sectors lands, and over time many lengths.
func TestTornWrite(t *testing.T) {
	s := newFaultySlot(t, "log.append slot=1 op=write torn")
	lengths := map[int]bool{}
	for range 200 {
		write(t, reopen(t, s.memory, "log/0"), 0, true, blocks(8, 1))
		payload := [][]byte{block(2), blocks(2, 2)}
		wantErr(t, "torn write", s.log.Write(payload, bs, true), unix.EIO)
		got := s.raw(t)
		landed := bytes.Count(got, []byte{2})
		if landed%512 != 0 {
			t.Fatalf("%d bytes landed", landed)
		}
		expect(t, got, block(1), bytes.Repeat([]byte{2}, landed), bytes.Repeat([]byte{1}, 7*bs-landed))
		lengths[landed/512] = true
		wantBytes(t, "the caller's payload", payload[0], block(2))
	}
	if len(lengths) < 20 || !lengths[0] || !lengths[24] {
		t.Errorf("only %d lengths: %v", len(lengths), lengths)
	}
}

// differing counts the bits in which two equally long slices differ.
func differing(a, b []byte) (n int) {
	for i := range a {
		n += bits.OnesCount8(a[i] ^ b[i])
	}
	return n
}

func TestFlip(t *testing.T) {
	s := newFaultySlot(t, "log.append block=3-4 count=20 flip")
	for range 20 {
		payload := [][]byte{block(2), block(2), blocks(4, 2)}
		write(t, s.log, bs, true, payload...) // blocks 1 to 6
		got := s.raw(t)
		if differing(got[bs:3*bs], blocks(2, 2)) != 0 || differing(got[3*bs:5*bs], blocks(2, 2)) != 1 || differing(got[5*bs:7*bs], blocks(2, 2)) != 0 {
			t.Fatal("not one bit in blocks 3 and 4")
		}
		if differing(bytes.Join(payload, nil), blocks(6, 2)) != 0 {
			t.Fatal("the caller's payload changed, which other slots share")
		}
	}

	s = newFaultySlot(t, "segment.read block=7 flip")
	for range 20 {
		a, b := blocks(2, 0), blocks(6, 0)
		must(t, s.log.Read([][]byte{a, b}, 0))
		if differing(a, blocks(2, 1)) != 0 || differing(b[:5*bs], blocks(5, 1)) != 0 || differing(b[5*bs:], block(1)) != 1 {
			t.Fatal("not one bit in block 7")
		}
	}
	expect(t, s.raw(t), blocks(8, 1))
}

// TestEffectsMeetWhatCanHaveThem: the superblock is one site for all
// operations, of which not all can be torn.
func TestEffectsMeetWhatCanHaveThem(t *testing.T) {
	s := newFaultySlot(t)
	f := create(t, s.fs, "superblock", bs)
	write(t, f, 0, true, block(1))
	id := s.add(t, "superblock torn")
	wantBytes(t, "superblock", read(t, f, 0, bs), block(1))
	must(t, f.Sync())
	if s.set.Hits(id) != 0 {
		t.Error("a torn write hit a read or a sync")
	}
	wantErr(t, "write", f.Write([][]byte{block(2)}, 0, false), unix.EIO)
	wantErr(t, "zero", f.Zero(0, bs), unix.EIO)
	_, err := s.fs.Create("superblock-b", bs)
	wantErr(t, "create", err, unix.EIO)
	if size, err := reopen(t, s.memory, "superblock-b").Size(); size != 0 || err != nil {
		t.Errorf("a torn create left %d bytes, %v", size, err)
	}
}

func TestRefusedOperationsMeetNoFault(t *testing.T) {
	s := newFaultySlot(t)
	id := s.add(t, "any count=all hang")
	wantErr(t, "write", s.log.Write([][]byte{block(2)[:512]}, 0, true), disk.ErrMisaligned)
	wantErr(t, "read", s.log.Read([][]byte{block(2)}, 512), disk.ErrMisaligned)
	wantErr(t, "zero", s.log.Zero(512, bs), disk.ErrMisaligned)
	if s.set.Hits(id) != 0 {
		t.Error("a refused operation hit a rule")
	}
	s.set.Clear()
}

func TestHangUntilRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFaultySlot(t)
		id := s.add(t, "log.sync hang")
		slow := s.add(t, "log.append delay=50ms")
		start := time.Now()
		time.AfterFunc(time.Hour, func() { s.set.Remove(id) })
		must(t, s.log.Sync())
		if d := time.Since(start); d != time.Hour {
			t.Errorf("the sync took %v, the rule was there for 1h", d)
		}
		start = time.Now()
		write(t, s.log, 0, false, block(2))
		if d := time.Since(start); d != 50*time.Millisecond {
			t.Errorf("the write took %v", d)
		}
		s.set.Remove(slow)
	})
}

// TestHangBlocksNobodyElse: a hung write of the owner holds no lock that a
// read or another file needs.
func TestHangBlocksNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFaultySlot(t, "log.append hang")
		var wg sync.WaitGroup
		wg.Go(func() { write(t, s.log, 0, true, block(2)) })
		synctest.Wait()
		wantBytes(t, "a read beside a hung write", read(t, s.log, 0, bs), block(1))
		must(t, create(t, s.fs, "log/1", bs).Sync())
		s.set.Clear()
		wg.Wait()
		wantBytes(t, "the write, released", read(t, s.log, 0, bs), block(2))
	})
}

// TestPauseHook is how a simulator models time: nothing blocks.
func TestPauseHook(t *testing.T) {
	stalled := errors.New("stalled")
	set := inject.NewSet(1, time.Now)
	var got []inject.Action
	fs := disk.Faulty(disk.Memory(1, disk.MemoryOptions{}), set, 0, disk.FaultyOptions{
		Pause: func(a inject.Action) error { got = append(got, a); return stalled },
	})
	f := create(t, fs, "superblock", bs)
	for _, rule := range []string{"superblock op=write hang", "superblock op=sync delay=7s"} {
		_, err := set.Add(inject.MustParse(rule))
		must(t, err)
	}
	wantErr(t, "hung write", f.Write([][]byte{block(1)}, 0, false), stalled)
	wantErr(t, "slow sync", f.Sync(), stalled)
	if len(got) != 2 || got[0].Effect != inject.Hang || got[1].Delay != 7*time.Second {
		t.Errorf("paused for %+v", got)
	}
	wantBytes(t, "what hangs", read(t, f, 0, bs), block(0))
}

func TestCrashHook(t *testing.T) {
	s := newFaultySlot(t, "log.append nth=2 crash")
	write(t, s.log, 0, true, block(2))
	wantErr(t, "write", s.log.Write([][]byte{block(3)}, 0, true), disk.ErrCrashed)
	expect(t, s.raw(t), block(2), blocks(7, 1))
	if s.crashes != 1 {
		t.Errorf("%d crashes", s.crashes)
	}
}

// TestCrashKills runs itself in a process that is to die by SIGKILL.
func TestCrashKills(t *testing.T) {
	if dir := os.Getenv("TRIVET_DISK_CRASH_DIR"); dir != "" {
		set := inject.NewSet(1, time.Now)
		_, err := set.Add(inject.MustParse("superblock op=sync crash"))
		must(t, err)
		f := create(t, disk.Faulty(realFS(t, dir), set, 0, disk.FaultyOptions{}), "superblock", bs)
		write(t, f, 0, false, block(1))
		t.Fatal("survived: ", f.Sync())
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashKills$")
	cmd.Env = append(os.Environ(), "TRIVET_DISK_CRASH_DIR="+dir)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the process ended with %v: %s", err, out)
	}
	f := reopen(t, realFS(t, dir), "superblock")
	wantBytes(t, "what a killed process wrote", read(t, f, 0, bs), block(1))
}

// TestFailNth runs a scenario with every operation failing in turn, and holds
// it to its errors: the one that fails is the one that reports it.
func TestFailNth(t *testing.T) {
	scenario := func(fs disk.FS) error {
		if err := fs.MkdirAll("log"); err != nil {
			return err
		}
		f, err := fs.Create("log/0", 4*bs)
		if err != nil {
			return err
		}
		defer f.Close()
		return errors.Join(f.Write([][]byte{block(1)}, 0, true), f.Sync(), f.Read([][]byte{block(0)}, 0))
	}
	const operations = 6 // mkdir, create, write and its sync, sync, read
	for n := uint64(0); ; n++ {
		fs, reached := disk.FailNth(disk.Memory(n, disk.MemoryOptions{}), n, unix.EIO)
		err := scenario(fs)
		if !reached() {
			must(t, err)
			if n != operations {
				t.Errorf("%d operations, want %d", n, operations)
			}
			break
		}
		wantErr(t, "scenario", err, unix.EIO)
		if n > operations {
			t.Fatal("it does not end")
		}
	}
}

// TestCrashAtEverySyncPoint shows how rules and clones make one: the clone is
// what a power cut just before the n-th sync leaves.
func TestCrashAtEverySyncPoint(t *testing.T) {
	for n := uint64(1); n <= 4; n++ {
		memory := disk.Memory(n, disk.MemoryOptions{})
		set := inject.NewSet(n, time.Now)
		id, err := set.Add(inject.Rule{Site: inject.Superblock, Op: "sync", Nth: n, Effect: inject.Crash})
		must(t, err)
		var survivor *disk.MemoryFS
		fs := disk.Faulty(memory, set, 0, disk.FaultyOptions{Crash: func() { survivor = memory.CrashClone(n) }})
		f := create(t, fs, "superblock", 4*bs)
		acknowledged := 0
		for i := range 4 {
			if err = f.Write([][]byte{block(byte(i + 1))}, int64(i)*bs, true); err != nil {
				break
			}
			acknowledged++
		}
		if !errors.Is(err, disk.ErrCrashed) || set.Hits(id) != 1 || acknowledged != int(n-1) {
			t.Fatalf("crash %d: %v after %d writes", n, err, acknowledged)
		}
		after := read(t, reopen(t, survivor, "superblock"), 0, 4*bs)
		for i := range acknowledged {
			wantBytes(t, "an acknowledged block", after[i*bs:(i+1)*bs], block(byte(i+1)))
		}
	}
}

func BenchmarkFaultyWriteWithoutRules(b *testing.B) {
	fs := disk.Faulty(nothing{}, inject.NewSet(1, time.Now), 0, disk.FaultyOptions{})
	f := create(b, fs, "log/0", bs)
	bufs := [][]byte{block(1)}
	b.ReportAllocs()
	for b.Loop() {
		if err := f.Write(bufs, 0, true); err != nil {
			b.Fatal(err)
		}
	}
}

// nothing is a disk that does nothing, to measure what is around it.
type nothing struct{ disk.FS }

func (nothing) Create(string, int64) (disk.File, error) { return nothingFile{}, nil }

type nothingFile struct{ disk.File }

func (nothingFile) Write([][]byte, int64, bool) error { return nil }
func (nothingFile) Close() error                      { return nil }

// TestEachHandleIsToldOnce: lanes whose segments share a file have handles of
// their own, so that each learns of a sync that failed on another's.
func TestEachHandleIsToldOnce(t *testing.T) {
	m := disk.Memory(1, disk.MemoryOptions{})
	set := inject.NewSet(1, func() time.Time { return time.Time{} })
	fs := disk.Faulty(m, set, 0, disk.FaultyOptions{})
	must(t, fs.MkdirAll("log"))
	a, err := fs.Create("log/000000", 4*disk.BlockSize)
	must(t, err)
	b, err := fs.Open("log/000000")
	must(t, err)
	must(t, b.Write([][]byte{disk.Alloc(disk.BlockSize)}, 0, false))
	_, err = set.Add(inject.Rule{Site: inject.LogSync, Nth: 1, Effect: inject.Error, Errno: unix.EIO})
	must(t, err)
	wantErr(t, "the sync that fails", a.Sync(), unix.EIO)
	must(t, a.Sync())
	wantErr(t, "the other handle's sync", b.Sync(), unix.EIO)
	must(t, b.Sync())
	c, err := fs.Open("log/000000")
	must(t, err)
	must(t, c.Sync())
}
