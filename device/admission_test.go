package device

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"trivet/journal"
	"trivet/shard"
)

// store is a supply in numbers: pages, and the pressure of each shard.
type store struct {
	free    int
	reserve int
	level   []int
	behind  bool
	clients map[uint64]Presence // Here, for those that are not in it
}

func (s *store) ask(p *part) Presence { return s.clients[p.client] }

func (s *store) pressure(shard int) int { return s.level[shard] }

func (s *store) lagging(int) bool { return s.behind }

func (s *store) take(p *part) bool {
	spare := s.reserve
	if p.ranged {
		spare = 0
	}
	if s.free < spare+p.pages {
		return false
	}
	s.free -= p.pages
	return true
}

// newPart makes a part that has a client and a deadline.
func newPart(client uint64, t ticket, deadline time.Duration) *part {
	p := &part{ticket: t}
	p.client, p.Deadline = client, deadline
	return p
}

// crowd is a line with what a model knows of it: everything that was parked and
// has not come out.
type crowd struct {
	t       *testing.T
	line    line
	store   store
	now     time.Duration
	waiting map[*part]int // by the order of coming
	came    int
	held    []int                    // pages of those who entered, to be freed
	ranges  map[int]int              // let in since the shard's pressure was full
	seen    map[place]map[uint64]int // by who waits where: whom it saw served
	inside  *part                    // entered last, and is on its way to its shard
}

