package device

import (
	"errors"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"trivet/journal"
)

// The bounds of what is remembered.
const (
	maxEvents      = 256
	maxErrorKinds  = 32
	repeatInterval = 10 * time.Second
)

// Event is something that an operator should know.
type Event struct {
	Time time.Time
	Slot int // -1: the volume
	What string
}

// ErrorCount counts a slot's errors of one kind.
type ErrorCount struct {
	Slot        int
	Errno       string
	Count       uint64
	First, Last time.Time

	said time.Time // when it was logged last
}

// events keeps the last events and counts errors. The first error of a kind is
// logged at once, then one line an interval, however many there are.
type events struct {
	log *slog.Logger

	mu     sync.Mutex // guards what follows; held for no I/O but the log's
	ring   [maxEvents]Event
	next   int
	errors []*ErrorCount
}

// note remembers what happened, and logs it.
func (e *events) note(slot int, what string, err error) {
	now := time.Now()
	e.mu.Lock()
	if err != nil {
		c := e.count(slot, kindOf(err), now)
		if c != nil && now.Sub(c.said) < repeatInterval {
			e.mu.Unlock()
			return
		}
		if c != nil {
			c.said = now
		}
	}
	text := what
	if err != nil {
		text += ": " + err.Error()
	}
	e.ring[e.next%maxEvents] = Event{now, slot, text}
	e.next++
	e.mu.Unlock()
	switch {
	case err != nil:
		e.log.Warn(what, "slot", slot, "error", err)
	case slot >= 0:
		e.log.Info(what, "slot", slot)
	default:
		e.log.Info(what)
	}
}

// count adds an error of a kind; nil when there are too many kinds.
func (e *events) count(slot int, kind string, now time.Time) *ErrorCount {
	for _, c := range e.errors {
		if c.Slot == slot && c.Errno == kind {
			c.Count++
			c.Last = now
			return c
		}
	}
	if len(e.errors) == maxErrorKinds {
		return nil
	}
	c := &ErrorCount{Slot: slot, Errno: kind, Count: 1, First: now, Last: now}
	e.errors = append(e.errors, c)
	return c
}

// kindOf names an error for counting.
func kindOf(err error) string {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	case errors.Is(err, journal.ErrChecksum):
		return "CHECKSUM"
	case errors.Is(err, journal.ErrDamaged):
		return "DAMAGED"
	}
	return "OTHER"
}

// last returns the events, oldest first.
func (e *events) last() []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []Event
	for i := max(0, e.next-maxEvents); i < e.next; i++ {
		out = append(out, e.ring[i%maxEvents])
	}
	return out
}

// counts returns the errors counted so far.
func (e *events) counts() []ErrorCount {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []ErrorCount
	for _, c := range e.errors {
		out = append(out, *c)
	}
	return out
}
