package replica

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"golang.org/x/sys/unix"

	"trivet/disk"
	"trivet/journal"
)

// fileBytes is the least size of a log file: smaller segments share one, so
// that growing the log costs one file for several of them. The log of a small
// volume grows in steps of that, so they must not be large.
const fileBytes = 4 << 20

// logDir is where a slot's log files are.
const logDir = "log"

// Free segments keep their blocks, to be written again without asking the
// filesystem, up to keptSegments or a part of those in use: giving blocks back
// and getting new ones costs more than writing them. Those beyond are given back.
const (
	keptSegments = 6
	keptPart     = 32
)

const (
	// reservedSegments are left to the cleaner, which needs space to make some:
	// whoever appends gets none of them.
	reservedSegments = 2
	// reservedBytes of the filesystem are left to the metadata store, which
	// does not survive a full one: the log does not grow into them.
	reservedBytes = 48 << 20
)

// pool hands out a slot's segments, and makes new ones when none is free.
type pool struct {
	fs      disk.FS
	blocks  uint32 // of a segment
	perFile uint32

	growing sync.Mutex // held while the log grows or shrinks, which is I/O
	mu      sync.Mutex // guards what follows; held for no I/O
	files   uint32
	free    []uint32 // with blocks
	holes   []uint32 // free, without blocks
	state   map[uint32]segmentUse
	pruning bool // prune is due
	spare   int  // the fewest that were free since then
	keepAll bool // the filesystem takes no blocks back
	life    uint32
}

// segmentUse is what a pool knows of a segment. The zero value: it is in use,
// or on its way, and was never written.
type segmentUse struct {
	free    bool
	written bool // its blocks need no change of the filesystem's metadata
}

func newPool(fs disk.FS, segmentBlocks uint32) *pool {
	perFile := max(1, fileBytes/(segmentBlocks*journal.BlockSize))
	return &pool{fs: fs, blocks: segmentBlocks, perFile: perFile, state: make(map[uint32]segmentUse)}
}

func (p *pool) segmentBytes() int64 { return int64(p.blocks) * journal.BlockSize }

func fileName(file uint32) string { return fmt.Sprintf("%s/%06d", logDir, file) }

// place returns the file of a segment and its offset there, in bytes.
func (p *pool) place(segment uint32) (file uint32, base int64) {
	return segment / p.perFile, int64(segment%p.perFile) * p.segmentBytes()
}

// discover counts the log files that exist. Their names are consecutive. The
// last one is left out when it is too short: a kill has cut its making short, and
// nothing was ever in it.
func (p *pool) discover() error {
	names, err := p.fs.List(logDir)
	if err != nil {
		return fmt.Errorf("list the log: %w", err)
	}
	for i, name := range names {
		if want := fileName(uint32(i)); logDir+"/"+name != want {
			return fmt.Errorf("log file %s/%s found where %s is expected: %w", logDir, name, want, journal.ErrDamaged)
		}
	}
	p.files = uint32(len(names))
	if p.files == 0 {
		return nil
	}
	f, err := p.fs.Open(fileName(p.files - 1))
	if err != nil {
		return fmt.Errorf("the last log file: %w", err)
	}
	size, err := f.Size()
	if size < p.segmentBytes()*int64(p.perFile) {
		p.files--
	}
	return errors.Join(err, f.Close())
}

// segments returns how many segments exist.
func (p *pool) segments() uint32 { return p.files * p.perFile }

// seed makes every segment free that is not in use, and lives begin above
// life. written are the segments that hold something; of the others nobody
// knows whether they have blocks. A segment in use that does not exist is
// damage: a log file was cut short.
func (p *pool) seed(inUse, written []uint32, life uint32) error {
	for _, s := range inUse {
		if s >= p.segments() {
			return fmt.Errorf("segment %d is in use, the log has %d: %w", s, p.segments(), journal.ErrDamaged)
		}
	}
	for _, s := range written {
		p.state[s] = segmentUse{written: true}
	}
	used := make([]bool, p.segments())
	for _, s := range inUse {
		used[s] = true
	}
	p.free, p.holes = nil, nil
	for s := len(used) - 1; s >= 0; s-- {
		if used[s] {
			continue
		}
		u := p.state[uint32(s)]
		u.free = true
		p.state[uint32(s)] = u
		if u.written {
			p.free = append(p.free, uint32(s))
		} else {
			p.holes = append(p.holes, uint32(s))
		}
	}
	p.life = max(p.life, life)
	return nil
}

// taker is who takes a segment.
type taker uint8

const (
	appender        taker = iota
	zeroingAppender       // a file that is made for it is written with zeros first
	cleaner               // may take what is reserved
)

// take returns a free segment and a life for it; fresh tells that its blocks
// have still to be marked as written by the filesystem.
func (p *pool) take(who taker) (segment, life uint32, fresh bool, err error) {
	if segment, life, fresh, ok := p.takeFree(who); ok {
		return segment, life, fresh, nil
	}
	p.growing.Lock()
	defer p.growing.Unlock()
	for {
		if segment, life, fresh, ok := p.takeFree(who); ok { // somebody else has grown it
			return segment, life, fresh, nil
		}
		if err := p.grow(who == zeroingAppender); err != nil {
			return 0, 0, false, fmt.Errorf("grow the log: %w", err)
		}
	}
}

