package device

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"trivet/shard"
)

// guest is a client as the device knows it.
type guest struct {
	presence atomic.Uint32
	left     atomic.Bool
	asked    atomic.Int32
}

func (g *guest) Ask() Presence {
	g.asked.Add(1)
	return Presence(g.presence.Load())
}

// leave makes the client gone, and withdraws what it has waiting.
func (g *guest) leave(v *volume, client uint64) {
	g.left.Store(true)
	g.presence.Store(uint32(Gone))
	v.Withdraw(client)
}

// TestWithdrawn: what a client has waiting at the door is withdrawn with it, and
// others do not wait for it; what others have stays (hazards 29, 68).
func TestWithdrawn(t *testing.T) {
	v := newVolume(t, nil)
	v.must(v.write(0, pattern(1, 1<<20), 0))
	level := v.press()
	level.Store(shard.Full)
	dead, alive := new(guest), new(guest)
	var writes []<-chan error
	for i := range 20 {
		writes = append(writes, v.start(&Request{
			Op: Write, Offset: uint64(i) * 8192, Length: 8192, Data: pattern(2, 8192), Client: 1, Peer: dead, Left: &dead.left,
		}))
	}
	kept := v.start(&Request{Op: Write, Offset: 512 << 10, Length: 4096, Data: pattern(3, 4096), Client: 2, Peer: alive, Left: &alive.left})
	trim := v.start(&Request{Op: Trim, Offset: 8192, Length: 4096, Client: 2, Peer: alive, Left: &alive.left})
	v.parked(22)
	dead.leave(v, 1)
	v.must(<-trim)
	for _, w := range writes {
		if err := <-w; !errors.Is(err, ErrWithdrawn) {
			t.Errorf("a write that was withdrawn: %v", err)
		}
	}
	v.parked(1)
	level.Store(0)
	v.door.notify()
	v.must(<-kept)
	want := pattern(1, 1<<20)
	clear(want[8192 : 8192+4096])
	copy(want[512<<10:], pattern(3, 4096))
	v.expect(0, want)
}

// TestUnsure: a client that may have hung up keeps its place, and those behind it
// wait, until that is known; one that has gone is found out when its turn comes.
func TestUnsure(t *testing.T) {
	v := newVolume(t, nil)
	for _, presence := range []Presence{Gone, Here} {
		level := v.press()
		level.Store(shard.Full)
		first, second := new(guest), new(guest)
		first.presence.Store(uint32(Unsure))
		old := v.start(&Request{Op: Write, Length: 8192, Data: pattern(1, 8192), Client: 1, Peer: first, Left: &first.left})
		v.parked(1)
		fresh := v.start(&Request{Op: Write, Length: 4096, Data: pattern(2, 4096), Client: 2, Peer: second, Left: &second.left})
		v.parked(2)
		level.Store(0)
		asked := first.asked.Load()
		v.door.notify()
		v.until("the first is asked when its turn comes", func() bool { return first.asked.Load() > asked })
		v.expect(0, make([]byte, 4096))
		first.presence.Store(uint32(presence))
		v.Resume()
		if err := <-old; errors.Is(err, ErrWithdrawn) != (presence == Gone) {
			t.Errorf("it is %d, and its write ends with %v", presence, err)
		}
		v.must(<-fresh)
		v.expect(0, pattern(2, 4096))
		v.must(v.do(&Request{Op: Trim, Length: 8192}))
	}
}

// TestNobodyOvertakes: what overlaps an older write at the door waits for it, of
// whatever client and kind it is; what does not, passes (hazard 68).
func TestNobodyOvertakes(t *testing.T) {
	v := newVolume(t, nil)
	level := v.press()
	v.must(v.write(1<<20, pattern(7, 8192), 0))
	level.Store(shard.Full)
	requests := []<-chan error{v.start(&Request{Op: Write, Length: 64 << 10, Data: pattern(1, 64<<10), Client: 1})}
	v.parked(1)
	requests = append(requests, v.start(&Request{Op: Trim, Offset: 4096, Length: 8192, Client: 2}))
	v.parked(2)
	requests = append(requests, v.start(&Request{Op: Write, Offset: 8192 + 100, Length: 50, Data: pattern(3, 50), Client: 3}))
	v.parked(3)
	requests = append(requests, v.start(&Request{Op: WriteZeroes, Offset: 60 << 10, Length: 8192, Client: 4, Flags: NoHole}))
	v.parked(4)
	v.must(v.do(&Request{Op: Trim, Offset: 1 << 20, Length: 4096, Client: 2}))
	v.expect(1<<20, make([]byte, 4096))
	level.Store(0)
	v.door.notify()
	for _, r := range requests {
		v.must(<-r)
	}
	want := append(pattern(1, 64<<10), make([]byte, 4096)...)
	clear(want[4096 : 4096+8192])
	copy(want[8192+100:], pattern(3, 50))
	clear(want[60<<10:])
	v.expect(0, want)
}

