package journal

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// GenerationID is a generation's number and its name, which is drawn: two copies
// of a volume that both went on have begun two generations of one number. The
// name is 0 for what a version without names has begun.
type GenerationID struct {
	Number Generation
	Name   uint64
}

// String prints the number, and the name as people compare it.
func (g GenerationID) String() string {
	if g.Name == 0 {
		return fmt.Sprint(g.Number)
	}
	return fmt.Sprintf("%d (%08x)", g.Number, uint32(g.Name))
}

// Begin is what a slot remembers of a generation.
type Begin struct {
	GenerationID
	// Started: the slot took part in it. Else it was promised, and another one
	// began; then at most one slot has started it, and nothing was served.
	Started bool
	// Slots has a bit for each slot that had started it when the first of its
	// records could be acknowledged; 0 before that. A slot that is behind it now
	// has gone back in time.
	Slots uint8
	LSNs  []LSN // by shard: where it begins; nil when it was not started
}

// History is the generations that a slot knows, ascending.
type History []Begin

// mostHistory bounds a history, and leastHistory is what is kept of it in any
// case. A superblock of few shards has room for many more; one of 256 shards has
// room for a dozen.
const (
	mostHistory  = 128
	leastHistory = 32
)

// Last returns the last generation that the slot has started; its number is 0
// when there is none.
func (h History) Last() Begin {
	for i := len(h) - 1; i >= 0; i-- {
		if h[i].Started {
			return h[i]
		}
	}
	return Begin{}
}

// Find returns what the history says of a generation, nil if nothing.
func (h History) Find(id GenerationID) *Begin {
	for i := range h {
		if h[i].GenerationID == id {
			return &h[i]
		}
	}
	return nil
}

// Knows reports whether a slot with this history shares the life in which the
// generation was started. What a version without names has started is believed by
// its number.
func (h History) Knows(id GenerationID) bool {
	if id.Number == 0 || h.Find(id) != nil {
		return true
	}
	for _, b := range h {
		if id.Name == 0 && b.Name == 0 && b.Number > id.Number {
			return true
		}
	}
	return false
}

// Shares reports whether a slot with this history is of the life in which another
// one has started a generation last. One that was promised here and not started was
// not served, as far as this slot knows; if it was, the two are of two lives.
func (h History) Shares(last Begin) bool {
	if known := h.Find(last.GenerationID); known != nil && !known.Started {
		return last.Slots == 0
	}
	return h.Knows(last.GenerationID)
}

// Behind returns the highest generation that the slot is known to have started,
// according to this history; 0 for none.
func (h History) Behind(slot SlotID) (g Generation) {
	for _, b := range h {
		if b.Slots&(1<<slot) != 0 {
			g = max(g, b.Number)
		}
	}
	return g
}

// Add puts a generation at its place, or what is known of it anew.
func (h History) Add(b Begin) History {
	if known := h.Find(b.GenerationID); known != nil {
		*known = b
		return h
	}
	at, _ := slices.BinarySearchFunc(h, b, func(x, y Begin) int {
		if x.Number != y.Number {
			return int(x.Number) - int(y.Number)
		}
		return -1 // behind all of the same number
	})
	return slices.Insert(h, at, b).fitting(mostHistory)
}

// Join returns the history with what another one of the same life knows.
func (h History) Join(other History) History {
	h = slices.Clone(h)
	for _, b := range other {
		if known := h.Find(b.GenerationID); known == nil || !known.Started || known.Slots == 0 && b.Started {
			h = h.Add(b)
		}
	}
	return h
}

// fitting returns the history cut to a number of generations: those in the middle
// are forgotten. The oldest ones are what a slot that is away may have begun
// last.
func (h History) fitting(n int) History {
	if len(h) <= n {
		return h
	}
	first := n / 4
	return append(slices.Clone(h[:first]), h[len(h)-(n-first):]...)
}

// Forget drops generations before one that every slot has passed, but for the
// last few, which tell a slot that was put back from one of another life.
func (h History) Forget(passed Generation, shards int) History {
	room := (superblockCopy - superblockTail - (1+MaxSlots)*MaxPlace) / beginBytes(shards)
	for len(h) > min(leastHistory, room/4) && h[0].Number < passed {
		h = h[1:]
	}
	return h
}

// validate reports a history that no slot has written.
func (h History) validate() error {
	for i := range h {
		if i > 0 && h[i].Number < h[i-1].Number || h[i].Number == 0 {
			return fmt.Errorf("superblock with generation %d in place %d of its history: %w", h[i].Number, i, ErrNotThis)
		}
	}
	return nil
}

// beginBytes is what a Begin takes in a superblock.
func beginBytes(shards int) int { return 24 + 8*shards }

const beginStarted = 1

func (b *Begin) appendTo(dst []byte, shards int) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, uint64(b.Number))
	dst = le.AppendUint64(dst, b.Name)
	flags := byte(0)
	if b.Started {
		flags = beginStarted
	}
	dst = append(dst, flags, b.Slots, 0, 0, 0, 0, 0, 0)
	for i := range shards {
		var lsn LSN
		if i < len(b.LSNs) {
			lsn = b.LSNs[i]
		}
		dst = le.AppendUint64(dst, uint64(lsn))
	}
	return dst
}

func takeBegin(src []byte) Begin {
	le := binary.LittleEndian
	b := Begin{
		GenerationID: GenerationID{Generation(le.Uint64(src)), le.Uint64(src[8:])},
		Started:      src[16]&beginStarted != 0, Slots: src[17],
	}
	if !b.Started {
		return b
	}
	for at := 24; at < len(src); at += 8 {
		b.LSNs = append(b.LSNs, LSN(le.Uint64(src[at:])))
	}
	return b
}
