package device

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"trivet/inject"
	"trivet/journal"
	"trivet/replica"
	"trivet/shard"
)

// image copies slots of the running volume, as a crash of the host leaves them
// that loses the arena, but nothing that was written. It is not open yet.
func (v *volume) image(slots ...int) *volume {
	v.t.Helper()
	shm, err := os.MkdirTemp("/dev/shm", "trivet-test-")
	v.must(err)
	v.t.Cleanup(func() { os.RemoveAll(shm) })
	i := &volume{t: v.t, opt: v.opt, faults: inject.NewSet(1, time.Now)}
	i.opt.Dir, i.opt.ArenaDir, i.opt.Faults, i.opt.moved = v.t.TempDir(), shm, i.faults, true
	for _, slot := range slots {
		name := fmt.Sprintf("slot-%d", slot)
		v.must(os.CopyFS(filepath.Join(i.opt.Dir, name), os.DirFS(filepath.Join(v.opt.Dir, name))))
	}
	v.t.Cleanup(func() {
		i.faults.Clear()
		if i.Device != nil {
			i.close()
		}
	})
	return i
}

// inShard returns the offset of a region that belongs to the shard.
func (v *volume) inShard(shard int) uint64 {
	for at := uint64(0); ; at += regionBytes {
		if v.shardOf(at) == shard {
			return at
		}
	}
}

// segmentOf returns a rule's filter for the segment of a slot that holds the
// block: its place in a log file, which those at the same place in others share.
func (v *volume) segmentOf(slot int, block []byte) string {
	v.t.Helper()
	paths, err := filepath.Glob(filepath.Join(v.opt.Dir, fmt.Sprintf("slot-%d", slot), "log", "*"))
	v.must(err)
	for _, path := range paths {
		data, err := os.ReadFile(path)
		v.must(err)
		for at := 0; at < len(data); at += blockBytes {
			if bytes.Equal(data[at:at+blockBytes], block) {
				blocks := int(replica.SegmentBlocksFor(v.opt.Size))
				first := at / blockBytes / blocks * blocks
				return fmt.Sprintf("slot=%d block=%d-%d", slot, first, first+blocks-1)
			}
		}
	}
	v.t.Fatalf("slot %d does not hold the block", slot)
	return ""
}

// hits waits until a rule was hit that often.
func (v *volume) hits(id inject.ID, least uint64) {
	v.t.Helper()
	v.until(fmt.Sprintf("%d hits of rule %v", least, id), func() bool { return v.faults.Hits(id) >= least })
}

