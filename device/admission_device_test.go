package device

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"trivet/shard"
)

// press puts a pressure of the test's own in the place of the shards'. It is
// called before the first request.
func (v *volume) press() *atomic.Int64 {
	level := new(atomic.Int64)
	v.door.forced = func(int) int { return int(level.Load()) }
	return level
}

// parked waits until so many parts wait at the door.
func (v *volume) parked(n int32) {
	v.t.Helper()
	v.until(fmt.Sprintf("%d parts are parked", n), func() bool { return v.door.waiting.Load() == n })
}

// TestFull: at full pressure writes park, and nothing else: reads, flushes,
// trims, hints and status pass them, in both shards. They enter when the
// pressure falls, in the order in which they came (hazard 22).
func TestFull(t *testing.T) {
	v := newVolume(t, nil)
	level := v.press()
	v.must(v.write(0, pattern(1, 256<<10), 0))
	level.Store(shard.Full)
	var writes []<-chan error
	for i := range 4 { // the same blocks: the last one has to win
		writes = append(writes, v.start(&Request{Op: Write, Offset: 0, Length: 8192, Data: pattern(2+i, 8192), Client: 1}))
		writes = append(writes, v.start(&Request{Op: Write, Offset: 1<<20 + 77, Length: 5000, Data: pattern(2+i, 5000), Client: 2}))
		v.parked(int32(2 * (i + 1)))
	}
	for i := range uint64(4) {
		v.expect(0, pattern(1, 256<<10)[:8192])
		v.must(v.flush())
		v.must(v.do(&Request{Op: Cache, Offset: i << 20, Length: 64 << 10}))
		v.must(v.do(&Request{Op: BlockStatus, Offset: 0, Length: 4 << 20}))
		v.must(v.do(&Request{Op: Trim, Offset: 8<<20 + i<<20, Length: 2 << 20}))
		v.must(v.do(&Request{Op: WriteZeroes, Offset: 16<<20 + i<<20, Length: 1 << 20, Flags: NoHole}))
	}
	v.parked(8)
	level.Store(0)
	for _, w := range writes {
		v.must(<-w)
	}
	v.expect(0, pattern(5, 8192))
	v.expect(1<<20+77, pattern(5, 5000))
}

// TestNoSpace: what could not get log space by its deadline fails with that,
// the ragged edges of a trim included; nothing of it stays behind.
func TestNoSpace(t *testing.T) {
	const deadline = 300 * time.Millisecond
	v := newVolume(t, func(o *Options) { o.Deadline = deadline })
	level := v.press()
	level.Store(shard.Full)
	begin := time.Now()
	var requests []<-chan error
	for i := range 8 {
		requests = append(requests,
			v.start(&Request{Op: Write, Offset: uint64(i) << 20, Length: 300 << 10, Data: pattern(i, 300<<10), Client: uint64(i)}),
			v.start(&Request{Op: Trim, Offset: uint64(32+i)<<20 + 10, Length: 1 << 20}))
	}
	for _, r := range requests {
		if err := <-r; !errors.Is(err, ErrNoSpace) || errors.Is(err, ErrDeadline) {
			t.Errorf("without log space: %v, expected %v", err, ErrNoSpace)
		}
	}
	if took := time.Since(begin); took < deadline || took > 3*deadline {
		t.Errorf("refused after %v, the deadline is %v", took, deadline)
	}
	level.Store(0)
	v.must(v.write(0, pattern(9, 1<<20), FUA))
	v.expect(0, pattern(9, 1<<20))
	v.parked(0)
}

// TestStopsAtTheDoor: who is parked when the device stops is told at once.
func TestStopsAtTheDoor(t *testing.T) {
	v := newVolume(t, nil)
	level := v.press()
	v.must(v.write(0, pattern(1, 4096), 0))
	level.Store(shard.Full)
	write := v.start(&Request{Op: Write, Offset: 0, Length: 4096, Data: pattern(2, 4096)})
	v.parked(1)
	v.rule("log.sync slot=0-1 error=EIO")
	begin := time.Now()
	if err := v.flush(); !errors.Is(err, ErrIO) {
		t.Fatalf("a flush that no quorum can make durable: %v", err)
	}
	if err := <-write; !errors.Is(err, ErrIO) {
		t.Errorf("a write that was parked when the device stopped: %v", err)
	}
	if took := time.Since(begin); took > defaultDeadline/2 {
		t.Errorf("it was told after %v", took)
	}
}

// TestSlowsSmoothly: with rising pressure the same writes take longer and
// longer, never all of a sudden, and all succeed.
func TestSlowsSmoothly(t *testing.T) {
	v := newVolume(t, nil)
	level := v.press()
	const clients, writes, size = 4, 12, 16 << 10
	run := func() time.Duration {
		begin := time.Now()
		var done sync.WaitGroup
		for c := range clients {
			done.Go(func() {
				for i := range writes {
					at := uint64(c)<<20 + uint64(i*size)
					if err := v.do(&Request{Op: Write, Offset: at, Length: size, Data: pattern(c, size), Client: uint64(c)}); err != nil {
						t.Errorf("client %d: %v", c, err)
					}
				}
			})
		}
		done.Wait()
		return time.Since(begin)
	}
	for _, pressure := range []int{0, 500, 900, 990} {
		level.Store(int64(pressure))
		// Half of the blocks go to each of the two shards, minus its credit; and
		// nobody comes after the last write, who would have to wait for it.
		least := time.Duration((clients*writes/2-1)*size/blockBytes)*pace(pressure) - paceCredit
		if took := run(); took < least || took > 4*least+time.Second {
			t.Errorf("pressure %d: it took %v, at this pace at least %v", pressure, took, least)
		}
	}
	for c := range clients {
		v.expect(uint64(c)<<20, pattern(c, size))
	}
}
