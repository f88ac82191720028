package device

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestQuantilesAgainstExact: whatever the distribution, no quantile is further
// from the exact one than a 32nd of it, and the maximum is exact.
func TestQuantilesAgainstExact(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for name, draw := range map[string]func() time.Duration{
		"uniform":     func() time.Duration { return time.Duration(r.Int64N(int64(20 * time.Millisecond))) },
		"exponential": func() time.Duration { return time.Duration(r.ExpFloat64() * float64(80*time.Microsecond)) },
		"any size":    func() time.Duration { return time.Duration(math.Exp(r.Float64() * math.Log(float64(130*time.Second)))) },
		"two humps": func() time.Duration {
			return time.Duration(2000+r.Int64N(500)) + time.Duration(r.IntN(100)/98)*5*time.Second
		},
		"one value": func() time.Duration { return 12345 },
		"nothing":   func() time.Duration { return 0 },
	} {
		for _, n := range []int{1, 2, 99, 1000, 30000} {
			var l latencies
			exact := make([]time.Duration, n)
			for i := range exact {
				exact[i] = draw()
				l.note(Write, i, 1, exact[i])
			}
			slices.Sort(exact)
			got := l.recent(1)
			if len(got) != 1 || got[0].Op != Write || got[0].Count != uint64(n) || got[0].Max != exact[n-1] {
				t.Fatalf("%s: %+v of %d writes, the longest %v", name, got, n, exact[n-1])
			}
			for q, d := range map[float64]time.Duration{0.5: got[0].P50, 0.99: got[0].P99, 0.999: got[0].P999} {
				want := exact[int(math.Ceil(q*float64(n)))-1]
				if apart := (d - want).Abs(); apart > want/32 {
					t.Errorf("%s: quantile %v of %d is %v, exactly %v", name, q, n, d, want)
				}
			}
		}
	}
}

// TestBuckets: the buckets are in order, without gaps, and each holds its middle.
func TestBuckets(t *testing.T) {
	last := 0
	for v := time.Duration(0); v < 1<<(mostBits+1); v += max(1, v/200) {
		b := bucketOf(v)
		if b < last || b > last+1 || b >= buckets {
			t.Fatalf("%v is in bucket %d, after %d of %d", v, b, last, buckets)
		}
		if last = b; b < buckets-1 && bucketOf(middleOf(b)) != b {
			t.Fatalf("the middle of bucket %d, %v, is in bucket %d", b, middleOf(b), bucketOf(middleOf(b)))
		}
	}
	if bucketOf(-time.Second) != 0 || bucketOf(math.MaxInt64) != buckets-1 {
		t.Error("what no request takes has no bucket")
	}
}

// TestLatencyWindow: what is told is at least one window old and at most two,
// also when nothing was counted for long.
func TestLatencyWindow(t *testing.T) {
	var l latencies
	count := func(at time.Duration) (n uint64, longest time.Duration) {
		for _, k := range l.recent(at) {
			n, longest = n+k.Count, max(longest, k.Max)
		}
		return n, longest
	}
	l.note(Read, 0, LatencyWindow/2, time.Second)
	l.note(Flush, 3, LatencyWindow+1, time.Millisecond)
	for _, test := range []struct {
		at      time.Duration
		count   uint64
		longest time.Duration
	}{
		{LatencyWindow, 2, time.Second},
		{2*LatencyWindow - 1, 2, time.Second},
		{2 * LatencyWindow, 1, time.Millisecond},
		{3 * LatencyWindow, 0, 0},
		{1000 * LatencyWindow, 0, 0},
	} {
		if n, longest := count(test.at); n != test.count || longest != test.longest {
			t.Errorf("at %v: %d requests, the longest %v; expected %d, %v", test.at, n, longest, test.count, test.longest)
		}
	}
	l.note(Read, 0, 1000*LatencyWindow, time.Minute)
	if n, longest := count(1000 * LatencyWindow); n != 1 || longest != time.Minute {
		t.Errorf("after a long rest: %d requests, the longest %v", n, longest)
	}
	l.note(Cache, 0, 1000*LatencyWindow, time.Hour)
	l.note(BlockStatus, 0, 1000*LatencyWindow, time.Hour)
	if n, _ := count(1000 * LatencyWindow); n != 1 {
		t.Errorf("hints and questions were counted: %d", n)
	}
}

// TestLatenciesByMany: nothing is lost when many count, and others look, while
// a window begins; counting does not allocate.
func TestLatenciesByMany(t *testing.T) {
	var l latencies
	const each, many = 20000, 4
	var done sync.WaitGroup
	for range many {
		done.Go(func() {
			for i := range each {
				l.note(Write, 5, LatencyWindow+1, time.Duration(i))
			}
		})
	}
	done.Go(func() {
		for seen := uint64(0); seen < each*many; {
			for _, k := range l.recent(LatencyWindow + 1) {
				if k.Count < seen || k.Max >= each || k.P50 > k.Max {
					t.Errorf("after %d: %+v", seen, k)
					return
				}
				seen = k.Count
			}
		}
	})
	done.Wait()
	if got := l.recent(LatencyWindow + 1); got[0].Count != each*many || got[0].Max != each-1 {
		t.Errorf("%+v", got)
	}
	now := time.Duration(0)
	if n := testing.AllocsPerRun(1000, func() { now += LatencyWindow / 7; l.note(Read, 1, now, now) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestLatencies: a device tells how long each kind of request took, apart: the
// disks are slow to sync, which a flush waits for, and neither a read nor a
// write does.
func TestLatencies(t *testing.T) {
	const slow = 30 * time.Millisecond
	v := newVolume(t, nil)
	if l := v.Snapshot().Latencies; len(l) > 0 {
		t.Errorf("before the first request: %+v", l)
	}
	v.rule("log.sync delay=30ms")
	want := map[Op]uint64{Read: 20, Write: 40, Flush: 3, Trim: 2, WriteZeroes: 1}
	for i := range 40 {
		v.must(v.write(uint64(i)<<20, pattern(i, 4096), 0))
	}
	for i := range 20 {
		v.expect(uint64(i)<<20, pattern(i, 4096))
	}
	for i := range uint64(3) {
		v.must(v.write(i<<20, pattern(1, 4096), FUA))
		v.must(v.flush())
		want[Write]++
	}
	v.must(v.do(&Request{Op: Trim, Offset: 0, Length: 2 << 20}))
	v.must(v.do(&Request{Op: Trim, Offset: 8 << 20, Length: 2 << 20}))
	v.must(v.do(&Request{Op: WriteZeroes, Offset: 0, Length: 2 << 20}))
	if err := v.do(&Request{Op: Read, Offset: 1 << 40, Length: 1, Data: make([]byte, 1)}); err == nil {
		t.Error("a read beyond the end")
	}
	got := make(map[Op]Latency)
	for _, l := range v.Snapshot().Latencies {
		got[l.Op] = l
		if l.Count != want[l.Op] {
			t.Errorf("%v: %d counted, %d were made", l.Op, l.Count, want[l.Op])
		}
		if l.P50 <= 0 || l.P50 > l.P99 || l.P99 > l.P999 || l.P999 > l.Max {
			t.Errorf("out of order: %+v", l)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d kinds of requests, not %d: %+v", len(got), len(want), got)
	}
	if got[Read].P50 >= slow || got[Write].P50 >= slow {
		t.Errorf("reads and writes wait for no sync: %+v, %+v", got[Read], got[Write])
	}
	if got[Write].Max < slow*31/32 {
		t.Errorf("a write with FUA waits for a sync of %v: %+v", slow, got[Write])
	}
}
