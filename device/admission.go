package device

//trivet:pure

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"trivet/shard"
)

// The errors with which a part leaves the line at its deadline.
var (
	errDoor     = errors.New("no room in the arena")
	errLogSpace = fmt.Errorf("%w: no log space was reclaimed before the deadline", ErrNoSpace)
	errLag      = errors.New("the map is not stored as fast as it changes")
	// errWithdrawn: nobody waits for it any more.
	errWithdrawn = errors.New("the client has hung up")
)

// The pace at which writes enter a shard whose log is short of space. It is by
// bytes, for bytes are what the cleaner has to find room for.
const (
	// paceHalf is how far apart blocks enter at half of the full pressure:
	// 64 MiB/s. At the share p of it, it is multiplied by p/(1-p).
	paceHalf = time.Second / (64 << 20 / blockBytes)
	// paceMost is the slowest pace before nothing enters at all, 4 MiB/s: what
	// a few clients have parked still enters within a deadline.
	paceMost = time.Millisecond
	// paceCredit is how late a write may come and still count as on time:
	// timers are coarser than the pace.
	paceCredit = 4 * time.Millisecond
	// pollEvery is how soon a fallen pressure is noticed. Nothing polls unless
	// somebody waits for log space.
	pollEvery = 5 * time.Millisecond
	// rangeReserve is how many records of ranges enter a shard at full pressure.
	// They pass the writes, because they are what gives space back, but they
	// take some of the log themselves.
	rangeReserve = 256
)

// supply is what parts need to enter their shard.
type supply interface {
	// pressure and lagging are shard.Pressure and shard.Lagging of a shard.
	pressure(shard int) int
	lagging(shard int) bool
	// take gets the part's pages of the arena, all or none. It leaves the last
	// few to ranges and repairs.
	take(p *part) bool
	// ask finds out whether the client who sent the part is still there.
	ask(p *part) Presence
}

// ticket says what a part needs at the door.
type ticket struct {
	shard  int
	ranged bool   // it is the record of a range, without payload
	client uint64 // see Request.Client
	pages  int
}

// line is the parts that wait at the door, and decides whose turn it is. Each
// shard has two gates, one for writes and one for ranges. Gates take turns, and
// at a gate the clients do; what a client has there enters in the order of its
// requests. No decision looks at more than one part of a client, or waits for
// one thing while holding another: a part gets log space and pages at once.
//
// Nobody passes an older part that overlaps, whoever sent that one and whatever
// kind it is of; see precedence. And nobody is let in whose client has hung up: it is
// asked when the part's turn comes, while those that overlap still wait for it.
// So what a client sent before it hung up cannot land on what was written since.
type line struct {
	supply  supply
	reserve int    // how many pages take leaves to ranges
	gates   []gate // by shard, in turn for writes and for ranges
	turn    int    // the gate that is asked first
	length  int    // parts

	// starved tells that a write has its turn, and waits for pages. The next
	// free ones are its own, but for the reserve's: passed counts the ranges
	// that were let by.
	starved bool
	passed  int

	soonest time.Duration // no part's deadline is earlier

	order precedence // who must not be overtaken by whom
}

// gate is where parts of one kind enter one shard.
type gate struct {
	shard  int
	ranged bool
	flows  []*flow // of the clients who wait
	turn   int     // whose flow is served next
	shut   bool    // when it was last asked: there was too little log space
	log    *logSpace
}

// logSpace is what was taken of a shard's log.
type logSpace struct {
	due    time.Duration // when the next write is on time
	ranges int           // records of ranges since the pressure was full
}

// flow is what one client has waiting at a gate, by deadline, which is the
// order of its requests. It is never empty.
type flow struct {
	client uint64
	parts  []*part
}

func newLine(shards, reserve int, s supply) line {
	l := line{supply: s, reserve: reserve, gates: make([]gate, 2*shards), order: newPrecedence()}
	for i := range shards {
		log := new(logSpace)
		l.gates[2*i] = gate{shard: i, log: log}
		l.gates[2*i+1] = gate{shard: i, log: log, ranged: true}
	}
	return l
}

func (l *line) gate(t ticket) *gate {
	if t.ranged {
		return &l.gates[2*t.shard+1]
	}
	return &l.gates[2*t.shard]
}

