package device

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"trivet/journal"
	"trivet/shard"
)

// maxRound is how many parts of one request are under way at a time.
const maxRound = 64

// maxStatusRound is maxRound for block status: a part is 256 look-ups, and others
// have their turn in between.
const maxStatusRound = 4

// state is the device's part of a request.
type state struct {
	device  *Device
	began   time.Duration // on the shards' clock, as until is
	until   time.Duration // deadline of the whole request
	next    uint64        // first byte that no part covers yet
	further bool          // the first round is over
	end     uint64        // first byte behind the request
	pending atomic.Int32  // parts of this round under way, plus one while it is being submitted
	parts   []*part       // of this round, in order; kept for its memory
	one     [1]*part      // the usual case needs no other memory
	failed  atomic.Pointer[error]
}

// part is a shard's part with its way back to the request. Parts are pooled.
type part struct {
	shard.Part
	ticket
	request *Request
	berth   *berth        // its place in the door's order; nil while it has none
	parked  []byte        // payload while it waits at the door
	since   time.Duration // when it came to wait there
}

// Submit starts a request. It never waits: a write for which there is no room in
// the arena, or too little in the log, is parked at the door, holding nothing
// but a copy of its payload.
func (d *Device) Submit(r *Request) {
	d.Post(r)
	d.Run()
}

// Run carries out what was posted.
func (d *Device) Run() {
	for _, s := range d.shards {
		s.Run()
	}
}

// Post is Submit, but leaves the request in the shards' inboxes until Run is
// called, as it must be, by the same goroutine. Requests that arrived together
// should be posted and then run: they cost one turn of a shard, and the flushes
// among them one sync.
func (d *Device) Post(r *Request) {
	r.Err = nil
	if !d.enter() {
		r.Err = ErrShutdown
		r.Done(r)
		return
	}
	s := &r.device
	s.device, s.next, s.end = d, r.Offset, r.Offset+uint64(r.Length)
	s.began, s.further = d.now(), false
	s.until = s.began + d.opt.Deadline
	if !r.Since.IsZero() {
		s.until = r.Since.Sub(d.epoch) + d.opt.Deadline
	}
	s.failed.Store(nil)
	r.Extents = r.Extents[:0]
	if err := d.check(r); err != nil {
		r.Err = err
		d.leave(r)
		return
	}
	if s.until <= s.began {
		s.fail(d.door.overdue(d.shardOf(r.Offset), r.Op))
		d.complete(r)
		return
	}
	switch r.Op {
	case Flush:
		s.next, s.end = 0, uint64(len(d.shards))
	case Write:
		if r.Length > maxRound/2*chunkBytes { // consumed before Submit returns
			r.Data = append([]byte(nil), r.Data...)
		}
	}
	d.advance(r)
}

// check refuses what no shard could do.
func (d *Device) check(r *Request) error {
	switch {
	case r.Op > BlockStatus:
		return fmt.Errorf("%w: %v", ErrInvalid, r.Op)
	case r.Op == Flush:
		return nil
	case r.Length == 0 || r.Offset > d.info.SizeBytes || uint64(r.Length) > d.info.SizeBytes-r.Offset:
		return fmt.Errorf("%w: %v of %d bytes at %d of %d", ErrInvalid, r.Op, r.Length, r.Offset, d.info.SizeBytes)
	case r.Op == WriteZeroes && r.Flags&FastZero != 0 && (r.Offset|uint64(r.Length))%blockBytes != 0:
		return fmt.Errorf("%w: zeros fast, but %d bytes at %d do not end with blocks", ErrUnsupported, r.Length, r.Offset)
	case (r.Op == Read || r.Op == Write) && len(r.Data) != int(r.Length):
		return fmt.Errorf("%w: %v of %d bytes with %d bytes of memory", ErrInvalid, r.Op, r.Length, len(r.Data))
	}
	return nil
}

