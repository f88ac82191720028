package inject

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxText = 512 // bytes of a rule's text
	maxWord = 32  // bytes of an operation's name
)

// clause is one key=value of a rule. One table serves both directions, so that
// what is printed is what is parsed.
type clause struct {
	key   string
	parse func(r *Rule, value string) error
	print func(r *Rule) string // empty when the rule does not have it
}

// clauses stand in the order in which rules are printed.
var clauses = [...]clause{
	{"op", parseOp, func(r *Rule) string { return r.Op }},
	rangeClause("slot", func(r *Rule) *Range { return &r.Slot }),
	rangeClause("shard", func(r *Rule) *Range { return &r.Shard }),
	rangeClause("block", func(r *Rule) *Range { return &r.Block }),
	countClause("nth", func(r *Rule) *uint64 { return &r.Nth }),
	{"p", parseP, printP},
	countClause("count", func(r *Rule) *uint64 { return &r.Count }),
	durationClause("for", func(r *Rule) *time.Duration { return &r.For }),
	{"error", parseErrno, func(r *Rule) string { return errnoName(r.Errno) }},
	durationClause("delay", func(r *Rule) *time.Duration { return &r.Delay }),
}

// Parse reads one rule: a site, filters and an effect, divided by spaces, the
// filters and the effect in any order. Errors wrap ErrRule and say what would
// be right.
func Parse(text string) (Rule, error) {
	if len(text) > maxText {
		return Rule{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrRule, len(text), maxText)
	}
	words := strings.Fields(text)
	if len(words) == 0 {
		return Rule{}, fmt.Errorf("%w: it is empty; try \"log.sync slot=1 error=EIO\"", ErrRule)
	}
	var r Rule
	if err := parseSite(&r, words[0]); err != nil {
		return Rule{}, err
	}
	seen := make(map[string]bool, len(words))
	for _, word := range words[1:] {
		key, value, hasValue := strings.Cut(word, "=")
		if seen[key] {
			return Rule{}, fmt.Errorf("%w: %s is given twice", ErrRule, key)
		}
		seen[key] = true
		if err := parseWord(&r, key, value, hasValue); err != nil {
			return Rule{}, err
		}
	}
	if err := r.Validate(); err != nil {
		return Rule{}, err
	}
	return r, nil
}

// MustParse is Parse for rules that are written in the program; it panics when
// the rule is refused.
func MustParse(text string) Rule {
	r, err := Parse(text)
	if err != nil {
		panic(fmt.Sprintf("inject: %q: %v", text, err))
	}
	return r
}

// String returns the canonical text of a valid rule.
func (r Rule) String() string {
	var b strings.Builder
	b.WriteString(r.Site.String())
	for i := range clauses {
		if value := clauses[i].print(&r); value != "" {
			b.WriteString(" " + clauses[i].key + "=" + value)
		}
	}
	if r.Effect != Error && r.Effect != Delay {
		b.WriteString(" " + r.Effect.String())
	}
	return b.String()
}

// MarshalText returns the rule's text, for JSON and flags.
func (r Rule) MarshalText() ([]byte, error) { return []byte(r.String()), r.Validate() }

// UnmarshalText is Parse.
func (r *Rule) UnmarshalText(text []byte) (err error) {
	*r, err = Parse(string(text))
	return err
}

func parseSite(r *Rule, name string) error {
	for s, known := range siteNames {
		if known == name {
			r.Site = Site(s)
			return nil
		}
	}
	return fmt.Errorf("%w: unknown site %q; the sites are %s", ErrRule, name, strings.Join(siteNames[:], ", "))
}

