package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"trivet/control"
)

// drainTimeout is how long a stop waits for requests, beyond the deadline by
// which they complete anyway.
const drainTimeout = 10 * time.Second

const serveHelp = `Creates the volume when DIR is empty or not there (then --size is needed), opens
it otherwise, and serves it over NBD until SIGTERM or SIGINT: then it finishes what
was asked, flushes and exits with 0. A second signal ends it at once.

Every block is kept three times, in DIR/slot-0, DIR/slot-1 and DIR/slot-2. Put
them on different disks with --slot 1=/other/disk; that is remembered. A slot
that is missing, or whose place holds something else, is left out, and nothing
is made there: 'trivet slot replace ID' makes it anew. The server prints one line
'serving URI' for each address once clients can connect, and logs to standard
error.`

const serveExample = `  trivet serve ./volume --size 1G
  trivet serve ./volume --listen nbd://127.0.0.1:10809
  trivet serve ./volume --size 100G --slot 1=/mnt/b/vol --slot 2=/mnt/c/vol`

func newServeCommand() *cobra.Command {
	var flags serveFlags
	cmd := &cobra.Command{
		Use:     "serve DIR",
		Short:   "Create or open a volume and serve it over NBD",
		Long:    serveHelp,
		Example: serveExample,
		Args:    wantArgs("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			plan, err := flags.plan(args[0])
			if err != nil {
				return &usageError{fmt.Errorf("serve: %w", err)}
			}
			if err := becomeIOFlusher(); err != nil {
				return err
			}
			return serve(cmd.Context(), plan, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags.register(cmd.Flags())
	return cmd
}

// serve runs one volume from open to close.
func serve(ctx context.Context, plan servePlan, stdout, stderr io.Writer) error {
	logWriter := startLogWriter(stderr)
	defer logWriter.Close()
	log := slog.New(slog.NewTextHandler(logWriter, &slog.HandlerOptions{Level: plan.logLevel}))
	plan.volume.Log = log
	ctx, signals := startStopSignals(ctx, log, func(status int) {
		logWriter.Close() // the reason for the end is in it
		os.Exit(status)
	})
	defer signals.Close()

	checks := takeManners(log, plan.memory.heap)
	if err := enoughDescriptors(&plan); err != nil {
		return fmt.Errorf("serve %s: %w", plan.volume.Dir, err)
	}
	s, err := startServer(ctx, plan, checks)
	if errors.Is(err, context.Canceled) {
		log.Info("stopped before it served")
		return nil
	}
	if err != nil {
		return fmt.Errorf("serve %s: %w", plan.volume.Dir, err)
	}
	for _, uri := range s.uris {
		fmt.Fprintf(stdout, "serving %s\n", uri)
	}
	<-ctx.Done()
	if err := s.close(); err != nil {
		return fmt.Errorf("stop %s: %w", plan.volume.Dir, err)
	}
	log.Info("stopped")
	return nil
}

// server is a volume with everything that is put on top of it.
type server struct {
	plan     servePlan
	started  time.Time
	checks   []control.Check
	volume   Volume
	frontend *frontend
	control  *control.Server
	uris     []string    // one a listener
	draining atomic.Bool // set by close, for Status
}

// startServer opens the volume, which takes its lock, and only then touches
// sockets: those of a running server are safe from us.
func startServer(ctx context.Context, plan servePlan, checks []control.Check) (*server, error) {
	volume, err := openOrCreate(ctx, plan.volume)
	if errors.Is(err, errNoVolume) {
		return nil, fmt.Errorf("%w; give --size to create one", err)
	}
	if err != nil {
		return nil, err
	}
	s := &server{plan: plan, started: time.Now(), checks: checks, volume: volume}
	if err := s.listen(); err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		return nil, errors.Join(err, volume.Close(closing))
	}
	return s, nil
}

// openOrCreate opens the volume, or makes one if a size was given.
func openOrCreate(ctx context.Context, o VolumeOptions) (Volume, error) {
	if o.SizeBytes == 0 && len(o.Slots) == 0 {
		if _, err := os.Stat(o.Dir); errors.Is(err, fs.ErrNotExist) {
			return nil, errNoVolume
		}
	}
	return openVolume(ctx, o)
}

// listen binds all addresses before it serves the first, so that a server
// serves everything it was asked to, or nothing.
func (s *server) listen() error {
	var listeners []net.Listener
	for _, e := range s.plan.listen {
		l, err := e.listen()
		if err != nil {
			closeAll(listeners)
			return err
		}
		listeners = append(listeners, l)
		s.uris = append(s.uris, e.uri(l))
	}
	controlListener, err := s.plan.control.listen()
	if err != nil {
		closeAll(listeners)
		return fmt.Errorf("control socket: %w", err)
	}
	kept, err := keepDescriptors(controlListener)
	if err != nil {
		closeAll(append(listeners, controlListener))
		return err
	}
	s.frontend = startFrontend(s.volume, listeners, &s.plan)
	s.control = control.Start(kept, control.Options{
		Target: s, Faults: s.volume.Faults(), Log: s.plan.volume.Log,
	})
	return nil
}

// close ends everything in the order of the data: no new requests, the old ones
// finished, the volume flushed. The control socket is last, because a stop that
// takes long is when people look. Faults end first: a hang that is released
// only by its rule would hold up the drain.
func (s *server) close() error {
	s.draining.Store(true)
	if removed := s.volume.Faults().Clear(); removed > 0 {
		s.plan.volume.Log.Info("faults removed", "count", removed)
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.plan.volume.Deadline+drainTimeout)
	defer cancel()
	return errors.Join(s.frontend.Close(ctx), s.volume.Close(ctx), s.control.Close())
}

// ReplaceSlot asks the volume.
func (s *server) ReplaceSlot(ctx context.Context, slot int, at string) error {
	return s.volume.ReplaceSlot(ctx, slot, at)
}

// Status is the volume's, completed by what only the process knows.
func (s *server) Status() control.Status {
	status := s.volume.Status()
	status.Version = buildVersion()
	status.UptimeSeconds = time.Since(s.started).Seconds()
	status.Connections = s.frontend.Connections()
	status.Process = s.checks
	if s.draining.Load() {
		status.State = control.Draining
	}
	return status
}

// Inflight asks the volume, and the connections for what they hold back.
func (s *server) Inflight() []control.Inflight {
	list := append(s.volume.Inflight(), s.frontend.Inflight()...)
	slices.SortStableFunc(list, func(a, b control.Inflight) int { return cmp.Compare(b.AgeSeconds, a.AgeSeconds) })
	return list
}

// Events asks the volume.
func (s *server) Events() []control.Event { return s.volume.Events() }