// advance posts rounds of parts until one is under way, or all are done. Whoever
// completes the last part of a round goes on from there.
func (d *Device) advance(r *Request) {
	s := &r.device
	for {
		if s.next >= s.end || s.failed.Load() != nil {
			d.complete(r)
			return
		}
		s.pending.Store(1)
		if s.parts == nil {
			s.parts = s.one[:0]
		}
		most := maxRound
		if r.Op == BlockStatus {
			most = maxStatusRound
		}
		for n := 0; n < most && s.next < s.end; n++ {
			d.submitPart(r)
		}
		if s.pending.Add(-1) > 0 {
			return
		}
		d.endRound(r)
	}
}

// fail notes why the request fails. The first reason counts.
func (s *state) fail(err error) { s.failed.CompareAndSwap(nil, &err) }

// submitPart cuts the next part off the request and gives it to its shard.
func (d *Device) submitPart(r *Request) {
	s := &r.device
	p := d.parts.Get().(*part)
	p.request = r
	p.FUA, p.Status, p.Deadline, p.Err = r.Flags&FUA != 0, false, s.until, nil
	p.Left = r.Left
	s.parts = append(s.parts, p)
	s.pending.Add(1)
	if r.Op == Flush {
		p.Op, p.LBA, p.Skip, p.Length = shard.Flush, 0, 0, 0
		s.next++
		d.shards[s.next-1].Post(&p.Part)
		return
	}
	offset := s.next
	s.next = min(s.end, d.cut(r, offset, s.end))
	p.LBA, p.Skip, p.Length = journal.LBA(offset/blockBytes), int(offset%blockBytes), int(s.next-offset)
	at := offset - r.Offset
	switch r.Op {
	case Read:
		p.Op, p.Data, p.Status = shard.Read, r.Data[at:at+uint64(p.Length)], r.Flags&WantExtents != 0
	case Cache:
		p.Op, p.Data = shard.Cache, nil
	case BlockStatus:
		p.Op = shard.Status
		p.Length += p.Skip
		p.Skip = 0
	case Write:
		p.Op = shard.Write
		d.write(p, r.Data[at:at+uint64(p.Length)])
		return
	case Trim, WriteZeroes:
		d.writeRange(p, r)
		return
	}
	d.shards[d.shardOf(offset)].Post(&p.Part)
}

// cut returns where the part that begins at offset ends: at the region's end;
// with data at the chunk's; and a range of zeros has its ragged edges apart.
func (d *Device) cut(r *Request, offset, end uint64) uint64 {
	region := (offset/regionBytes + 1) * regionBytes
	switch r.Op {
	case Read, Write, Cache:
		return (offset/chunkBytes + 1) * chunkBytes
	case Trim, WriteZeroes:
		if offset%blockBytes != 0 {
			return (offset/blockBytes + 1) * blockBytes
		}
		if whole := end &^ (blockBytes - 1); whole > offset {
			return min(region, whole)
		}
	}
	return region
}

// write fills the part's pages and posts it, or parks it.
func (d *Device) write(p *part, data []byte) {
	if !d.admit(p, (p.Skip+p.Length+blockBytes-1)/blockBytes, data) {
		return
	}
	p.Fill(d.arena, data)
	d.shards[p.shard].Post(&p.Part)
}

// writeRange logs a whole-block range of a Trim or WriteZeroes as one record;
// a block that they cover in part gets zeros written.
func (d *Device) writeRange(p *part, r *Request) {
	if p.Skip != 0 || p.Length%blockBytes != 0 {
		p.Op = shard.Write
		d.write(p, zeros[:p.Length])
		return
	}
	p.Op = shard.Trim
	if r.Op == WriteZeroes && r.Flags&NoHole != 0 {
		p.Op = shard.Zero
	}
	if d.admit(p, 1, nil) {
		d.shards[p.shard].Post(&p.Part)
	}
}

