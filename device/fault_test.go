package device

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"trivet/replica"
)

// TestSyncFailsEverywhere: all lanes fail at once, for a while (hazard 4). What
// was written is written again elsewhere; then flushes succeed, and it is there.
func TestSyncFailsEverywhere(t *testing.T) {
	v := newVolume(t, nil)
	id := v.rule("log.sync count=3 error=EIO")
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			if err := errors.Join(v.write(uint64(i)<<20, pattern(i, 64<<10), 0), v.flush()); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	clients.Wait()
	if v.faults.Hits(id) != 3 {
		t.Errorf("the rule was hit %d times", v.faults.Hits(id))
	}
	for i, live := range v.live() {
		if !live {
			t.Errorf("slot %d was dropped although it could write again", i)
		}
	}
	v.reopen()
	for i := range 4 {
		v.expect(uint64(i)<<20, pattern(i, 64<<10))
	}
}

// TestStops: two slots are lost, so nothing can be made durable. Every write
// and flush fails in the same way for everybody, reads are served, and what
// was acknowledged is there after the cause is gone (hazards 4 and 5).
func TestStops(t *testing.T) {
	v := newVolume(t, nil)
	v.must(v.write(0, pattern(1, 256<<10), 0))
	v.must(v.flush())
	v.rule("log.sync slot=0-1 error=EIO")
	v.must(v.write(1<<20, pattern(2, 8<<10), 0))
	if err := v.flush(); !errors.Is(err, ErrIO) {
		t.Fatalf("a flush that no quorum can make durable: %v", err)
	}
	texts := make([]string, 8)
	var clients sync.WaitGroup
	for i := range texts {
		clients.Go(func() {
			if err := v.flush(); err != nil {
				texts[i] = err.Error()
			}
			if err := v.write(0, pattern(9, 4096), 0); !errors.Is(err, ErrIO) {
				t.Errorf("a write after the device has stopped: %v", err)
			}
		})
	}
	clients.Wait()
	for _, text := range texts {
		if text == "" || text != texts[0] {
			t.Errorf("flushes differ: %q and %q", text, texts[0])
		}
	}
	v.expect(0, pattern(1, 256<<10))
	v.faults.Clear()
	v.reopen()
	v.expect(0, pattern(1, 256<<10))
	v.expect(1<<20, pattern(2, 8<<10))
	v.must(v.flush())
}

// TestSlowSlot: a slot that hangs is dropped within its budget, and nobody
// waits for it; a second one is not, for it is needed (hazard 11).
func TestSlowSlot(t *testing.T) {
	v := newVolume(t, nil)
	first := v.rule("log.append slot=1 hang")
	var slowest time.Duration
	for start := time.Now(); v.live()[1]; {
		if time.Since(start) > 2*stallAfter {
			t.Fatalf("slot 1 still takes part after %v", time.Since(start))
		}
		begin := time.Now()
		v.must(v.write(0, pattern(1, 4096), 0))
		v.must(v.flush())
		slowest = max(slowest, time.Since(begin))
	}
	if slowest > stallAfter/2 {
		t.Errorf("a write and flush took %v while one slot hung", slowest)
	}
	if v.faults.Hits(first) == 0 {
		t.Error("the rule was never hit")
	}
	second := v.rule("log.append slot=2 for=5s hang")
	v.must(v.write(4096, pattern(2, 4096), 0))
	v.must(v.flush()) // waits for slot 2, longer than the budget
	if live := v.live(); !live[0] || !live[2] {
		t.Errorf("slots that take part: %v", live)
	}
	if v.faults.Hits(second) == 0 {
		t.Error("the second rule was never hit")
	}
	v.faults.Clear()
	v.reopen()
	if live := v.live(); !live[1] {
		t.Error("slot 1 did not come back")
	}
	v.expect(0, pattern(1, 4096))
	v.expect(4096, pattern(2, 4096))
}

// TestAllStandStill: when no slot answers for longer than the budget, it is the
// host that stands still: nobody is dropped for being noticed first.
func TestAllStandStill(t *testing.T) {
	v := newVolume(t, nil)
	id := v.rule("log.append for=6s hang")
	v.must(v.write(0, pattern(1, 4096), 0))
	v.must(v.flush()) // waits until they answer
	if v.faults.Hits(id) < 3 {
		t.Errorf("the rule was hit %d times", v.faults.Hits(id))
	}
	if live := v.live(); !live[0] || !live[1] || !live[2] {
		t.Errorf("slots that take part: %v", live)
	}
}

// TestDiskFull: a slot without room is dropped after its budget; I/O goes on.
func TestDiskFull(t *testing.T) {
	v := newVolume(t, nil)
	id := v.rule("segment.alloc slot=2 error=ENOSPC")
	data := pattern(3, 1<<20)
	for start, n := time.Now(), uint64(0); v.live()[2]; n++ {
		if time.Since(start) > 10*time.Second {
			t.Fatal("slot 2 still takes part")
		}
		v.must(v.write(n%32<<20, data, 0))
	}
	v.must(v.flush())
	if v.faults.Hits(id) == 0 {
		t.Error("the rule was never hit")
	}
	v.expect(0, data)
}

