package device

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"trivet/journal"
	"trivet/shard"
)

// The bounds of what is remembered.
const (
	maxEvents      = 256
	maxErrorKinds  = 32
	maxSayings     = 16
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

	said []saying // what was logged with it; at most maxSayings
}

// saying is a text, without its numbers, and when it was logged last.
type saying struct {
	what string
	at   time.Time
}

// events keeps the last events and counts errors. What is said of a kind of
// error is logged at once, and then once an interval, however often it happens
// and to whichever block.
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
		if c := e.count(slot, kindOf(err), now); c != nil && c.repeats(what, now) {
			e.mu.Unlock()
			return
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

// repeats tells whether that was said within the last interval; if not, it is
// said now.
func (c *ErrorCount) repeats(what string, now time.Time) bool {
	what = strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, what)
	for i := range c.said {
		if s := &c.said[i]; s.what == what {
			recent := now.Sub(s.at) < repeatInterval
			if !recent {
				s.at = now
			}
			return recent
		}
	}
	if len(c.said) == maxSayings {
		c.said = slices.Delete(c.said, 0, 1)
	}
	c.said = append(c.said, saying{what, now})
	return false
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
	case errors.Is(err, shard.ErrStalled):
		return "STALLED"
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
		counted := *c
		counted.said = nil
		out = append(out, counted)
	}
	return out
}