// enter lets a part in that has just come, with its pages. False: it has to
// wait, behind others, for log space, or for pages.
func (l *line) enter(now time.Duration, p *part) bool {
	g := l.gate(p.ticket)
	if len(g.flows) > 0 || g.opens(now, l.supply.pressure(g.shard)) > now || !l.mayTake(g) ||
		l.order.overlaps(p) || !l.supply.take(p) {
		return false
	}
	l.count(g, now, p)
	return true
}

// park puts a part in its place. The later parts of a long request come after
// parts of younger ones, so that is not always the end. It returns a part that it
// must wait for, if there is one.
func (l *line) park(p *part) (behind *part) {
	f := l.gate(p.ticket).flow(p.client)
	i := sort.Search(len(f.parts), func(i int) bool { return f.parts[i].Deadline > p.Deadline })
	f.parts = slices.Insert(f.parts, i, p)
	if l.length == 0 || p.Deadline < l.soonest {
		l.soonest = p.Deadline
	}
	l.length++
	return l.order.add(p)
}

// flow returns a client's flow; a new one is the last whose turn it is.
func (g *gate) flow(client uint64) *flow {
	for _, f := range g.flows {
		if f.client == client {
			return f
		}
	}
	f := &flow{client: client}
	g.flows = slices.Insert(g.flows, g.turn, f)
	if len(g.flows) > 1 {
		g.turn++
	}
	return f
}

// next takes out the part whose turn it is, with its pages; nil when nobody can
// enter now. With an error the part has none: its client has left. Those that
// overlap a part that enters wait until settled is called.
func (l *line) next(now time.Duration) (*part, error) {
	first := l.turn
	l.starved = false
	for i := range l.gates {
		at := (first + i) % len(l.gates)
		g := &l.gates[at]
		if len(g.flows) == 0 {
			continue
		}
		g.shut = g.opens(now, l.supply.pressure(g.shard)) > now
		if g.shut || !l.mayTake(g) {
			continue
		}
		j, presence := l.pick(g)
		if presence == Unsure {
			continue
		}
		p := g.flows[j].parts[0]
		if presence == Gone {
			l.remove(g, j)
			l.order.remove(p)
			return p, errWithdrawn
		}
		if !l.supply.take(p) {
			if !g.ranged {
				l.starved, l.turn = true, at
			}
			continue
		}
		if !l.starved {
			l.turn = (at + 1) % len(l.gates)
		}
		l.count(g, now, p)
		l.order.entering(p)
		g.turn = j
		if left := l.remove(g, j); left > 0 {
			g.turn = (g.turn + 1) % len(g.flows)
		}
		return p, nil
	}
	return nil, nil
}

// pick returns the flow whose turn it is at a gate where parts may enter: the
// first whose part overlaps no older one, and whose client is there or has left.
// Of clients that may have hung up it is not known yet what that means: they keep
// their places. Unsure: there is no other.
func (l *line) pick(g *gate) (i int, presence Presence) {
	for n := range g.flows {
		i := (g.turn + n) % len(g.flows)
		p := g.flows[i].parts[0]
		if l.order.waits(p) {
			continue
		}
		if presence := l.supply.ask(p); presence != Unsure {
			return i, presence
		}
	}
	return 0, Unsure
}

// settled lets those go on that overlap the part that entered last.
func (l *line) settled() { l.order.settled() }

// withdraw takes out a part of a client; nil when it has none.
func (l *line) withdraw(client uint64) *part {
	for i := range l.gates {
		g := &l.gates[i]
		for j, f := range g.flows {
			if f.client == client {
				p := f.parts[0]
				l.remove(g, j)
				l.order.remove(p)
				return p
			}
		}
	}
	return nil
}

// mayTake tells whether parts at the gate may ask for pages: not while a write
// waits for some, but for the reserve.
func (l *line) mayTake(g *gate) bool {
	return !l.starved || g.ranged && l.passed < l.reserve
}

// count takes note of a part that enters.
func (l *line) count(g *gate, now time.Duration, p *part) {
	pressure := l.supply.pressure(g.shard)
	switch {
	case !g.ranged:
		l.passed = 0
		g.log.due = max(g.log.due, now-paceCredit) + time.Duration(p.pages)*pace(pressure)
	case l.starved:
		l.passed++
	}
	if g.ranged && pressure >= shard.Full {
		g.log.ranges++
	}
}