func (p *pool) takeFree(who taker) (segment, life uint32, fresh, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.free)
	if n == 0 || n <= reservedSegments && who != cleaner {
		return 0, 0, false, false
	}
	segment, p.free = p.free[n-1], p.free[:n-1]
	p.spare = min(p.spare, n-1)
	p.life++
	fresh = !p.state[segment].written
	p.state[segment] = segmentUse{written: true}
	return segment, p.life, fresh, true
}

// grow gives a hole blocks again or, when there is none, makes one more file.
func (p *pool) grow(zero bool) error {
	free, _, err := p.fs.Usage()
	if err == nil && free < p.segmentBytes()*int64(p.perFile)+reservedBytes {
		err = fmt.Errorf("%d bytes are free, %d of them are reserved: %w", free, reservedBytes, unix.ENOSPC)
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	if n := len(p.holes); n > 0 {
		segment := p.holes[n-1]
		p.mu.Unlock()
		return p.fill(segment)
	}
	file := p.files
	p.mu.Unlock()
	f, err := p.create(fileName(file))
	if err != nil {
		return err
	}
	if zero {
		err = zeroAndSync(f, 0, p.segmentBytes()*int64(p.perFile))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files++
	for s := int(p.perFile) - 1; s >= 0; s-- {
		segment := file*p.perFile + uint32(s)
		p.free = append(p.free, segment)
		p.state[segment] = segmentUse{free: true, written: zero}
	}
	return nil
}

// create makes a log file, in place of one whose making was cut short.
func (p *pool) create(name string) (disk.File, error) {
	size := p.segmentBytes() * int64(p.perFile)
	f, err := p.fs.Create(name, size)
	if !errors.Is(err, fs.ErrExist) {
		return f, err
	}
	if err := p.fs.Remove(name); err != nil {
		return nil, err
	}
	return p.fs.Create(name, size)
}

// fill gives the last hole blocks again.
func (p *pool) fill(segment uint32) error {
	file, base := p.place(segment)
	f, err := p.fs.Open(fileName(file))
	if err != nil {
		return err
	}
	err = f.Allocate(base, p.segmentBytes())
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holes = p.holes[:len(p.holes)-1]
	p.free = append(p.free, segment)
	return nil
}

// recycle returns segments. It tells whether prune is to be called after a while.
func (p *pool) recycle(segments []uint32) (prune bool) {
	p.put(segments)
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.pruning && p.watch()
}

// put returns segments.
func (p *pool) put(segments []uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range segments {
		u := p.state[s]
		if u.free {
			panic(fmt.Sprintf("replica: segment %d is returned twice", s))
		}
		u.free = true
		p.state[s] = u
		p.free = append(p.free, s)
	}
}

// watch begins to observe how many segments stay free, when there are more than
// are kept. It needs mu.
func (p *pool) watch() bool {
	p.pruning, p.spare = !p.keepAll && len(p.free) > p.kept(), len(p.free)
	return p.pruning
}

// kept is how many free segments keep their blocks. It needs mu.
func (p *pool) kept() int {
	inUse := int(p.segments()) - len(p.free) - len(p.holes)
	return max(keptSegments, inUse/keptPart)
}

// prune gives the blocks of those segments back to the filesystem that were not
// needed since put told of it, but for those that are kept. Nobody reads them any
// more: they were recycled. It tells whether it is to be called again after a
// while.
func (p *pool) prune() (again bool, err error) {
	p.growing.Lock()
	defer p.growing.Unlock()
	for {
		p.mu.Lock()
		if kept := p.kept(); p.keepAll || p.spare <= kept || len(p.free) <= kept {
			again = p.watch()
			p.mu.Unlock()
			return again, nil
		}
		segment := p.free[0]
		p.free = append(p.free[:0], p.free[1:]...)
		p.spare--
		p.mu.Unlock()
		err := p.punch(segment)
		p.mu.Lock()
		if err != nil {
			p.free = append(p.free, segment)
			p.pruning = false
			if errors.Is(err, errors.ErrUnsupported) {
				p.keepAll, err = true, nil
			}
			p.mu.Unlock()
			return false, err
		}
		p.holes = append(p.holes, segment)
		p.state[segment] = segmentUse{free: true}
		p.mu.Unlock()
	}
}

func (p *pool) punch(segment uint32) error {
	file, base := p.place(segment)
	f, err := p.fs.Open(fileName(file))
	if err != nil {
		return err
	}
	return errors.Join(f.Deallocate(base, p.segmentBytes()), f.Close())
}

// counts returns the segments in use and free, holes included.
func (p *pool) counts() (inUse, free int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	free = len(p.free) + len(p.holes)
	return int(p.segments()) - free, free
}
