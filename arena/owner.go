package arena

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Slots is how many slots a volume has at most.
const Slots = 3

// Members are the incarnations of a volume's slots, and their number, which grows
// with every change.
type Members struct {
	Number uint64
	Slots  [Slots][16]byte
}

// Owner says whose the records in an arena are. A start believes them only when
// all of it fits; see replica.Assembly.
type Owner struct {
	// Members are those whose server used the arena, and Next those that are about
	// to take over from them; its number is 0 when none are.
	Members, Next Members
	// Generation is the last one whose server used the arena, and Name its name.
	Generation, Name uint64
	// Home is the absolute path of the volume's directory; empty when it is not
	// known. Whole: it holds all of the volume, which is gone when Home is.
	Home  string
	Whole bool

	home *home // as it was found; nil when SetOwner is to find it
}

// Unnamed reports whether the arena was used by a version that named no members.
func (o *Owner) Unnamed() bool { return o.Members.Number == 0 }

// Names reports whether an incarnation is among the members, old or new.
func (o *Owner) Names(incarnation [16]byte) bool {
	for _, m := range []*Members{&o.Members, &o.Next} {
		for _, slot := range m.Slots {
			if m.Number > 0 && slot == incarnation {
				return true
			}
		}
	}
	return false
}

// An owner is kept twice in the header, and written to the older copy: whatever a
// kill interrupts, the other one is whole.
//
//	  0  4  CRC32C of the rest
//	  4  4  flags: bit 0 whole
//	  8  8  sequence: which copy is newer
//	 16 56  members: number (8), incarnations (16 each)
//	 72 56  next members
//	128 16  generation, name
//	144     home, see home.encode; zero to the end
const (
	ownerAt      = 256
	ownerSize    = (headerSize - ownerAt) / 2
	ownerHomeAt  = 144
	ownerIsWhole = 1
)

// owner is a copy as it lies in the header.
type ownerCopy struct {
	Owner
	sequence uint64
}

// encode returns the copy. A home that does not fit is left out.
func (c *ownerCopy) encode() []byte {
	b := make([]byte, ownerSize)
	ne := binary.NativeEndian
	if c.Whole {
		ne.PutUint32(b[4:], ownerIsWhole)
	}
	ne.PutUint64(b[8:], c.sequence)
	c.Members.encode(b[16:])
	c.Next.encode(b[72:])
	ne.PutUint64(b[128:], c.Generation)
	ne.PutUint64(b[136:], c.Name)
	c.home.encode(b[ownerHomeAt:])
	ne.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	return b
}

func (m *Members) encode(b []byte) {
	binary.NativeEndian.PutUint64(b, m.Number)
	for i := range m.Slots {
		copy(b[8+16*i:], m.Slots[i][:])
	}
}

func decodeMembers(b []byte) (m Members) {
	m.Number = binary.NativeEndian.Uint64(b)
	for i := range m.Slots {
		copy(m.Slots[i][:], b[8+16*i:])
	}
	return m
}

// decodeOwner reads a copy; ok is false when it is not whole.
func decodeOwner(b []byte) (c ownerCopy, ok bool) {
	ne := binary.NativeEndian
	if ne.Uint32(b) != crc32.Checksum(b[4:], castagnoli) {
		return c, false
	}
	c.sequence = ne.Uint64(b[8:])
	c.Owner = Owner{
		Members: decodeMembers(b[16:]), Next: decodeMembers(b[72:]),
		Generation: ne.Uint64(b[128:]), Name: ne.Uint64(b[136:]),
		Whole: ne.Uint32(b[4:])&ownerIsWhole != 0, home: decodeHome(b[ownerHomeAt:]),
	}
	if c.home != nil {
		c.Home = c.home.path
	}
	return c, true
}

// readOwner returns the newer copy in a header, and which of them it is. An arena
// that never had an owner, or whose first one was cut short, has the zero one. The
// error wraps ErrCorrupt.
func readOwner(header []byte) (newest ownerCopy, at int, err error) {
	if binary.NativeEndian.Uint32(header[8:]) == firstVersion {
		return firstOwner(header), 0, nil
	}
	found, blank := false, false
	for i := range 2 {
		b := header[ownerAt+i*ownerSize:][:ownerSize]
		blank = blank || len(bytes.TrimLeft(b, "\x00")) == 0
		if c, ok := decodeOwner(b); ok && (!found || c.sequence > newest.sequence) {
			newest, at, found = c, i, true
		}
	}
	if !found && !blank {
		return newest, 0, fmt.Errorf("%w: neither copy of its owner is whole", ErrCorrupt)
	}
	return newest, at, nil
}

// firstOwner is what version 1 knew: the generation and the home.
func firstOwner(header []byte) (c ownerCopy) {
	c.Generation = binary.NativeEndian.Uint64(header[firstGenerationAt:])
	if b := header[firstHomeAt:headerSize]; binary.NativeEndian.Uint32(b) == crc32.Checksum(b[4:], castagnoli) {
		c.home = decodeHome(b[4:])
	}
	if c.home != nil {
		c.Home, c.Whole = c.home.path, true
	}
	return c
}

// Owner returns whose the arena is; the zero Owner when it was never used. The
// error wraps ErrCorrupt.
func (a *Arena) Owner() (Owner, error) {
	c, _, err := readOwner(a.mapped[:headerSize])
	if err != nil {
		err = fmt.Errorf("arena: %s: %w", a.path, err)
	}
	return c.Owner, err
}

// SetOwner says whose the arena is from now on. A kill leaves what it was or what
// it is. One goroutine at a time may call it: the one that opens the volume, then
// the one that changes its generation.
func (a *Arena) SetOwner(o Owner) {
	old, at, err := readOwner(a.mapped[:headerSize])
	if err != nil {
		panic(fmt.Sprintf("arena: an owner is set over one that was not read: %v", err))
	}
	if o.home == nil || o.Home != o.home.path {
		o.home = findHome(o.Home)
	}
	c := ownerCopy{o, old.sequence + 1}
	a.storeOwner(1-at, &c)
	if a.version() == firstVersion {
		a.sealRetired()
		a.setVersion() // what follows is no part of version 1
		a.changed()
		a.storeOwner(0, &c)
	}
}

// storeOwner writes a copy, its checksum last.
func (a *Arena) storeOwner(at int, c *ownerCopy) {
	encoded, place := c.encode(), a.mapped[ownerAt+at*ownerSize:][:ownerSize]
	copy(place[4:], encoded[4:])
	storeWord(place, binary.NativeEndian.Uint32(encoded))
	a.changed()
}
