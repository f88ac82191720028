package nbd

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Memory is counted where it is promised, before a request is submitted: what
// its reply will need, payload that the device has taken and not completed, and the
// request itself. Each connection has a small share of its own, from which short
// requests are served whatever the others do. What it needs beyond that it
// borrows of what all connections share, in the order of asking, and gives back
// as its requests complete and their replies leave. That is enough for the
// longest request, so everybody's turn comes: who waits for a loan needs
// nothing from those who have one, and a client that holds a loan because it
// does not take its replies is cut off. So a connection costs little until it moves
// data, and how many there may be does not depend on the memory for that.
const (
	// ownBytes is a connection's own share. Writes are taken in smaller chunks when
	// no more is to be had.
	ownBytes = 96 << 10
	// connBytes is what a connection costs that borrows nothing: its own share,
	// its input, its goroutines and tables.
	connBytes = ownBytes + leastInput + 24<<10
	// shakeBytes is what a connection costs in its handshake.
	shakeBytes = maxOption + 16<<10
	// leastShared can be lent to a single connection for its longest request,
	// which is a read: long writes are many requests.
	leastShared = maxReplyBytes
	// loanBytes is the unit of loans, so that they are rare.
	loanBytes = 1 << 20
)

// MinMemoryBytes is the least Options.MemoryBytes for that many connections; less
// counts as that.
func MinMemoryBytes(connections int) uint64 {
	return leastShared + ownShares(connections)
}

// ownShares is what that many connections cost before they borrow.
func ownShares(connections int) uint64 {
	return uint64(connections)*connBytes + maxHandshakes*shakeBytes
}

// loans is the memory that connections share.
type loans struct {
	scarce atomic.Bool // somebody waits; written under mu

	mu    sync.Mutex // guards what follows; may be taken while conn.mu is held
	free  uint64     // bytes
	queue []*claim   // who waits, in order; one claim a connection
}

// claim is a connection's wait for a loan.
type claim struct {
	bytes   uint64
	granted atomic.Bool
	wake    func() // called once it is granted, with loans.mu held
}

// take lends bytes at once if nobody waits for some, and that many are left then.
func (l *loans) take(bytes, spare uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) > 0 || l.free < bytes+spare {
		return false
	}
	l.free -= bytes
	return true
}

// await puts a claim in the queue.
func (l *loans) await(c *claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.granted.Store(false)
	l.queue = append(l.queue, c)
	l.grant()
}

// end ends a claim, and returns what was lent.
func (l *loans) end(c *claim) (bytes uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.granted.Load() {
		return c.bytes
	}
	l.queue = slices.DeleteFunc(l.queue, func(other *claim) bool { return other == c })
	l.grant()
	return 0
}

// left returns how many bytes nobody was lent.
func (l *loans) left() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.free
}

// give takes bytes back.
func (l *loans) give(bytes uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free += bytes
	l.grant()
}

// grant serves the queue. l.mu is held.
func (l *loans) grant() {
	for len(l.queue) > 0 && l.queue[0].bytes <= l.free {
		c := l.queue[0]
		l.queue = slices.Delete(l.queue, 0, 1)
		l.free -= c.bytes
		c.granted.Store(true)
		c.wake()
	}
	l.scarce.Store(len(l.queue) > 0)
}

// bytes is the memory that usage stands for.
func (u usage) bytes() uint64 { return u.replyBytes + u.writeBytes + u.commands*commandBytes }

// inMemory tells whether a request fits into the connection's own share and
// what it was lent, as far as the reader knows.
func (c *conn) inMemory(n usage) bool {
	return c.taken.bytes()-c.seen.bytes()+n.bytes() <= c.limit
}

// extend makes room for a request if that can be done at once: with what came
// back since the reader looked, or with a loan.
func (c *conn) extend(n usage) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = c.returned
	if !c.inQuota(n, maxWriteBytes) {
		return false
	}
	if c.inMemory(n) {
		return true
	}
	spare := uint64(0)
	if !c.inQuota(n, plainWriteBytes) {
		spare = leastShared
	}
	missing := c.taken.bytes() - c.seen.bytes() + n.bytes() - c.limit
	for _, bytes := range [...]uint64{max(missing, loanBytes), missing} {
		if c.srv.loans.take(bytes, spare) {
			c.lend(bytes)
			return true
		}
	}
	return false
}

// lend raises the limit. c.mu is held.
func (c *conn) lend(bytes uint64) {
	if c.limit == ownBytes {
		c.lentSince = time.Now()
	}
	c.limit += bytes
}

// repay gives back what was lent and is not needed: all of it when somebody
// waits, else some is kept for what comes next. c.mu is held, and the reader is
// not in a batch.
func (c *conn) repay() {
	if c.limit == ownBytes {
		return
	}
	keep := c.issuedBytes - c.returned.bytes()
	if !c.srv.loans.scarce.Load() {
		keep += loanBytes
	}
	if keep = max(keep, ownBytes); c.limit > keep {
		c.srv.loans.give(c.limit - keep)
		c.limit = keep
	}
}

// awaitLoan waits until a request fits, for a loan or for what comes back,
// whichever is first. A client that has held a loan for all of that time and
// does not take its replies is cut off. The reader is not in a batch.
func (c *conn) awaitLoan(n usage, look *time.Ticker) error {
	began := time.Now()
	c.mu.Lock()
	c.repay()
	// What comes back from now on lowers the limit by no more than it lowers
	// what is missing.
	c.claim.bytes = max(c.taken.bytes()-c.seen.bytes()+n.bytes(), c.limit) - c.limit
	c.srv.loans.await(&c.claim)
	c.mu.Unlock()
	c.srv.callIn(c)
	err := c.awaitClaim(n, began, look)
	c.mu.Lock()
	defer c.mu.Unlock()
	if bytes := c.srv.loans.end(&c.claim); bytes > 0 {
		c.lend(bytes)
	}
	return err
}

func (c *conn) awaitClaim(n usage, began time.Time, look *time.Ticker) error {
	enough := func() bool { return c.inMemory(n) || c.claim.granted.Load() }
	for {
		c.mu.Lock()
		c.seen = c.returned
		over := enough()
		c.mu.Unlock()
		if over {
			return nil
		}
		if err := c.wait(look.C, enough); err != nil {
			return err
		}
		if time.Since(began) >= c.srv.opts.ReplyTimeout {
			c.srv.cutOff(began)
			began = time.Now()
		}
	}
}

// callIn takes back what the others were lent and do not use.
func (s *Server) callIn(by *conn) {
	for _, c := range *s.peers.Load() {
		if c != by {
			c.mu.Lock()
			if !c.batching {
				c.repay()
			}
			c.mu.Unlock()
		}
	}
}

// cutOff closes the connections that were lent memory before a time, and still
// wait for their clients to take what it was lent for.
func (s *Server) cutOff(before time.Time) {
	s.mu.Lock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.mu.Lock()
		stuck := c.limit > ownBytes && c.lentSince.Before(before) && c.writing
		c.mu.Unlock()
		if stuck {
			s.quiet.note(eventStalled, errHoards)
			c.nc.Close()
		}
	}
}
