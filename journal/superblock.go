package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"trivet/disk"
)

// A slot's superblock says whose slot it is, and holds what must not be lost
// with the metadata store. The file has room for two copies of 32 KiB, of which
// what is used is written; the copy with the higher sequence that checks is the
// present one, and the other is written next.
//
//	  0  8  magic "TrivetSb"
//	  8  2  version
//	 10  1  slot
//	 11  1  replicas of the volume: 1 or 3
//	 12  2  shards, a power of two
//	 14  2  flags: 1 original, 2 retired
//	 16 16  volume
//	 32  8  sequence      which copy is newer
//	 40  8  size of the volume in bytes
//	 48  4  segment size in blocks
//	 52  4  length of the copy in bytes, whole blocks
//	 56 16  signed        the volume's ID in the slot's log
//	 72 16  incarnation
//	 88 56  members       their number, and three incarnations
//	144  8  sole
//	152  8  filling
//	160 16  promised      number and name
//	176 16  owner of the metadata store
//	192 16  checkpoint    sequence and name of the last commit that is confirmed
//	208 16  announced     the same of one that may have been made since
//	224 16  renaming      the volume's next ID; zero: none
//	240 48  zero
//	288 64  name of the volume, zero-padded
//	352  8  lengths of the home and of three places (2 each)
//	360  2  generations in the history
//	362  2  zero
//	364  4  CRC32C of the copy without these bytes
//	368     home, places; then, from a multiple of 8 on, the history, ascending:
//	        number (8), name (8), flags (1: bit 0 started), slots (1), zero (6),
//	        and by shard where it begins (8)
//
// Version 1 had two copies of 4 KiB; see superblock1.go. A superblock of that
// version is replaced by one of this by its first write: see Migrate.
const (
	superblockMagic   = 0x6253746576697254 // "TrivetSb"
	superblockVersion = 2
	superblockCRC     = 364
	superblockTail    = 368
	superblockName    = 64
	superblockCopy    = 32 << 10
	// superblockLeast is the least that is written of a copy.
	superblockLeast = 2 * BlockSize

	// SuperblockFile is the superblock's name in the slot's directory, and
	// NextSuperblockFile that of one that is to take its place.
	SuperblockFile     = "superblock"
	NextSuperblockFile = "superblock.new"
	// SuperblockSize is the file's length in bytes.
	SuperblockSize = 2 * superblockCopy
)

const (
	flagOriginal = 1 << iota
	flagRetired
)

// MaxShards is the most shards that a superblock has room for.
const MaxShards = 256

// MaxPlace is the longest home or place that a superblock has room for, in bytes.
const MaxPlace = 1023

// ErrNoSuperblock: neither copy of the superblock can be read as one.
var ErrNoSuperblock = errors.New("no valid superblock")

// Incarnation names one making of a slot: it is drawn when a blank slot takes a
// place, and is never given twice.
type Incarnation [16]byte

// String prints the first four bytes, as people compare them.
func (i Incarnation) String() string { return fmt.Sprintf("%x", i[:4]) }

// Members are the incarnations that make up a volume. Their number grows by one
// with every change, and every change is a generation of its own.
type Members struct {
	Number uint64
	Slots  [MaxSlots]Incarnation
}

// StoreCommit names a commit of the metadata store: two stores that were at the
// same sequence in two lives differ in the name, which is drawn.
type StoreCommit struct {
	Sequence uint64
	Name     uint64
}

// Superblock is a slot's superblock.
type Superblock struct {
	Volume        Volume
	Name          string
	Slot          SlotID
	Replicas      uint8
	Shards        uint16
	SizeBytes     uint64
	SegmentBlocks uint32
	Sequence      uint64

	// Signed is the volume's ID in headers and descriptors: that of the day when
	// the slot was made, whatever the volume is called since.
	Signed      Volume
	Incarnation Incarnation
	Members     Members
	// Original: the slot was made with the volume. Only originals can say that
	// nothing was ever served.
	Original bool
	// Retired: another incarnation has taken the slot's place.
	Retired bool
	// Sole is the number of the members that an operator has built on this slot
	// alone, until a quorum of them was whole; 0: nobody has.
	Sole uint64
	// Filling is the generation from which on the slot is given what its peers
	// have: it counts for nothing. 0: it is whole.
	Filling Generation

	Promised GenerationID // no lower one is ever served
	History  History

	// StoreOwner is the metadata store's; zero for one that an older version has
	// made. The store is at Checkpoint, or at Announced if that is not zero.
	StoreOwner [16]byte
	Checkpoint StoreCommit
	Announced  StoreCommit

	// Home is the volume's directory, and Places are those of the slots, relative
	// to it when they are inside. They say where to look.
	Home   string
	Places [MaxSlots]string
	// Renaming is the ID that the volume is to take: every start finishes that
	// first. Zero: none.
	Renaming Volume

	older bool // what it was read from is of version 1
}

