// Package inject holds the fault rules. One language serves unit tests, the
// simulator, the command line and the control socket:
//
//	log.sync slot=1 nth=3 count=2 error=EIO     the 3rd and 4th sync of slot 1 fail
//	segment.read slot=0 block=100-200 flip      one bit of those blocks flips
//	log.append p=0.01 delay=50ms                one append in a hundred is slow
//	log.sync slot=2 hang                        syncs of slot 2 start when the rule is removed
//	any slot=1 error=EIO                        the disk of slot 1 is dead
//
// A rule is a site, filters and one effect:
//
//	site    log.append log.sync segment.read segment.alloc superblock checkpoint
//	        net.send net.recv frontend reclaim any
//	filter  op=WORD slot=RANGE shard=RANGE block=RANGE which points match
//	        nth=N        the first N-1 matching points pass; count is then 1
//	        p=0.01       of the rest, each fires with this probability
//	        count=N|all  how often the rule fires
//	        for=30s      how long it fires, from its first hit on
//	effect  error=ERRNO delay=TIME hang drop duplicate reorder torn lost
//	        misdirect flip crash
//
// RANGE is N or FIRST-LAST. The program asks Set.Check at each site, and the
// caller carries out the Action that it gets; the package itself does nothing
// to anybody. Of several rules that would fire at a point, the oldest decides
// and is hit; all that match count the point.
//
// Everything is drawn from a generator keyed by the seed, the site, the rule's
// number and the count of points that it matched, so the same points in the
// same order give the same faults. Time comes from the clock that the Set was
// made with. Rules do not survive a crash; a Set belongs to one process.
package inject

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// MaxRules is how many rules a Set holds at most.
const MaxRules = 64

// ErrFull is wrapped by the error with which Add refuses a rule too many.
var ErrFull = errors.New("too many fault rules")

// Unknown is the Slot or Shard of a point that does not know it. Rules that
// name a slot or shard do not match there.
const Unknown = -1

// Point is an operation that is about to happen.
type Point struct {
	Site  Site
	Op    string // what the site does: "write", "read", …; may be empty
	Slot  int    // Unknown (-1) when the operation belongs to none
	Shard int    // Unknown (-1) when the operation belongs to none
	// Block and Blocks are the 4 KiB blocks that the operation touches; with
	// Blocks 0 it touches none, and rules that name blocks do not match.
	Block, Blocks uint64
	// Able is what this point can carry out beside Error, Delay, Hang and Crash,
	// when that is less than its site can: rules with other effects do not match
	// it. Empty: all that the site can.
	Able Effects
}

// Action is what the caller has to do at a point. The zero Action is nothing.
type Action struct {
	Effect Effect
	Rule   ID            // the rule that fired
	Errno  syscall.Errno // for Error
	// Delay is how long a Delay lasts, and the longest that a Hang lasts (0:
	// until the rule is removed).
	Delay time.Duration
	// Draw is a random number for choices within the effect: which bit flips,
	// how much of a torn write lands.
	Draw uint64
	// Block and Blocks are the part of the point's blocks that the rule names.
	Block, Blocks uint64

	released <-chan struct{} // closed when the rule is removed
}

// Released is closed when the rule of a Hang or Delay has been removed; nil for
// the zero Action. A simulator polls it instead of blocking in Wait.
func (a Action) Released() <-chan struct{} { return a.released }

// Wait carries out a Delay or a Hang in real time: it returns nil when the time
// is over or the rule was removed, and the context's error when that ends
// first. For other effects it returns nil at once.
func (a Action) Wait(ctx context.Context) error {
	if a.Effect != Delay && a.Effect != Hang {
		return nil
	}
	var expired <-chan time.Time
	if a.Delay > 0 {
		timer := time.NewTimer(a.Delay)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case <-expired:
		return nil
	case <-a.released:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%v of rule %d: %w", a.Effect, a.Rule, context.Cause(ctx))
	}
}

// ID names a rule of a Set. IDs begin with 1 and are never used again.
type ID uint32

// Status is one rule of a Set with its counts.
type Status struct {
	ID   ID     `json:"id"`
	Rule Rule   `json:"rule"`
	Seen uint64 `json:"seen"` // points that matched the site, op, slot, shard and blocks
	Hits uint64 `json:"hits"` // points at which the rule fired
}

// entry is a rule in a Set.
type entry struct {
	id       ID
	rule     Rule
	released chan struct{} // closed by whoever takes the entry out of the Set

	// Guarded by Set.mu.
	seen, hits uint64
	firstHit   time.Time
}

// Set is the rules in force. Its methods may be called from any goroutine. A
// nil *Set is empty and stays so.
type Set struct {
	seed  uint64
	clock func() time.Time

	// rules is nil when there are none, which is all that Check looks at then.
	// The slice is replaced, never changed. Written under mu.
	rules atomic.Pointer[[]*entry]

	mu   sync.Mutex // guards last, the counts of entries and changes of rules
	last ID
}

// NewSet returns an empty Set that draws from seed and reads the time from
// clock, which must not be nil.
func NewSet(seed uint64, clock func() time.Time) *Set {
	if clock == nil {
		panic("inject: NewSet without a clock")
	}
	return &Set{seed: seed, clock: clock}
}

