package inject_test

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"trivet/inject"
)

// clock is a time that tests move.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func newSet(t *testing.T, rules ...string) (*inject.Set, *clock) {
	t.Helper()
	c := &clock{now: time.Unix(1000, 0)}
	set := inject.NewSet(1, c.Now)
	for _, text := range rules {
		if _, err := set.Add(inject.MustParse(text)); err != nil {
			t.Fatal(err)
		}
	}
	return set, c
}

func sync1() inject.Point {
	return inject.Point{Site: inject.LogSync, Op: "sync", Slot: 1, Shard: inject.Unknown}
}

// pattern checks the point n times and draws a hit as x.
func pattern(set *inject.Set, p inject.Point, n int) string {
	out := make([]byte, n)
	for i := range out {
		out[i] = '.'
		if set.Check(p).Effect != inject.None {
			out[i] = 'x'
		}
	}
	return string(out)
}

func TestFilters(t *testing.T) {
	blocks := inject.Point{Site: inject.SegmentRead, Op: "read", Shard: 3, Block: 10, Blocks: 5}
	for _, c := range []struct {
		rule  string
		point inject.Point
		want  string
	}{
		{"log.sync hang", sync1(), "xxxxxx"},
		{"log.append hang", sync1(), "......"},
		{"any hang", sync1(), "xxxxxx"},
		{"any hang", inject.Point{}, "xxxxxx"},
		{"log.sync hang", inject.Point{}, "......"},
		{"log.sync op=sync hang", sync1(), "xxxxxx"},
		{"log.sync op=write hang", sync1(), "......"},
		{"log.sync slot=1 hang", sync1(), "xxxxxx"},
		{"log.sync slot=0-2 hang", sync1(), "xxxxxx"},
		{"log.sync slot=2 hang", sync1(), "......"},
		{"log.sync shard=0 hang", sync1(), "......"}, // an unknown shard is not shard 0
		{"log.sync nth=3 hang", sync1(), "..x..."},
		{"log.sync nth=3 count=2 hang", sync1(), "..xx.."},
		{"log.sync nth=3 count=all hang", sync1(), "..xxxx"},
		{"log.sync count=2 hang", sync1(), "xx...."},
		{"log.sync p=1 hang", sync1(), "xxxxxx"},
		{"log.sync block=0-9 hang", sync1(), "......"}, // no blocks, no match
		{"segment.read block=0-9 flip", blocks, "......"},
		{"segment.read block=0-10 flip", blocks, "xxxxxx"},
		{"segment.read block=14 flip", blocks, "xxxxxx"},
		{"segment.read block=15-20 flip", blocks, "......"},
		{"segment.read shard=2-4 flip", blocks, "xxxxxx"},
		{"superblock torn", inject.Point{Site: inject.Superblock}, "xxxxxx"},
		{"superblock torn", inject.Point{Site: inject.Superblock, Able: inject.EffectsOf(inject.Flip)}, "......"},
		{"superblock hang", inject.Point{Site: inject.Superblock, Able: inject.EffectsOf(inject.Flip)}, "xxxxxx"},
	} {
		set, _ := newSet(t, c.rule)
		if got := pattern(set, c.point, 6); got != c.want {
			t.Errorf("%s: %s, want %s", c.rule, got, c.want)
		}
	}
}

func TestActionNamesTheOverlap(t *testing.T) {
	set, _ := newSet(t, "segment.read block=12-100 flip", "log.append torn")
	a := set.Check(inject.Point{Site: inject.SegmentRead, Block: 10, Blocks: 5})
	if a.Effect != inject.Flip || a.Block != 12 || a.Blocks != 3 {
		t.Errorf("got %+v, want blocks 12 to 14", a)
	}
	a = set.Check(inject.Point{Site: inject.LogAppend, Block: 10, Blocks: 5})
	if a.Effect != inject.Torn || a.Block != 10 || a.Blocks != 5 {
		t.Errorf("got %+v, want the point's own blocks", a)
	}
}

func TestForEndsAfterFirstHit(t *testing.T) {
	set, c := newSet(t, "log.sync for=5s hang")
	c.now = c.now.Add(time.Hour) // the time before the first hit does not count
	if a := set.Check(sync1()); a.Effect != inject.Hang || a.Delay != 5*time.Second {
		t.Errorf("first: %+v", a)
	}
	c.now = c.now.Add(4 * time.Second)
	if a := set.Check(sync1()); a.Effect != inject.Hang || a.Delay != time.Second {
		t.Errorf("after 4 s: %+v, want a hang of 1 s", a)
	}
	c.now = c.now.Add(time.Second)
	if a := set.Check(sync1()); a.Effect != inject.None {
		t.Errorf("after 5 s: %+v", a)
	}
}

func TestOldestRuleDecidesAllCount(t *testing.T) {
	set, _ := newSet(t, "log.sync nth=2 error=EIO", "any nth=2 error=ENOSPC")
	var errnos []syscall.Errno
	for range 4 {
		errnos = append(errnos, set.Check(sync1()).Errno)
	}
	if want := [...]syscall.Errno{0, syscall.EIO, syscall.ENOSPC, 0}; [4]syscall.Errno(errnos) != want {
		t.Errorf("got %v, want %v", errnos, want)
	}
	for _, status := range set.List() {
		if status.Seen != 4 || status.Hits != 1 {
			t.Errorf("%v: seen %d, hits %d; want 4, 1", status.Rule, status.Seen, status.Hits)
		}
	}
}

