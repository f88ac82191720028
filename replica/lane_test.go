package replica

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"trivet/disk"
	"trivet/inject"
	"trivet/journal"
	"trivet/meta"
)

// laneOwner plays the shard for one lane of one slot: any number of goroutines
// add records and kick, completions come back on the engine's. It is also the
// lane's executor, to see in which order operations are reported.
type laneOwner struct {
	*Engine
	t     *testing.T
	epoch time.Time

	mu     sync.Mutex // guards what follows: the ownership of the shard
	lane   *journal.Lane
	window *journal.Window
	pages  [][]byte // payload by page
	want   map[journal.LBA]byte
	handed int
	// nextPage is used next: the window frees them in the order in which it
	// was given them, and has room for as many.
	nextPage uint32
	apply    []func(now time.Duration) // completions, to be applied by the next owner

	inbox    sync.Mutex // guards apply
	reported atomic.Int64
}

// What the window holds, and the arena of the test.
const (
	ownerRecords = 1024
	ownerPages   = 4096
)

// lasting is a store that outlives its slot.
type lasting struct{ meta.Store }

func (lasting) Close() error { return nil }

// newLaneOwner makes a slot, alone in its volume, and starts its engine. again
// closes the slot, whose engine was closed, and opens it anew.
func newLaneOwner(t *testing.T) (o *laneOwner, faults *inject.Set, again func() *laneOwner) {
	t.Helper()
	faults = inject.NewSet(1, time.Now)
	real, err := disk.Real(t.TempDir(), disk.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	files := disk.Faulty(real, faults, 0, disk.FaultyOptions{})
	g := Geometry{Name: "test", SizeBytes: 64 << 20, Replicas: 1, Shards: 1, SegmentBlocks: 1024}
	store := new(meta.Memory)
	again = func() *laneOwner {
		if o != nil {
			if err := o.Slot().Close(); err != nil {
				t.Error(err)
			}
		}
		s, _, err := openSlot(files, 0, g)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Open(s.Expect()); err != nil {
			t.Fatal(err)
		}
		s.Attach(lasting{store})
		return openLane(t, s)
	}
	o = again()
	return o, faults, again
}

// openLane recovers a slot and takes its first lane.
func openLane(t *testing.T, s *Slot) *laneOwner {
	t.Helper()
	g, err := Recover([]*Slot{s}, make([]error, 1), Options{
		CheckpointBytes: 1 << 30, MapBytes: 4 << 20, Log: func(int, string, error) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	o := &laneOwner{
		Engine: StartEngine(s), t: t, epoch: time.Now(), want: make(map[journal.LBA]byte),
		window: journal.NewWindow(g.Starts[0], ownerRecords, ownerPages),
	}
	for range ownerPages {
		o.pages = append(o.pages, disk.Alloc(journal.BlockSize))
	}
	o.lane = g.Lanes[0][0].Activate(journal.Activation{
		Executor: o, Window: o.window, Marks: &journal.Marks{Generation: g.Generation},
		Memory: func(page uint32) []byte { return o.pages[page] }, Block: func() []byte { return disk.Alloc(journal.BlockSize) },
		Connect: func(apply func(time.Duration)) func() {
			return func() {
				o.inbox.Lock()
				o.apply = append(o.apply, apply)
				o.inbox.Unlock()
				o.step(nil)
			}
		},
	})
	return o
}

// IO hands an operation to the engine, which has to report it before any later
// one of the lane. o.mu is held.
func (o *laneOwner) IO(io *journal.IO) {
	number := int64(o.handed)
	o.handed++
	done := io.Done
	io.Done = func() {
		if n := o.reported.Add(1) - 1; n != number {
			o.t.Errorf("operation %d was reported when %d was due", number, n)
		}
		io.Done = done
		done()
	}
	o.Engine.IO(io)
}

// step owns the lane for a moment, as a turn of a shard does, and then kicks.
func (o *laneOwner) step(fn func()) {
	o.mu.Lock()
	o.inbox.Lock()
	apply := o.apply
	o.apply = nil
	o.inbox.Unlock()
	now := time.Since(o.epoch) + 1
	for _, fn := range apply {
		fn(now)
	}
	if fn != nil {
		fn()
	}
	o.lane.Pump(now)
	for o.window.Next() > o.window.First() && o.window.First() <= o.lane.Durable() {
		o.window.Retire()
	}
	o.mu.Unlock()
	o.Kick(0)
}

// add writes n blocks of the value, when the window has room, and wants them
// durable or not. It tells whether it had.
func (o *laneOwner) add(lba journal.LBA, n int, value byte, durable bool) (added bool) {
	o.step(func() {
		if added = o.lane.Fault() == nil && o.window.Room(n); !added {
			o.lane.Want(o.window.Last())
			return
		}
		r := o.window.Add(journal.KindWrite, lba, n)
		for i := range n {
			page := o.nextPage % ownerPages
			o.nextPage++
			for at := range o.pages[page] {
				o.pages[page][at] = value
			}
			o.window.AddItem(r, journal.Item{Page: page, CRC: journal.Checksum(o.pages[page])})
			o.want[lba+journal.LBA(i)] = value
		}
		if durable {
			o.lane.Want(r.LSN)
		}
	})
	return added
}

// until steps until the condition, which is asked under o.mu, holds.
func (o *laneOwner) until(what string, holds func() bool) {
	o.t.Helper()
	for start := time.Now(); ; {
		ok := false
		o.step(func() { ok = holds() })
		if ok {
			return
		}
		if time.Since(start) > 20*time.Second {
			o.t.Fatalf("not within 20 s: %s; the lane is durable up to %d of %d: %v",
				what, o.lane.Durable(), o.window.Last(), o.lane.LastError())
		}
	}
}

// settle waits until everything is durable, and nothing under way.
func (o *laneOwner) settle() {
	o.t.Helper()
	o.until("everything is durable", func() bool {
		o.lane.Want(o.window.Last())
		return o.lane.Durable() == o.window.Last() && !o.lane.Busy()
	})
}

// verify reads every block with reads of several blocks, from many goroutines
// that kick each other's reads.
func (o *laneOwner) verify() {
	o.t.Helper()
	var lbas []journal.LBA
	entries := make(map[journal.LBA]journal.Entry)
	o.until("every map page is loaded", func() bool {
		lbas = lbas[:0]
		for lba := range o.want {
			e, known := o.lane.Lookup(lba)
			if !known {
				return false
			}
			entries[lba] = e
			lbas = append(lbas, lba)
		}
		return true
	})
	const readers = 8
	var all sync.WaitGroup
	for r := range readers {
		all.Go(func() {
			for n := r; n < len(lbas); n += readers * 5 {
				o.readBlocks(lbas[n:min(n+5, len(lbas))], entries)
			}
		})
	}
	all.Wait()
}

func (o *laneOwner) readBlocks(lbas []journal.LBA, entries map[journal.LBA]journal.Entry) {
	done := make(chan struct{})
	op := &journal.Read{Done: func() { close(done) }}
	for _, lba := range lbas {
		op.Blocks = append(op.Blocks, journal.ReadBlock{Entry: entries[lba], Buf: disk.Alloc(journal.BlockSize)})
	}
	o.Read(op)
	o.Kick(0)
	<-done
	for i, lba := range lbas {
		b := op.Blocks[i]
		if b.Err != nil || b.Buf[0] != o.want[lba] || b.Buf[len(b.Buf)-1] != o.want[lba] {
			o.t.Errorf("block %d begins with %d, expected %d: %v", lba, b.Buf[0], o.want[lba], b.Err)
		}
	}
}

// close joins the engine and closes the slot.
func (o *laneOwner) close() {
	o.t.Helper()
	if !o.Close(10 * time.Second) {
		o.t.Fatal("the engine has not ended")
	}
}

// TestLaneInOrder: many goroutines hand appends and syncs to a lane and kick it
// at the same time, small durable ones and others, with and without errors in
// between, which come and go. Each is reported once, in order; none is
// forgotten; and everything is there, also when the slot is opened again.
func TestLaneInOrder(t *testing.T) {
	for name, rules := range map[string][]string{
		"no errors":  nil,
		"errors":     {"log.append p=0.02 error=EIO", "log.sync p=0.02 error=EIO"},
		"torn":       {"log.append p=0.02 torn"},
		"slow":       {"log.append p=0.05 delay=2ms", "log.sync p=0.05 delay=2ms"},
		"for a time": {"log.sync count=20 delay=1ms"}, // then the kernel has them again
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, faults, again := newLaneOwner(t)
			for _, text := range rules {
				rule, err := inject.Parse(text)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := faults.Add(rule); err != nil {
					t.Fatal(err)
				}
			}
			var writers sync.WaitGroup
			for w := range 8 {
				random := rand.New(rand.NewPCG(uint64(w), 1))
				writers.Go(func() {
					for n := 0; n < 80; {
						blocks := 1 // mostly small and durable, else so large that several appends are under way
						if random.IntN(3) == 0 {
							blocks = 1 + random.IntN(48)
						}
						if o.add(journal.LBA(w*128+random.IntN(64)), blocks, byte(random.Uint32()), blocks == 1) {
							n++
						}
						if name == "for a time" && n == 40 {
							faults.Clear()
						}
					}
				})
			}
			writers.Wait()
			faults.Clear()
			o.settle()
			if o.lane.Fault() != nil || int(o.reported.Load()) != o.handed {
				t.Errorf("%d of %d operations were reported; fault: %v", o.reported.Load(), o.handed, o.lane.Fault())
			}
			o.verify()
			o.close()
			p := again()
			p.want = o.want
			p.verify()
			p.close()
			if err := p.Slot().Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLaneHangs: while an append hangs, nobody who hands over or kicks waits,
// and reads pass. The engine is closed meanwhile: what waits behind the append
// is dropped, and the append when it comes back begins nothing more.
func TestLaneHangs(t *testing.T) {
	o, faults, _ := newLaneOwner(t)
	for n := range 8 {
		o.add(journal.LBA(n), 1, byte(n+1), true)
	}
	o.settle()
	before := o.handed
	rule, err := inject.Parse("log.append hang")
	if err != nil {
		t.Fatal(err)
	}
	id, err := faults.Add(rule)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 12 { // of 256 KiB: more than one append
		o.add(journal.LBA(128+n), 64, 9, false)
	}
	o.until("an append hangs", func() bool { return faults.Hits(id) == 1 })
	o.step(func() {
		for lba := range o.want { // what is read is what has a place already
			if lba >= 128 {
				delete(o.want, lba)
			}
		}
	})
	var kickers sync.WaitGroup
	for range 8 {
		kickers.Go(func() {
			for range 100 {
				o.step(nil)
			}
		})
	}
	kickers.Wait()
	o.verify()
	if n := int(o.reported.Load()); n != before {
		t.Errorf("%d operations were reported behind one that hangs", n-before)
	}
	l := o.lanes[0]
	l.mu.Lock()
	waiting := len(l.waiting)
	l.mu.Unlock()
	if waiting == 0 {
		t.Fatal("nothing waits behind the append that hangs: this proves nothing")
	}
	if o.Close(10 * time.Millisecond) {
		t.Fatal("the engine has ended although an append hangs")
	}
	faults.Clear()
	if !o.Close(10 * time.Second) {
		t.Fatal("the goroutines have not ended although nothing hangs any more")
	}
	if n := int(o.reported.Load()); n != before+1 || len(l.waiting) != waiting {
		t.Errorf("after the engine was closed %d operations were reported and %d begun, expected the one that hung, and none",
			n-before, waiting-len(l.waiting))
	}
}

// TestReadErrors: of blocks that are read together those that cannot be read
// have errors, the others are right, and every read is reported, whoever kicks.
func TestReadErrors(t *testing.T) {
	o, faults, _ := newLaneOwner(t)
	for n := range 128 {
		for !o.add(journal.LBA(n), 1, byte(n+1), false) {
		}
	}
	o.settle()
	entries := make(map[journal.LBA]journal.Entry)
	o.step(func() {
		for n := range 128 {
			entries[journal.LBA(n)], _ = o.lane.Lookup(journal.LBA(n))
		}
	})
	rule, err := inject.Parse("segment.read p=0.3 error=EIO")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := faults.Add(rule); err != nil {
		t.Fatal(err)
	}
	var failed, right atomic.Int64
	var readers sync.WaitGroup
	for r := range 8 {
		readers.Go(func() {
			for n := range 32 {
				done := make(chan struct{})
				op := &journal.Read{Done: func() { close(done) }}
				for i := range 6 {
					lba := journal.LBA((r*37 + n*11 + i*i) % 128)
					op.Blocks = append(op.Blocks, journal.ReadBlock{Entry: entries[lba], Buf: disk.Alloc(journal.BlockSize)})
				}
				if o.Read(op); n%2 == 0 || r == 0 {
					o.Kick(0)
				} else {
					o.step(nil) // a turn of the shard kicks as well
				}
				<-done
				for i := range op.Blocks {
					b := &op.Blocks[i]
					switch {
					case b.Err != nil:
						failed.Add(1)
					case b.Buf[0] == byte((r*37+n*11+i*i)%128+1):
						right.Add(1)
					default:
						t.Errorf("a block begins with %d", b.Buf[0])
					}
				}
			}
		})
	}
	readers.Wait()
	if failed.Load() == 0 || right.Load() == 0 {
		t.Errorf("%d blocks failed, %d were right: this proves nothing", failed.Load(), right.Load())
	}
	faults.Clear()
	bad := entries[3]
	bad.CRC++
	entries[3] = bad
	done := make(chan struct{})
	op := &journal.Read{Done: func() { close(done) }, Blocks: []journal.ReadBlock{
		{Entry: entries[2], Buf: disk.Alloc(journal.BlockSize)}, {Entry: bad, Buf: disk.Alloc(journal.BlockSize)},
	}}
	o.Read(op)
	o.Kick(0)
	<-done
	if op.Blocks[0].Err != nil || !errors.Is(op.Blocks[1].Err, journal.ErrChecksum) {
		t.Errorf("of a right and a rotten block: %v and %v", op.Blocks[0].Err, op.Blocks[1].Err)
	}
	o.close()
	if err := o.Slot().Close(); err != nil {
		t.Error(err)
	}
}
