package nbd

import (
	"log/slog"
	"sync"
	"time"
)

// event is a kind of log line that a client can cause, and so can flood.
type event int

const (
	eventRefused event = iota
	eventEnded
	eventHandshake
	eventOutOfStep
	eventStalled
	eventUnread
	eventAccept
	eventUnserved
	eventKinds
)

var eventText = [eventKinds]string{
	eventRefused:   "nbd: connection refused, too many clients",
	eventEnded:     "nbd: connection ended to make room",
	eventHandshake: "nbd: handshake failed",
	eventOutOfStep: "nbd: client broke the protocol, connection closed",
	eventStalled:   "nbd: client stalled, connection closed",
	eventUnread:    "nbd: connection was not read in time, and is cut: its requests may be too old",
	eventAccept:    "nbd: accept failed",
	eventUnserved:  "nbd: connection is neither a unix nor a TCP socket",
}

// quietInterval is how long repetitions of an event are only counted.
const quietInterval = 10 * time.Second

// quietLog writes the first event of a kind at once and the repetitions of
// the next interval as one line with their number.
type quietLog struct {
	log *slog.Logger

	mu     sync.Mutex // guards what follows
	closed bool
	kinds  [eventKinds]struct {
		summary    *time.Timer // runs while repetitions are only counted
		suppressed int
		last       error
	}
}

// note reports an event.
func (q *quietLog) note(e event, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	k := &q.kinds[e]
	if k.summary != nil || q.closed {
		k.suppressed++
		k.last = err
		return
	}
	q.log.Warn(eventText[e], "error", err)
	k.summary = time.AfterFunc(quietInterval, func() { q.summarise(e) })
}

// summarise ends an interval; with repetitions in it, the next one follows.
func (q *quietLog) summarise(e event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	k := &q.kinds[e]
	if q.closed {
		return
	}
	if k.suppressed == 0 {
		k.summary = nil
		return
	}
	q.flush(e)
	k.summary.Reset(quietInterval)
}

// flush writes the line for the repetitions counted so far.
func (q *quietLog) flush(e event) {
	k := &q.kinds[e]
	if k.suppressed > 0 {
		q.log.Warn(eventText[e], "repeated", k.suppressed, "last", k.last)
		k.suppressed = 0
	}
}

// close writes what is still uncounted and stops the timers.
func (q *quietLog) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for e := range eventKinds {
		if t := q.kinds[e].summary; t != nil {
			t.Stop()
		}
		q.flush(e)
	}
}
