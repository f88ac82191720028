package journal

import (
	"cmp"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"trivet/disk"
	"trivet/meta"
)

var more = flag.Uint64("more", 1, "run this many times as many seeds")

// seeds returns how many seeds a test runs that usually takes n.
func seeds(n uint64) uint64 { return max(n**more/fewer, 2) }

var events = flag.Bool("events", false, "print what happened before a failure")

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

	added func(*Record) // when set, is told of every record
	least LSN           // that some lane has seen: no generation begins before
}

type worldConfig struct {
	seed            uint64
	lanes           int
	segmentBlocks   uint32
	checkpointBytes int64
	mapBytes        int
	regions         int // of the address space
	maxCount        int // blocks of a record
	arenaPages      int
	records         int  // of the window
	rare            bool // checkpoints are rare, so that much log is replayed
	still           bool // nothing is cleaned
	imitate         bool // write copies of the log's own descriptors and headers
}

func smallWorld(seed uint64, lanes int) worldConfig {
	return worldConfig{
		seed: seed, lanes: lanes, segmentBlocks: 24, checkpointBytes: 60 * BlockSize, mapBytes: 4 << 10,
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

// log notes an event for the trace of a failed run.
func (w *world) log(format string, args ...any) {
	if *events {
		w.trace = append(w.trace, fmt.Sprintf("%v ", w.now)+fmt.Sprintf(format, args...))
	}
}

func (w *world) laneConfig(l *testLane) Config {
	cfg := Config{
		ID: l.id, Volume: testVolume, SegmentBlocks: w.cfg.segmentBlocks,
		CheckpointBytes: w.cfg.checkpointBytes, MapBytes: w.cfg.mapBytes,
		Regions: uint64(w.cfg.regions),
	}
	if !w.cfg.still {
		cfg.Policy = testPolicy{always: w.cfg.seed%3 == 0}
	}
	return cfg
}

func segmentFile(index uint32) string { return fmt.Sprintf("log/%06d", index) }

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
	for _, l := range w.lanes {
		if a := l.lane; a != nil {
			w.t.Logf("slot %d at %v: wake %v, fault %v, batched %d planned %d written %d durable %d of %d, outstanding %d, ready %v, preparing %v, marks %v vouched %d named %d, not before %v, prepare after %v, load after %v, checkpoint %v not before %v",
				l.id.Slot, w.now, l.wake, a.fault, a.batched, a.planned, a.written, a.durable, w.window.Last(), a.outstanding, a.ready != nil, a.preparing.busy,
				w.marks.Durable, a.vouched, a.named, a.notBefore, a.prepareAfter, a.loadAfter, a.ckpt.active, a.ckpt.notBefore)
		}
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
	if w.added != nil {
		w.added(r)
	}
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
		return p.all(), nil
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
		if l.clean != nil && w.rng.IntN(2) == 0 {
			l.runClean()
		}
		l.stop(power)
	}
}

// recoverAll recovers every lane and vouches with what all of them know.
func (w *world) recoverAll() []*Recovery {
	all := make([]*Recovery, len(w.lanes))
	for i, l := range w.lanes {
		r, err := l.recover()
		if err != nil {
			w.t.Fatalf("slot %d: %v", i, err)
		}
		all[i] = r
	}
	for i, r := range all {
		var known LSN
		for _, peer := range all {
			known = max(known, peer.Known[r.Lane.cfg.ID.Slot].Since(r.Began))
		}
		if err := r.Vouch(known); err != nil {
			w.t.Fatalf("slot %d: %v", i, err)
		}
		w.lanes[i].freeUnused(r)
		w.lanes[i].rewrite(r)
	}
	return all
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
			if err := c.Copy(g, best, Behind); err != nil {
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
		Prepare: func() (*Open, error) { return l.open() },
		Commit:  l.commitPairs,
	}
}

// activate starts the next generation with recovered lanes; records behind
// their stamp never happened.
func (w *world) activate(all []*Recovery) {
	w.gen++
	last := w.least
	for i, r := range all {
		if r.Stamp.LSN > last {
			last = r.Stamp.LSN
		}
		w.lanes[i].syncAdopted(r)
	}
	for LSN(len(w.history)) < last {
		w.history = append(w.history, testRecord{kind: KindNote})
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
	w.marks = Marks{Epoch: w.marks.Epoch + 1, Generation: w.gen}
	for i, r := range all {
		w.engage(w.lanes[i], r)
	}
	w.pump()
}

// engage attaches a recovered lane to the shard.
func (w *world) engage(l *testLane, r *Recovery) {
	l.known, l.wake = min(r.Stamp.LSN, w.window.Last()), 0
	l.lane = r.Activate(Activation{
		Executor: l, Window: w.window, Marks: &w.marks, Memory: w.memory,
		Block: func() []byte { return disk.Alloc(BlockSize) },
		Connect: func(apply func(time.Duration)) func() {
			return func() { w.inbox = append(w.inbox, apply) }
		},
	})
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
		e, known := l.lane.Lookup(Region(w.rng.IntN(w.cfg.regions)).First() + LBA(w.rng.IntN(12)))
		switch {
		case len(l.pinned) > 0 && w.rng.IntN(3) == 0:
			l.unpin()
		case known && e.Content == Data && l.lane.Pin(e):
			l.pinned = append(l.pinned, e)
		}
		w.pump()
	}
}