// next is the line's, with everybody there.
func (c *crowd) next() *part {
	c.line.settled()
	p, err := c.line.next(c.now)
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// overlap reports whether two parts have a block in common.
func overlap(p, q *part) bool {
	first, last, ok := p.span()
	otherFirst, otherLast, alsoOK := q.span()
	return ok && alsoOK && first <= otherLast && otherFirst <= last
}

// before reports whether p, which waits, is older than a part that came at a time.
func (c *crowd) before(p, than *part, came int) bool {
	return p.Deadline < than.Deadline || p.Deadline == than.Deadline && c.waiting[p] < came
}

// overtakes holds that a part which enters passes no older one that overlaps.
func (c *crowd) overtakes(p *part, came int) {
	if c.inside != nil && overlap(c.inside, p) {
		c.t.Fatal("a part overtook one that had entered")
	}
	for other := range c.waiting {
		if other != p && overlap(other, p) && c.before(other, p, came) {
			c.t.Fatalf("a part overtook an older one of client %d", other.client)
		}
	}
}

// heldUp reports whether a part waits for a client to make up its mind, or for one
// before it that may have reasons of its own.
func (c *crowd) heldUp(p *part) bool {
	if c.store.clients[p.client] == Unsure {
		return true
	}
	for other := range c.waiting {
		if other != p && c.before(other, p, c.waiting[p]) && (overlap(other, p) || placeOf(other) == placeOf(p) && c.heldUp(other)) {
			return true
		}
	}
	return false
}

// place is a client's at a gate.
type place struct {
	shard  int
	ranged bool
	client uint64
}

func placeOf(p *part) place { return place{p.shard, p.ranged, p.client} }

const crowdDeadline = 200 * time.Millisecond

func newCrowd(t *testing.T, shards, free int) *crowd {
	c := &crowd{t: t, now: 1, waiting: map[*part]int{}, ranges: map[int]int{}, seen: map[place]map[uint64]int{}}
	c.store = store{free: free, reserve: 8, level: make([]int, shards), clients: map[uint64]Presence{}}
	c.line = newLine(shards, c.store.reserve, &c.store)
	return c
}

// arrive brings a part; some are of requests that are older than others.
func (c *crowd) arrive(r *rand.Rand) {
	t := ticket{shard: r.IntN(len(c.store.level)), ranged: r.IntN(4) == 0, pages: 1}
	if !t.ranged && r.IntN(3) == 0 {
		t.pages = 1 + r.IntN(64)
	}
	deadline := c.now + crowdDeadline
	if r.IntN(8) == 0 {
		deadline -= time.Duration(r.IntN(int(crowdDeadline / 2)))
	}
	p := newPart(uint64(r.IntN(5)), t, deadline)
	p.Op, p.LBA = shard.Write, journal.LBA(t.shard*journal.RegionBlocks+r.IntN(200))
	p.Skip, p.Length = r.IntN(2)*100, 1+r.IntN(4*blockBytes)
	if t.ranged {
		p.Op, p.Skip, p.Length = shard.Trim, 0, (1+r.IntN(20))*blockBytes
	}
	c.came++
	free := c.store.free
	if c.line.enter(c.now, p) {
		c.overtakes(p, c.came)
		c.entered(p, free)
		if n := len(c.line.gate(t).flows); n > 0 {
			c.t.Fatalf("a part overtook %d clients at its gate", n)
		}
		return
	}
	c.line.park(p)
	c.waiting[p] = c.came
}

// entered checks that a part was let in by right.
func (c *crowd) entered(p *part, free int) {
	level := c.store.level[p.shard]
	switch {
	case p.ranged && level >= shard.Full:
		if c.ranges[p.shard]++; c.ranges[p.shard] > rangeReserve {
			c.t.Fatalf("%d ranges at full pressure", c.ranges[p.shard])
		}
	case level >= shard.Full:
		c.t.Fatal("a write entered at full pressure")
	case !p.ranged && free-p.pages < c.store.reserve:
		c.t.Fatalf("a write of %d pages took from the reserve: %d were free", p.pages, free)
	}
	c.held = append(c.held, p.pages)
}

// serve does what the door's goroutine does.
func (c *crowd) serve(r *rand.Rand) {
	for {
		p, err := c.line.expired(c.now)
		if p == nil {
			break
		}
		c.left(p)
		if p.Deadline > c.now {
			c.t.Fatalf("refused %v before its deadline: %v", p.Deadline-c.now, err)
		}
		level := c.store.level[p.shard]
		if level%shard.Full == 0 && !p.ranged && errors.Is(err, ErrNoSpace) != (level > 0) {
			c.t.Fatalf("at pressure %d it is said that: %v", level, err)
		}
	}
	for {
		c.line.settled()
		c.inside = nil
		free := c.store.free
		p, err := c.line.next(c.now)
		if p == nil {
			break
		}
		if presence := c.store.clients[p.client]; presence == Unsure || (presence == Gone) != errors.Is(err, errWithdrawn) {
			c.t.Fatalf("a part came out, %v, and its client is %d", err, presence)
		}
		if err == nil {
			c.inOrder(p)
			c.inTurn(p)
			c.overtakes(p, c.waiting[p])
			c.entered(p, free)
			c.inside = p
		}
		c.left(p)
		if r.IntN(8) == 0 {
			return // and others come before it has reached its shard
		}
	}
	c.nobodyForgotten(r)
}

// left takes a part out of the model.
func (c *crowd) left(p *part) {
	if _, ok := c.waiting[p]; !ok {
		c.t.Fatal("a part came out that was not in, or twice")
	}
	delete(c.waiting, p)
	if c.line.length != len(c.waiting) {
		c.t.Fatalf("the line has %d parts, expected %d", c.line.length, len(c.waiting))
	}
	for other := range c.waiting {
		if placeOf(other) == placeOf(p) {
			return
		}
	}
	delete(c.seen, placeOf(p))
}

// inOrder holds that nobody of the same client at the same gate was before p.
func (c *crowd) inOrder(p *part) {
	for other, came := range c.waiting {
		if placeOf(other) != placeOf(p) {
			continue
		}
		if other.Deadline < p.Deadline || other.Deadline == p.Deadline && came < c.waiting[p] {
			c.t.Fatal("a part overtook an older one of its client")
		}
	}
}

// inTurn holds that a client who waits at a gate sees no other one served there
// twice before it is served itself.
func (c *crowd) inTurn(p *part) {
	served := placeOf(p)
	waiting := map[place]bool{}
	for other := range c.waiting {
		waiting[placeOf(other)] = true
	}
	for other := range waiting {
		if other == served || other.shard != served.shard || other.ranged != served.ranged {
			continue
		}
		if c.firstHeldUp(other) {
			delete(c.seen, other)
			continue
		}
		if c.seen[other] == nil {
			c.seen[other] = map[uint64]int{}
		}
		if c.seen[other][served.client]++; c.seen[other][served.client] > 1 {
			c.t.Fatalf("client %d was served twice while client %d waited", served.client, other.client)
		}
	}
	delete(c.seen, served)
}

// firstHeldUp reports whether the first part of a client at a gate may not enter for
// the sake of another one, or of the client itself.
func (c *crowd) firstHeldUp(at place) bool {
	var first *part
	for p := range c.waiting {
		if placeOf(p) == at && (first == nil || c.before(p, first, c.waiting[first])) {
			first = p
		}
	}
	return c.heldUp(first)
}

// nobodyForgotten holds that whoever still waits has a reason to, and that the
// line is looked at again in time, also when time passes or the pressure changes
// before the door's goroutine rests.
func (c *crowd) nobodyForgotten(r *rand.Rand) {
	if len(c.waiting) == 0 {
		return
	}
	for p := range c.waiting {
		if c.store.level[p.shard] == 0 && c.store.free >= c.store.reserve+64 && !c.heldUp(p) {
			c.t.Fatalf("a part waits for nothing: %+v", p.ticket)
		}
	}
	if r.IntN(4) == 0 {
		c.now += time.Duration(r.IntN(int(2 * time.Millisecond)))
	}
	c.press(r)
	if r.IntN(16) == 0 {
		c.told(r.IntN(2 * len(c.waiting)))
	}
	wake := c.line.wake(c.now)
	for p := range c.waiting {
		level := c.store.level[p.shard]
		switch {
		case p.Deadline < wake:
			c.t.Fatalf("it wakes %v after a deadline", wake-p.Deadline)
		case level > 0 && !p.ranged && wake > c.now+pollEvery && !c.line.starved && !c.heldUp(p):
			c.t.Fatalf("it wakes after %v although somebody waits for log space", wake-c.now)
		case level == 0 && c.store.free >= c.store.reserve+64 && wake > c.now && !c.heldUp(p):
			c.t.Fatalf("it wakes after %v although log space came", wake-c.now)
		}
	}
}

// told holds that each who waits is told of, once, with what it waits for, but
// for those who are too many: then nobody's second part comes before somebody's
// first at the same gate.
func (c *crowd) told(most int) {
	told := map[*part]bool{}
	count := map[place]int{}
	c.line.each(c.now, most, func(p *part, what string) {
		if _, waits := c.waiting[p]; !waits || told[p] {
			c.t.Fatalf("told of a part that does not wait, or twice: %+v", p.ticket)
		}
		told[p] = true
		count[placeOf(p)]++
		level := c.store.level[p.shard]
		if level == 0 && what != forMemory && what != forOlder || level == shard.Full && !p.ranged && what != forLogSpace {
			c.t.Fatalf("at pressure %d it is said to wait for %s: %+v", level, what, p.ticket)
		}
	})
	if len(told) != min(most, len(c.waiting)) {
		c.t.Fatalf("told of %d parts, at most %d, of %d", len(told), most, len(c.waiting))
	}
	for p := range c.waiting {
		if told[p] {
			continue
		}
		for _, n := range count {
			if n > count[placeOf(p)]+1 {
				c.t.Fatalf("told of %d parts of one client, and of %d of another", n, count[placeOf(p)])
			}
		}
	}
}

// TestLine is a model test of the door's line: order, turns, deadlines, the
// reserves; nobody is lost, and nobody waits for nothing.
func TestLine(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 22))
			c := newCrowd(t, 1+r.IntN(3), 100+r.IntN(200))
			for range 3000 {
				switch r.IntN(7) {
				case 0, 1:
					c.arrive(r)
				case 5:
					c.comeAndGo(r)
				case 2:
					if len(c.held) > 0 {
						i := r.IntN(len(c.held))
						c.store.free += c.held[i]
						c.held[i] = c.held[len(c.held)-1]
						c.held = c.held[:len(c.held)-1]
					}
				case 3:
					c.now += time.Duration(r.IntN(int(4 * time.Millisecond)))
				case 4:
					c.press(r)
				}
				if r.IntN(4) > 0 { // who comes may come before the door looks
					c.serve(r)
				}
			}
			c.now += 2 * crowdDeadline
			c.line.settled()
			c.serve(r)
			if len(c.waiting) > 0 {
				t.Fatalf("%d parts are left behind all deadlines", len(c.waiting))
			}
		})
	}
}