// admit gets a part that changes something its pages, and leave to enter its
// shard. False: it was parked with its data, or has failed.
func (d *Device) admit(p *part, pages int, data []byte) bool {
	p.ticket = ticket{
		shard: d.shardOf(uint64(p.LBA) * blockBytes), ranged: p.Op == shard.Trim || p.Op == shard.Zero,
		client: p.request.Client, pages: pages,
	}
	if stopped := d.stopped.Load(); stopped != nil {
		p.Err = *stopped
		p.done()
		return false
	}
	// The later parts of a request have been under way for a while, so their client
	// is asked again: the door asks those who wait.
	if !(p.request.device.further && p.request.Peer != nil) && d.door.enter(p) {
		return true
	}
	p.parked = append(p.parked[:0], data...)
	d.door.park(p)
	return false
}

// Withdraw fails what waits at the door on behalf of a client that has hung up,
// whose Peer answers Gone from now on. When it returns, nothing of it starts any
// more.
func (d *Device) Withdraw(client uint64) {
	d.door.withdraw(client)
	d.Run()
}

// Resume lets the door ask the clients again: one that was unsure has made up its
// mind. It never blocks.
func (d *Device) Resume() { d.door.notify() }

// zeros is the payload of a ragged edge.
var zeros [blockBytes]byte

// partDone is every part's Done.
func (p *part) done() {
	r := p.request
	s := &r.device
	if p.Err != nil {
		s.fail(p.Err)
	}
	if s.pending.Add(-1) == 0 {
		d := s.device
		d.endRound(r)
		d.advance(r)
		d.Run()
	}
}

// endRound gathers what the parts of a round have found, and frees them.
func (d *Device) endRound(r *Request) {
	s := &r.device
	for i, p := range s.parts {
		if r.Op == BlockStatus || r.Flags&WantExtents != 0 {
			r.gather(p)
		}
		p.request, p.Data, p.Left = nil, nil, nil
		d.parts.Put(p)
		s.parts[i] = nil
	}
	s.parts, s.further = s.parts[:0], true
	if s.next < s.end && r.Peer != nil && r.Op != BlockStatus && r.Peer.Ask() == Gone {
		s.fail(errWithdrawn)
	}
	if r.Op == BlockStatus && r.Flags&ReqOne != 0 && len(r.Extents) > 1 {
		r.Extents, s.next = r.Extents[:1], s.end
	}
}

// gather appends the extents of a part, cut to the bytes of the request.
func (r *Request) gather(p *part) {
	at := uint64(p.LBA) * blockBytes
	end := r.Offset + uint64(r.Length)
	for _, e := range p.Extents {
		from := max(at, r.Offset)
		at += uint64(e.Blocks) * blockBytes
		if to := min(at, end); to > from {
			r.addExtent(Extent{Length: to - from, Hole: e.Content == journal.Hole, Zero: e.Content != journal.Data})
		}
	}
}

func (r *Request) addExtent(e Extent) {
	if last := len(r.Extents) - 1; last >= 0 && r.Extents[last].Hole == e.Hole && r.Extents[last].Zero == e.Zero {
		r.Extents[last].Length += e.Length
		return
	}
	r.Extents = append(r.Extents, e)
}

// complete gives the request back.
func (d *Device) complete(r *Request) {
	if failed := r.device.failed.Load(); failed != nil {
		r.Err = translate(*failed)
	}
	now := d.now()
	d.latencies.note(r.Op, d.shardOf(r.Offset), now, now-r.device.began)
	d.leave(r)
}

// translate turns a shard's error into one of the device's.
func translate(err error) error {
	switch {
	case errors.Is(err, shard.ErrDeadline):
		return fmt.Errorf("%w: %w", ErrDeadline, err)
	case errors.Is(err, ErrNoSpace):
		return err
	case errors.Is(err, errWithdrawn), errors.Is(err, shard.ErrLeft):
		return fmt.Errorf("%w: %w", ErrWithdrawn, err)
	}
	return fmt.Errorf("%w: %w", ErrIO, err)
}
