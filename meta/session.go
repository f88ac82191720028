package meta

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// session is one life of a helper process: from its start to its death. It ends
// once, by fail, for whatever reason; every call under way then returns the
// same error.
type session struct {
	opt  HelperOptions
	cmd  *exec.Cmd
	conn net.Conn
	out  chan frame // to the writer; nobody closes it

	mu    sync.Mutex // guards calls, last, err
	calls map[uint64]*call
	last  uint64 // the last id given
	err   error  // why the session ended

	dead    chan struct{} // closed by fail
	workers sync.WaitGroup
	reaped  chan struct{} // closed when the process is gone
}

// call is a request under way.
type call struct {
	answered chan answer // buffered: the reader never waits for a caller
	stuck    *time.Timer // ends the session when no answer and no progress comes
	released func()
}

// startSession starts a helper and waits for its greeting.
func startSession(ctx context.Context, opt HelperOptions) (*session, error) {
	conn, cmd, err := startProcess(opt)
	if err != nil {
		return nil, err
	}
	s := &session{
		opt: opt, cmd: cmd, conn: conn,
		out:    make(chan frame, maxInFlight),
		calls:  make(map[uint64]*call),
		dead:   make(chan struct{}),
		reaped: make(chan struct{}),
	}
	s.startReaper()
	if err := s.greet(ctx); err != nil {
		s.fail(err)
		return nil, s.explain(err)
	}
	s.startReader()
	s.startWriter()
	return s, nil
}

// startProcess starts the helper with one end of a socket pair.
func startProcess(opt HelperOptions) (net.Conn, *exec.Cmd, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair for a metadata helper: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "helper"), os.NewFile(uintptr(fds[1]), "parent")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, nil, fmt.Errorf("socket of a metadata helper: %w", err)
	}
	cmd := exec.Command(opt.Command[0], append(opt.Command[1:len(opt.Command):len(opt.Command)], helperArgs(opt.Dir, opt.Badger)...)...)
	cmd.Env = append(append(os.Environ(), "GOMAXPROCS=2", "GOGC=50"), opt.Env...)
	cmd.Stderr = opt.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("start metadata helper: %w", err)
	}
	return conn, cmd, nil
}

// greet waits for the helper to have opened its store, and verifies that it is
// the right one.
func (s *session) greet(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.conn.SetReadDeadline(time.Now()) })
	defer stop()
	f, err := readFrame(s.conn)
	if err != nil {
		return fmt.Errorf("metadata helper %d, no greeting: %w: %w", s.cmd.Process.Pid, ErrUnavailable, err)
	}
	if f.id != 0 {
		return fmt.Errorf("metadata helper %d, greeting with id %d: %w", s.cmd.Process.Pid, f.id, errBadFrame)
	}
	if err := replyError(f); err != nil {
		return err
	}
	id, err := decodeIdentity(f.payload)
	if err != nil {
		return fmt.Errorf("metadata helper %d, greeting: %w", s.cmd.Process.Pid, err)
	}
	return s.opt.Badger.Expect.verify(id)
}

// explain adds how the helper ended when it never greeted. One that died by
// itself, at every attempt to open the store, died of what it read: Badger
// treats some rot as a broken invariant.
func (s *session) explain(err error) error {
	select {
	case <-s.reaped:
	case <-time.After(s.opt.CloseTimeout):
		return err
	}
	state := s.cmd.ProcessState
	if code := state.ExitCode(); errors.Is(err, ErrUnavailable) && (code == 1 || code == 2) {
		return fmt.Errorf("died opening the store (%s): %w: %w", state, ErrCorrupt, err)
	}
	return err
}

func (s *session) startReaper() {
	go func() {
		_ = s.cmd.Wait() // the state says it better
		close(s.reaped)
	}()
}

func (s *session) startReader() {
	s.workers.Go(func() {
		in := bufio.NewReaderSize(s.conn, 64<<10)
		for {
			f, err := readFrame(in)
			if err != nil {
				s.fail(err)
				return
			}
			if err := s.deliver(f); err != nil {
				s.fail(err)
				return
			}
		}
	})
}

func (s *session) startWriter() {
	s.workers.Go(func() {
		for {
			select {
			case f := <-s.out:
				if err := writeFrame(s.conn, f); err != nil {
					s.fail(err)
					return
				}
			case <-s.dead:
				return
			}
		}
	})
}

// deliver hands a reply to its call.
func (s *session) deliver(f frame) error {
	s.mu.Lock()
	c := s.calls[f.id]
	if c == nil {
		s.mu.Unlock()
		return fmt.Errorf("reply to request %d, which is not under way: %w", f.id, errBadFrame)
	}
	if status(f.kind) == statusProgress {
		c.stuck.Reset(s.opt.CallTimeout)
		s.mu.Unlock()
		return nil
	}
	delete(s.calls, f.id)
	s.mu.Unlock()
	c.finish(answer{reply: f.payload, err: replyError(f)})
	return nil
}

func (c *call) finish(a answer) {
	c.stuck.Stop()
	if a.err != nil {
		a.reply = nil
	}
	c.released()
	c.answered <- a
}

// roundTrip sends a request and waits for the reply, the context, or the end of
// the session.
func (s *session) roundTrip(ctx context.Context, r request, released func()) ([]byte, error) {
	c := &call{answered: make(chan answer, 1), released: released}
	id, err := s.register(c)
	if err != nil {
		released()
		return nil, err
	}
	select {
	case s.out <- frame{id: id, kind: uint8(r.op), payload: r.payload}:
	case <-s.dead: // fail answers the call
	case <-ctx.Done():
		s.forget(id, c)
		return nil, ctx.Err()
	}
	select {
	case a := <-c.answered:
		return a.reply, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *session) register(c *call) (id uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	s.last++
	s.calls[s.last] = c
	c.stuck = time.AfterFunc(s.opt.CallTimeout, func() {
		s.fail(fmt.Errorf("no answer for %s", s.opt.CallTimeout))
	})
	return s.last, nil
}

// forget drops a call that was never sent.
func (s *session) forget(id uint64, c *call) {
	s.mu.Lock()
	pending := s.calls[id] == c
	delete(s.calls, id)
	s.mu.Unlock()
	if pending {
		c.stuck.Stop()
		c.released()
	}
}

func (s *session) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil
}

// fail ends the session: it kills the helper, by its id, and answers all calls.
func (s *session) fail(cause error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = fmt.Errorf("metadata helper %d: %w: %w", s.cmd.Process.Pid, ErrUnavailable, cause)
	calls := s.calls
	s.calls = nil
	s.mu.Unlock()

	close(s.dead)
	s.conn.Close()
	_ = s.cmd.Process.Kill() // an error says that it is gone already
	for _, c := range calls {
		c.finish(answer{err: s.err})
	}
}

// join waits for the workers, and at most CloseTimeout for the process: one
// that hangs in the kernel can't even be killed. The reaper waits on.
func (s *session) join() error {
	s.workers.Wait()
	gone := time.NewTimer(s.opt.CloseTimeout)
	defer gone.Stop()
	select {
	case <-s.reaped:
		return nil
	case <-gone.C:
		return fmt.Errorf("metadata helper %d did not die within %s of being killed", s.cmd.Process.Pid, s.opt.CloseTimeout)
	}
}

// post sends a request when that is possible at once; its reply is dropped.
func (s *session) post(r request) {
	c := &call{answered: make(chan answer, 1), released: func() {}}
	id, err := s.register(c)
	if err != nil {
		return
	}
	select {
	case s.out <- frame{id: id, kind: uint8(r.op), payload: r.payload}:
	default:
		s.forget(id, c)
	}
}
