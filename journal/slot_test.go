package journal

import (
	"context"
	"fmt"
	"slices"
	"time"

	"trivet/disk"
	"trivet/meta"
)

// testLane is a lane with its slot: the part that survives a crash, and the
// executor's queues.
type testLane struct {
	w       *world
	id      LaneID
	disk    *disk.MemoryFS
	files   disk.FS // disk, or what makes it fail
	store   *meta.Memory
	commits uint64

	lane       *Lane
	ios        []*IO
	prepare    *Prepare
	load       *Load
	commit     *Commit
	held       bool // commits wait
	unloaded   bool // loads wait
	clean      *Clean
	fill       *Fill
	free       []uint32
	segments   uint32
	life       uint32
	known      LSN // the most that the lane ever said to be durable
	wake       time.Duration
	prepareErr func() error
	recycled   int
	pinned     []Entry // by reads under way
}

// IO, Prepare, Load, Commit, Clean and Recycle make the lane an Executor that only
// queues; the world decides when something is carried out.
func (l *testLane) IO(io *IO)          { l.ios = append(l.ios, io) }
func (l *testLane) Prepare(p *Prepare) { l.prepare = p }
func (l *testLane) Load(load *Load)    { l.load = load }
func (l *testLane) Commit(c *Commit)   { l.commit = c }
func (l *testLane) Clean(c *Clean)     { l.clean = c }
func (l *testLane) Fill(f *Fill)       { l.fill = f }
func (l *testLane) Recycle(free []uint32) {
	for _, index := range free {
		for _, io := range l.ios {
			if io.Segment.Index == index && len(io.Bufs) > 0 {
				l.w.t.Fatalf("slot %d: segment %d is recycled with an append to it under way", l.id.Slot, index)
			}
		}
		if slices.ContainsFunc(l.pinned, func(e Entry) bool { return e.Segment == index }) {
			l.w.t.Fatalf("slot %d: segment %d is recycled under a read", l.id.Slot, index)
		}
		if slices.Contains(l.free, index) {
			l.w.t.Fatalf("slot %d: segment %d is recycled twice", l.id.Slot, index)
		}
	}
	l.w.log("slot %d recycles %v", l.id.Slot, free)
	l.free = append(l.free, free...)
	l.recycled += len(free)
}

// ReadSegment, Scan and Load… make the slot a Source.
type testSource struct{ l *testLane }

func (s testSource) ReadSegment(segment uint32, buf []byte, block uint32) error {
	f, err := s.l.files.Open(segmentFile(segment))
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Read([][]byte{buf}, int64(block)*BlockSize)
}

func (s testSource) Scan(prefix []byte, fn func(key, value []byte) error) error {
	return s.l.store.Scan(context.Background(), prefix, fn)
}

func (s testSource) Load(keys [][]byte) ([][]byte, error) {
	return s.l.store.Load(context.Background(), keys)
}

// unpin ends the oldest read: what it was to read is still at its place.
func (l *testLane) unpin() {
	e := l.pinned[0]
	l.pinned = l.pinned[1:]
	block := disk.Alloc(BlockSize)
	if err := (testSource{l}).ReadSegment(e.Segment, block, uint32(e.Block)); err != nil && l.files == l.disk {
		l.w.t.Fatal(err)
	}
	if Checksum(block) != e.CRC && l.lane.LastError() == nil {
		l.w.t.Fatalf("slot %d: %+v was recycled under a read", l.id.Slot, e)
	}
	l.lane.Unpin(e)
}

// runIO carries out the oldest operation.
func (l *testLane) runIO() *IO {
	io := l.ios[0]
	l.ios = l.ios[1:]
	io.Execute()
	if io.Close {
		io.Segment.File.Close()
	}
	if *events {
		l.w.log("slot %d runs %s", l.id.Slot, describe(io))
	}
	return io
}

func describe(io *IO) string {
	what := "sync"
	switch {
	case len(io.Bufs) > 0:
		what = fmt.Sprintf("append %d-%d at %d", io.first, io.last, io.Offset/BlockSize)
	case !io.Durable:
		what = "release"
	}
	return fmt.Sprintf("%s segment %d life %d durable %v close %v through %d: %v",
		what, io.Segment.Index, io.Segment.Life, io.Durable, io.Close, io.through, io.Err)
}

