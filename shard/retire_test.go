//go:build invariants

package shard

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"trivet/arena"
	"trivet/cache"
	"trivet/disk"
	"trivet/journal"
)

// queueSlot is a slot whose disk does nothing until it is told to, and then
// only says that it did.
type queueSlot struct {
	ios      []*journal.IO
	prepares []*journal.Prepare
	loads    []*journal.Load
	life     uint32
}

func (s *queueSlot) IO(io *journal.IO)          { s.ios = append(s.ios, io) }
func (s *queueSlot) Prepare(p *journal.Prepare) { s.prepares = append(s.prepares, p) }
func (s *queueSlot) Load(l *journal.Load)       { s.loads = append(s.loads, l) }
func (s *queueSlot) Commit(*journal.Commit)     {}
func (s *queueSlot) Clean(*journal.Clean)       {}
func (s *queueSlot) Fill(*journal.Fill)         {}
func (s *queueSlot) Recycle([]uint32)           {}
func (s *queueSlot) Read(*journal.Read)         {}
func (s *queueSlot) Kick(uint16)                {}

// one carries out the oldest append or sync.
func (s *queueSlot) one() {
	if len(s.ios) > 0 {
		io := s.ios[0]
		s.ios = s.ios[1:]
		io.Done()
	}
}

// serve answers what is no append or sync.
func (s *queueSlot) serve() {
	for len(s.prepares) > 0 {
		p := s.prepares[0]
		s.prepares = s.prepares[1:]
		s.life++
		p.Got = &journal.Open{Index: s.life, Life: s.life, Blocks: 512}
		p.Done()
	}
	for len(s.loads) > 0 {
		l := s.loads[0]
		s.loads = s.loads[1:]
		l.Values = make([][]byte, len(l.Keys))
		l.Done()
	}
}

// nothing is the content of a slot that was never written.
type nothing struct{}

func (nothing) ReadSegment(uint32, []byte, uint32) error         { return nil }
func (nothing) Scan([]byte, func(key, value []byte) error) error { return nil }
func (nothing) Load(keys [][]byte) (values [][]byte, err error) {
	return make([][]byte, len(keys)), nil
}

// retireRig is a shard on three such slots.
type retireRig struct {
	*Shard
	t     *testing.T
	host  *idleHost
	arena *arena.Arena
	slots [3]*queueSlot

	found     map[uint64]uint64 // by block: the newest record that the arena held after the last store
	withdrawn map[uint64]uint64 // by block: the newest that it held once and holds no more
	stores    int
}

func newRetireRig(t *testing.T) *retireRig {
	t.Helper()
	r := &retireRig{t: t, host: &idleHost{}, found: map[uint64]uint64{}, withdrawn: map[uint64]uint64{}}
	a, err := arena.Open(arena.Options{Dir: t.TempDir(), FallbackDir: t.TempDir(), SizeBytes: 1 << 20, Shards: 1})
	if err != nil {
		t.Fatal(err)
	}
	memory, err := cache.Reserve(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(a.Close(), memory.Close()); err != nil {
			t.Error(err)
		}
	})
	cfg := Config{
		Generation: 1, Arena: a, Cache: cache.New(memory.Carve(1)[0]), Window: journal.NewWindow(1, a.Pages()+1024, a.Pages()),
		Slots: make([]Slot, 3), Quorum: 2, StallAfter: time.Hour, FailAfter: time.Hour,
		Faulted: func(journal.SlotID, bool, error) {}, Event: func(int, string, error) {},
	}
	lanes := make([]*journal.Recovery, 3)
	for i := range r.slots {
		r.slots[i] = &queueSlot{}
		cfg.Slots[i] = r.slots[i]
		lanes[i], err = journal.Recover(journal.Config{
			ID: journal.LaneID{Slot: journal.SlotID(i)}, SegmentBlocks: 512, CheckpointBytes: 1 << 40, MapBytes: 1 << 20, ShareBlocks: 1 << 20, Regions: 16,
		}, nothing{}, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	r.arena = a
	r.Shard = New(cfg, lanes, r.host)
	a.Watch(r.look)
	return r
}

// look is called after every store to the arena: a kill at this instruction
// must not leave an older record of a block without the newer one that was
// retired, for it would be logged again over what was flushed.
func (r *retireRig) look() {
	r.stores++
	records, err := r.arena.Recover()
	if err != nil {
		r.t.Fatal(err)
	}
	newest := map[uint64]uint64{}
	for _, rec := range records {
		if rec.Err != nil {
			r.t.Fatal(rec.Err)
		}
		for lba := rec.Record.LBA; lba < rec.Record.LBA+uint64(rec.Record.Count); lba++ {
			newest[lba] = max(newest[lba], rec.Record.LSN)
		}
	}
	for lba, lsn := range r.found {
		if newest[lba] != lsn {
			r.withdrawn[lba] = max(r.withdrawn[lba], lsn)
		}
	}
	for lba, lsn := range newest {
		if lsn < r.withdrawn[lba] {
			r.t.Fatalf("store %d: a kill would find record %d of block %d, and not record %d, which was retired", r.stores, lsn, lba, r.withdrawn[lba])
		}
	}
	r.found = newest
}

// write writes a block, or trims the first eight.
func (r *retireRig) write(lba uint64, trim bool) {
	p := &Part{Op: Write, LBA: journal.LBA(lba), Length: journal.BlockSize, Done: func(p *Part) {
		if p.Err != nil {
			r.t.Errorf("write: %v", p.Err)
		}
	}}
	if trim {
		p.Op, p.LBA, p.Length = Trim, 0, 8*journal.BlockSize
	}
	if !r.arena.Alloc(1, p.Pages[:1]) {
		return
	}
	if !trim {
		p.Fill(r.arena, disk.Alloc(journal.BlockSize))
	}
	r.Submit(p)
}

// settle lets every slot but the hung one do all that it was given.
func (r *retireRig) settle(hung int) {
	for range 100 {
		r.host.now += 20 * time.Millisecond
		r.Tick()
		for i, s := range r.slots {
			if s.serve(); i != hung {
				s.one()
			}
		}
	}
}

// TestRetireKilledAnywhere drops a slot that has appends of some records under
// way, while older ones of the same blocks are in memory as well, and looks
// after every store to the arena at what a kill there would leave.
func TestRetireKilledAnywhere(t *testing.T) {
	detained := 0
	for seed := range uint64(200) {
		r, random := newRetireRig(t), rand.New(rand.NewPCG(seed, 0))
		r.settle(-1)
		for range 60 {
			switch n := random.IntN(10); {
			case n < 4:
				r.write(random.Uint64N(8), n == 0)
			case n < 6:
				r.slots[2].one()
			default:
				r.host.now += 20 * time.Millisecond
				r.Tick()
				r.slots[random.IntN(2)].one()
			}
			for _, s := range r.slots {
				s.serve()
			}
		}
		r.settle(2)
		r.Drop(2, errors.New("it hangs"))
		r.settle(2)
		detained += len(r.core.detained[2])
		r.settle(-1)
		if n := r.arena.Live(); n > 0 {
			t.Fatalf("seed %d: %d pages are left in the arena", seed, n)
		}
	}
	if detained == 0 {
		t.Error("no page was ever kept for the dropped slot: nothing was tested")
	}
	t.Logf("%d pages were kept for a dropped slot", detained)
}
