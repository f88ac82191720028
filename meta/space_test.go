package meta

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// smallFilesystem mounts a tmpfs of that many bytes for the test's time.
func smallFilesystem(t *testing.T, sizeBytes int64) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", sizeBytes)); err != nil {
		t.Skipf("a small tmpfs can't be mounted here (needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes all but keep bytes of the filesystem, and returns how to give them
// back.
func fill(t *testing.T, dir string, keep int64) (free func()) {
	t.Helper()
	s := space{dir: dir}
	available, err := s.free()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "filler")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := unix.Fallocate(int(file.Fd()), 0, 0, available-keep); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// Below the watermark commits are refused, the store stays readable and opens
// again, and it goes on when there is space. The reserve is given up meanwhile.
func TestFullFilesystemIsRefused(t *testing.T) {
	dir, ctx := smallFilesystem(t, 160<<20), context.Background()
	opt := testHelper(filepath.Join(dir, "store"))
	opt.Badger.ReserveBytes = 8 << 20
	s, m := mustStart(t, opt), newModel()
	commit := func(pairs []Pair) error {
		err := s.Commit(ctx, named(m.sequence+1), pairs)
		if err == nil {
			m.apply(m.sequence+1, pairs)
		}
		return err
	}
	r := rand.New(rand.NewPCG(11, 12))
	if err := commit(randomPairs(r, 500, 1500)); err != nil {
		t.Fatal(err)
	}
	reserve := filepath.Join(opt.Dir, "reserve")
	if info, err := os.Stat(reserve); err != nil || info.Size() != opt.Badger.ReserveBytes {
		t.Fatalf("reserve: %v, %v", info, err)
	}
	free := fill(t, dir, opt.Badger.MinFreeBytes/2)
	for _, count := range []int{1, 20_000} {
		if err := commit(randomPairs(r, count, 1500)); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("commit of %d pairs with little space: %v", count, err)
		}
	}
	if info, err := os.Stat(reserve); err != nil || info.Size() != 0 {
		t.Fatalf("reserve, when it is needed: %v, %v", info, err)
	}
	closeStore(t, s)
	s = mustStart(t, opt)
	if err := m.check(s); err != nil {
		t.Fatal(err)
	}
	free()
	if err := commit(randomPairs(r, 4000, 1500)); err != nil {
		t.Fatal(err)
	}
	if err := m.check(s); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
}

// Someone else takes the last block between the check and the write: the helper
// dies of SIGBUS, the caller gets an error, and nothing committed is lost.
func TestFullFilesystemEndsHelperOnly(t *testing.T) {
	dir, ctx := smallFilesystem(t, 96<<20), context.Background()
	opt := testHelper(filepath.Join(dir, "store"))
	opt.Badger.MinFreeBytes = -1 << 40 // a watermark that never helps
	opt.Restarts, opt.LongestPause = 3, 1
	output, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	opt.Stderr = output // the runtime's report of the fault
	s, m := mustStart(t, opt), newModel()
	r := rand.New(rand.NewPCG(13, 14))
	first := randomPairs(r, 100, 1500)
	if err := s.Commit(ctx, named(1), first); err != nil {
		t.Fatal(err)
	}
	m.apply(1, first)
	free := fill(t, dir, 64<<10)
	var failed error
	next := m.clone()
	for sequence := uint64(2); failed == nil && sequence < 1000; sequence++ {
		m = next
		pairs := randomPairs(r, 5, 1500)
		next = m.clone()
		next.apply(sequence, pairs)
		failed = s.Commit(ctx, named(sequence), pairs)
	}
	if failed == nil {
		t.Fatal("the filesystem was never full")
	}
	t.Logf("commit %d: %v", next.sequence, failed)
	if !errors.Is(failed, ErrUnavailable) {
		t.Fatal("the helper did not die of it")
	}
	_ = s.Close() // the helper may be dead for good
	free()
	s = mustStart(t, opt)
	defer closeStore(t, s)
	if id, err := s.Identity(ctx); err == nil && id.Last.Sequence == next.sequence {
		m = next
	}
	if err := m.check(s); err != nil {
		t.Fatal(err)
	}
}