// comeAndGo changes what is known of a client; those that have left come back as
// somebody else.
func (c *crowd) comeAndGo(r *rand.Rand) {
	client := uint64(r.IntN(5))
	switch presence := Presence(r.IntN(3)); presence {
	case Gone:
		if r.IntN(2) == 0 {
			for p := c.line.withdraw(client); p != nil; p = c.line.withdraw(client) {
				if p.client != client {
					c.t.Fatalf("withdrawn: a part of client %d, not %d", p.client, client)
				}
				c.left(p)
			}
			for p := range c.waiting {
				if p.client == client {
					c.t.Fatal("a part was not withdrawn")
				}
			}
			return
		}
		c.store.clients[client] = Gone
	default:
		c.store.clients[client] = presence
	}
}

// press changes a pressure now and then: it is none, or full, or in between.
func (c *crowd) press(r *rand.Rand) {
	if r.IntN(20) > 0 {
		return
	}
	s := r.IntN(len(c.store.level))
	c.store.level[s] = []int{0, shard.Full, r.IntN(shard.Full)}[r.IntN(3)]
	if c.store.level[s] < shard.Full {
		c.ranges[s] = 0
	}
}

// rate returns how many blocks enter in a second of the line's clock, at a
// pressure, from a client who always has some more waiting.
func rate(t *testing.T, pressure, blocks int) int {
	c := newCrowd(t, 1, 1<<20)
	c.store.level[0] = pressure
	total := 0
	for end := c.now + time.Second; c.now < end; {
		for c.line.length < 4 {
			c.line.park(newPart(1, ticket{pages: blocks}, c.now+time.Hour))
		}
		if p := c.next(); p != nil {
			total += p.pages
			c.store.free += p.pages
			continue
		}
		c.now = c.line.wake(c.now)
	}
	return total
}

