package journal

import (
	"testing"
	"time"

	"trivet/disk"
)

// BenchmarkEncode encodes the descriptor of 248 single-block records, about as
// many as fit.
func BenchmarkEncode(b *testing.B) {
	block := disk.Alloc(BlockSize)
	d := descriptor{generation: 1, firstLSN: 1}
	b.SetBytes(248 * BlockSize)
	b.ReportAllocs()
	for b.Loop() {
		var e encoder
		e.begin(block)
		for i := range 248 {
			if !e.fits(KindWrite, 1) {
				b.Fatalf("only %d records fit", i)
			}
			e.add(KindWrite, LBA(i*300), 1)
			e.checksum(uint32(i))
		}
		d.previous = e.finish(&d)
	}
}

// nullExecutor carries everything out at once, on nothing.
type nullExecutor struct {
	ios     []*IO
	prepare *Prepare
	commit  *Commit
	load    *Load
	free    []uint32
	next    uint32
	life    uint32
	blocks  uint32
}

func (x *nullExecutor) IO(io *IO)             { x.ios = append(x.ios, io) }
func (x *nullExecutor) Prepare(p *Prepare)    { x.prepare = p }
func (x *nullExecutor) Load(l *Load)          { x.load = l }
func (x *nullExecutor) Commit(c *Commit)      { x.commit = c }
func (x *nullExecutor) Clean(*Clean)          {}
func (x *nullExecutor) Fill(*Fill)            {}
func (x *nullExecutor) Recycle(free []uint32) { x.free = append(x.free, free...) }

// run finishes what is under way.
func (x *nullExecutor) run() {
	for _, io := range x.ios {
		io.Done()
	}
	x.ios = x.ios[:0]
	if p := x.prepare; p != nil {
		x.prepare = nil
		index := x.next
		if n := len(x.free); n > 0 {
			index, x.free = x.free[n-1], x.free[:n-1]
		} else {
			x.next++
		}
		x.life++
		p.Got = &Open{Index: index, Life: x.life, Blocks: x.blocks}
		p.Done()
	}
	if l := x.load; l != nil {
		x.load = nil
		l.Values = make([][]byte, len(l.Keys))
		l.Done()
	}
	if c := x.commit; c != nil {
		x.commit = nil
		c.Done()
	}
}

// emptySource is a slot without anything.
type emptySource struct{}

func (emptySource) ReadSegment(uint32, []byte, uint32) error         { return nil }
func (emptySource) Scan([]byte, func(key, value []byte) error) error { return nil }
func (emptySource) Load(keys [][]byte) (values [][]byte, err error) {
	return make([][]byte, len(keys)), nil
}

// benchLane is an active lane on an executor that does nothing. Results are
// applied at once.
func benchLane(b *testing.B, records int) (*Lane, *Window, *nullExecutor) {
	r, err := Recover(Config{Volume: testVolume, SegmentBlocks: 4096, CheckpointBytes: 64 << 20, MapBytes: 16 << 20}, emptySource{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	x := &nullExecutor{blocks: 4096}
	w := NewWindow(1, records, records)
	arena := disk.Alloc(BlockSize)
	l := r.Activate(Activation{
		Executor: x, Window: w, Marks: &Marks{Generation: 1},
		Memory: func(uint32) []byte { return arena },
		Block:  func() []byte { return disk.Alloc(BlockSize) },
		Connect: func(apply func(time.Duration)) func() {
			return func() { apply(time.Second) }
		},
	})
	return l, w, x
}

// BenchmarkPump is a steady stream of single-block writes over 64 MiB, with a
// flush every 32: what a lane costs for each of them, checkpoints included.
func BenchmarkPump(b *testing.B) {
	l, w, x := benchLane(b, 1024)
	now, lsn := time.Second, LSN(0)
	step := func() {
		lsn++
		lba := LBA(uint64(lsn) * 2654435761 % (64 << 20 / BlockSize))
		r := w.Add(KindWrite, lba, 1)
		w.AddItem(r, Item{CRC: uint32(lsn)})
		if lsn%32 == 0 {
			l.Want(lsn)
		}
		for l.Pump(now); len(x.ios) > 0 || x.prepare != nil || x.commit != nil || l.Encoding(); l.Pump(now) {
			x.run()
		}
		for w.First() <= l.Durable() {
			w.Retire()
		}
	}
	for range 200_000 { // until segments are recycled
		step()
	}
	b.ReportAllocs()
	for b.Loop() {
		step()
	}
}

// BenchmarkReplay recovers a lane of 64 MiB of single-block writes in batches
// of 64 from the memory disk.
func BenchmarkReplay(b *testing.B) {
	cfg := smallWorld(1, 1)
	cfg.segmentBlocks, cfg.checkpointBytes, cfg.mapBytes, cfg.regions = 4096, 1<<40, 1<<24, 64
	cfg.arenaPages, cfg.records = 256, 256
	w := startWorld(b, cfg)
	for i := range 16 << 10 {
		if !w.add(KindWrite, LBA(i*2654435761)%(64*RegionBlocks), 1) {
			b.Fatal("no room")
		}
		if i%64 == 63 {
			w.settle()
		}
	}
	w.crash(false)
	l := w.lanes[0]
	b.ReportAllocs()
	var bytes int64
	for b.Loop() {
		r, err := l.recover()
		if err != nil || r.Stamp.LSN != 16<<10 {
			b.Fatal(r.Stamp, err)
		}
		bytes = r.Bytes
	}
	b.SetBytes(bytes)
}