// until waits for a condition, asking the shards in between.
func (v *volume) until(what string, holds func() bool) {
	v.t.Helper()
	for start := time.Now(); !holds(); v.Snapshot() {
		if time.Since(start) > 10*time.Second {
			v.t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// written waits until every live slot has written everything.
func (v *volume) written() {
	v.t.Helper()
	v.lanes("written", func(l shard.LaneView) journal.LSN { return l.Written })
}

// durable waits until everything is durable on every live slot.
func (v *volume) durable() {
	v.t.Helper()
	v.lanes("durable", func(l shard.LaneView) journal.LSN { return l.Durable })
}

// lanes waits until all live lanes have reached the last record.
func (v *volume) lanes(what string, reached func(shard.LaneView) journal.LSN) {
	v.t.Helper()
	v.until(what+" on every slot", func() bool {
		all := true
		v.inspect(func(view *shard.View) {
			for slot := range v.engines {
				if l, ok := view.Lane(slot); ok && l.Live {
					all = all && reached(l) == view.Last()
				}
			}
		})
		return all
	})
}

// start submits a request; the channel yields its error.
func (v *volume) start(r *Request) <-chan error {
	done := make(chan error, 1)
	r.Done = func(r *Request) { done <- r.Err }
	v.Submit(r)
	return done
}

// TestFUAOvertakes: a block is written, not synced; the next is FUA. Writing
// that one durably would be quicker than a sync, and would leave a torn log
// before it (hazard 1).
func TestFUAOvertakes(t *testing.T) {
	v := newVolume(t, nil)
	for attempt := 1; !v.overtake(uint64(attempt) * 8192); attempt++ {
		if attempt == 10 {
			t.Fatal("the lanes always sync before anybody asks them to: this proves nothing")
		}
	}
	v.reopen()
}

// overtake returns false when the lanes have synced the first block by
// themselves before the second was written, for the machine is slow.
func (v *volume) overtake(at uint64) (proven bool) {
	v.rule("log.sync block=0-1000000 delay=1us") // what is written durably has a range
	syncs := v.rule("log.sync hang")             // what is synced has none
	v.must(v.write(at+4096, pattern(2, 4096), 0))
	v.written()
	proven = v.faults.Hits(syncs) == 0
	done := v.start(&Request{Op: Write, Flags: FUA, Offset: at, Length: 4096, Data: pattern(3, 4096)})
	v.until("two slots sync", func() bool {
		select {
		case err := <-done:
			v.t.Fatalf("FUA was acknowledged (%v) while what was written before it is not durable", err)
		default:
		}
		return v.faults.Hits(syncs) >= 2
	})
	v.faults.Clear()
	v.must(<-done)
	v.durable()
	v.expect(at, append(pattern(3, 4096), pattern(2, 4096)...))
	return proven
}

// TestAdoptedIsSynced: what recovery finds behind the last checkpoint may be in
// a page cache alone. Slots that cannot sync it do not serve it (hazard 2).
func TestAdoptedIsSynced(t *testing.T) {
	v := newVolume(t, nil)
	v.must(v.write(0, pattern(1, 256<<10), 0))
	v.must(v.flush())
	i := v.image(0, 1, 2)
	id := i.rule("log.sync slot=0-1 error=EIO")
	if d, err := Open(t.Context(), i.opt); !errors.Is(err, replica.ErrQuorum) {
		i.Device = d
		t.Fatalf("two slots could not sync what they hold, and the volume opens: %v", err)
	}
	if i.faults.Hits(id) < 2 {
		t.Errorf("the rule was hit %d times", i.faults.Hits(id))
	}
	i.faults.Clear()
	i.open()
	i.expect(0, pattern(1, 256<<10))
}

// apart writes a block in each of two shards until rules can tell the segments
// that hold them apart, in each of the slots; one shard or the other takes new
// ones meanwhile. It returns the blocks, which are durable on every slot.
func (v *volume) apart(at [2]uint64, slots ...int) (one, two []byte) {
	v.t.Helper()
	for try := range 32 {
		one, two = pattern(100+2*try, 4096), pattern(101+2*try, 4096)
		v.must(v.write(at[0], one, 0))
		v.must(v.write(at[1], two, 0))
		v.must(v.flush())
		v.written()
		same := false
		for _, slot := range slots {
			same = same || v.segmentOf(slot, one) == v.segmentOf(slot, two)
		}
		if !same {
			return one, two
		}
		for range 2 + try%3 {
			v.must(v.write(at[try/3%2], pattern(1, 1<<20), 0))
		}
	}
	v.t.Fatal("two shards append at the same place of their log files, again and again")
	return nil, nil
}

// TestRankedByShard: one slot has the newest records of one shard, another
// those of the other shard, and the third is lost (hazard 7).
func TestRankedByShard(t *testing.T) {
	v := newVolume(t, nil)
	at := [2]uint64{v.inShard(0), v.inShard(1)}
	one, two := v.apart(at, 0, 2)
	lagging := []inject.ID{
		v.rule("log.append " + v.segmentOf(0, two) + " hang"),
		v.rule("log.append " + v.segmentOf(2, one) + " hang"),
	}
	for shard := range at {
		v.must(v.write(at[shard], pattern(shard+11, 4096), 0))
	}
	v.must(v.flush())
	for _, id := range lagging {
		v.hits(id, 1)
	}
	i := v.image(0, 2)
	i.open()
	for shard := range at {
		i.expect(at[shard], pattern(shard+11, 4096))
	}
}

// TestGap: a slot has lost a batch that it had reported as written, and holds
// what came before it and after it (hazard 10). It does not go on behind the gap:
// it is cut there, and gets the rest from its peers.
func TestGap(t *testing.T) {
	v := newVolume(t, nil)
	at := v.inShard(0)
	var lost inject.ID
	for n := range 3 {
		if n == 1 {
			lost = v.rule("log.append slot=1 count=1 lost")
		}
		v.must(v.write(at+uint64(n)*4096, pattern(n+1, 4096), 0))
		v.must(v.flush())
		v.written()
	}
	if v.faults.Hits(lost) != 1 {
		t.Fatalf("%d batches were lost, expected 1", v.faults.Hits(lost))
	}
	i := v.image(0, 1, 2)
	i.open()
	i.expectBlocks(at, 1, 2, 3)
	if !i.said(1, "shard 0", "bringing") {
		t.Errorf("no event tells that slot 1 was brought together with its peers: %v", i.Events())
	}
	v.must(i.write(at+3*4096, pattern(4, 4096), 0))
	i.close()
	v.must(os.RemoveAll(filepath.Join(i.opt.Dir, "slot-0")))
	i.open()
	i.rule("segment.read slot=2 error=EIO")
	i.rule("segment.read slot=0 error=EIO")
	i.expectBlocks(at, 1, 2, 3, 4)
}

// expectBlocks compares blocks from at on with patterns by seed.
func (v *volume) expectBlocks(at uint64, seeds ...int) {
	v.t.Helper()
	for n, seed := range seeds {
		v.expect(at+uint64(n)*4096, pattern(seed, 4096))
	}
}

// TestBaseHangs: a write that covers a block in part waits for what the block
// holds, on slots that hang. It has no LSN yet, so nobody waits for it, not
// even in its own shard (hazard 23).
func TestBaseHangs(t *testing.T) {
	v := newVolume(t, nil)
	v.must(v.write(0, pattern(1, 8192), 0))
	v.reopen() // the block is on disk alone
	id := v.rule("segment.read hang")
	partial := v.start(&Request{Op: Write, Offset: 100, Length: 3, Data: []byte{1, 2, 3}})
	v.hits(id, 1)
	for i := range 8 {
		v.must(v.write(uint64(i+2)*4096, pattern(i, 4096), FUA))
		v.must(v.flush())
	}
	select {
	case err := <-partial:
		t.Fatalf("the write in part is done (%v) although its block cannot be read", err)
	default:
	}
	v.faults.Clear()
	v.must(<-partial)
	want := pattern(1, 8192)
	copy(want[100:], []byte{1, 2, 3})
	v.expect(0, want)
}

// TestBaseUnreadable: a write of a part of a block that no slot can read is
// refused, for it would make up the rest; it changes nothing, and keeps nothing.
func TestBaseUnreadable(t *testing.T) {
	v := newVolume(t, nil)
	v.must(v.write(0, pattern(1, 64<<10), 0))
	v.reopen()
	id := v.rule("segment.read error=EIO")
	free := v.arena.FreePages()
	for _, r := range []*Request{
		{Op: Write, Offset: 100, Length: 3, Data: []byte{1, 2, 3}},
		{Op: Write, Flags: FUA, Offset: 4000, Length: 9000, Data: pattern(2, 9000)}, // both ends are ragged
		{Op: Trim, Offset: 8192 + 512, Length: 8192},
		{Op: WriteZeroes, Offset: 20000, Length: 10},
	} {
		if err := v.do(r); !errors.Is(err, ErrIO) {
			t.Errorf("%v of %d bytes at %d: %v, expected an I/O error", r.Op, r.Length, r.Offset, err)
		}
	}
	if hits := v.faults.Hits(id); hits < 4*journal.MaxSlots {
		t.Errorf("%d reads failed; each write asks each slot", hits)
	}
	v.faults.Clear()
	v.must(v.flush())
	v.until(fmt.Sprintf("%d pages of the arena are free", free), func() bool { return v.arena.FreePages() == free })
	want := pattern(1, 64<<10)
	clear(want[3*4096 : 4*4096]) // the whole block in the middle of the trim
	v.expect(0, want)
}

// TestOneDeadline: every part of a request has the request's deadline, however
// late it is cut off, and whether or not it was parked.
func TestOneDeadline(t *testing.T) {
	v := newVolume(t, nil)
	var mu sync.Mutex
	parts := make(map[time.Duration]int) // by deadline
	fresh := v.parts.New
	v.parts.New = func() any {
		p := fresh().(*part)
		done := p.Done
		p.Done = func(s *shard.Part) {
			mu.Lock()
			parts[s.Deadline]++
			mu.Unlock()
			done(s)
		}
		return p
	}
	const bytes = 32 << 20 // two rounds of parts, and four times the arena
	earliest := v.now() + defaultDeadline
	v.must(v.write(0, pattern(1, bytes), 0))
	latest := v.now() + defaultDeadline
	mu.Lock()
	defer mu.Unlock()
	for deadline, n := range parts {
		if len(parts) != 1 || n != bytes/chunkBytes || deadline < earliest || deadline > latest {
			t.Errorf("parts by deadline: %v; expected %d, all between %v and %v", parts, bytes/chunkBytes, earliest, latest)
			break
		}
	}
}

// TestStoppedAtTheDoor: writes are parked when the device stops. They fail at
// once, long before their deadline, and so does what comes later.
func TestStoppedAtTheDoor(t *testing.T) {
	v := newVolume(t, nil)
	hang := v.rule("log.append hang")
	var writes []<-chan error
	for n := range 16 {
		writes = append(writes, v.start(&Request{Op: Write, Offset: uint64(n) << 20, Length: 1 << 20, Data: pattern(n, 1<<20)}))
	}
	if v.door.waiting.Load() == 0 {
		t.Fatal("no write is parked")
	}
	v.rule("log.append slot=0-1 error=EIO")
	v.faults.Remove(hang)
	began := time.Now()
	failed := 0
	for _, done := range writes {
		if err := <-done; err != nil {
			failed++
			if !errors.Is(err, ErrIO) || errors.Is(err, ErrDeadline) {
				t.Errorf("a parked write: %v", err)
			}
		}
	}
	if took := time.Since(began); failed == 0 || took > defaultDeadline/2 {
		t.Errorf("%d of %d writes failed, after %v", failed, len(writes), took)
	}
	if v.Snapshot().Stopped == nil {
		t.Fatal("the device has not stopped")
	}
	began = time.Now()
	for _, r := range []*Request{
		{Op: Write, Length: 4096, Data: pattern(1, 4096)},
		{Op: Write, Offset: 5, Length: 5, Data: pattern(1, 5)},
		{Op: Trim, Length: 1 << 20},
		{Op: WriteZeroes, Length: 5000},
		{Op: Flush},
	} {
		if err := v.do(r); !errors.Is(err, ErrIO) {
			t.Errorf("%v of a stopped device: %v", r.Op, err)
		}
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("a stopped device refused after %v", took)
	}
}