// parseWord reads one word behind the site: a clause, or an effect that has no
// value.
func parseWord(r *Rule, key, value string, hasValue bool) error {
	for i := range clauses {
		if clauses[i].key != key {
			continue
		}
		if value == "" {
			return fmt.Errorf("%w: %s needs a value", ErrRule, key)
		}
		if err := clauses[i].parse(r, value); err != nil {
			return fmt.Errorf("%w: %s=%s: %w", ErrRule, key, value, err)
		}
		return setEffect(r, key)
	}
	if hasValue {
		return fmt.Errorf("%w: unknown filter %q", ErrRule, key)
	}
	if !setsEffect(key) {
		return fmt.Errorf("%w: unknown word %q", ErrRule, key)
	}
	return setEffect(r, key)
}

// setsEffect reports whether the word names an effect that a rule can have.
func setsEffect(key string) bool {
	for e, name := range effectNames {
		if name == key {
			return Effect(e) != None
		}
	}
	return false
}

// setEffect records the effect that key names; filters name none.
func setEffect(r *Rule, key string) error {
	for e, name := range effectNames {
		if name != key {
			continue
		}
		if r.Effect != None {
			return fmt.Errorf("%w: two effects, %v and %v; make it two rules", ErrRule, r.Effect, Effect(e))
		}
		r.Effect = Effect(e)
	}
	return nil
}

func parseOp(r *Rule, value string) error {
	r.Op = value
	return nil // Validate says what is wrong with it
}

func rangeClause(key string, field func(*Rule) *Range) clause {
	return clause{
		key: key,
		parse: func(r *Rule, value string) (err error) {
			*field(r), err = parseRange(value)
			return err
		},
		print: func(r *Rule) string {
			if !field(r).Limited {
				return ""
			}
			return field(r).String()
		},
	}
}

func parseRange(value string) (Range, error) {
	low, high, two := strings.Cut(value, "-")
	if !two {
		high = low
	}
	first, err := strconv.ParseUint(low, 10, 64)
	if err != nil {
		return Range{}, errors.New("want a number or FIRST-LAST")
	}
	last, err := strconv.ParseUint(high, 10, 64)
	if err != nil || last < first {
		return Range{}, errors.New("want a number or FIRST-LAST")
	}
	return Between(first, last), nil
}

func countClause(key string, field func(*Rule) *uint64) clause {
	return clause{
		key: key,
		parse: func(r *Rule, value string) error {
			if value == "all" && key == "count" {
				*field(r) = All
				return nil
			}
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil || n == 0 {
				return errors.New("want a number from 1 on")
			}
			*field(r) = n
			return nil
		},
		print: func(r *Rule) string {
			switch n := *field(r); {
			case n == 0:
				return ""
			case n == All && key == "count":
				return "all"
			default:
				return strconv.FormatUint(n, 10)
			}
		},
	}
}

func durationClause(key string, field func(*Rule) *time.Duration) clause {
	return clause{
		key: key,
		parse: func(r *Rule, value string) error {
			d, err := time.ParseDuration(value)
			if err != nil || d <= 0 {
				return errors.New("want a time such as 50ms or 5s")
			}
			*field(r) = d
			return nil
		},
		print: func(r *Rule) string {
			if *field(r) == 0 {
				return ""
			}
			return field(r).String()
		},
	}
}

func parseP(r *Rule, value string) error {
	p, err := strconv.ParseFloat(value, 64)
	if err != nil || !(p > 0 && p <= 1) {
		return errors.New("want a probability above 0 and at most 1")
	}
	r.P = p
	return nil
}

func printP(r *Rule) string {
	if r.P == 0 {
		return ""
	}
	return strconv.FormatFloat(r.P, 'g', -1, 64)
}

func parseErrno(r *Rule, value string) error {
	for e := syscall.Errno(1); e <= maxErrno; e++ {
		if errnoName(e) == value {
			r.Errno = e
			return nil
		}
	}
	return errors.New("want the name of an errno such as EIO or ENOSPC")
}

// maxErrno is Linux's highest errno, EHWPOISON.
const maxErrno = 133

// errnoName returns EIO for 5; empty for 0 and what Linux does not define.
func errnoName(e syscall.Errno) string { return unix.ErrnoName(e) }
