// Package replica is the volume's three legs: the slots with their files, the
// order in which they are ranked and brought together when the volume opens,
// and who takes part.
//
// A local slot is a directory:
//
//	slot-1/superblock     whose slot this is; generations; see package journal
//	slot-1/log/000000     segments, several to a file
//	slot-1/meta/          the metadata store: map pages, segment table
//	slot-1/lock
//
// # What is promised on a crash
//
// Open finds, for every shard, the slot that has all that was acknowledged as
// durable: the one with the highest generation started and then the highest
// LSN. Every other slot is made equal to it before it counts. Blank slots and
// slots in the middle of a copy count for nothing. Nothing is deleted; what a
// slot can no longer use is moved aside and named in the log.
//
// # Who owns what
//
// Slot's methods that begin with Run do the I/O of one operation on the
// calling goroutine; Engine calls them from goroutines of its own, a simulator
// from its loop. The segment pool and the handles have a mutex, which is held
// for no I/O but the growth of the log.
package replica

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"trivet/journal"
)

// The reasons for which a volume does not open.
var (
	// ErrNoVolume: no slot holds a volume.
	ErrNoVolume = errors.New("no volume found")
	// ErrQuorum: too few slots are usable.
	ErrQuorum = errors.New("too few slots are usable")
	// ErrMismatch: the slots are not of one volume.
	ErrMismatch = errors.New("slots do not belong together")
	// ErrInUse: another process has the slot open.
	ErrInUse = errors.New("slot is in use by another process")
)

// Geometry is what is fixed when a volume is created.
type Geometry struct {
	Volume        journal.Volume
	Name          string
	SizeBytes     uint64
	Replicas      int // 1 or 3
	Shards        int // a power of two
	SegmentBlocks uint32
}

// Quorum returns how many slots must have a write: 2 of 3, or 1 of 1.
func (g Geometry) Quorum() int { return g.Replicas/2 + 1 }

// The limits of a volume. CheckSize and CheckName judge them, for the command
// line as well as here.
const (
	MinSizeBytes = 16 << 20
	MaxSizeBytes = 1 << 50
	sizeStep     = 1 << 20
	// MaxNameBytes is what a superblock has room for.
	MaxNameBytes = 63
)

// CheckSize returns an error when no volume can have the size, in bytes.
func CheckSize(size uint64) error {
	if size < MinSizeBytes || size > MaxSizeBytes || size%sizeStep != 0 {
		return fmt.Errorf("size is %d bytes; it must be whole MiB, from %dM to %dT", size, MinSizeBytes>>20, MaxSizeBytes>>40)
	}
	return nil
}

// CheckName returns an error when no volume can have the name.
func CheckName(name string) error {
	if len(name) > MaxNameBytes || strings.ContainsFunc(name, unprintable) {
		return fmt.Errorf("name %q must be printable, and at most %d bytes", name, MaxNameBytes)
	}
	return nil
}

// NameFor returns the name of a volume that is given none: the text, without
// what CheckName would refuse.
func NameFor(text string) string {
	name := strings.Map(func(r rune) rune {
		if unprintable(r) {
			return '_'
		}
		return r
	}, text)
	for len(name) > MaxNameBytes {
		_, last := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-last]
	}
	return name
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }

// Validate tells what is wrong with a geometry, in one line.
func (g Geometry) Validate() error {
	switch {
	case g.Replicas != 1 && g.Replicas != journal.MaxSlots:
		return fmt.Errorf("%d replicas; it must be 1 or 3", g.Replicas)
	case g.Shards < 1 || g.Shards > journal.MaxShards || g.Shards&(g.Shards-1) != 0:
		return fmt.Errorf("%d shards; it must be a power of two up to %d", g.Shards, journal.MaxShards)
	}
	if err := CheckSize(g.SizeBytes); err != nil {
		return err
	}
	return CheckName(g.Name)
}

// SegmentBlocksFor returns the segment size for a volume: 1/2048 of it, between
// 2 and 64 MiB, so that what the lanes hold ready, and have not freed yet, stays
// a small part of what they may hold, though only a part of the volume is in use.
func SegmentBlocksFor(sizeBytes uint64) uint32 {
	segment := uint64(2 << 20)
	for segment < 64<<20 && segment < sizeBytes/2048 {
		segment *= 2
	}
	return uint32(min(segment, 64<<20) / journal.BlockSize)
}
