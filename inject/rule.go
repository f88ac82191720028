package inject

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrRule is wrapped by every error that refuses a rule.
var ErrRule = errors.New("invalid fault rule")

// All is the Count of a rule that fires again and again.
const All = math.MaxUint64

// Range accepts the numbers from First to Last, both included. The zero Range
// accepts everything; Only and Between make the others.
type Range struct {
	First, Last uint64
	Limited     bool // false: everything is accepted, First and Last are 0
}

// Only accepts n alone.
func Only(n uint64) Range { return Range{First: n, Last: n, Limited: true} }

// Between accepts the numbers from first to last, both included.
func Between(first, last uint64) Range { return Range{First: first, Last: last, Limited: true} }

// holds reports whether the range accepts n; a limited range never accepts a
// number that the point does not know (negative).
func (r Range) holds(n int) bool {
	return !r.Limited || n >= 0 && r.First <= uint64(n) && uint64(n) <= r.Last
}

// overlap returns the part of count blocks from first on that the range
// accepts; n is 0 when there is none.
func (r Range) overlap(first, count uint64) (from, n uint64) {
	if !r.Limited || count == 0 {
		return first, count
	}
	last := first + (count - 1)
	if last < first {
		last = math.MaxUint64
	}
	from, last = max(first, r.First), min(last, r.Last)
	if from > last {
		return first, 0
	}
	return from, last - from + 1
}

// String returns N or FIRST-LAST, as rules write it; a limited range only.
func (r Range) String() string {
	if r.First == r.Last {
		return strconv.FormatUint(r.First, 10)
	}
	return strconv.FormatUint(r.First, 10) + "-" + strconv.FormatUint(r.Last, 10)
}

// Rule is one fault. Its filters are all to be satisfied for it to fire. Rules
// are comparable, and Parse(r.String()) == r for every valid rule.
type Rule struct {
	Site  Site
	Op    string // the operation as the site names it; empty: all
	Slot  Range  // slot numbers
	Shard Range  // shard numbers
	Block Range  // 4 KiB blocks: of the file for disk sites, of the device elsewhere

	// Nth lets the first Nth-1 points that match the filters above pass. 0 is 1.
	Nth uint64
	// P is the probability with which a point fires; 0 is certainty.
	P float64
	// Count is how often the rule fires. 0 is once when Nth is set, All when not.
	Count uint64
	// For is the time after its first hit in which the rule fires, and the
	// longest that Hang hangs. 0 has no end.
	For time.Duration

	Effect Effect
	Errno  syscall.Errno // for Error
	Delay  time.Duration // for Delay
}

// limit is how often the rule may fire.
func (r *Rule) limit() uint64 {
	switch {
	case r.Count != 0:
		return r.Count
	case r.Nth != 0:
		return 1
	}
	return All
}

// Validate returns an error that wraps ErrRule when the rule could not be
// printed, parsed or carried out.
func (r Rule) Validate() error {
	switch {
	case int(r.Site) >= len(siteNames):
		return fmt.Errorf("%w: unknown %v", ErrRule, r.Site)
	case r.Effect == None:
		return fmt.Errorf("%w: %v has no effect; add one of %s", ErrRule, r.Site, r.Site.effects())
	case int(r.Effect) >= len(effectNames) || !possible[r.Site].Has(r.Effect):
		return fmt.Errorf("%w: %v cannot %v; it can %s", ErrRule, r.Site, r.Effect, r.Site.effects())
	case r.Op != "" && !isWord(r.Op):
		return fmt.Errorf("%w: op=%q is not a word of a-z, 0-9, '-', '.'", ErrRule, r.Op)
	case !(r.P >= 0 && r.P <= 1):
		return fmt.Errorf("%w: p=%v is not above 0 and at most 1", ErrRule, r.P)
	case r.For < 0:
		return fmt.Errorf("%w: for=%v is negative", ErrRule, r.For)
	}
	if err := r.validateRanges(); err != nil {
		return err
	}
	return r.validateEffect()
}

func (r Rule) validateRanges() error {
	for _, f := range [...]struct {
		name string
		Range
	}{{"slot", r.Slot}, {"shard", r.Shard}, {"block", r.Block}} {
		if f.Last < f.First || !f.Limited && f.Range != (Range{}) {
			return fmt.Errorf("%w: %s=%v-%v is not a range", ErrRule, f.name, f.First, f.Last)
		}
	}
	return nil
}

func (r Rule) validateEffect() error {
	if (r.Effect == Error) != (r.Errno != 0) {
		return fmt.Errorf("%w: effect %v with errno %d", ErrRule, r.Effect, int(r.Errno))
	}
	if r.Effect == Error && errnoName(r.Errno) == "" {
		return fmt.Errorf("%w: errno %d has no name", ErrRule, int(r.Errno))
	}
	if (r.Effect == Delay) != (r.Delay != 0) || r.Delay < 0 {
		return fmt.Errorf("%w: effect %v with delay %v", ErrRule, r.Effect, r.Delay)
	}
	return nil
}

// effects lists what the site can carry out, for messages.
func (s Site) effects() string {
	var names []string
	for e := Error; int(e) < len(effectNames); e++ {
		if possible[s].Has(e) {
			names = append(names, e.String())
		}
	}
	return strings.Join(names, ", ")
}

// isWord reports whether s can stand as a value in a rule's text.
func isWord(s string) bool {
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.') {
			return false
		}
	}
	return s != "" && len(s) <= maxWord
}