func (l *testLane) runPrepare() *Prepare {
	p := l.prepare
	l.prepare = nil
	p.Got, p.Err = l.open()
	if p.Err == nil {
		l.w.log("slot %d prepares segment %d life %d", l.id.Slot, p.Got.Index, p.Got.Life)
	} else {
		l.w.log("slot %d prepares nothing: %v", l.id.Slot, p.Err)
	}
	return p
}

func (l *testLane) open() (*Open, error) {
	if l.prepareErr != nil {
		if err := l.prepareErr(); err != nil {
			return nil, err
		}
	}
	fresh := false
	if len(l.free) == 0 {
		f, err := l.files.Create(segmentFile(l.segments), int64(l.w.cfg.segmentBlocks)*BlockSize)
		if err != nil {
			return nil, err
		}
		f.Close()
		l.free = append(l.free, l.segments)
		l.segments++
		fresh = true
	}
	i := l.w.rng.IntN(len(l.free))
	index := l.free[i]
	f, err := l.files.Open(segmentFile(index))
	if err != nil {
		return nil, err
	}
	l.free = slices.Delete(l.free, i, i+1)
	l.life++
	return &Open{Index: index, Life: l.life, Blocks: l.w.cfg.segmentBlocks, File: f, Fresh: fresh}, nil
}

func (l *testLane) runLoad() *Load {
	op := l.load
	l.load = nil
	op.Values, op.Err = testSource{l}.Load(op.Keys)
	l.w.log("slot %d loads %v: %v", l.id.Slot, op.regions, op.Err)
	return op
}

func (l *testLane) runCommit() *Commit {
	c := l.commit
	l.commit = nil
	c.Err = l.commitPairs(c.Pairs)
	l.w.log("slot %d commits up to %d, %d pairs: %v", l.id.Slot, l.lane.ckpt.lsn, len(c.Pairs), c.Err)
	return c
}

func (l *testLane) commitPairs(pairs []Pair) error {
	list := make([]meta.Pair, len(pairs))
	for i, p := range pairs {
		list[i] = meta.Pair(p)
	}
	l.commits++
	return l.store.Commit(context.Background(), meta.Commit{Sequence: l.commits, Name: 1}, list)
}

// testCleanSource is the slot as the cleaner sees it.
type testCleanSource struct{ testSource }

func (s testCleanSource) ReadBlocks(blocks []ReadBlock) {
	for i := range blocks {
		b := &blocks[i]
		b.Err = s.ReadSegment(b.Entry.Segment, b.Buf, uint32(b.Entry.Block))
		if b.Err == nil && Checksum(b.Buf) != b.Entry.CRC {
			b.Err = ErrChecksum
		}
	}
}

func (s testCleanSource) Cold() (*Open, error) { return s.l.open() }
func (s testCleanSource) Keep(o *Open) error   { return o.File.Close() }
func (s testCleanSource) Discard(o *Open) error {
	s.l.free = append(s.l.free, o.Index)
	return o.File.Close()
}

func (l *testLane) runClean() *Clean {
	c := l.clean
	l.clean = nil
	victim := c.Victim
	c.Run(testCleanSource{testSource{l}})
	l.w.log("slot %d cleans, victim %v, moves %d into segment %d life %d: %v", l.id.Slot, victim, len(c.Moves), c.into.Index, c.into.Life, c.Err)
	return c
}

// testPolicy cleans whatever is half dead, and sorts when it is told to.
type testPolicy struct{ always bool }

func (p testPolicy) Always() bool       { return p.always }
func (p testPolicy) Pressure(Table) int { return 0 }
func (p testPolicy) Choose(t Table) (all []SegmentUse) {
	for _, s := range t.Sealed {
		if s.Live*2+4 < s.Used && len(all) < 3 {
			all = append(all, s)
		}
	}
	return all
}

// Fresh makes the slot a FillTarget.
func (s testCleanSource) Fresh() (*Open, error) { return s.l.open() }

func (l *testLane) runFill() *Fill {
	f := l.fill
	l.fill = nil
	f.Run(testCleanSource{testSource{l}})
	l.w.log("slot %d appends %d copied blocks, last %v, to %v: %v", l.id.Slot, len(f.Blocks), f.Last, f.written, f.Err)
	return f
}

