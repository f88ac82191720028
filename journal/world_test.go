package journal

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"trivet/disk"
	"trivet/meta"
)

// world is one shard with its lanes on simulated disks and stores, run by one
// goroutine from one seed. It does what a shard and a slot do, as simply as
// can be, and keeps a model of every record that was ever added.
type world struct {
	t      testing.TB
	rng    *rand.Rand
	cfg    worldConfig
	now    time.Duration
	gen    Generation
	window *Window
	marks  Marks
	lanes  []*testLane
	inbox  []func(time.Duration)

	arena     []byte
	freePages []uint32
	history   []testRecord // by LSN - 1
	start     LSN          // the first of this generation
	content   uint64       // of the next block
	trace     []string     // what happened, printed when the test fails

	imitations map[uint64]uint32 // checksums of contents that are copies of descriptors
}

type worldConfig struct {
	seed            uint64
	lanes           int
	segmentBlocks   uint32
	checkpointBytes int64
	pageBudget      int
	regions         int // of the address space
	maxCount        int // blocks of a record
	arenaPages      int
	records         int  // of the window
	rare            bool // checkpoints are rare, so that much log is replayed
	imitate         bool // write copies of the log's own descriptors and headers
}

func smallWorld(seed uint64, lanes int) worldConfig {
	return worldConfig{
		seed: seed, lanes: lanes, segmentBlocks: 24, checkpointBytes: 60 * BlockSize, pageBudget: 16,
		regions: 40, maxCount: 6, arenaPages: 96, records: 64,
	}
}

// testRecord is what the model knows of a record.
type testRecord struct {
	kind     Kind
	lba      LBA
	contents []uint64 // by block
}

// What the model says of a block that holds no data.
const (
	modelHole = 0
	modelZero = 1
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
	free       []uint32
	segments   uint32
	life       uint32
	known      LSN // the most that the lane ever said to be durable
	wake       time.Duration
	prepareErr func() error
	recycled   int
}

const testShard = 3