// Started returns the number of the last generation that the slot took part in,
// 0 for none.
func (s *Superblock) Started() Generation { return s.History.Last().Number }

func (s *Superblock) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, superblockTail, superblockCopy)
	le.PutUint64(b, superblockMagic)
	le.PutUint16(b[8:], superblockVersion)
	b[10], b[11] = byte(s.Slot), s.Replicas
	le.PutUint16(b[12:], s.Shards)
	le.PutUint16(b[14:], s.flags())
	copy(b[16:], s.Volume[:])
	le.PutUint64(b[32:], s.Sequence)
	le.PutUint64(b[40:], s.SizeBytes)
	le.PutUint32(b[48:], s.SegmentBlocks)
	copy(b[56:], s.Signed[:])
	copy(b[72:], s.Incarnation[:])
	le.PutUint64(b[88:], s.Members.Number)
	putIncarnations(b[96:], &s.Members.Slots)
	le.PutUint64(b[144:], s.Sole)
	le.PutUint64(b[152:], uint64(s.Filling))
	le.PutUint64(b[160:], uint64(s.Promised.Number))
	le.PutUint64(b[168:], s.Promised.Name)
	copy(b[176:], s.StoreOwner[:])
	for i, v := range []uint64{s.Checkpoint.Sequence, s.Checkpoint.Name, s.Announced.Sequence, s.Announced.Name} {
		le.PutUint64(b[192+8*i:], v)
	}
	copy(b[224:], s.Renaming[:])
	copy(b[288:288+superblockName], s.Name)
	b = s.appendTail(b)
	return sealSuperblock(b)
}

func (s *Superblock) flags() (flags uint16) {
	if s.Original {
		flags |= flagOriginal
	}
	if s.Retired {
		flags |= flagRetired
	}
	return flags
}

func putIncarnations(b []byte, slots *[MaxSlots]Incarnation) {
	for i := range slots {
		copy(b[16*i:], slots[i][:])
	}
}

func takeIncarnations(b []byte) (slots [MaxSlots]Incarnation) {
	for i := range slots {
		copy(slots[i][:], b[16*i:])
	}
	return slots
}

// appendTail appends what has no fixed length, and notes how long it is.
func (s *Superblock) appendTail(b []byte) []byte {
	le := binary.LittleEndian
	for i, text := range append([]string{s.Home}, s.Places[:]...) {
		le.PutUint16(b[352+2*i:], uint16(len(text)))
		b = append(b, text...)
	}
	b = append(b, make([]byte, -len(b)&7)...)
	history := s.History.fitting((superblockCopy - len(b)) / beginBytes(int(s.Shards)))
	le.PutUint16(b[360:], uint16(len(history)))
	for i := range history {
		b = history[i].appendTo(b, int(s.Shards))
	}
	return b
}

// sealSuperblock pads a copy to whole blocks and checksums it.
func sealSuperblock(b []byte) []byte {
	size := max((len(b)+BlockSize-1)/BlockSize*BlockSize, superblockLeast)
	block := disk.Alloc(size)
	copy(block, b)
	binary.LittleEndian.PutUint32(block[52:], uint32(size))
	sealBlock(block, superblockCRC)
	return block
}

