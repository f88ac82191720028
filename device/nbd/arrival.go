package nbd

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// A request's deadline runs from when its header came. That is known to be when it
// was read, as long as the connection is read at once: not when the reader waited
// for room, or the process stood still. What came meanwhile counts as having come
// at the earliest time that is possible.

// errUnread is why a connection is cut: what lies in its socket may be older than
// requests may become.
var errUnread = errors.New("connection was not read for as long as a request may take")

// pulse is when the process was last known to run.
type pulse struct {
	epoch    time.Time
	last     atomic.Int64 // since epoch; written by one goroutine
	gapFrom  atomic.Int64 // the last time that it stood still
	gapUntil atomic.Int64
}

// A pulse is taken every pulseEvery while there are clients. When two are further
// apart than leastGap, the process stood still.
const (
	pulseEvery = 2 * time.Second
	leastGap   = 5 * time.Second
)

// beat takes the pulse.
func (p *pulse) beat(now time.Time) {
	at := int64(now.Sub(p.epoch))
	if last := p.last.Load(); last != 0 && at-last > int64(leastGap) {
		p.gapFrom.Store(last)
		p.gapUntil.Store(at)
	}
	p.last.Store(at)
}

// came returns the earliest time at which something may have come that was read
// now. The pulse may be the reader's to notice that it has stopped, or be taken
// again by then: what is read soon after a gap may have come in it.
func (p *pulse) came(now time.Time) time.Time {
	at, last := int64(now.Sub(p.epoch)), p.last.Load()
	switch until := p.gapUntil.Load(); {
	case at-last > int64(leastGap):
		return p.epoch.Add(time.Duration(last))
	case until != 0 && at-until < int64(leastGap):
		return p.epoch.Add(time.Duration(p.gapFrom.Load()))
	}
	return now
}

// startPulse takes the pulse until the server closes, while there are clients.
func (s *Server) startPulse() {
	s.running.Add(1)
	go func() {
		defer s.running.Done()
		tick := time.NewTicker(pulseEvery)
		defer tick.Stop()
		for beating := true; ; {
			select {
			case <-s.stop:
				return
			case <-s.busy:
				if !beating {
					tick.Reset(pulseEvery)
					beating = true
				}
			case <-tick.C:
				if beating = len(*s.peers.Load()) > 0; !beating {
					tick.Stop()
					continue
				}
				s.pulse.beat(time.Now())
			}
		}
	}()
}

// marks are how far a connection's stream had come at certain times in which it was
// not read. They bound when a byte that is read later came: behind the last mark
// that is not beyond it.
type marks struct {
	from time.Time // what lies before the first mark came then, at the earliest
	list []mark    // ascending; empty while the connection is read at once
}

type mark struct {
	end uint64 // of the stream, in bytes
	at  time.Time
}

// mostMarks bounds a connection's marks. They are taken no closer than markEvery of
// a request's deadline, so that they do not run out before a request would.
const (
	mostMarks = 64
	markShare = 32
)

// add notes how far the stream has come.
func (m *marks) add(end uint64, now time.Time, every time.Duration) {
	last := len(m.list) - 1
	if last >= 0 && (now.Sub(m.list[last].at) < every || last+1 == mostMarks) {
		return
	}
	m.list = append(m.list, mark{end, now})
}

// came returns when the byte at an offset of the stream may have come at the
// earliest; zero when nothing is known of it.
func (m *marks) came(at uint64) time.Time {
	if len(m.list) == 0 || at >= m.list[len(m.list)-1].end {
		m.list = m.list[:0]
		return time.Time{}
	}
	for m.list[0].end <= at {
		m.from = m.list[0].at
		m.list = append(m.list[:0], m.list[1:]...)
	}
	return m.from
}

// notRead notes, while the reader waits for room, how far the stream has come.
func (c *conn) notRead() {
	if c.session.deadline == 0 {
		return
	}
	if len(c.in.marks.list) == 0 {
		c.in.marks.from = c.in.came
	}
	_ = c.raw.Control(func(fd uintptr) { // a closed socket is read no more
		c.in.marks.add(c.in.total+uint64(inSocket(fd)), time.Now(), c.session.deadline/markShare)
	})
}

// stamp notes when the bytes came that were read just now.
// With less than was asked for, nothing is left of what had come.
func (in *input) stamp(n, asked int) error {
	now := time.Now()
	came := in.pulse.came(now)
	if came.Before(in.drained) {
		came = in.drained
	}
	if len(in.marks.list) > 0 {
		if at := in.marks.came(in.total); !at.IsZero() && at.Before(came) {
			came = at
		}
	}
	in.total += uint64(n)
	in.came = came
	if n < asked {
		in.drained = now
	}
	if age := now.Sub(came); in.oldest > 0 && age >= in.oldest {
		return fmt.Errorf("%w: %v", errUnread, age)
	}
	return nil
}

// since returns when the header came of the message that lies first in the input.
// It is asked of once for each header, or again when the message is not complete.
func (c *conn) since() time.Time {
	if c.headCame.IsZero() {
		return c.in.came
	}
	return c.headCame
}
