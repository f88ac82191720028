package meta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// HelperOptions say how to run a store's helper process. Dir is needed; the
// zero value of everything else is the default.
type HelperOptions struct {
	// Dir is the store's directory.
	Dir string
	// Badger tunes the store; its Log is Stderr.
	Badger BadgerOptions
	// Command runs HelperMain, with arguments that are appended to it. Default:
	// this program's own file and the word meta-helper.
	Command []string
	// Env is added to the environment of the helper.
	Env []string
	// Stderr receives what the helper has to say. Default os.Stderr.
	Stderr io.Writer
	// CallTimeout is how long the helper may be silent about a request before
	// it is taken for stuck, killed, and started again. Default 10 s.
	CallTimeout time.Duration
	// OpenTimeout is how long it may take to open the store. Default 60 s.
	OpenTimeout time.Duration
	// CloseTimeout is how long Close waits for the helper to end, before and
	// again after killing it. Default 5 s.
	CloseTimeout time.Duration
	// Restarts is how many times in a row the helper is started again, with
	// growing pauses, before the store gives up; the count starts anew when it
	// has lived for a minute. Default 5; negative for none.
	Restarts int
	// FirstPause is the pause before the first restart, default 20 ms; each
	// further one is 4 times that, up to LongestPause, default 5 s.
	FirstPause, LongestPause time.Duration
}

// goodLife is how long a helper must live for its end not to count as another
// failure in a row.
const goodLife = time.Minute

func (o HelperOptions) withDefaults() (HelperOptions, error) {
	if len(o.Command) == 0 {
		self, err := os.Executable()
		if err != nil {
			return o, fmt.Errorf("metadata helper: %w", err)
		}
		o.Command = []string{self, "meta-helper"}
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.CallTimeout == 0 {
		o.CallTimeout = 10 * time.Second
	}
	if o.OpenTimeout == 0 {
		o.OpenTimeout = time.Minute
	}
	if o.CloseTimeout == 0 {
		o.CloseTimeout = 5 * time.Second
	}
	if o.Restarts == 0 {
		o.Restarts = 5
	}
	if o.FirstPause == 0 {
		o.FirstPause = 20 * time.Millisecond
	}
	if o.LongestPause == 0 {
		o.LongestPause = 5 * time.Second
	}
	return o, nil
}

// StartHelper opens a store in a helper process, or makes it if that is expected.
// When the helper dies, or is stuck for CallTimeout, the calls under way return an error that
// wraps ErrUnavailable, at once, and it is started again; later calls wait for
// that. Once it can't be kept alive every call returns ErrFailed; when the store
// that it found on a restart is not the one that is expected, that error wraps
// ErrCorrupt too.
//
// Errors wrap ErrCorrupt when the content can't be trusted, and syscall.ENOSPC
// when there is no space to open it.
func StartHelper(opt HelperOptions) (Store, error) {
	opt, err := opt.withDefaults()
	if err != nil {
		return nil, err
	}
	first, err := openSession(context.Background(), opt)
	if errors.Is(err, ErrCorrupt) && !refused(err) {
		first, err = openSession(context.Background(), opt)
	}
	if err != nil {
		return nil, err
	}
	r := &remote{
		opt:        opt,
		slots:      make(chan struct{}, maxInFlight),
		session:    first,
		changed:    make(chan struct{}),
		supervised: make(chan struct{}),
	}
	r.opt.Badger.Expect.Create = false // it is there now
	r.closing, r.stop = context.WithCancel(context.Background())
	r.startSupervisor(first)
	return newStore(r), nil
}

func openSession(ctx context.Context, opt HelperOptions) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, opt.OpenTimeout)
	defer cancel()
	return startSession(ctx, opt)
}

