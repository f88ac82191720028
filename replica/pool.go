package replica

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"trivet/disk"
	"trivet/journal"
)

// fileBytes is the least size of a log file: smaller segments share one, so
// that growing the log costs one file for several of them.
const fileBytes = 32 << 20

// logDir is where a slot's log files are.
const logDir = "log"

// pool hands out a slot's segments, and makes new ones when none is free.
type pool struct {
	fs      disk.FS
	blocks  uint32 // of a segment
	perFile uint32

	growing sync.Mutex // held while the log grows, which is I/O
	mu      sync.Mutex // guards what follows; held for no I/O
	files   uint32
	free    []uint32
	written map[uint32]bool // segments that were ever taken
	life    uint32
}

func newPool(fs disk.FS, segmentBlocks uint32) *pool {
	perFile := max(1, fileBytes/(segmentBlocks*journal.BlockSize))
	return &pool{fs: fs, blocks: segmentBlocks, perFile: perFile, written: make(map[uint32]bool)}
}

func (p *pool) segmentBytes() int64 { return int64(p.blocks) * journal.BlockSize }

func fileName(file uint32) string { return fmt.Sprintf("%s/%06d", logDir, file) }

// place returns the file of a segment and its offset there, in bytes.
func (p *pool) place(segment uint32) (file uint32, base int64) {
	return segment / p.perFile, int64(segment%p.perFile) * p.segmentBytes()
}

// discover counts the log files that exist. Their names are consecutive.
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
	return nil
}

// segments returns how many segments exist.
func (p *pool) segments() uint32 { return p.files * p.perFile }

// seed makes every segment free that is not in use, and lives begin above
// life. written are the segments that hold something.
func (p *pool) seed(inUse, written []uint32, life uint32) {
	for _, s := range written {
		p.written[s] = true
	}
	used := make([]bool, p.segments())
	for _, s := range inUse {
		used[s] = true
	}
	p.free = p.free[:0]
	for s := len(used) - 1; s >= 0; s-- {
		if !used[s] {
			p.free = append(p.free, uint32(s))
		}
	}
	p.life = max(p.life, life)
}

// take returns a free segment and a life for it; fresh tells that it was never
// written, so its blocks still have to be allocated by the filesystem. With
// zero, a file that is made for it is written with zeros first.
func (p *pool) take(zero bool) (segment, life uint32, fresh bool, err error) {
	if segment, life, fresh, ok := p.takeFree(); ok {
		return segment, life, fresh, nil
	}
	p.growing.Lock()
	defer p.growing.Unlock()
	for {
		if segment, life, fresh, ok := p.takeFree(); ok { // somebody else has grown it
			return segment, life, fresh, nil
		}
		if err := p.grow(zero); err != nil {
			return 0, 0, false, fmt.Errorf("grow the log: %w", err)
		}
	}
}

// grow makes one more log file. It is written with zeros as a whole, before any
// of its segments is used: while the filesystem's journal has a change of the
// file's extents, every durable write to the file waits for a commit.
func (p *pool) grow(zero bool) error {
	p.mu.Lock()
	file := p.files
	p.mu.Unlock()
	f, err := p.fs.Create(fileName(file), p.segmentBytes()*int64(p.perFile))
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
		p.written[segment] = zero
	}
	return nil
}

func (p *pool) takeFree() (segment, life uint32, fresh, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.free)
	if n == 0 {
		return 0, 0, false, false
	}
	segment, p.free = p.free[n-1], p.free[:n-1]
	p.life++
	fresh = !p.written[segment]
	p.written[segment] = true
	return segment, p.life, fresh, true
}

// put returns segments.
func (p *pool) put(segments []uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range segments {
		if slices.Contains(p.free, s) {
			panic(fmt.Sprintf("replica: segment %d is returned twice", s))
		}
		p.free = append(p.free, s)
	}
}

// counts returns the segments in use and free.
func (p *pool) counts() (inUse, free int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int(p.segments()) - len(p.free), len(p.free)
}