// TestPace: the more pressure the slower, without a step, and by bytes.
func TestPace(t *testing.T) {
	const half = 64 << 20 / blockBytes
	for _, c := range []struct{ pressure, want int }{
		{100, 9 * half}, {250, 3 * half}, {500, half}, {750, half / 3}, {900, half / 9}, {999, half / 16}, {1000, 0},
	} {
		for _, blocks := range []int{1, 64} {
			if got := rate(t, c.pressure, blocks); got < c.want*9/10 || got > c.want*11/10+64 {
				t.Errorf("pressure %d, parts of %d: %d blocks in a second, expected %d", c.pressure, blocks, got, c.want)
			}
		}
	}
	for p := range shard.Full - 1 {
		if pace(p+1) < pace(p) || pace(p) > paceMost {
			t.Errorf("a block each %v at pressure %d, and each %v at the next", pace(p), p, pace(p+1))
		}
	}
}

// TestFlood: a client with a thousand parts waiting costs another one that has
// a single one a turn.
func TestFlood(t *testing.T) {
	c := newCrowd(t, 1, 1<<20)
	c.store.level[0] = 900
	for range 1000 {
		c.line.park(newPart(1, ticket{pages: 1}, c.now+time.Hour))
	}
	for range 100 {
		c.line.park(newPart(2, ticket{pages: 1}, c.now+time.Hour))
		for served := 0; ; c.now = max(c.line.wake(c.now), c.now+1) {
			p := c.next()
			if p == nil {
				continue
			}
			if p.client == 2 {
				break
			}
			if served++; served > 1 {
				t.Fatal("the flood was served twice while another client waited")
			}
		}
	}
}