// TestParked: while every log hangs, writes fill the arena and park; reads of
// what is in memory pass them, and a parked write fails at its deadline
// (hazards 21, 22). Then everything goes on, and nothing has leaked.
func TestParked(t *testing.T) {
	const deadline = 2 * time.Second
	v := newVolume(t, func(o *Options) { o.Deadline = deadline })
	v.must(v.write(0, pattern(1, 4096), 0))
	id := v.rule("log.append hang")
	begin := time.Now()
	var failed, parked int
	var mu sync.Mutex
	var writers sync.WaitGroup
	data := pattern(4, 1<<20)
	for i := range 16 {
		writers.Go(func() {
			err := v.write(uint64(16+i)<<20, data, 0)
			mu.Lock()
			defer mu.Unlock()
			parked++
			if errors.Is(err, ErrDeadline) {
				failed++
			}
		})
	}
	v.expect(0, pattern(1, 4096))
	if took := time.Since(begin); took > deadline/2 {
		t.Errorf("a read took %v behind parked writes", took)
	}
	writers.Wait()
	if took := time.Since(begin); failed == 0 || took > 2*deadline {
		t.Errorf("%d of %d writes failed at the deadline after %v", failed, parked, took)
	}
	if v.faults.Hits(id) == 0 {
		t.Error("the rule was never hit")
	}
	v.faults.Clear()
	v.must(v.flush())
	v.close()
}

// TestHungRead: a request fails at its deadline, and its memory is left alone
// from then on, when every slot hangs; when one does, others serve (hazard 21).
func TestHungRead(t *testing.T) {
	v := newVolume(t, func(o *Options) { o.Deadline = 3 * time.Second })
	data := pattern(5, 32<<20) // twice what there is of memory
	for at := 0; at < len(data); at += 1 << 20 {
		v.must(v.write(uint64(at), data[at:at+1<<20], 0))
	}
	v.reopen()
	one := v.rule("segment.read slot=0 hang")
	v.expect(0, data[:4096])
	v.expect(1<<20, data[1<<20:1<<20+4096])
	if v.faults.Hits(one) == 0 {
		t.Error("the rule was never hit")
	}
	all := v.rule("segment.read hang")
	begin := time.Now()
	b, err := v.read(8<<20, 256<<10)
	if !errors.Is(err, ErrDeadline) {
		t.Fatalf("a read of slots that hang: %v", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it failed after %v", took)
	}
	for i := range b {
		b[i] = 0xee
	}
	if v.faults.Hits(all) == 0 {
		t.Error("the rule was never hit")
	}
	v.faults.Clear()
	v.expect(8<<20, data[8<<20:8<<20+256<<10])
	v.close() // every read has returned
	if !bytes.Equal(b, bytes.Repeat([]byte{0xee}, len(b))) {
		t.Error("the memory of a request was written to after its deadline")
	}
}

// TestSurvivor: of two lost slots the third cannot know; it opens only when an
// operator says so, and tells how far it may lag (hazards 5 and 9).
func TestSurvivor(t *testing.T) {
	v := newVolume(t, nil)
	v.must(v.write(0, pattern(6, 128<<10), 0))
	v.must(v.flush())
	v.close()
	for _, slot := range []string{"slot-0", "slot-1"} {
		v.must(os.RemoveAll(filepath.Join(v.opt.Dir, slot)))
	}
	for range 2 { // nothing is made by the first try
		d, err := Open(context.Background(), v.opt)
		if !errors.Is(err, replica.ErrQuorum) {
			if err == nil {
				v.Device = d
			}
			t.Fatalf("two slots are lost: %v", err)
		}
	}
	v.opt.Survivor = 3
	v.open()
	v.expect(0, pattern(6, 128<<10))
	v.opt.Survivor = 0
	v.reopen()
	v.expect(0, pattern(6, 128<<10))
}

// TestReplaced: a slot that lost everything, one that is old and one byte of
// rot do no harm; the copy removes what its source lacks (hazards 7, 8, 9).
func TestReplaced(t *testing.T) {
	v := newVolume(t, nil)
	data := pattern(7, 4<<20)
	v.must(v.write(0, data, 0))
	v.close()
	old := filepath.Join(t.TempDir(), "old")
	v.must(os.CopyFS(old, os.DirFS(filepath.Join(v.opt.Dir, "slot-1"))))
	v.open()
	v.must(v.do(&Request{Op: Trim, Offset: 1 << 20, Length: 1 << 20}))
	v.must(v.write(0, pattern(8, 1<<20), 0))
	copy(data, pattern(8, 1<<20))
	clear(data[1<<20 : 2<<20])
	v.close()
	slot := filepath.Join(v.opt.Dir, "slot-1")
	v.must(os.RemoveAll(slot))
	v.must(os.CopyFS(slot, os.DirFS(old)))
	v.open()
	v.expect(0, data)
	v.close()
	v.must(os.RemoveAll(filepath.Join(v.opt.Dir, "slot-0")))
	v.open()
	v.expect(0, data)
	v.replace(0)
	v.close()
	v.must(os.RemoveAll(filepath.Join(v.opt.Dir, "slot-2"))) // slots 0 and 1 are copies now
	v.open()
	v.expect(0, data)
	r := &Request{Op: BlockStatus, Offset: 1 << 20, Length: 1 << 20}
	v.must(v.do(r))
	if len(r.Extents) != 1 || !r.Extents[0].Hole {
		t.Errorf("what was trimmed is %v", r.Extents)
	}
}

// TestDefaultDeadline: the server gives up before a kernel that waits 30 s does
// (hazard 24).
func TestDefaultDeadline(t *testing.T) {
	v := newVolume(t, nil)
	if v.Device.opt.Deadline != 20*time.Second {
		t.Errorf("the default deadline is %v", v.Device.opt.Deadline)
	}
}