// Empty reports whether there are no rules, at the cost of one atomic load.
func (s *Set) Empty() bool { return s == nil || s.rules.Load() == nil }

// Add puts a rule in force. Errors wrap ErrRule or ErrFull.
func (s *Set) Add(rule Rule) (ID, error) {
	if err := rule.Validate(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.entries()
	if len(old) == MaxRules {
		return 0, fmt.Errorf("%w: there are %d, remove one first", ErrFull, MaxRules)
	}
	s.last++
	added := &entry{id: s.last, rule: rule, released: make(chan struct{})}
	rules := append(old[:len(old):len(old)], added)
	s.rules.Store(&rules)
	return added.id, nil
}

// Remove ends a rule and releases what hangs on it. It reports whether there
// was such a rule.
func (s *Set) Remove(id ID) bool {
	if s.Empty() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removeIf(func(e *entry) bool { return e.id == id }) == 1
}

// Clear removes all rules and returns how many there were.
func (s *Set) Clear() int {
	if s.Empty() {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removeIf(func(*entry) bool { return true })
}

// removeIf needs mu.
func (s *Set) removeIf(match func(*entry) bool) (removed int) {
	var kept []*entry
	for _, e := range s.entries() {
		if match(e) {
			close(e.released)
			removed++
		} else {
			kept = append(kept, e)
		}
	}
	if len(kept) == 0 {
		s.rules.Store(nil)
	} else {
		s.rules.Store(&kept)
	}
	return removed
}

// entries returns the rules in force; not to be changed.
func (s *Set) entries() []*entry {
	if rules := s.rules.Load(); rules != nil {
		return *rules
	}
	return nil
}

// List returns the rules with their counts, oldest first.
func (s *Set) List() []Status {
	if s.Empty() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Status
	for _, e := range s.entries() {
		list = append(list, Status{ID: e.id, Rule: e.rule, Seen: e.seen, Hits: e.hits})
	}
	return list
}

// Hits returns how often a rule in force has fired; 0 when there is none of
// that ID.
func (s *Set) Hits(id ID) uint64 {
	for _, status := range s.List() {
		if status.ID == id {
			return status.Hits
		}
	}
	return 0
}

// Unhit returns the rules in force that never fired. A test that expects its
// faults to happen fails when there are any.
func (s *Set) Unhit() []Rule {
	var rules []Rule
	for _, status := range s.List() {
		if status.Hits == 0 {
			rules = append(rules, status.Rule)
		}
	}
	return rules
}

// Check tells what happens at a point. Without rules it costs one atomic load;
// it never allocates.
func (s *Set) Check(p Point) Action {
	if s.Empty() {
		return Action{}
	}
	return s.match(&p)
}

func (s *Set) match(p *Point) (action Action) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries() {
		if !e.covers(p) {
			continue
		}
		e.seen++
		if action.Effect == None && s.fires(e) {
			action = s.act(e, p)
		}
	}
	return action
}

// covers reports whether the point passes the filters that need no state.
func (e *entry) covers(p *Point) bool {
	r := &e.rule
	if r.Site != Any && r.Site != p.Site || r.Op != "" && r.Op != p.Op {
		return false
	}
	if p.Able != 0 && !(p.Able | everywhere).Has(r.Effect) {
		return false
	}
	if !r.Slot.holds(p.Slot) || !r.Shard.holds(p.Shard) {
		return false
	}
	if !r.Block.Limited {
		return true
	}
	_, n := r.Block.overlap(p.Block, p.Blocks)
	return n > 0
}

// fires reports whether the point that was just counted is a hit; needs mu.
func (s *Set) fires(e *entry) bool {
	r := &e.rule
	if e.seen < r.Nth || e.hits >= r.limit() {
		return false
	}
	if r.For > 0 && e.hits > 0 && s.clock().Sub(e.firstHit) >= r.For {
		return false
	}
	return r.P == 0 || float64(s.draw(e, 0)>>11)/(1<<53) < r.P
}

// act counts a hit and makes the caller's Action; needs mu.
func (s *Set) act(e *entry, p *Point) Action {
	r := &e.rule
	a := Action{
		Effect: r.Effect, Rule: e.id, Errno: r.Errno, Delay: r.Delay,
		Draw: s.draw(e, 1), released: e.released,
	}
	a.Block, a.Blocks = r.Block.overlap(p.Block, p.Blocks)
	if r.For > 0 {
		now := s.clock()
		if e.hits == 0 {
			e.firstHit = now
		}
		if r.Effect == Hang {
			a.Delay = max(r.For-now.Sub(e.firstHit), time.Nanosecond) // 0 would have no end
		}
	}
	e.hits++
	return a
}

// draw returns the random number of a purpose for the point that was just
// counted; needs mu.
func (s *Set) draw(e *entry, purpose uint64) uint64 {
	x := mix(s.seed)
	x = mix(x ^ uint64(e.rule.Site))
	x = mix(x ^ uint64(e.id))
	return mix(x ^ (e.seen<<1 | purpose))
}

// mix is the finaliser of SplitMix64 (Steele, Lea, Flood 2014), a permutation
// in which each bit of the input changes half of the output's.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
