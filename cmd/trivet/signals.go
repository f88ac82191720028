package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// stopSignals turns signals into a context: the first SIGTERM, SIGINT or SIGHUP
// ends it, the second ends the process. SIGPIPE is ignored from now on: a block
// device must outlive whoever reads its log.
type stopSignals struct {
	signals chan os.Signal
	done    chan struct{} // closed by Close
	joined  sync.WaitGroup
	cancel  context.CancelFunc
	exit    func(status int) // ends the process
	log     *slog.Logger
}

func startStopSignals(parent context.Context, log *slog.Logger, exit func(status int)) (context.Context, *stopSignals) {
	ctx, cancel := context.WithCancel(parent)
	s := &stopSignals{
		signals: make(chan os.Signal, 2), // the package drops what does not fit
		done:    make(chan struct{}),
		cancel:  cancel,
		exit:    exit,
		log:     log,
	}
	signal.Ignore(syscall.SIGPIPE)
	signal.Notify(s.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	s.joined.Add(1)
	go s.wait()
	return ctx, s
}

func (s *stopSignals) wait() {
	defer s.joined.Done()
	select {
	case first := <-s.signals:
		s.log.Info("stopping", "signal", first.String())
		s.cancel()
	case <-s.done:
		return
	}
	select {
	case second := <-s.signals:
		s.log.Warn("stopping at once", "signal", second.String())
		s.exit(exitFailure)
	case <-s.done:
	}
}

// Close gives the signals back to the runtime and joins the goroutine.
func (s *stopSignals) Close() {
	signal.Stop(s.signals)
	close(s.done)
	s.joined.Wait()
	s.cancel()
}