// remote is the transport to a helper process, across its deaths.
type remote struct {
	opt   HelperOptions
	slots chan struct{} // a token for each request under way

	mu      sync.Mutex    // guards what follows
	session *session      // nil while there is none
	failed  error         // why there will be none
	changed chan struct{} // closed, and replaced, when session or failed changes
	closed  bool
	active  sync.WaitGroup // requests under way; added to while not closed

	closing    context.Context // ends when Close begins, and with it all restarts
	stop       context.CancelFunc
	supervised chan struct{} // closed when the supervisor is done
	last       error         // of joining the last session; written by the supervisor
}

func (r *remote) roundTrip(ctx context.Context, q request, released func()) ([]byte, error) {
	if err := r.enter(ctx); err != nil {
		released()
		return nil, err
	}
	s, err := r.await(ctx)
	leave := func() {
		<-r.slots
		released()
		r.active.Done()
	}
	if err != nil {
		leave()
		return nil, err
	}
	return s.roundTrip(ctx, q, leave)
}

// enter takes a slot, which the request keeps until the helper is through.
func (r *remote) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		<-r.slots
		return ErrClosed
	}
	r.active.Add(1)
	return nil
}

// await returns the session, waiting for a restart under way.
func (r *remote) await(ctx context.Context) (*session, error) {
	for {
		r.mu.Lock()
		s, failed, changed := r.session, r.failed, r.changed
		r.mu.Unlock()
		if failed != nil {
			return nil, failed
		}
		if s != nil && !s.ended() { // the supervisor may not have noticed yet
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (r *remote) post(q request) {
	r.mu.Lock()
	s := r.session
	closed := r.closed
	r.mu.Unlock()
	if s != nil && !closed {
		s.post(q)
	}
}

func (r *remote) set(s *session, failed error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.session, r.failed = s, failed
	close(r.changed)
	r.changed = make(chan struct{})
}

// startSupervisor keeps a session alive until Close, or until it gives up.
func (r *remote) startSupervisor(s *session) {
	go func() {
		defer close(r.supervised)
		failures := 0
		for {
			born := time.Now()
			<-s.dead
			r.set(nil, nil)
			err := s.join()
			if r.closing.Err() != nil {
				r.last = err
				r.set(nil, ErrClosed)
				return
			}
			if time.Since(born) > goodLife {
				failures = 0
			}
			if s, err = r.restart(&failures, errors.Join(s.err, err)); err != nil {
				r.set(nil, err)
				return
			}
			r.set(s, nil)
			if r.closing.Err() != nil { // Close may have looked before set
				s.fail(ErrClosed)
			}
		}
	}()
}

// restart tries until the budget is used up. Neither rot nor a store that was
// exchanged gets better.
func (r *remote) restart(failures *int, cause error) (*session, error) {
	for *failures < r.opt.Restarts {
		wait := time.NewTimer(min(r.opt.LongestPause, r.opt.FirstPause<<min(2**failures, 16)))
		*failures++
		select {
		case <-wait.C:
		case <-r.closing.Done():
			wait.Stop()
			return nil, ErrClosed
		}
		s, err := openSession(r.closing, r.opt)
		if err == nil {
			return s, nil
		}
		cause = err
		if refused(err) {
			break
		}
	}
	return nil, fmt.Errorf("%w after %d restarts: %w", ErrFailed, *failures, cause)
}

// refused reports whether a store was refused by what it holds. A helper that died
// opening it may have died of something else.
func refused(err error) bool { return errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnavailable) }

// close waits for the calls under way, which their deadlines bound, asks the
// helper to close its store, and sees it off.
func (r *remote) close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	r.mu.Unlock()
	r.stop()
	r.active.Wait()
	err := r.farewell()
	<-r.supervised
	return errors.Join(err, r.last)
}

func (r *remote) farewell() error {
	r.mu.Lock()
	s := r.session
	r.mu.Unlock()
	if s == nil || s.ended() {
		return nil // nothing is lost: what was committed is durable
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.opt.CloseTimeout)
	defer cancel()
	_, err := s.roundTrip(ctx, request{op: opClose}, func() {})
	s.fail(ErrClosed)
	if err != nil {
		return fmt.Errorf("close metadata store: %w", err)
	}
	return nil
}