// due returns what the executor could do next, and reports it when it has.
func (l *testLane) due() (choices []func() (done func())) {
	if len(l.ios) > 0 {
		choices = append(choices, func() func() { return l.runIO().Done })
	}
	if l.prepare != nil {
		choices = append(choices, func() func() { return l.runPrepare().Done })
	}
	if l.load != nil && !l.unloaded {
		choices = append(choices, func() func() { return l.runLoad().Done })
	}
	if l.commit != nil && !l.held {
		choices = append(choices, func() func() { return l.runCommit().Done })
	}
	if l.fill != nil {
		choices = append(choices, func() func() { return l.runFill().Done })
	}
	if l.clean != nil {
		choices = append(choices, func() func() { return l.runClean().Done })
	}
	return choices
}

// stop replaces the disk and the store by what a restart finds.
func (l *testLane) stop(power bool) {
	if power {
		l.disk = l.disk.Crash()
	} else {
		l.disk = l.disk.Kill()
	}
	l.files, l.store = l.disk, l.store.Crash(0)
	l.lane, l.ios, l.prepare, l.load, l.commit, l.clean, l.fill, l.pinned = nil, nil, nil, nil, nil, nil, nil, nil
}

// headers reads the first block of every segment.
func (l *testLane) headers() (all []Header, err error) {
	names, err := l.files.List("log")
	if err != nil {
		return nil, err
	}
	block := disk.Alloc(2 * BlockSize)
	for i := range names {
		if err := (testSource{l}).ReadSegment(uint32(i), block, 0); err != nil {
			return nil, err
		}
		h, ok, err := DecodeHeader(block, testVolume, l.id.Slot, uint32(i))
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, h)
		}
	}
	l.segments = uint32(len(names))
	return all, nil
}

// recover reads the lane back from its disk.
func (l *testLane) recover() (*Recovery, error) {
	headers, err := l.headers()
	if err != nil {
		return nil, err
	}
	r, err := Recover(l.w.laneConfig(l), testSource{l}, headers)
	if err != nil {
		return nil, err
	}
	for _, h := range headers {
		l.life = max(l.life, h.Life())
	}
	id, err := l.store.Identity(context.Background())
	l.commits = id.Last.Sequence
	l.w.log("slot %d recovers up to %+v, damage %v, rotten %d, known %v, adopted %v", l.id.Slot, r.Stamp, r.Damage, len(r.Rotten), r.Known, r.Adopted)
	return r, err
}

// freeUnused returns to the pool what the lane does not use, which is known
// only after Vouch.
func (l *testLane) freeUnused(r *Recovery) {
	l.free = l.free[:0]
	used := r.Lane.SegmentsInUse()
	for i := range l.segments {
		if !slices.Contains(used, i) {
			l.free = append(l.free, i)
		}
	}
}

// syncAdopted makes durable what recovery has adopted.
func (l *testLane) syncAdopted(r *Recovery) {
	for _, segment := range r.Adopted {
		f, err := l.files.Open(segmentFile(segment))
		if err == nil {
			err = f.Sync()
			f.Close()
		}
		if err != nil {
			l.w.t.Fatalf("slot %d: %v", l.id.Slot, err)
		}
	}
}

// rewrite writes anew what is not known to be durable.
func (l *testLane) rewrite(r *Recovery) {
	w := Rewriter{Prepare: func() (*Open, error) { return l.open() }}
	n, err := w.Rewrite(r)
	if err != nil {
		l.w.t.Fatalf("slot %d: write the end of the log anew: %v", l.id.Slot, err)
	}
	l.w.log("slot %d wrote %d batches anew", l.id.Slot, n)
}

// pairs returns the store's content, for comparing two moments.
func (l *testLane) pairs() map[string]string {
	all := make(map[string]string)
	for _, prefix := range []string{"l", "p", "d", "s", "b"} {
		err := l.store.Scan(context.Background(), []byte(prefix), func(k, v []byte) error {
			all[string(k)] = string(v)
			return nil
		})
		if err != nil {
			l.w.t.Fatal(err)
		}
	}
	return all
}
