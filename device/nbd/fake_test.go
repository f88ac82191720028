package nbd_test

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"trivet/device"
)

const blockSize = 4096

// fake is a device in memory. It knows which blocks were written and not
// trimmed, what would survive a power cut, and can complete requests later,
// in random order, on a goroutine of its own.
type fake struct {
	info device.Info

	mu      sync.Mutex                  // guards what follows, down to record
	fail    func(*device.Request) error // nil: nothing fails
	content []byte                      // what reads see
	durable []byte                      // what a power cut leaves; nil: not tracked
	stored  []bool                      // by block
	calls   []call                      // what was submitted, if recording
	record  bool

	queue chan *device.Request // nil: complete inline
	done  chan struct{}

	gone atomic.Int32 // clients that were withdrawn

	holding bool                 // requests wait for release
	held    chan *device.Request // those that do
	load    map[device.Op]uint64 // bytes held, by operation
	peak    map[device.Op]uint64 // the most bytes ever held
}

// hold makes requests wait for release.
func (f *fake) hold() {
	f.holding = true
	f.held = make(chan *device.Request, 1<<14)
	f.load, f.peak = map[device.Op]uint64{}, map[device.Op]uint64{}
}

// release completes the next request that is held, awaiting it.
func (f *fake) release(tb testing.TB) call {
	tb.Helper()
	select {
	case r := <-f.held:
		was := call{r.Op, r.Flags, r.Offset, r.Length}
		f.mu.Lock()
		f.load[r.Op] -= uint64(r.Length)
		f.mu.Unlock()
		f.finish(r)
		return was
	case <-time.After(patience):
		tb.Fatal("no request arrived")
		panic("unreachable")
	}
}

// park holds a request.
func (f *fake) park(r *device.Request) {
	f.mu.Lock()
	f.load[r.Op] += uint64(r.Length)
	f.peak[r.Op] = max(f.peak[r.Op], f.load[r.Op])
	f.mu.Unlock()
	if r.Op == device.Write {
		r.Data = append([]byte(nil), r.Data...)
	}
	f.held <- r
}

// call is a submitted request as the device saw it.
type call struct {
	op     device.Op
	flags  device.Flags
	offset uint64
	length uint32
}

func newFake(size uint64) *fake {
	return &fake{
		info:    device.Info{Name: "volume", SizeBytes: size},
		content: make([]byte, size),
		stored:  make([]bool, (size+blockSize-1)/blockSize),
	}
}

// startAsync makes completions come from another goroutine, shuffled. It is
// called before the server starts, and so ends after it.
func (f *fake) startAsync(tb testing.TB, seed uint64) {
	f.queue = make(chan *device.Request, 1<<14)
	f.done = make(chan struct{})
	go func() {
		defer close(f.done)
		f.shuffle(rand.New(rand.NewPCG(seed, 1)))
	}()
	tb.Cleanup(func() {
		close(f.queue)
		<-f.done
	})
}

func (f *fake) shuffle(rng *rand.Rand) {
	var held []*device.Request
	for {
		r, ok := f.next(len(held) == 0)
		if r != nil {
			held = append(held, r)
		}
		if !ok && len(held) == 0 {
			return
		}
		if r == nil || len(held) > 8 {
			i := rng.IntN(len(held))
			held[i], held[len(held)-1] = held[len(held)-1], held[i]
			last := held[len(held)-1]
			held = held[:len(held)-1]
			f.finish(last)
		}
	}
}

// next takes a request off the queue; ok is false when there will be no more.
func (f *fake) next(wait bool) (r *device.Request, ok bool) {
	if wait {
		r, ok = <-f.queue
		return r, ok
	}
	select {
	case r, ok = <-f.queue:
		return r, ok
	default:
		return nil, true
	}
}

func (f *fake) Info() device.Info { return f.info }

func (f *fake) Run() {}

func (f *fake) Withdraw(uint64) { f.gone.Add(1) }

func (f *fake) Resume() {}

func (f *fake) Post(r *device.Request) {
	if r.Err = f.note(r); r.Err != nil {
		r.Done(r)
		return
	}
	if f.holding {
		f.park(r)
		return
	}
	if f.queue == nil {
		f.finish(r)
		return
	}
	if r.Op == device.Write { // the payload is consumed now
		r.Data = append([]byte(nil), r.Data...)
	}
	f.queue <- r
}

// note records a request and tells whether it is to fail.
func (f *fake) note(r *device.Request) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.record {
		f.calls = append(f.calls, call{r.Op, r.Flags, r.Offset, r.Length})
	}
	if f.fail == nil {
		return nil
	}
	return f.fail(r)
}

// failWith sets what fails from now on.
func (f *fake) failWith(fail func(*device.Request) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

// finish performs and completes a request.
func (f *fake) finish(r *device.Request) {
	f.mu.Lock()
	f.perform(r)
	f.mu.Unlock()
	r.Done(r)
}

func (f *fake) perform(r *device.Request) {
	from, to := r.Offset, r.Offset+uint64(r.Length)
	switch r.Op {
	case device.Read:
		copy(r.Data, f.content[from:to])
		if r.Flags&device.WantExtents != 0 {
			r.Extents = f.extents(r.Extents[:0], from, to)
		}
	case device.Write:
		copy(f.content[from:to], r.Data)
		f.mark(from, to, true)
	case device.Trim, device.WriteZeroes:
		clear(f.content[from:to])
		f.mark(from, to, r.Flags&device.NoHole != 0)
	case device.BlockStatus:
		r.Extents = f.extents(r.Extents[:0], from, to)
		if r.Flags&device.ReqOne != 0 {
			r.Extents = r.Extents[:1]
		}
	case device.Flush:
		copy(f.durable, f.content)
	}
	if r.Flags&device.FUA != 0 && f.durable != nil {
		copy(f.durable[from:to], f.content[from:to])
	}
}

// mark notes blocks as stored: all that are touched; or as holes: all that are
// covered.
func (f *fake) mark(from, to uint64, stored bool) {
	if stored {
		to += blockSize - 1
	} else {
		from += blockSize - 1
		if to == f.info.SizeBytes {
			to += blockSize - 1
		}
	}
	for b := from / blockSize; b < to/blockSize; b++ {
		f.stored[b] = stored
	}
}

func (f *fake) extents(out []device.Extent, from, to uint64) []device.Extent {
	for from < to {
		end := min(to, (from/blockSize+1)*blockSize)
		hole := !f.stored[from/blockSize]
		if n := len(out); n > 0 && out[n-1].Hole == hole {
			out[n-1].Length += end - from
		} else {
			out = append(out, device.Extent{Length: end - from, Hole: hole, Zero: hole})
		}
		from = end
	}
	return out
}

// snapshot copies what reads see, and what a power cut would leave.
func (f *fake) snapshot() (content, durable []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return bytes.Clone(f.content), bytes.Clone(f.durable)
}

// bytes copies a part of what reads see.
func (f *fake) bytes(offset uint64, n uint32) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return bytes.Clone(f.content[offset : offset+uint64(n)])
}

// recorded returns what was submitted so far, and forgets it.
func (f *fake) recorded() []call {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	return calls
}