// DecodeSuperblock reads one copy of a superblock, which may be longer than what
// is used of it. The error wraps ErrVersion or ErrNotThis.
func DecodeSuperblock(b []byte) (*Superblock, error) {
	le := binary.LittleEndian
	if len(b) < BlockSize || le.Uint64(b) != superblockMagic {
		return nil, fmt.Errorf("superblock magic: %w", ErrNotThis)
	}
	switch le.Uint16(b[8:]) {
	case 1:
		return decodeSuperblock1(b[:BlockSize])
	case superblockVersion:
	default:
		if err := checkVersion(b[:BlockSize], superblock1CRC, 1); errors.Is(err, ErrNotThis) {
			return nil, fmt.Errorf("superblock %w", err)
		}
	}
	size := int(le.Uint32(b[52:]))
	if size > len(b) || size < superblockLeast || size%BlockSize != 0 {
		size = len(b)
	}
	b = b[:size]
	if err := checkVersion(b, superblockCRC, superblockVersion); err != nil {
		return nil, fmt.Errorf("superblock %w", err)
	}
	crc := blockSeal(b, superblockCRC)
	if stored := le.Uint32(b[superblockCRC:]); stored != crc {
		return nil, fmt.Errorf("superblock checksum %08x, expected %08x: %w", stored, crc, ErrNotThis)
	}
	s := decodeFixed(b)
	if err := s.validate(); err != nil {
		return nil, err
	}
	return s, s.decodeTail(b)
}

// decodeFixed reads what has its place.
func decodeFixed(b []byte) *Superblock {
	le := binary.LittleEndian
	flags := le.Uint16(b[14:])
	return &Superblock{
		Slot: SlotID(b[10]), Replicas: b[11], Shards: le.Uint16(b[12:]),
		Original: flags&flagOriginal != 0, Retired: flags&flagRetired != 0,
		Volume: Volume(b[16:32]), Sequence: le.Uint64(b[32:]), SizeBytes: le.Uint64(b[40:]), SegmentBlocks: le.Uint32(b[48:]),
		Signed: Volume(b[56:72]), Incarnation: Incarnation(b[72:88]),
		Members: Members{Number: le.Uint64(b[88:]), Slots: takeIncarnations(b[96:])},
		Sole:    le.Uint64(b[144:]), Filling: Generation(le.Uint64(b[152:])),
		Promised:   GenerationID{Generation(le.Uint64(b[160:])), le.Uint64(b[168:])},
		StoreOwner: [16]byte(b[176:192]),
		Checkpoint: StoreCommit{le.Uint64(b[192:]), le.Uint64(b[200:])},
		Announced:  StoreCommit{le.Uint64(b[208:]), le.Uint64(b[216:])},
		Name:       padded(b[288 : 288+superblockName]), Renaming: Volume(b[224:240]),
	}
}

// padded returns text without the zeros behind it.
func padded(b []byte) string {
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text)
}

// decodeTail reads what has no fixed length.
func (s *Superblock) decodeTail(b []byte) error {
	le := binary.LittleEndian
	at := superblockTail
	var texts [1 + MaxSlots]string
	for i := range texts {
		n := int(le.Uint16(b[352+2*i:]))
		if n > MaxPlace || at+n > len(b) {
			return fmt.Errorf("superblock with a place of %d bytes: %w", n, ErrNotThis)
		}
		texts[i] = string(b[at : at+n])
		at += n
	}
	s.Home = texts[0]
	copy(s.Places[:], texts[1:])
	at += -at & 7
	n, size := int(le.Uint16(b[360:])), beginBytes(int(s.Shards))
	if at+n*size > len(b) {
		return fmt.Errorf("superblock with a history of %d generations: %w", n, ErrNotThis)
	}
	for range n {
		s.History = append(s.History, takeBegin(b[at:at+size]))
		at += size
	}
	return s.History.validate()
}

func (s *Superblock) validate() error {
	switch {
	case s.Slot >= MaxSlots || s.Replicas != 1 && s.Replicas != MaxSlots || uint8(s.Slot) >= s.Replicas:
		return fmt.Errorf("superblock of slot %d of %d: %w", s.Slot, s.Replicas, ErrNotThis)
	case s.Shards == 0 || s.Shards > MaxShards || s.Shards&(s.Shards-1) != 0:
		return fmt.Errorf("superblock with %d shards: %w", s.Shards, ErrNotThis)
	case s.SizeBytes == 0 || s.SizeBytes%BlockSize != 0:
		return fmt.Errorf("superblock of a volume of %d bytes: %w", s.SizeBytes, ErrNotThis)
	case s.SegmentBlocks < RegionBlocks+2 || s.SegmentBlocks > 1<<16:
		return fmt.Errorf("superblock with segments of %d blocks: %w", s.SegmentBlocks, ErrNotThis)
	}
	return nil
}

