package device

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// LatencyWindow is half of what Snapshot.Latencies looks back on: they are of
// the period of this length that is running, and of the one before it.
const LatencyWindow = 10 * time.Second

// The buckets of a histogram are log-linear: every power of two nanoseconds is
// divided into 1<<subBits of the same width, whose middle is therefore never
// further than a 32nd from any value in them. What takes longer than 137 s,
// which no deadline in use allows, is told by the maximum alone.
const (
	subBits     = 4
	mostBits    = 37
	buckets     = (mostBits-subBits+1)<<subBits + 1
	timedOps    = int(WriteZeroes) + 1 // Read, Write, Flush, Trim, WriteZeroes
	timeStripes = 8
)

// Latency is how long the requests of one kind took from Submit to completion,
// in the last one to two LatencyWindows. Quantiles are exact within 3.2 %, Max
// is exact; failed requests count as others do.
type Latency struct {
	Op                  Op
	Count               uint64 // requests
	P50, P99, P999, Max time.Duration
}

// latencies counts how long requests take. Whoever completes a request counts
// it, at the cost of one atomic addition, in the stripe of its shard: cores
// seldom meet there, for they do not serve the same shard at the same time.
type latencies [timeStripes][timedOps]histogram

// note counts a request that was completed now.
func (l *latencies) note(op Op, shard int, now, took time.Duration) {
	if int(op) < timedOps {
		l[shard%timeStripes][op].note(now, took)
	}
}

// recent describes each kind of request of which there were some.
func (l *latencies) recent(now time.Duration) (all []Latency) {
	for op := range timedOps {
		var t tally
		for stripe := range l {
			l[stripe][op].addTo(&t, now)
		}
		if t.count > 0 {
			all = append(all, Latency{
				Op: Op(op), Count: t.count, Max: t.max,
				P50: t.quantile(0.5), P99: t.quantile(0.99), P999: t.quantile(0.999),
			})
		}
	}
	return all
}

// histogram counts durations by period, in two windows that take turns. There is
// no timer: the first who counts in a new period empties the older window, and
// who reads leaves out what is too old.
type histogram [2]window

// window counts the durations of one period.
type window struct {
	turning sync.Mutex   // held to empty it, and to read it; not to count
	period  atomic.Int64 // which one; written under turning
	max     atomic.Int64 // nanoseconds
	counts  [buckets]atomic.Uint32
}

func periodOf(now time.Duration) int64 { return int64(now / LatencyWindow) }

func (h *histogram) note(now, took time.Duration) {
	period := periodOf(now)
	w := &h[period&1]
	if w.period.Load() < period {
		w.turn(period)
	}
	w.counts[bucketOf(took)].Add(1)
	for longest := w.max.Load(); int64(took) > longest; longest = w.max.Load() {
		if w.max.CompareAndSwap(longest, int64(took)) {
			return
		}
	}
}

// turn empties the window for a new period. Who was slow to count in the one
// before the last counts in this one, or not at all.
func (w *window) turn(period int64) {
	w.turning.Lock()
	defer w.turning.Unlock()
	if w.period.Load() >= period {
		return
	}
	for i := range w.counts {
		w.counts[i].Store(0)
	}
	w.max.Store(0)
	w.period.Store(period)
}

// addTo adds what is not too old to a tally.
func (h *histogram) addTo(t *tally, now time.Duration) {
	for i := range h {
		w := &h[i]
		w.turning.Lock()
		if w.period.Load() >= periodOf(now)-1 {
			t.add(w)
		}
		w.turning.Unlock()
	}
}

// tally is the sum of windows.
type tally struct {
	counts [buckets]uint64
	count  uint64
	max    time.Duration
}

func (t *tally) add(w *window) {
	for i := range w.counts {
		n := uint64(w.counts[i].Load())
		t.counts[i] += n
		t.count += n
	}
	t.max = max(t.max, time.Duration(w.max.Load()))
}

// quantile returns the duration within which the share q of all was complete:
// the middle of the bucket that the ⌈q·count⌉-th shortest is in.
func (t *tally) quantile(q float64) time.Duration {
	left := uint64(math.Ceil(q * float64(t.count)))
	for i, n := range t.counts[:buckets-1] {
		if n >= left {
			return min(middleOf(i), t.max)
		}
		left -= n
	}
	return t.max
}

// bucketOf returns the bucket that counts a duration.
func bucketOf(d time.Duration) int {
	v := uint64(max(d, 0))
	shift := max(bits.Len64(v)-subBits-1, 0)
	return min(shift<<subBits+int(v>>shift), buckets-1)
}

// middleOf returns the middle of a bucket, but of the last one, which has none.
func middleOf(bucket int) time.Duration {
	shift := max(bucket>>subBits-1, 0)
	return time.Duration(bucket-shift<<subBits)<<shift + time.Duration(1)<<shift/2
}
