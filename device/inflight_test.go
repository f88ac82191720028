package device

import (
	"fmt"
	"testing"
	"time"

	"trivet/shard"
)

// inflight returns how many parts are listed, by stage and what they wait for.
func (v *volume) inflight() map[string]int {
	n := map[string]int{}
	for _, p := range v.Inflight() {
		n[p.Stage+" for "+p.Waits]++
	}
	return n
}

// TestParkedIsListed: what waits at the door for log space is listed, where it
// writes, for how long, and that it does.
func TestParkedIsListed(t *testing.T) {
	v := newVolume(t, nil)
	level := v.press()
	level.Store(shard.Full)
	begin := time.Now()
	writes := []<-chan error{
		v.start(&Request{Op: Write, Offset: 5<<20 + 77, Length: 5000, Data: pattern(1, 5000), Client: 1}),
		v.start(&Request{Op: Trim, Offset: 8<<20 + 100, Length: 2 << 20, Client: 2}),
	}
	v.parked(3) // the trim's two ragged edges are writes
	parked := time.Now()
	v.until("they have waited for a while", func() bool { return time.Since(parked) > 50*time.Millisecond })
	want := map[InflightPart]bool{
		{Shard: 1, Op: "write", Offset: 5<<20 + 77, Length: 5000}:              true,
		{Shard: 0, Op: "write", Offset: 8<<20 + 100, Length: blockBytes - 100}: true,
		{Shard: 0, Op: "write", Offset: 10 << 20, Length: 100}:                 true,
	}
	list := v.Inflight()
	for _, p := range list {
		if p.Stage != "admission" || p.Waits != "log space" {
			t.Errorf("%+v waits for log space at the door", p)
		}
		if took := time.Since(begin); p.Age > took || p.Age < 50*time.Millisecond || p.StageAge > p.Age || p.StageAge < 50*time.Millisecond {
			t.Errorf("%+v has waited for %v", p, took)
		}
		if p = (InflightPart{Shard: p.Shard, Op: p.Op, Offset: p.Offset, Length: p.Length}); !want[p] {
			t.Errorf("listed: %+v", p)
		}
		delete(want, InflightPart{Shard: p.Shard, Op: p.Op, Offset: p.Offset, Length: p.Length})
	}
	for p := range want {
		t.Errorf("not listed: %+v", p)
	}
	for i := range uint64(300) {
		writes = append(writes, v.start(&Request{Op: Write, Offset: i * blockBytes, Length: blockBytes, Data: pattern(2, blockBytes), Client: i % 7}))
	}
	if n := len(v.Inflight()); n != maxInflight {
		t.Errorf("303 parts are parked, %d are listed, at most %d", n, maxInflight)
	}
	level.Store(0)
	for _, w := range writes {
		v.must(<-w)
	}
	if n := v.inflight(); len(n) > 0 {
		t.Errorf("all is done, and listed: %v", n)
	}
}

// TestStarvedIsListed: with logs that hang, writes fill the arena; those that
// find no room there wait for memory, and those of the shards for durability.
func TestStarvedIsListed(t *testing.T) {
	v := newVolume(t, nil)
	v.press() // none, however much the logs are behind
	id := v.rule("log.append hang")
	var requests []<-chan error
	for i := range uint64(48) { // 12 MiB into 8
		requests = append(requests, v.start(&Request{Op: Write, Offset: i << 18, Length: 1 << 18, Data: pattern(int(i), 1<<18)}))
	}
	requests = append(requests, v.start(&Request{Op: Flush}))
	v.until("writes wait for memory", func() bool { return v.door.waiting.Load() > 0 })
	n := v.inflight()
	if waiting := int(v.door.waiting.Load()); n["admission for memory"] != waiting || n["shard for durability"] != 2 || len(n) != 2 {
		t.Errorf("%d wait for memory, and a flush in two shards; listed: %v", waiting, n)
	}
	v.faults.Remove(id)
	for i, r := range requests {
		if err := <-r; err != nil {
			t.Error(fmt.Errorf("request %d: %w", i, err))
		}
	}
}
