package main

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxLogLines     = 1024        // that wait for a slow reader of the log
	logCloseTimeout = time.Second // for them to be written at the end
)

// logWriter writes a log without making anybody wait for it: standard error may
// be a pipe that nobody empties, or a file on the very device that we serve.
// Lines that find no room are dropped and counted in the log itself.
type logWriter struct {
	out     io.Writer
	lines   chan []byte // closed by Close
	dropped atomic.Uint64
	drained chan struct{} // closed by the goroutine when it ends

	mu     sync.RWMutex // guards closed against a Write under way
	closed bool
}

func startLogWriter(out io.Writer) *logWriter {
	w := &logWriter{out: out, lines: make(chan []byte, maxLogLines), drained: make(chan struct{})}
	go w.drain()
	return w
}

// Write takes one line, a copy of it, and never waits or fails.
func (w *logWriter) Write(line []byte) (int, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.closed {
		return len(line), nil
	}
	select {
	case w.lines <- append([]byte(nil), line...):
	default:
		w.dropped.Add(1)
	}
	return len(line), nil
}

// drain writes until Close. Errors are nobody's to handle: the log is gone.
func (w *logWriter) drain() {
	defer close(w.drained)
	for line := range w.lines {
		_, _ = w.out.Write(line)
		if n := w.dropped.Swap(0); n > 0 {
			fmt.Fprintf(w.out, "level=WARN msg=\"log lines dropped\" count=%d\n", n)
		}
	}
}

// Close writes what waits and joins the goroutine, unless the reader of the log
// is stuck: a stop must not wait for it either. Later lines are lost; a second
// Close waits like the first.
func (w *logWriter) Close() {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		close(w.lines)
	}
	w.mu.Unlock()
	select {
	case <-w.drained:
	case <-time.After(logCloseTimeout):
	}
}