// TestRaggedKeepsItsTurn: a write waits for the rest of its block, which cannot be
// read for a while; what is written there meanwhile ends up on top of it.
func TestRaggedKeepsItsTurn(t *testing.T) {
	v := newVolume(t, nil)
	v.must(v.write(0, pattern(1, 16384), 0))
	v.reopen() // the blocks are on disk alone
	id := v.rule("segment.read hang")
	requests := []<-chan error{v.start(&Request{Op: Write, Offset: 4096 + 100, Length: 3, Data: []byte{1, 2, 3}})}
	v.hits(id, 1)
	requests = append(
		requests,
		v.start(&Request{Op: Write, Offset: 4096, Length: 8192, Data: pattern(2, 8192)}),
		v.start(&Request{Op: Trim, Offset: 8192, Length: 4096}),
		v.start(&Request{Op: Write, Offset: 8192, Length: 8192, Data: pattern(3, 8192)}),
	)
	v.until("three wait behind the first", func() bool { return v.inflight()["shard for an older write of the same blocks"] == 3 })
	v.faults.Clear()
	for _, r := range requests {
		v.must(<-r)
	}
	want := pattern(1, 16384)
	copy(want[4096:], pattern(2, 8192))
	copy(want[8192:], pattern(3, 8192))
	v.expect(0, want)
}

// TestLeftIsNotLogged: a client goes while its write waits for the rest of a block.
// Who waits behind it does not wait for ever, nor does one whose own deadline comes.
func TestLeftIsNotLogged(t *testing.T) {
	v := newVolume(t, nil)
	v.must(v.write(0, pattern(1, 8192), 0))
	v.reopen()
	id := v.rule("segment.read hang")
	dead := new(guest)
	first := v.start(&Request{Op: Write, Offset: 100, Length: 3, Data: []byte{1, 2, 3}, Client: 1, Peer: dead, Left: &dead.left})
	v.hits(id, 1)
	behind := v.start(&Request{Op: Write, Length: 4096, Data: pattern(2, 4096)})
	old := time.Now().Add(-19 * time.Second) // of 20
	late := v.start(&Request{Op: Trim, Length: 4096, Since: old})
	if err := <-late; !errors.Is(err, ErrDeadline) {
		t.Errorf("a trim that was late waited behind others: %v", err)
	}
	dead.leave(v, 1)
	v.faults.Clear()
	if err := <-first; !errors.Is(err, ErrWithdrawn) {
		t.Errorf("its client had gone, and it ends with %v", err)
	}
	v.must(<-behind)
	v.expect(0, append(pattern(2, 4096), pattern(1, 8192)[4096:]...))
}

// TestRoundsAsk: a long trim whose client goes away does not go on: its first parts
// are done, the next are not. While it is not known, it waits (hazard 68).
func TestRoundsAsk(t *testing.T) {
	v := newVolume(t, func(o *Options) { o.Size = 256 << 20 })
	v.must(v.write(200<<20, pattern(1, 4096), 0))
	g := new(guest)
	g.presence.Store(uint32(Gone))
	r := &Request{Op: Trim, Length: 256 << 20, Client: 1, Peer: g, Left: &g.left}
	if err := v.do(r); !errors.Is(err, ErrWithdrawn) {
		t.Errorf("the client has gone: %v", err)
	}
	v.expect(200<<20, pattern(1, 4096))
	g.presence.Store(uint32(Unsure))
	trim := v.start(r)
	v.parked(64)
	v.expect(200<<20, pattern(1, 4096))
	g.presence.Store(uint32(Here))
	v.Resume()
	v.must(<-trim)
	v.expect(200<<20, make([]byte, 4096))
}

// TestSince: a deadline runs from when the request came; nothing is begun behind it.
func TestSince(t *testing.T) {
	v := newVolume(t, nil)
	level := v.press()
	for _, c := range []struct {
		level int64
		want  error
	}{{0, ErrDeadline}, {shard.Full, ErrNoSpace}} {
		level.Store(c.level)
		err := v.do(&Request{Op: Write, Length: 4096, Data: pattern(1, 4096), Since: time.Now().Add(-20 * time.Second)})
		if !errors.Is(err, c.want) {
			t.Errorf("at pressure %d: %v, expected %v", c.level, err, c.want)
		}
	}
	level.Store(shard.Full)
	began := time.Now()
	if err := v.do(&Request{Op: Write, Length: 4096, Data: pattern(1, 4096), Since: began.Add(-19 * time.Second)}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("it waited, and ends with %v", err)
	}
	v.expect(0, make([]byte, 4096))
}

// TestFastZero: zeros that are asked for fast are refused when a block's rest would
// have to be read, and nothing is changed.
func TestFastZero(t *testing.T) {
	v := newVolume(t, nil)
	v.must(v.write(0, pattern(1, 16384), 0))
	for _, r := range []*Request{
		{Op: WriteZeroes, Flags: FastZero, Offset: 1, Length: 4096},
		{Op: WriteZeroes, Flags: FastZero, Offset: 4096, Length: 5000},
		{Op: WriteZeroes, Flags: FastZero | NoHole, Offset: 4000, Length: 96},
	} {
		if err := v.do(r); !errors.Is(err, ErrUnsupported) {
			t.Errorf("zeros of %d bytes at %d: %v", r.Length, r.Offset, err)
		}
	}
	v.expect(0, pattern(1, 16384))
	v.must(v.do(&Request{Op: WriteZeroes, Flags: FastZero, Offset: 4096, Length: 8192}))
	v.expect(4096, make([]byte, 8192))
}
