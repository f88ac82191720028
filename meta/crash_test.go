package meta

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"
)

// kill ends the helper of a store as kill -9 does.
func kill(t testing.TB, s Store) {
	t.Helper()
	if err := syscall.Kill(helperPid(s), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func helperPid(s Store) int {
	r := s.(*store).t.(*remote)
	current, err := r.await(context.Background())
	if err != nil {
		return -1
	}
	return current.cmd.Process.Pid
}

// The helper is killed at random moments of commits of all sizes. Sequence
// tells which of them happened, and they happened as a whole.
func TestHelperKilledDuringCommits(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	opt := testHelper(t.TempDir())
	opt.Restarts, opt.LongestPause = 1000, time.Millisecond
	s := mustStart(t, opt)
	m := newModel()
	happened, lost := 0, 0
	for round := range 40 {
		pairs := randomPairs(r, 1+r.IntN(1<<r.IntN(13)), 1500)
		next := m.clone()
		next.apply(m.sequence+1, pairs)
		pid := helperPid(s)
		killer := time.AfterFunc(time.Duration(r.IntN(1+20*len(pairs)))*time.Microsecond, func() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		})
		err := s.Commit(context.Background(), named(next.sequence), pairs)
		killer.Stop()
		if err != nil && !errors.Is(err, ErrUnavailable) {
			t.Fatalf("round %d: %v", round, err)
		}
		sequence := sequenceAfter(t, s)
		switch {
		case sequence == next.sequence:
			happened++
			m = next
		case sequence == m.sequence && err != nil:
			lost++
		default:
			t.Fatalf("round %d: sequence %d after commit %d returned %v", round, sequence, next.sequence, err)
		}
		if err := m.checkLoads(s); err != nil && !errors.Is(err, ErrUnavailable) {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	closeStore(t, s)
	s = mustStart(t, opt)
	if err := m.check(s); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	t.Logf("%d commits happened, %d were lost", happened, lost)
	if happened == 0 || lost == 0 {
		t.Fatal("one of the outcomes was never met")
	}
}

func sequenceAfter(t *testing.T, s Store) uint64 {
	t.Helper()
	for {
		id, err := s.Identity(context.Background())
		if err == nil {
			return id.Last.Sequence
		}
		if !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
}

// Death answers calls at once, the next call meets a new helper, and after the
// budget the store stays failed.
func TestHelperGivesUp(t *testing.T) {
	opt := testHelper(t.TempDir())
	opt.Restarts, opt.LongestPause = 2, time.Millisecond
	s := mustStart(t, opt)
	for range 3 {
		kill(t, s)
		for helperAlive(s) {
		}
	}
	if _, err := s.Identity(context.Background()); !errors.Is(err, ErrFailed) {
		t.Fatalf("after 3 deaths with 2 restarts: %v", err)
	}
	closeStore(t, s)
}

// helperAlive waits for a call's answer and tells whether it was a success.
func helperAlive(s Store) bool {
	_, err := s.Identity(context.Background())
	return err == nil
}

// A stopped helper holds nobody beyond the context, and is replaced when it
// stays silent.
func TestHelperStuck(t *testing.T) {
	opt := testHelper(t.TempDir())
	opt.CallTimeout = 300 * time.Millisecond
	s := mustStart(t, opt)
	defer closeStore(t, s)
	if err := syscall.Kill(helperPid(s), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	large := randomPairs(rand.New(rand.NewPCG(5, 6)), 4000, 1500)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := s.Commit(ctx, named(1), large); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("commit to a stopped helper: %v", err)
	}
	if _, err := s.Load(ctx, [][]byte{{1}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("load from a stopped helper: %v", err)
	}
	if took := time.Since(began); took > 250*time.Millisecond {
		t.Fatalf("calls took %s", took)
	}
	// Sequence waits for the commit given up, so for the death of its helper,
	// and then asks the next one.
	if sequence := sequenceAfter(t, s); sequence != 0 {
		t.Fatalf("sequence %d of a commit that never arrived whole", sequence)
	}
	if err := s.Commit(context.Background(), named(1), large); err != nil {
		t.Fatal(err)
	}
}

// A helper whose parent is gone ends, even with a store that was never closed.
func TestHelperEndsWithItsParent(t *testing.T) {
	opt, err := testHelper(t.TempDir()).withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	s, err := openSession(context.Background(), opt)
	if err != nil {
		t.Fatal(err)
	}
	// The helper sees the end of its socket, as when its parent dies.
	if err := s.conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	<-s.reaped
	if code := s.cmd.ProcessState.ExitCode(); code != exitClosed {
		t.Fatalf("exit code %d", code)
	}
	s.fail(ErrClosed)
	if err := s.join(); err != nil {
		t.Fatal(err)
	}
}

// A second store on the same directory is refused.
func TestDirectoryIsLocked(t *testing.T) {
	opt := testHelper(t.TempDir())
	opt.Badger.LockWait = 20 * time.Millisecond
	s := mustStart(t, opt)
	defer closeStore(t, s)
	if _, err := StartHelper(opt); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Fatalf("second helper: %v", err)
	}
}
