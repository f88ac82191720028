package inject

import "fmt"

// Site is a place in the program where faults can happen.
type Site uint8

// The sites. Any is the zero value: a rule for Any matches every point, and a
// point with Any (an operation that has no site of its own) is matched by such
// rules alone.
const (
	Any          Site = iota
	LogAppend         // a write to a log segment
	LogSync           // a sync of a log segment, or the durable part of a write
	SegmentRead       // a read from a log segment
	SegmentAlloc      // the creation or zeroing of a log segment
	Superblock        // every operation on a superblock file
	Checkpoint        // a commit to the metadata store
	NetSend           // a message to a replica, before it is sent
	NetRecv           // a message from a replica, after it was received
	Frontend          // a request, before the device sees it
	Reclaim           // a step of reclaim
)

var siteNames = [...]string{
	Any:          "any",
	LogAppend:    "log.append",
	LogSync:      "log.sync",
	SegmentRead:  "segment.read",
	SegmentAlloc: "segment.alloc",
	Superblock:   "superblock",
	Checkpoint:   "checkpoint",
	NetSend:      "net.send",
	NetRecv:      "net.recv",
	Frontend:     "frontend",
	Reclaim:      "reclaim",
}

// String returns the name that rules use for the site.
func (s Site) String() string {
	if int(s) < len(siteNames) {
		return siteNames[s]
	}
	return fmt.Sprintf("site(%d)", uint8(s))
}

// Reserved tells that nothing meets rules for the site in this version.
func (s Site) Reserved() bool { return s == NetSend || s == NetRecv || s == Frontend }

// Effect is what happens when a rule fires.
type Effect uint8

// The effects. Those who call Set.Check carry them out.
const (
	None      Effect = iota // nothing happens; no rule has this effect
	Error                   // the operation fails with an errno
	Delay                   // the operation starts late
	Hang                    // the operation does not start until the rule is removed
	Drop                    // a message vanishes
	Duplicate               // a message arrives twice
	Reorder                 // a message changes places with the next one
	Torn                    // a part of the operation happens, then it fails
	Lost                    // nothing happens, success is reported
	Misdirect               // it happens to the neighbouring block, success is reported
	Flip                    // one bit changes, success is reported
	Crash                   // the process ends before the operation
)

var effectNames = [...]string{
	None:      "none",
	Error:     "error",
	Delay:     "delay",
	Hang:      "hang",
	Drop:      "drop",
	Duplicate: "duplicate",
	Reorder:   "reorder",
	Torn:      "torn",
	Lost:      "lost",
	Misdirect: "misdirect",
	Flip:      "flip",
	Crash:     "crash",
}

// String returns the name that rules use for the effect.
func (e Effect) String() string {
	if int(e) < len(effectNames) {
		return effectNames[e]
	}
	return fmt.Sprintf("effect(%d)", uint8(e))
}

// Effects is a set of effects, one bit each.
type Effects uint16

// EffectsOf returns the set of the effects in list.
func EffectsOf(list ...Effect) (set Effects) {
	for _, e := range list {
		set |= 1 << e
	}
	return set
}

// Has reports whether e is in the set.
func (s Effects) Has(e Effect) bool { return s&(1<<e) != 0 }

// everywhere is what every site, and every point of it, can carry out.
const everywhere Effects = 1<<Error | 1<<Delay | 1<<Hang | 1<<Crash

// possible lists what each site can carry out, because a rule that is accepted
// and then has no effect would make a test pass for nothing.
var possible = [...]Effects{
	Any:          everywhere,
	LogAppend:    everywhere | EffectsOf(Torn, Lost, Misdirect, Flip),
	LogSync:      everywhere | EffectsOf(Lost),
	SegmentRead:  everywhere | EffectsOf(Misdirect, Flip),
	SegmentAlloc: everywhere | EffectsOf(Torn),
	Superblock:   everywhere | EffectsOf(Torn, Lost, Misdirect, Flip),
	Checkpoint:   everywhere,
	NetSend:      everywhere | EffectsOf(Drop, Duplicate, Reorder, Flip),
	NetRecv:      everywhere | EffectsOf(Drop, Duplicate, Reorder, Flip),
	Frontend:     everywhere | EffectsOf(Drop),
	Reclaim:      everywhere,
}