// TestLargeBehindSmall: a write that needs many pages is not passed by for ever
// by small ones, nor by ranges, which may use the reserve but no more.
func TestLargeBehindSmall(t *testing.T) {
	for large := range 2 {
		c := newCrowd(t, 2, 8)
		c.line.park(newPart(1, ticket{shard: large, pages: 64}, time.Hour))
		if p := c.next(); p != nil {
			t.Fatal("a write got pages that are not there")
		}
		c.line.park(newPart(2, ticket{shard: 1 - large, pages: 1}, time.Hour))
		for range 100 {
			c.line.park(newPart(3, ticket{ranged: true, pages: 1}, time.Hour))
		}
		if ranges := c.untilLarge(); ranges != c.store.reserve {
			t.Errorf("%d ranges passed the write, the reserve is %d pages", ranges, c.store.reserve)
		}
	}
}

// untilLarge frees pages one by one until the large write of client 1 enters,
// and returns how many ranges did before.
func (c *crowd) untilLarge() (ranges int) {
	for range 81 {
		for p := c.next(); p != nil; p = c.next() {
			switch {
			case p.ranged:
				ranges++
			case p.client == 1:
				return ranges
			default:
				c.t.Fatal("a small write passed the large one")
			}
		}
		c.store.free++
	}
	c.t.Fatal("the large write never got its pages")
	return 0
}

// TestRangeReserve: at full pressure ranges pass the writes, until their share
// of the log is used up; it is given anew once space was reclaimed.
func TestRangeReserve(t *testing.T) {
	c := newCrowd(t, 1, 1<<20)
	c.line.park(newPart(1, ticket{pages: 1}, time.Hour))
	for range 2 {
		c.store.level[0] = shard.Full
		for n := 0; ; n++ {
			p := newPart(2, ticket{ranged: true, pages: 1}, time.Hour)
			if c.line.enter(c.now, p) {
				continue
			}
			if n != rangeReserve {
				t.Errorf("%d ranges entered, expected %d", n, rangeReserve)
			}
			c.line.park(p)
			break
		}
		if p := c.next(); p != nil {
			t.Errorf("%+v entered at full pressure", p.ticket)
		}
		c.store.level[0] = shard.Full - 1
		for c.line.length > 0 {
			c.now++
			c.next()
		}
	}
}

// TestRefusal: at its deadline a part is told what it has waited for.
func TestRefusal(t *testing.T) {
	for _, c := range []struct {
		name   string
		level  int
		free   int
		ticket ticket
		want   error
	}{
		{"log space", shard.Full, 100, ticket{pages: 1}, ErrNoSpace},
		{"log space and pages", shard.Full, 0, ticket{pages: 1}, ErrNoSpace},
		{"a checkpoint", shard.Full, 100, ticket{pages: 1}, errLag},
		{"pages", 0, 8, ticket{pages: 1}, shard.ErrDeadline},
		{"pages while space is short", 500, 8, ticket{pages: 1}, shard.ErrDeadline},
		{"pages for a range", shard.Full, 0, ticket{pages: 1, ranged: true}, shard.ErrDeadline},
	} {
		t.Run(c.name, func(t *testing.T) {
			crowd := newCrowd(t, 1, c.free)
			crowd.store.level[0], crowd.store.behind = c.level, errors.Is(c.want, errLag)
			p := newPart(1, c.ticket, time.Second)
			if crowd.line.enter(crowd.now, p) {
				t.Fatal("it entered")
			}
			crowd.line.park(p)
			if p, _ := crowd.line.next(time.Second - 1); p != nil {
				t.Fatal("it entered")
			}
			if p, _ := crowd.line.expired(time.Second - 1); p != nil {
				t.Fatal("it was refused early")
			}
			refused, err := crowd.line.expired(time.Second)
			if refused != p || !errors.Is(err, c.want) {
				t.Errorf("%v, expected %v", err, c.want)
			}
			if errors.Is(translate(err), ErrNoSpace) != errors.Is(c.want, ErrNoSpace) {
				t.Errorf("clients are told %v", translate(err))
			}
		})
	}
}
