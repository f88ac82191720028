package nbd_test

import (
	"io"
	"sync"
	"testing"
	"time"

	"trivet/device"
	"trivet/device/nbd"
)

// TestMemoryBudget: four clients ask for more than there is memory for. What
// is promised at a time stays within the budget, short requests pass long ones
// of other clients, everybody is served, and nothing stays lent.
func TestMemoryBudget(t *testing.T) {
	const clients, reads, long = 4, 3, 32 << 20
	f := newFake(64 << 20)
	f.hold()
	s, path := start(t, f, nbd.Options{MaxConns: clients, MemoryBytes: nbd.MinMemoryBytes(clients)})
	all := make([]*client, clients)
	for i := range all {
		all[i] = dial(t, path).enter(false)
	}
	dial(t, path).refused() // there is no place for a fifth
	if refused := s.Stats().Refused; refused != 1 {
		t.Errorf("%d connections were refused", refused)
	}
	var done sync.WaitGroup
	for _, c := range all {
		in := exchanges{}
		for i := range uint64(reads) {
			short, full := req{kind: cmdRead, cookie: 2 * i, length: 256 << 10}, req{kind: cmdRead, cookie: 2*i + 1, length: long}
			in.add(short)
			in.add(full)
			c.request(short)
			c.request(full)
		}
		done.Go(func() {
			for len(in) > 0 {
				c.receive(in)
			}
		})
	}
	shorts := 0
	for i := range clients * reads * 2 {
		if got := f.release(t); got.length < long {
			shorts++
		}
		if i == clients && shorts < clients-1 {
			t.Errorf("only %d of the first requests were short: they wait for long ones", shorts)
		}
	}
	done.Wait()
	if peak := f.peak[device.Read]; peak > nbd.MinMemoryBytes(clients) || peak < long {
		t.Errorf("%d bytes were in flight, the budget is %d", peak, nbd.MinMemoryBytes(clients))
	}
	for _, c := range all {
		c.request(req{kind: cmdDisc})
		c.expectEnd()
	}
	if lent := s.Stats().LentBytes; lent != 0 {
		t.Errorf("%d bytes are still lent", lent)
	}
}

// TestHoarder: a client that takes its reply drop by drop, too fast to be given
// up for its own sake, holds the memory that another one needs. It is cut off
// when the other has waited for long, and not before.
func TestHoarder(t *testing.T) {
	const long = 32 << 20
	s, path := start(t, newFake(64<<20), nbd.Options{MaxConns: 4, MemoryBytes: nbd.MinMemoryBytes(4), ReplyTimeout: time.Second})
	hoarder := dial(t, path).enter(false)
	hoarder.request(req{kind: cmdRead, length: long})
	cut := make(chan int)
	go func() {
		total, drop := 0, make([]byte, 128<<10)
		pause := time.NewTicker(20 * time.Millisecond)
		defer pause.Stop()
		for range pause.C {
			n, err := io.ReadFull(hoarder, drop)
			if total += n; err != nil {
				cut <- total
				return
			}
		}
	}()
	other := dial(t, path).enter(false)
	begin := time.Now()
	other.must(req{kind: cmdRead, length: 256 << 10}) // its own share does for this
	other.must(req{kind: cmdRead, length: long})
	if took := time.Since(begin); took > patience/2 {
		t.Errorf("it took %v", took)
	}
	if total := <-cut; total >= long {
		t.Error("the hoarder got all of its reply: nobody waited for its memory")
	}
	if s.Stats().Connections != 1 {
		t.Errorf("%+v", s.Stats())
	}
}

// TestTrimsCount: what trims that wait in the device cost is bounded like the
// payload of writes.
func TestTrimsCount(t *testing.T) {
	f := newFake(64 << 20)
	f.hold()
	_, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(false)
	in := exchanges{}
	const trims, size, most = 500, 64 << 20, 24 << 20 / (64 << 10)
	for i := range uint64(trims) {
		r := req{kind: cmdTrim, cookie: i, length: size}
		in.add(r)
		c.request(r)
	}
	for range trims {
		f.release(t)
	}
	for len(in) > 0 {
		c.receive(in)
	}
	if peak := f.peak[device.Trim]; peak > most*size {
		t.Errorf("%d trims were in flight", peak/size)
	}
}