var testVolume = Volume{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

func newWorld(t testing.TB, cfg worldConfig) *world {
	w := &world{t: t, cfg: cfg, rng: rand.New(rand.NewPCG(cfg.seed, 17)), content: 2, imitations: make(map[uint64]uint32)}
	w.arena = disk.Alloc(cfg.arenaPages * BlockSize)
	for i := range cfg.lanes {
		l := &testLane{w: w, id: LaneID{Slot: SlotID(i), Shard: testShard}, store: meta.NewMemory()}
		l.disk = disk.Memory(cfg.seed*8+uint64(i), disk.MemoryOptions{})
		l.files = l.disk
		if err := l.disk.MkdirAll("log"); err != nil {
			t.Fatal(err)
		}
		w.lanes = append(w.lanes, l)
	}
	t.Cleanup(func() {
		if t.Failed() {
			from := max(0, len(w.trace)-120)
			t.Logf("seed %d, %d events, the last:\n%s", cfg.seed, len(w.trace), joinLines(w.trace[from:]))
		}
	})
	return w
}

func joinLines(lines []string) (all string) {
	for _, l := range lines {
		all += l + "\n"
	}
	return all
}

func (w *world) log(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%v ", w.now)+fmt.Sprintf(format, args...))
}

func (w *world) laneConfig(l *testLane) Config {
	return Config{
		ID: l.id, Volume: testVolume, SegmentBlocks: w.cfg.segmentBlocks,
		CheckpointBytes: w.cfg.checkpointBytes, PageBudget: w.cfg.pageBudget,
	}
}

func segmentFile(index uint32) string { return fmt.Sprintf("log/%06d", index) }

// IO, Prepare, Load, Commit and Recycle make the lane an Executor that only
// queues; the world decides when something is carried out.
func (l *testLane) IO(io *IO)          { l.ios = append(l.ios, io) }
func (l *testLane) Prepare(p *Prepare) { l.prepare = p }
func (l *testLane) Load(load *Load)    { l.load = load }
func (l *testLane) Commit(c *Commit)   { l.commit = c }
func (l *testLane) Recycle(free []uint32) {
	for _, index := range free {
		for _, io := range l.ios {
			if io.Segment.Index == index && len(io.Bufs) > 0 {
				l.w.t.Fatalf("slot %d: segment %d is recycled with an append to it under way", l.id.Slot, index)
			}
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

// runIO carries out the oldest operation.
func (l *testLane) runIO() *IO {
	io := l.ios[0]
	l.ios = l.ios[1:]
	io.Execute()
	if io.Close {
		io.Segment.File.Close()
	}
	l.w.log("slot %d runs %s", l.id.Slot, describe(io))
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
	p.Got, p.Err = l.open(p.Zero)
	if p.Err == nil {
		l.w.log("slot %d prepares segment %d life %d", l.id.Slot, p.Got.Index, p.Got.Life)
	} else {
		l.w.log("slot %d prepares nothing: %v", l.id.Slot, p.Err)
	}
	return p
}

func (l *testLane) open(zero bool) (*Open, error) {
	if l.prepareErr != nil {
		if err := l.prepareErr(); err != nil {
			return nil, err
		}
	}
	if len(l.free) == 0 {
		f, err := l.files.Create(segmentFile(l.segments), int64(l.w.cfg.segmentBlocks)*BlockSize)
		if err != nil {
			return nil, err
		}
		f.Close()
		l.free = append(l.free, l.segments)
		l.segments++
	}
	i := l.w.rng.IntN(len(l.free))
	index := l.free[i]
	f, err := l.files.Open(segmentFile(index))
	if err != nil {
		return nil, err
	}
	if zero && index == l.segments-1 && l.w.rng.IntN(4) == 0 { // mostly earlier lives stay
		if err := f.Zero(0, int64(l.w.cfg.segmentBlocks)*BlockSize); err != nil {
			f.Close()
			return nil, err
		}
	}
	l.free = slices.Delete(l.free, i, i+1)
	l.life++
	return &Open{Index: index, Life: l.life, Blocks: l.w.cfg.segmentBlocks, File: f}, nil
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
	c.Err = l.store2(c.Pairs)
	l.w.log("slot %d commits up to %d, %d pairs: %v", l.id.Slot, l.lane.ckpt.lsn, len(c.Pairs), c.Err)
	return c
}

func (l *testLane) store2(pairs []Pair) error {
	list := make([]meta.Pair, len(pairs))
	for i, p := range pairs {
		list[i] = meta.Pair(p)
	}
	l.commits++
	return l.store.Commit(context.Background(), l.commits, list)
}

// due returns what the executor could do next, and reports it when it has.
func (l *testLane) due() (choices []func() (done func())) {
	if len(l.ios) > 0 {
		choices = append(choices, func() func() { return l.runIO().Done })
	}
	if l.prepare != nil {
		choices = append(choices, func() func() { return l.runPrepare().Done })
	}
	if l.load != nil {
		choices = append(choices, func() func() { return l.runLoad().Done })
	}
	if l.commit != nil {
		choices = append(choices, func() func() { return l.runCommit().Done })
	}
	return choices
}

// pump lets the lanes go on after something happened, as a shard does.
func (w *world) pump() {
	for len(w.inbox) > 0 {
		apply := w.inbox[0]
		w.inbox = w.inbox[1:]
		apply(w.now)
	}
	for _, l := range w.lanes {
		if l.lane == nil {
			continue
		}
		if d := l.lane.Durable(); d >= w.start {
			l.known = max(l.known, d)
		}
		for l.wake = l.lane.Pump(w.now); l.lane.Encoding(); l.wake = l.lane.Pump(w.now) {
		}
	}
	w.retire()
}

// retire drops the records that are durable on every lane that has not failed.
func (w *world) retire() {
	for w.window.First() < w.window.Next() {
		for _, l := range w.lanes {
			if l.lane != nil && l.lane.Fault() == nil && l.lane.Durable() < w.window.First() {
				return
			}
		}
		r := w.window.At(w.window.First())
		for i := range w.window.Items(r) {
			w.freePages = append(w.freePages, w.window.ItemAt(r, i).Page)
		}
		w.window.Retire()
	}
}

// run carries out one operation that is due somewhere; false when none is.
func (w *world) run() bool {
	var all []func() func()
	for _, l := range w.lanes {
		if l.lane != nil {
			all = append(all, l.due()...)
		}
	}
	if len(all) == 0 {
		return false
	}
	all[w.rng.IntN(len(all))]()()
	w.pump()
	return true
}

// settle makes everything durable and lets the lanes fall idle.
func (w *world) settle() {
	for _, l := range w.lanes {
		if l.lane != nil {
			l.lane.Want(w.window.Last())
		}
	}
	w.idle()
	for _, l := range w.lanes {
		if l.lane != nil && l.lane.Fault() == nil && l.lane.Durable() != w.window.Last() {
			w.t.Fatalf("slot %d is durable up to %d and idle, %d is wanted", l.id.Slot, l.lane.Durable(), w.window.Last())
		}
	}
}

// idle runs until nothing is due and no lane wants to be called again.
func (w *world) idle() {
	w.pump()
	for range 100000 {
		if w.run() {
			continue
		}
		wake := time.Duration(0)
		for _, l := range w.lanes {
			if l.lane != nil && l.wake != 0 && (wake == 0 || l.wake < wake) {
				wake = l.wake
			}
		}
		if wake == 0 {
			return
		}
		w.now = max(wake, w.now+1)
		w.pump()
	}
	w.t.Fatal("the lanes never fall idle")
}

// fill sets a block to a content that names it.
func fill(block []byte, content uint64) {
	clear(block)
	for at := 0; at < len(block); at += 512 {
		binary.LittleEndian.PutUint64(block[at:], content)
		binary.LittleEndian.PutUint64(block[at+8:], content*0x9e3779b97f4a7c15)
	}
}

// add appends a record of the kind to the shard; false when there is no room.
func (w *world) add(kind Kind, lba LBA, count int) bool {
	items := 0
	if kind.hasPayload() {
		items = count
	}
	if !w.window.Room(items) || len(w.freePages) < items {
		return false
	}
	rec := testRecord{kind: kind, lba: lba, contents: make([]uint64, count)}
	r := w.window.Add(kind, lba, count)
	for i := range count {
		switch kind {
		case KindZero:
			rec.contents[i] = modelZero
		case KindWrite:
			page := w.freePages[len(w.freePages)-1]
			w.freePages = w.freePages[:len(w.freePages)-1]
			rec.contents[i] = w.content
			fill(w.memory(page), w.content)
			if w.cfg.imitate && w.rng.IntN(2) == 0 {
				w.imitate(w.memory(page))
			}
			w.content++
			w.window.AddItem(r, Item{Page: page, CRC: Checksum(w.memory(page))})
		}
	}
	if r.LSN != LSN(len(w.history)+1) {
		w.t.Fatalf("record got LSN %d, expected %d", r.LSN, len(w.history)+1)
	}
	w.history = append(w.history, rec)
	w.log("record %d: kind %d, %d blocks at %d", r.LSN, kind, count, lba)
	return true
}

func (w *world) memory(page uint32) []byte {
	return w.arena[int(page)*BlockSize : int(page+1)*BlockSize]
}

// addRandom appends a random record.
func (w *world) addRandom() bool {
	count := 1 + w.rng.IntN(w.cfg.maxCount)
	kinds := [...]Kind{KindWrite, KindWrite, KindWrite, KindWrite, KindTrim, KindZero, KindNote}
	kind := kinds[w.rng.IntN(len(kinds))]
	// Few places in each region, so that blocks are overwritten.
	index := w.rng.IntN(12)
	if w.rng.IntN(16) == 0 {
		index = RegionBlocks - w.cfg.maxCount
	}
	lba := Region(w.rng.IntN(w.cfg.regions)).First() + LBA(index)
	switch {
	case kind == KindNote:
		lba, count = 0, 0
	case kind == KindTrim && w.rng.IntN(4) == 0:
		lba, count = lba.Region().First(), RegionBlocks
	}
	return w.add(kind, lba, count)
}

// model returns what every block holds after the record lsn; absent: a hole.
func (w *world) model(lsn LSN) map[LBA]uint64 {
	blocks := make(map[LBA]uint64)
	for _, r := range w.history[:lsn] {
		for i, content := range r.contents {
			blocks[r.lba+LBA(i)] = content
		}
	}
	return blocks
}

// entries is what a check needs of a lane's map, running or recovered.
type entries func(g Region) ([RegionBlocks]Entry, error)

// recovered returns the entries of a lane that is not active.
func recovered(r *Recovery) entries {
	return func(g Region) ([RegionBlocks]Entry, error) {
		p, err := r.page(g)
		if err != nil {
			return [RegionBlocks]Entry{}, err
		}
		return p.entries, nil
	}
}

// running returns the entries of an active lane, loading what is absent.
func (l *testLane) running() entries {
	return func(g Region) (all [RegionBlocks]Entry, err error) {
		for i := range all {
			for range 1000 {
				e, known := l.lane.Lookup(g.First() + LBA(i))
				if all[i] = e; known {
					break
				}
				l.w.pump()
				if l.load != nil {
					l.runLoad().Done()
					l.w.pump()
				}
				if l.lane.Fault() != nil {
					return all, l.lane.Fault()
				}
			}
		}
		return all, nil
	}
}

// check compares a lane's map and the blocks on its disk with the model after
// lsn, and its live counts with a count from scratch. Blocks in rotten may be
// bad on disk.
func (w *world) check(l *testLane, table *segmentTable, lsn LSN, of entries, rotten []Rot) error {
	model := w.model(lsn)
	type life struct{ segment, life uint32 }
	live := make(map[life]int32)
	block := disk.Alloc(BlockSize)
	for g := range Region(w.cfg.regions) {
		all, err := of(g)
		if err != nil {
			return fmt.Errorf("region %d: %w", g, err)
		}
		for i, e := range all {
			lba := g.First() + LBA(i)
			if err := w.checkBlock(l, table, e, model[lba], block); err != nil {
				if slices.ContainsFunc(rotten, func(r Rot) bool { return r.LBA == lba && r.Entry == e }) {
					err = nil
				}
				if err != nil {
					return fmt.Errorf("block %d after LSN %d: %w", lba, lsn, err)
				}
			}
			if e.Content == Data {
				live[life{e.Segment, e.Life}]++
			}
		}
	}
	for _, s := range table.order {
		if got := live[life{s.index, s.life}]; got != s.live {
			return fmt.Errorf("segment %d life %d: %d live blocks in the table, %d in the map", s.index, s.life, s.live, got)
		}
		if table.byIndex[s.index] != s {
			return fmt.Errorf("segment %d life %d is in the table twice", s.index, s.life)
		}
	}
	return nil
}

func (w *world) checkBlock(l *testLane, table *segmentTable, e Entry, want uint64, block []byte) error {
	switch {
	case e.Content == Hole && want == modelHole, e.Content == Zero && want == modelZero:
		return nil
	case e.Content != Data || want <= modelZero:
		return fmt.Errorf("map says %+v, expected content %d", e, want)
	case table.of(e) == nil:
		return fmt.Errorf("map names segment %d life %d, which was given back", e.Segment, e.Life)
	case slices.Contains(l.free, e.Segment):
		return fmt.Errorf("map names segment %d, which is free", e.Segment)
	}
	if err := (testSource{l}).ReadSegment(e.Segment, block, uint32(e.Block)); err != nil {
		return err
	}
	if got := Checksum(block); got != e.CRC {
		return fmt.Errorf("checksum at %+v is %08x", e, got)
	}
	if got := binary.LittleEndian.Uint64(block); got != want && w.imitations[want] != e.CRC {
		return fmt.Errorf("content %d at %+v, expected %d", got, e, want)
	}
	return nil
}

// checkAll compares every lane that has not failed, once it is idle.
func (w *world) checkAll() {
	w.settle()
	for _, l := range w.lanes {
		l.files = l.disk // what is left to do is reading
		l.store.Inject(nil)
		if l.lane == nil || l.lane.Fault() != nil {
			continue
		}
		if err := w.check(l, l.lane.segments, w.window.Last(), l.running(), nil); err != nil {
			w.t.Fatalf("slot %d: %v", l.id.Slot, err)
		}
	}
	w.idle()
}

// crash ends the process. What the executor had under way may have been
// carried out, each queue up to some point.
func (w *world) crash(power bool) {
	w.log("crash, power cut: %v", power)
	for _, l := range w.lanes {
		if l.lane == nil {
			continue
		}
		for n := w.rng.IntN(len(l.ios) + 1); n > 0; n-- {
			l.runIO()
		}
		if l.commit != nil && w.rng.IntN(2) == 0 {
			l.runCommit()
		}
		l.stop(power)
	}
}

// stop replaces the disk and the store by what a restart finds.
func (l *testLane) stop(power bool) {
	if power {
		l.disk = l.disk.Crash()
	} else {
		l.disk = l.disk.Kill()
	}
	l.files, l.store = l.disk, l.store.Crash(0)
	l.lane, l.ios, l.prepare, l.load, l.commit = nil, nil, nil, nil, nil
}

// headers reads the first block of every segment.
func (l *testLane) headers() (all []Header, err error) {
	names, err := l.files.List("log")
	if err != nil {
		return nil, err
	}
	block := disk.Alloc(BlockSize)
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
	l.commits, err = l.store.Sequence(context.Background())
	l.w.log("slot %d recovers up to %+v, damage %v, rotten %d, known %v, adopted %v", l.id.Slot, r.Stamp, r.Damage, len(r.Rotten), r.Known, r.Adopted)
	return r, err
}

// recoverAll recovers every lane and vouches with what all of them know.
func (w *world) recoverAll() []*Recovery {
	all := make([]*Recovery, len(w.lanes))
	var known [MaxSlots]LSN
	for i, l := range w.lanes {
		r, err := l.recover()
		if err != nil {
			w.t.Fatalf("slot %d: %v", i, err)
		}
		all[i] = r
		for s := range known {
			known[s] = max(known[s], r.Known[s])
		}
	}
	for i, r := range all {
		if err := r.Vouch(known[i]); err != nil {
			w.t.Fatalf("slot %d: %v", i, err)
		}
		w.lanes[i].freeUnused(r)
	}
	return all
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

// bringTogether copies every lane that differs from the best one, from it.
func (w *world) bringTogether(all []*Recovery) {
	best := slices.MaxFunc(all, func(a, b *Recovery) int { return cmp.Compare(a.Stamp.LSN, b.Stamp.LSN) })
	for i, r := range all {
		if r.Stamp.LSN == best.Stamp.LSN && !r.Incomplete && r.Damage == nil {
			continue
		}
		c := w.copier(w.lanes[i], r)
		for _, g := range regionsOf(r, best) {
			if err := c.Copy(g, best, false); err != nil {
				w.t.Fatal(err)
			}
		}
		if err := c.Finish(best.Stamp); err != nil {
			w.t.Fatal(err)
		}
		w.log("slot %d was copied up to %+v, %d blocks", i, r.Stamp, c.Copied)
	}
}

func regionsOf(a, b *Recovery) []Region {
	all := append(a.Regions(), b.Regions()...)
	slices.Sort(all)
	return slices.Compact(all)
}

func (w *world) copier(l *testLane, r *Recovery) *Copier {
	return &Copier{
		To: r, Generation: w.gen + 1,
		Prepare: func() (*Open, error) { return l.open(false) },
		Commit:  l.store2,
	}
}

// activate starts the next generation with recovered lanes; records behind
// their stamp never happened.
func (w *world) activate(all []*Recovery) {
	w.gen++
	last := LSN(0)
	for i, r := range all {
		if r.Stamp.LSN > last {
			last = r.Stamp.LSN
		}
		w.lanes[i].syncAdopted(r)
	}
	w.history = w.history[:last]
	for range w.rng.IntN(3) * w.rng.IntN(4) { // numbers that a generation skips: given once, and lost
		w.history = append(w.history, testRecord{kind: KindNote})
		last++
	}
	w.start = last + 1
	w.window = NewWindow(w.start, w.cfg.records, w.cfg.arenaPages)
	w.freePages = w.freePages[:0]
	for i := range w.cfg.arenaPages {
		w.freePages = append(w.freePages, uint32(i))
	}
	w.inbox = nil
	w.marks = Marks{Epoch: w.marks.Epoch + 1}
	for i, r := range all {
		l := w.lanes[i]
		l.known, l.wake = r.Stamp.LSN, 0
		l.lane = r.Activate(Activation{
			Executor: l, Window: w.window, Marks: &w.marks, Memory: w.memory,
			Block:      func() []byte { return disk.Alloc(BlockSize) },
			Generation: w.gen,
			Connect: func(apply func(time.Duration)) func() {
				return func() { w.inbox = append(w.inbox, apply) }
			},
		})
	}
	w.pump()
}

// start makes a world whose lanes are active.
func startWorld(t testing.TB, cfg worldConfig) *world {
	w := newWorld(t, cfg)
	w.activate(w.recoverAll())
	return w
}

// step does something random.
func (w *world) step() {
	switch n := w.rng.IntN(100); {
	case n < 40:
		w.addRandom()
		w.pump()
	case n < 75:
		w.run()
	case n < 83:
		if last := w.window.Last(); last > 0 {
			l := w.lanes[w.rng.IntN(len(w.lanes))]
			lsn := last - LSN(w.rng.IntN(int(min(last, 8))))
			for _, other := range w.lanes {
				if other == l || w.rng.IntN(4) > 0 {
					other.lane.Want(lsn)
				}
			}
			w.pump()
		}
	case n < 92:
		w.now += time.Duration(w.rng.IntN(int(6 * time.Millisecond)))
		w.pump()
	case n < 94:
		w.now += time.Duration(w.rng.IntN(int(800 * time.Millisecond)))
		w.pump()
	case n < 96 && (!w.cfg.rare || w.rng.IntN(20) == 0):
		w.lanes[w.rng.IntN(len(w.lanes))].lane.RequestCheckpoint()
		w.pump()
	default:
		l := w.lanes[w.rng.IntN(len(w.lanes))]
		l.lane.Lookup(Region(w.rng.IntN(w.cfg.regions)).First() + LBA(w.rng.IntN(20)))
		w.pump()
	}
}

// pagesOf returns the store's content, for comparing two moments.
func (l *testLane) pairs() map[string]string {
	all := make(map[string]string)
	for _, prefix := range []string{"l", "p", "s", "b"} {
		err := l.store.Scan(context.Background(), []byte(prefix), func(k, v []byte) error {
			all[string(k)] = string(v)
			return nil
		})
		if err != nil {
			l.w.t.Fatal(err)
		}
	}
	return maps.Clone(all)
}