func TestProbabilityIsDeterministicAndFair(t *testing.T) {
	const n = 20000
	a, _ := newSet(t, "log.sync p=0.1 error=EIO")
	b, _ := newSet(t, "log.sync p=0.1 error=EIO")
	first := pattern(a, sync1(), n)
	if first != pattern(b, sync1(), n) {
		t.Error("the same seed gave other faults")
	}
	if hits := a.Hits(1); hits < n/10-300 || hits > n/10+300 { // 7 standard deviations
		t.Errorf("%d hits of %d with p=0.1", hits, n)
	}
	other := inject.NewSet(2, time.Now)
	if _, err := other.Add(inject.MustParse("log.sync p=0.1 error=EIO")); err != nil {
		t.Fatal(err)
	}
	if first == pattern(other, sync1(), n) {
		t.Error("another seed gave the same faults")
	}
}

// TestRulesDrawIndependently: were two rules of one site to draw the same
// numbers, the younger of two with equal chances would never fire.
func TestRulesDrawIndependently(t *testing.T) {
	set, _ := newSet(t, "log.sync p=0.5 error=EIO", "log.sync p=0.5 error=ENOSPC")
	pattern(set, sync1(), 1000)
	if hits := set.Hits(2); hits < 150 || hits > 350 {
		t.Errorf("the second rule fired %d times, want about 250", hits)
	}
}

func TestBoundedAndRemovable(t *testing.T) {
	set, _ := newSet(t)
	rule := inject.MustParse("log.sync error=EIO")
	for i := range inject.MaxRules {
		if id, err := set.Add(rule); err != nil || id != inject.ID(i+1) {
			t.Fatalf("rule %d: id %d, %v", i, id, err)
		}
	}
	if _, err := set.Add(rule); !errors.Is(err, inject.ErrFull) {
		t.Errorf("rule too many: %v", err)
	}
	if _, err := set.Add(inject.Rule{}); !errors.Is(err, inject.ErrRule) {
		t.Errorf("empty rule: %v", err)
	}
	if !set.Remove(1) || set.Remove(1) || set.Remove(999) {
		t.Error("Remove does not tell what was there")
	}
	if id, err := set.Add(rule); err != nil || id != inject.MaxRules+1 {
		t.Errorf("an ID was used again: %d, %v", id, err)
	}
	if n := set.Clear(); n != inject.MaxRules || !set.Empty() || set.List() != nil || set.Clear() != 0 {
		t.Errorf("Clear removed %d", n)
	}
}

func TestUnhit(t *testing.T) {
	set, _ := newSet(t, "log.sync error=EIO", "log.append error=EIO")
	set.Check(sync1())
	if left := set.Unhit(); len(left) != 1 || left[0].Site != inject.LogAppend {
		t.Errorf("unhit: %v", left)
	}
	if set.Hits(1) != 1 || set.Hits(2) != 0 || set.Hits(7) != 0 {
		t.Error("wrong hits")
	}
}

func TestNilSetIsEmpty(t *testing.T) {
	var set *inject.Set
	if !set.Empty() || set.Check(sync1()).Effect != inject.None || set.List() != nil || set.Clear() != 0 || set.Remove(1) {
		t.Error("a nil Set did something")
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := inject.NewSet(1, time.Now)
		add := func(text string) inject.ID {
			id, err := set.Add(inject.MustParse(text))
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
		elapsed := func(ctx context.Context, a inject.Action) (time.Duration, error) {
			start := time.Now()
			err := a.Wait(ctx)
			return time.Since(start), err
		}

		id := add("log.sync hang")
		time.AfterFunc(time.Minute, func() { set.Remove(id) })
		a := set.Check(sync1())
		if d, err := elapsed(t.Context(), a); d != time.Minute || err != nil {
			t.Errorf("a hang removed after 1m took %v, %v", d, err)
		}
		if d, err := elapsed(t.Context(), a); d != 0 || err != nil {
			t.Errorf("a released hang took %v, %v", d, err)
		}

		add("log.sync count=1 for=5s hang")
		if d, err := elapsed(t.Context(), set.Check(sync1())); d != 5*time.Second || err != nil {
			t.Errorf("a hang for 5s took %v, %v", d, err)
		}
		add("log.sync count=1 delay=3s")
		if d, err := elapsed(t.Context(), set.Check(sync1())); d != 3*time.Second || err != nil {
			t.Errorf("a delay of 3s took %v, %v", d, err)
		}

		add("log.sync hang")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if d, err := elapsed(ctx, set.Check(sync1())); d != time.Second || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a hang with a context of 1s took %v, %v", d, err)
		}
		if d, err := elapsed(t.Context(), inject.Action{Effect: inject.Error}); d != 0 || err != nil {
			t.Errorf("waiting for an error took %v, %v", d, err)
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	set, _ := newSet(t, "log.sync count=500 error=EIO")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				set.Check(sync1())
				if id, err := set.Add(inject.MustParse("reclaim hang")); err == nil {
					set.Remove(id)
				}
				set.List()
			}
		})
	}
	wg.Wait()
	if hits := set.Hits(1); hits != 500 {
		t.Errorf("%d hits of 500", hits)
	}
}

func TestCheckAllocatesNothing(t *testing.T) {
	set, _ := newSet(t)
	p := sync1()
	if n := testing.AllocsPerRun(100, func() { set.Check(p) }); n != 0 {
		t.Errorf("%v allocations without rules", n)
	}
	set, _ = newSet(t, "log.sync p=0.5 for=1h error=EIO")
	if n := testing.AllocsPerRun(100, func() { set.Check(p) }); n != 0 {
		t.Errorf("%v allocations with a rule", n)
	}
}

func BenchmarkCheckEmpty(b *testing.B) {
	set := inject.NewSet(1, time.Now)
	p := sync1()
	for b.Loop() {
		set.Check(p)
	}
}