// opens returns when the gate lets the next part in, as far as log space goes:
// now, or when to look again.
func (g *gate) opens(now time.Duration, pressure int) time.Duration {
	if pressure < shard.Full {
		g.log.ranges = 0
	}
	switch {
	case pressure <= 0, g.ranged && g.log.ranges < rangeReserve:
		return now
	case pressure >= shard.Full:
		return now + pollEvery
	}
	return min(max(g.log.due, now), now+pollEvery)
}

// pace returns how far apart blocks enter a shard.
func pace(pressure int) time.Duration {
	if pressure >= shard.Full {
		return paceMost
	}
	return min(paceHalf*time.Duration(pressure)/time.Duration(shard.Full-pressure), paceMost)
}

// remove takes the first part out of the flow with index i, and returns how many
// are left in it.
func (l *line) remove(g *gate, i int) (left int) {
	f := g.flows[i]
	f.parts[0] = nil
	f.parts = f.parts[1:]
	l.length--
	if len(f.parts) > 0 {
		return len(f.parts)
	}
	g.flows = slices.Delete(g.flows, i, i+1)
	if i < g.turn {
		g.turn--
	}
	if g.turn == len(g.flows) {
		g.turn = 0
	}
	return 0
}

// expired takes out a part whose deadline has passed, with the error that tells
// what it waited for; nil when there is none.
func (l *line) expired(now time.Duration) (*part, error) {
	if l.length == 0 || now < l.soonest {
		return nil, nil
	}
	var soonest time.Duration
	for i := range l.gates {
		g := &l.gates[i]
		for j, f := range g.flows {
			p := f.parts[0]
			if p.Deadline <= now {
				l.remove(g, j)
				l.order.remove(p)
				return p, l.refusal(now, g)
			}
			if soonest == 0 || p.Deadline < soonest {
				soonest = p.Deadline
			}
		}
	}
	l.soonest = soonest
	return nil, nil
}

// refusal is the error of a part that has waited at the gate until its deadline.
func (l *line) refusal(now time.Duration, g *gate) error {
	switch {
	case g.opens(now, l.supply.pressure(g.shard)) <= now:
		return fmt.Errorf("%w: %w", shard.ErrDeadline, errDoor)
	case l.supply.lagging(g.shard):
		return fmt.Errorf("%w: %w", shard.ErrDeadline, errLag)
	}
	return errLogSpace
}

// any takes out some part; nil when there is none.
func (l *line) any() *part {
	for i := range l.gates {
		if g := &l.gates[i]; len(g.flows) > 0 {
			p := g.flows[0].parts[0]
			l.remove(g, 0)
			l.order.remove(p)
			return p
		}
	}
	return nil
}

// What parts wait for in the line.
const (
	forLogSpace = "log space"
	forMap      = "a checkpoint"
	forMemory   = "memory"
	forOlder    = "an older write of the same blocks"
)

// each calls fn for at most a number of parts, with what they wait for: the
// first of every client's, then their second, and so on.
func (l *line) each(now time.Duration, most int, fn func(p *part, what string)) {
	for depth := 0; ; depth++ {
		any := false
		for i := range l.gates {
			g := &l.gates[i]
			for _, f := range g.flows {
				if depth >= len(f.parts) {
					continue
				}
				if most--; most < 0 {
					return
				}
				any = true
				p := f.parts[depth]
				what := l.lacks(now, g)
				if what == forMemory && l.order.waits(p) {
					what = forOlder
				}
				fn(p, what)
			}
		}
		if !any {
			return
		}
	}
}

// lacks tells what keeps those at a gate waiting. Writes that enter at the pace
// of a short log wait for space also when one of them may enter now.
func (l *line) lacks(now time.Duration, g *gate) string {
	pressure := l.supply.pressure(g.shard)
	if g.opens(now, pressure) <= now && (g.ranged || pressure == 0 || l.starved) {
		return forMemory
	}
	if l.supply.lagging(g.shard) {
		return forMap
	}
	return forLogSpace
}

// wake returns when to look again though nothing has happened: at the next
// deadline, or earlier for those who waited for log space when next last looked;
// at once when there is some meanwhile. Who waits for pages is woken when pages
// are freed. The line is not empty.
func (l *line) wake(now time.Duration) time.Duration {
	at := l.soonest
	for i := range l.gates {
		if g := &l.gates[i]; len(g.flows) > 0 && g.shut {
			at = min(at, g.opens(now, l.supply.pressure(g.shard)))
		}
	}
	return at
}