// copyBytes returns how long a copy is in a superblock file of a size, and where
// the copies are: they lie one behind the other. A file of any other size was
// never finished.
func copyBytes(f disk.File) (int64, error) {
	size, err := f.Size()
	switch {
	case err != nil:
		return 0, fmt.Errorf("read superblock: %w", err)
	case size == SuperblockSize:
		return superblockCopy, nil
	case size == superblock1Size:
		return BlockSize, nil
	}
	return 0, fmt.Errorf("%w: it has %d bytes, expected %d", ErrNoSuperblock, size, SuperblockSize)
}

// ReadSuperblock returns the present superblock of a file. damaged reports
// whether one copy could not be read as a superblock. When neither can, the
// error wraps ErrNoSuperblock, or ErrVersion.
func ReadSuperblock(f disk.File) (s *Superblock, damaged bool, err error) {
	var lost error
	for i := range int64(2) {
		c, err := ReadSuperblockCopy(f, i)
		switch {
		case errors.Is(err, ErrNotThis):
			lost = err
		case err != nil:
			return nil, false, err
		case s == nil || c.Sequence > s.Sequence:
			s = c
		}
	}
	if s == nil {
		return nil, false, fmt.Errorf("%w: %w", ErrNoSuperblock, lost)
	}
	return s, lost != nil, nil
}

// ReadSuperblockCopy reads copy 0 or 1. The error wraps ErrNotThis when it is not
// whole.
func ReadSuperblockCopy(f disk.File, n int64) (*Superblock, error) {
	length, err := copyBytes(f)
	if err != nil {
		return nil, err
	}
	b := disk.Alloc(int(length))
	if err := f.Read([][]byte{b}, n*length); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	return DecodeSuperblock(b)
}

// Write stores the superblock with the next sequence, over the older copy, and
// returns once it is durable. After an error that copy may hold anything, and
// the next Write is to the same one. The file must be of the present version.
func (s *Superblock) Write(f disk.File) error {
	s.Sequence++
	err := f.Write([][]byte{s.encode()}, int64(s.Sequence%2)*superblockCopy, false)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		s.Sequence--
		return fmt.Errorf("write superblock %d: %w", s.Sequence+1, err)
	}
	return nil
}

// WriteBoth stores the superblock in both copies: what takes trust away must not
// be forgotten with one of them.
func (s *Superblock) WriteBoth(f disk.File) error {
	if err := s.Write(f); err != nil {
		return err
	}
	return s.Write(f)
}

// CreateSuperblock makes a superblock file under a name, over one that was never
// finished, and stores the superblock in both copies.
func CreateSuperblock(files disk.FS, name string, s *Superblock) (disk.File, error) {
	if err := files.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := files.Create(name, SuperblockSize)
	if err != nil {
		return nil, err
	}
	if err := s.WriteBoth(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Rename gives the slot the identity that its superblock announces. Its log and
// its store stay signed as they are.
func (s *Superblock) Rename() {
	for i, old := range s.Members.Slots {
		s.Members.Slots[i] = old.under(s.Renaming)
	}
	s.Incarnation = s.Incarnation.under(s.Renaming)
	s.Volume, s.Renaming = s.Renaming, Volume{}
}

// under returns what an incarnation is called in a volume that takes another ID.
func (i Incarnation) under(v Volume) Incarnation {
	sum := sha256.Sum256(append(append([]byte("trivet incarnation\x00"), v[:]...), i[:]...))
	return Incarnation(sum[:16])
}

// Older reports whether the superblock was read from a file of an older version,
// which must be migrated before it is written.
func (s *Superblock) Older() bool { return s.older }

// Migrate puts a file of the present version, with this superblock, in the place
// of the one of an older version, and returns it. A crash leaves the one or the
// other.
func (s *Superblock) Migrate(files disk.FS) (f disk.File, err error) {
	if f, err = CreateSuperblock(files, NextSuperblockFile, s); err != nil {
		return nil, fmt.Errorf("migrate the superblock: %w", err)
	}
	if err := files.Rename(NextSuperblockFile, SuperblockFile); err != nil {
		return nil, errors.Join(fmt.Errorf("migrate the superblock: %w", err), f.Close())
	}
	s.older = false
	return f, nil
}
