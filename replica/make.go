package replica

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"trivet/disk"
	"trivet/journal"
)

// The names in a slot's directory, besides journal.SuperblockFile and logDir.
const (
	metaDir  = "meta"
	lockFile = "lock"
	// AsidePrefix begins the names of directories in a slot's that hold what
	// the slot can no longer use.
	AsidePrefix = "aside-"
)

// ErrForeign: a directory holds something that is no slot.
var ErrForeign = errors.New("directory is not empty and holds no slot")

// Superblocks returns the superblocks of a new volume's slots, all of them originals.
// draw fills a slice with random bytes.
func (g Geometry) Superblocks(draw func([]byte)) []*journal.Superblock {
	members := journal.Members{Number: 1}
	for i := range g.Replicas {
		draw(members.Slots[i][:])
	}
	supers := make([]*journal.Superblock, g.Replicas)
	for i := range supers {
		supers[i] = g.superblock(journal.SlotID(i), members, draw)
		supers[i].Original = true
	}
	return supers
}

// superblock returns that of a blank slot.
func (g Geometry) superblock(id journal.SlotID, members journal.Members, draw func([]byte)) *journal.Superblock {
	s := &journal.Superblock{
		Volume: g.Volume, Signed: g.Volume, Name: g.Name, Slot: id, Replicas: uint8(g.Replicas), Shards: uint16(g.Shards),
		SizeBytes: g.SizeBytes, SegmentBlocks: g.SegmentBlocks, Incarnation: members.Slots[id], Members: members,
	}
	draw(s.StoreOwner[:])
	return s
}

// MakeSlot makes a blank slot in a directory that is empty, or in which the
// making was cut short, and locks it. It counts for nothing until it was brought
// together with its peers. Nothing else is touched: the error wraps ErrForeign
// when the directory holds something that is no slot, journal.ErrNoSuperblock
// when it holds one that has lost its superblock, and fs.ErrExist when there is a
// slot.
func MakeSlot(files disk.FS, where string, super *journal.Superblock) (*Slot, error) {
	s := newSlot(files, super.Slot, where)
	s.super = *super
	s.publish()
	if err := s.make(); err != nil {
		return nil, fmt.Errorf("make slot %d in %s: %w", super.Slot, where, err)
	}
	return s, nil
}

// make makes the slot, and keeps the lock.
func (s *Slot) make() (err error) {
	if err := remains(s.fs); err != nil {
		return err
	}
	if s.lock, err = lockSlot(s.fs); err != nil {
		return err
	}
	if err = absent(s.fs); err == nil { // nobody was faster
		err = s.create()
	}
	if err != nil {
		return errors.Join(err, s.lock.Close())
	}
	s.pool = newPool(s.fs, s.super.SegmentBlocks)
	return nil
}

// create writes the superblock last: what lacks one was never used.
func (s *Slot) create() (err error) {
	if err := s.fs.MkdirAll(logDir); err != nil {
		return err
	}
	s.superFile, err = journal.CreateSuperblock(s.fs, journal.SuperblockFile, &s.super)
	return err
}

// Inspect returns the superblock in a slot's directory without taking its lock:
// nil when there never was one, so that MakeSlot can make it. The error wraps
// journal.ErrNoSuperblock when it was lost, ErrForeign when the directory holds
// something else, or is that of reading it.
func Inspect(files disk.FS) (*journal.Superblock, error) {
	super, err := readSuperblock(files)
	if lacks(err) {
		return nil, remains(files)
	}
	return super, err
}

// lacks tells whether there is no superblock, or none that was ever whole.
func lacks(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, journal.ErrNoSuperblock)
}

// absent returns an error when there is a superblock, or when that is not known.
func absent(files disk.FS) error {
	switch _, err := readSuperblock(files); {
	case err == nil:
		return fmt.Errorf("it has a superblock: %w", fs.ErrExist)
	case !lacks(err):
		return err
	}
	return nil
}

// HoldsSlot reports whether a directory is a slot's: it has a superblock, or had one.
func HoldsSlot(dir string) bool {
	files, err := disk.Real(dir, disk.Options{})
	if err != nil {
		return false
	}
	super, err := Inspect(files)
	return super != nil || errors.Is(err, journal.ErrNoSuperblock)
}

func readSuperblock(files disk.FS) (*journal.Superblock, error) {
	f, err := files.Open(journal.SuperblockFile)
	if err != nil {
		return nil, err
	}
	super, err := superblockOf(f)
	return super, errors.Join(err, f.Close())
}

// superblockOf reads the superblock of a file.
func superblockOf(f disk.File) (*journal.Superblock, error) {
	super, _, err := journal.ReadSuperblock(f)
	return super, err
}

// remains tells what a directory without a superblock is: nil when it never
// had one. Log files and a metadata store are made in slots that have one.
func remains(files disk.FS) error {
	names, err := files.List(".")
	if err != nil {
		return err
	}
	for _, name := range names {
		switch {
		case name == journal.SuperblockFile, name == journal.NextSuperblockFile, name == lockFile, name == "lost+found", strings.HasPrefix(name, AsidePrefix):
		case name == metaDir:
			err = journal.ErrNoSuperblock
		case name == logDir:
			logs, errList := files.List(logDir)
			if errList != nil {
				return errList
			}
			for _, name := range logs {
				if strings.Trim(name, "0123456789") != "" {
					return fmt.Errorf("it holds %s/%s: %w; empty it, or give another", logDir, name, ErrForeign)
				}
				err = journal.ErrNoSuperblock
			}
		default:
			return fmt.Errorf("it holds %s: %w; empty it, or give another", name, ErrForeign)
		}
	}
	if err != nil {
		return fmt.Errorf("its superblock is lost, its content is there: %w", err)
	}
	return nil
}

// lockSlot takes the lock of a slot's directory.
func lockSlot(files disk.FS) (io.Closer, error) {
	lock, err := files.Lock(lockFile)
	if errors.Is(err, disk.ErrLocked) {
		return nil, fmt.Errorf("%w: %w", ErrInUse, err)
	}
	return lock, err
}
