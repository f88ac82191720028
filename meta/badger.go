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

// BadgerOptions tune a store on Badger. The zero value is the default.
type BadgerOptions struct {
	// Expect is what is known of the store.
	Expect Expect
	// MinFreeBytes is how much of the filesystem must stay free; a commit that
	// would leave less fails with an error that wraps syscall.ENOSPC. It keeps
	// room for what Badger writes in the background, where a full filesystem
	// would end the process. Default 64 MiB.
	MinFreeBytes int64
	// ReserveBytes is preallocated, to be given up when less than MinFreeBytes
	// is left. Default 16 MiB; negative for none.
	ReserveBytes int64
	// LockWait is how long opening waits for another process to let go of the
	// directory. Default 5 s.
	LockWait time.Duration
	// RestAfter is how long nothing is asked of a helper process before it
	// closes its database, which the next request opens again. It takes some
	// milliseconds then. Default 15 s; negative for never. A store in this
	// process never rests.
	RestAfter time.Duration
	// synced, when set, is told of each directory that was synced; for tests.
	synced func(dir string)
	// Log receives Badger's warnings and errors, thinned out. Default stderr.
	Log io.Writer
}

func (o BadgerOptions) withDefaults() BadgerOptions {
	if o.MinFreeBytes == 0 {
		o.MinFreeBytes = 64 << 20
	}
	if o.ReserveBytes == 0 {
		o.ReserveBytes = 16 << 20
	}
	if o.LockWait == 0 {
		o.LockWait = 5 * time.Second
	}
	if o.RestAfter == 0 {
		o.RestAfter = 15 * time.Second
	}
	if o.Log == nil {
		o.Log = os.Stderr
	}
	return o
}

// OpenBadger opens the store in the directory dir, or makes it if that is
// expected, in this process. A full filesystem and some kinds of rot end the process, and a hung
// disk stops all of its goroutines: servers use StartHelper.
//
// Errors wrap ErrCorrupt when the content can't be trusted, and syscall.ENOSPC
// when there is no space to open it.
func OpenBadger(dir string, opt BadgerOptions) (Store, error) {
	e, err := openEngine(dir, opt)
	if err != nil {
		return nil, err
	}
	if err := e.opt.Expect.verify(e.state.Identity); err != nil {
		return nil, errors.Join(fmt.Errorf("open metadata store %s: %w", dir, err), e.close())
	}
	return newStore(&local{server: newServer(e), slots: make(chan struct{}, maxInFlight)}), nil
}

// maxInFlight bounds the requests under way at one server; more wait.
const maxInFlight = 32

// local is the transport within a process. Each request runs on a goroutine of
// its own, which a caller whose context ends leaves behind; Close joins it.
type local struct {
	server *server
	slots  chan struct{} // a token for each request under way

	mu     sync.Mutex // guards closed, and running against Close
	closed bool
	active sync.WaitGroup
}

type answer struct {
	reply []byte
	err   error
}

func (l *local) roundTrip(ctx context.Context, r request, released func()) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		released()
		return nil, err
	}
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		released()
		return nil, ctx.Err()
	}
	answered := make(chan answer, 1)
	if !l.startRequest(r, answered, released) {
		<-l.slots
		released()
		return nil, ErrClosed
	}
	select {
	case a := <-answered:
		return a.reply, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *local) startRequest(r request, answered chan<- answer, released func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.active.Go(func() {
		reply, err := l.server.handle(r, func() {})
		<-l.slots
		released()
		answered <- answer{reply, err}
	})
	return true
}

func (l *local) post(r request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		_, _ = l.server.handle(r, func() {})
	}
}

func (l *local) close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	l.active.Wait()
	return l.server.close()
}
