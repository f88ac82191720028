package sim

import (
	"slices"
	"time"

	"trivet/disk"
	"trivet/journal"
	"trivet/replica"
)

// slot carries out a slot's operations at times drawn from the seed: those of
// a lane's log in order, all others in any order.
type slot struct {
	w     *world
	id    int
	rep   *replica.Slot
	lanes [][]operation // by shard: oldest first
	other []operation
	hung  time.Duration // nothing returns before
}

type operation struct {
	due time.Duration
	run func()
	io  *journal.IO
}

func (s *slot) IO(io *journal.IO) {
	s.w.crossing()
	lane := &s.lanes[io.Lane.Shard]
	due := s.w.now + s.w.latency()
	if n := len(*lane); n > 0 {
		due = max(due, (*lane)[n-1].due)
	}
	*lane = append(*lane, operation{due: due, io: io, run: func() { s.rep.RunIO(io) }})
}

func (s *slot) queue(run func()) {
	s.w.crossing()
	s.other = append(s.other, operation{due: s.w.now + s.w.latency(), run: run})
}

func (s *slot) Prepare(p *journal.Prepare) { s.queue(func() { s.rep.RunPrepare(p) }) }
func (s *slot) Load(l *journal.Load)       { s.queue(func() { s.rep.RunLoad(l) }) }
func (s *slot) Commit(c *journal.Commit)   { s.queue(func() { s.rep.RunCommit(c) }) }
func (s *slot) Clean(c *journal.Clean) {
	s.queue(func() { s.w.cover["pieces cleaned"]++; s.rep.RunClean(c) })
}

func (s *slot) Fill(f *journal.Fill) {
	if s.w.srv.membership.Live()[s.id] {
		s.w.fail("slot %d takes part, and something is copied to it", s.id)
	}
	s.queue(func() { s.w.cover["pieces copied"]++; s.rep.RunFill(f) })
}
func (s *slot) Kick(uint16)          {}
func (s *slot) Read(r *journal.Read) { s.queue(func() { s.rep.RunRead(r) }) }

func (s *slot) Recycle(segments []uint32) {
	s.w.cover["segments recycled"] += len(segments)
	if s.rep.Recycle(segments) {
		s.queue(s.prune)
	}
}

func (s *slot) prune() {
	if again, _ := s.rep.RunPrune(); again {
		s.queue(s.prune)
	}
}

// offer offers the operations that could be carried out next.
func (s *slot) offer(n *next) {
	for i := range s.lanes {
		if len(s.lanes[i]) > 0 {
			n.offer(max(s.lanes[i][0].due, s.hung), func() { s.runLane(i) })
		}
	}
	for i := range s.other {
		n.offer(max(s.other[i].due, s.hung), func() { s.runOther(i) })
	}
}

func (s *slot) runLane(shard int) {
	op := s.lanes[shard][0]
	s.lanes[shard] = s.lanes[shard][1:]
	op.run()
	if io := op.io; s.w.tracing() {
		blocks := 0
		for _, b := range io.Bufs {
			blocks += len(b) / journal.BlockSize
		}
		s.w.trace("slot %d shard %d: io segment %d at %d, %d blocks, durable %v close %v: %v",
			s.id, shard, io.Segment.Index, io.Offset/journal.BlockSize, blocks, io.Durable, io.Close, io.Err)
	}
}

func (s *slot) runOther(i int) {
	op := s.other[i]
	s.other = slices.Delete(s.other, i, i+1)
	op.run()
}

// halt does what a crash may do to the operations under way: the oldest of a
// lane is carried out, in part or whole, and nobody is told.
func (s *slot) halt() {
	for _, lane := range s.lanes {
		if len(lane) == 0 || s.w.rng.IntN(3) == 0 {
			continue
		}
		io := lane[0].io
		if io.Skipped() {
			continue // behind a failed sync nothing is written: a header would vouch for it
		}
		if len(io.Bufs) == 0 {
			if io.Durable && s.w.rng.IntN(2) == 0 {
				_ = io.Segment.File.Sync() // its result reaches nobody
			}
			continue
		}
		var flat []byte
		for _, b := range io.Bufs {
			flat = append(flat, b...)
		}
		n := len(flat) / journal.BlockSize
		if s.w.rng.IntN(2) == 0 {
			n = s.w.rng.IntN(n + 1)
		}
		if n > 0 {
			buf := disk.Alloc(n * journal.BlockSize)
			copy(buf, flat)
			_ = io.Segment.File.Write([][]byte{buf}, io.Offset, io.Durable && s.w.rng.IntN(2) == 0)
		}
	}
}
