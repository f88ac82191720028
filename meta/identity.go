package meta

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// Commit names a commit of a store. The sequence grows; the name is drawn for
// each attempt, and tells apart two commits of one sequence in two lives of a
// store. Name 0 is that of a commit by a version without names.
type Commit struct {
	Sequence uint64
	Name     uint64
}

// String prints the sequence, and the name as people compare it.
func (c Commit) String() string {
	if c.Name == 0 {
		return fmt.Sprintf("%d (unnamed)", c.Sequence)
	}
	return fmt.Sprintf("%d (%08x)", c.Sequence, uint32(c.Name))
}

// Owner names the slot that a store belongs to. It is drawn when the slot is
// made, so that the store of another one, or of the one before it in its place,
// is told from its own. Zero is that of a store by a version without owners; the
// first commit gives it one.
type Owner [16]byte

// String prints the first four bytes, as people compare them.
func (o Owner) String() string {
	if o == (Owner{}) {
		return "nobody"
	}
	return fmt.Sprintf("%x", o[:4])
}

// parse reads what %x has printed.
func (o *Owner) parse(text string) error {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(o) {
		return fmt.Errorf("owner %q: %d bytes in hexadecimal are expected", text, len(o))
	}
	*o = Owner(b)
	return nil
}

// Identity is whose a store is, and where it is in its life. Whoever keeps it
// beside the store finds out at every opening whether the store has been lost,
// exchanged or taken back in time.
type Identity struct {
	Owner Owner
	Last  Commit // zero for a store without commits
}

// Unnamed reports whether the store was last written by a version that knew
// neither owners nor names.
func (i Identity) Unnamed() bool { return i.Owner == Owner{} && i.Last.Name == 0 }

// Expect is what the one who opens a store knows of it.
type Expect struct {
	// Owner of the store. A store of another owner is ErrCorrupt; one without an
	// owner gets this one with its next commit. Zero: any is right.
	Owner Owner
	// Create makes a store where there is none. Only who knows that nothing was
	// ever committed may ask for it: without it, a store that is not there, or
	// has no state, is ErrCorrupt.
	Create bool
	// Verify is told what the store is whenever it is opened, also when a helper
	// process is started again, before any call is let through. An error, which
	// should wrap ErrCorrupt, ends the store for good. It must not block, and is
	// called by a goroutine of the store's own. Nil: everything is right.
	Verify func(Identity) error
}

// verify asks Verify. What it refuses is corrupt, whatever it says.
func (x *Expect) verify(id Identity) error {
	if x.Verify == nil {
		return nil
	}
	err := x.Verify(id)
	if err != nil && !errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

// owned refuses a store of another owner.
func (x *Expect) owned(id Identity) error {
	if x.Owner == (Owner{}) || id.Owner == x.Owner || id.Unnamed() {
		return nil
	}
	return fmt.Errorf("the store belongs to %v, not to %v: %w", id.Owner, x.Owner, ErrCorrupt)
}

// owner is the one that a commit gives the store.
func (x *Expect) owner(id Identity) Owner {
	if id.Owner != (Owner{}) {
		return id.Owner
	}
	return x.Owner
}

// An identity travels as owner (16), sequence (8) and name (8), little-endian.
const identityBytes = 32

func (i Identity) encode(b []byte) []byte {
	b = append(b, i.Owner[:]...)
	b = binary.LittleEndian.AppendUint64(b, i.Last.Sequence)
	return binary.LittleEndian.AppendUint64(b, i.Last.Name)
}

func decodeIdentity(b []byte) (Identity, error) {
	if len(b) != identityBytes {
		return Identity{}, fmt.Errorf("identity of %d bytes, expected %d: %w", len(b), identityBytes, errBadRequest)
	}
	le := binary.LittleEndian
	return Identity{Owner: Owner(b[:16]), Last: Commit{le.Uint64(b[16:]), le.Uint64(b[24:])}}, nil
}
