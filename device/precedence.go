package device

//trivet:pure

import (
	"time"

	"trivet/journal"
)

// precedence knows which of the parts at the door overlap, and lets none of them pass
// an older one. A part is older when its deadline is earlier, or the same and it
// came before: that is the order in which what a client has at a gate enters, so
// nobody waits in a circle. The later parts of a long request are older than some
// that came before them, which then wait. A part that was let in counts until its shard has it.
//
// A part waits for one other at a time, and looks for the next when that one
// leaves. What it looks through lies in one region, and is bounded: behind
// mostLooked others it waits for one of them, overlapping or not.
// Owner: the line.
type precedence struct {
	newest map[journal.Region]*berth // by region; never ranged over
	came   uint64                    // parts
	inside *berth                    // of a part that was let in; nil once its shard has it
	spare  *berth                    // linked by newer
}

// mostLooked is how many parts of a region are looked at, at once.
const mostLooked = 256

// berth is a part's place in the order. It outlives the part by as long as that
// takes to reach its shard.
type berth struct {
	part         *part // nil once that was let in
	first, last  journal.LBA
	deadline     time.Duration
	came         uint64
	older, newer *berth // in the region, in the order of coming

	behind   *berth // whom it waits for; nil: nobody
	waiting  *berth // the first of those who wait for it
	nextWait *berth // the next who waits for the same
}

func newPrecedence() precedence { return precedence{newest: map[journal.Region]*berth{}} }

// span returns the blocks that the part changes. ok is false for one that changes
// none, which is in no order.
func (p *part) span() (first, last journal.LBA, ok bool) {
	n := (p.Skip + p.Length + blockBytes - 1) / blockBytes
	return p.LBA, p.LBA + journal.LBA(n) - 1, n > 0
}

// overlaps reports whether a part that has just come would pass an older one.
func (o *precedence) overlaps(p *part) bool {
	first, last, ok := p.span()
	if !ok || len(o.newest) == 0 {
		return false
	}
	b := berth{first: first, last: last, deadline: p.Deadline, came: o.came + 1}
	return o.find(&b, o.newest[first.Region()]) != nil
}

// add gives a part its place. It returns the part that it waits for, if that is
// still at the door.
func (o *precedence) add(p *part) *part {
	first, last, ok := p.span()
	if !ok {
		return nil
	}
	b := o.spare
	if b == nil {
		b = new(berth)
	} else {
		o.spare = b.newer
	}
	o.came++
	region := first.Region()
	*b = berth{part: p, first: first, last: last, deadline: p.Deadline, came: o.came, older: o.newest[region]}
	if b.older != nil {
		b.older.newer = b
	}
	o.newest[region] = b
	p.berth = b
	b.await(o.find(b, b.older))
	for q := b.older; q != nil; q = q.older { // it may be older than some that came before
		if q.behind == nil && q != o.inside && b.precedes(q) && q.meets(b) {
			q.await(b)
		}
	}
	if b.behind == nil {
		return nil
	}
	return b.behind.part
}

// find returns a part that b must not pass, of one and those that came before it.
func (o *precedence) find(b, from *berth) *berth {
	looked := 0
	for q := from; q != nil; q = q.older {
		looked++
		if (q == o.inside || q.precedes(b)) && (q.meets(b) || looked > mostLooked) {
			return q
		}
	}
	return nil
}

// precedes reports whether q is older than b.
func (q *berth) precedes(b *berth) bool {
	return q.deadline < b.deadline || q.deadline == b.deadline && q.came < b.came
}

// meets reports whether two parts have a block in common.
func (q *berth) meets(b *berth) bool { return q.first <= b.last && b.first <= q.last }

// await makes b wait for another.
func (b *berth) await(q *berth) {
	if b.behind = q; q != nil {
		b.nextWait, q.waiting = q.waiting, b
	}
}

// waits reports whether a part must let another go first.
func (o *precedence) waits(p *part) bool { return p.berth != nil && p.berth.behind != nil }

// entering notes that a part was let in. It keeps its place until settled.
func (o *precedence) entering(p *part) {
	o.inside = p.berth
	if p.berth != nil {
		p.berth.part, p.berth = nil, nil
	}
}

// settled notes that the part that was let in has reached its shard.
func (o *precedence) settled() {
	if o.inside != nil {
		o.leave(o.inside)
		o.inside = nil
	}
}

// remove takes a part out that was not let in.
func (o *precedence) remove(p *part) {
	if p.berth != nil {
		o.leave(p.berth)
		p.berth = nil
	}
}

// leave takes a place out, and lets those who wait for it look for another.
func (o *precedence) leave(b *berth) {
	if b.behind != nil {
		b.behind.forget(b)
	}
	region := b.first.Region()
	if b.older != nil {
		b.older.newer = b.newer
	}
	switch {
	case b.newer != nil:
		b.newer.older = b.older
	case b.older != nil:
		o.newest[region] = b.older
	default:
		delete(o.newest, region)
	}
	for w := b.waiting; w != nil; {
		next := w.nextWait
		w.nextWait = nil
		w.await(o.find(w, o.newest[region]))
		w = next
	}
	*b = berth{newer: o.spare}
	o.spare = b
}

// forget takes w off the list of those who wait for b.
func (b *berth) forget(w *berth) {
	for at := &b.waiting; *at != nil; at = &(*at).nextWait {
		if *at == w {
			*at = w.nextWait
			w.nextWait = nil
			return
		}
	}
}
