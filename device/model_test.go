package device

import (
	"math/rand/v2"
	"sync"
	"testing"
)

// TestModel runs random requests of every kind against a slice of bytes:
// clients with ranges of their own, little memory, so that writes park and
// blocks are evicted, and the volume opened again in between.
func TestModel(t *testing.T) {
	v := newVolume(t, nil)
	const clients, span = 4, 5<<20 + 1234
	model := make([]byte, clients*span)
	for round := range 2 {
		var done sync.WaitGroup
		for c := range clients {
			m := &modelClient{volume: v, t: t, random: rand.New(rand.NewPCG(uint64(round), uint64(c))), base: uint64(c * span), model: model[c*span : (c+1)*span]}
			done.Go(func() {
				for range 100 {
					m.step()
				}
			})
		}
		done.Wait()
		v.must(v.flush())
		v.reopen()
		for at := 0; at < len(model); at += 1 << 20 {
			v.expect(uint64(at), model[at:min(at+1<<20, len(model))])
		}
	}
}

// modelClient is one client with its range of the volume.
type modelClient struct {
	*volume
	t      *testing.T
	random *rand.Rand
	base   uint64
	model  []byte
}

// span draws a range: mostly short, of any alignment, sometimes over regions.
func (m *modelClient) span() (at, n int) {
	longest := []int{4096, 16 << 10, 300 << 10, 3 << 20}[m.random.IntN(4)]
	n = 1 + m.random.IntN(longest)
	at = m.random.IntN(len(m.model) - n)
	if m.random.IntN(2) == 0 {
		at, n = at&^4095, max(n&^4095, 4096)
		at = min(at, len(m.model)-n)
	}
	return at, n
}

func (m *modelClient) step() {
	at, n := m.span()
	r := &Request{Offset: m.base + uint64(at), Length: uint32(n)}
	want := m.model[at : at+n]
	switch m.random.IntN(8) {
	case 0, 1, 2:
		r.Op, r.Data = Write, pattern(m.random.IntN(1000), n)
		if m.random.IntN(8) == 0 {
			r.Flags = FUA
		}
		copy(want, r.Data)
	case 3:
		r.Op = Trim
		clear(want)
	case 4:
		r.Op = WriteZeroes
		if m.random.IntN(2) == 0 {
			r.Flags = NoHole
		}
		clear(want)
	case 5:
		r.Op = BlockStatus
	case 6:
		r.Op, r.Length = Flush, 0
	default:
		r.Op, r.Data, r.Flags = Read, make([]byte, n), WantExtents
	}
	if err := m.do(r); err != nil {
		m.t.Errorf("%v of %d bytes at %d: %v", r.Op, n, r.Offset, err)
		return
	}
	if r.Op == Read && string(r.Data) != string(want) {
		m.t.Errorf("read of %d bytes at %d differs from the model", n, r.Offset)
	}
	if r.Op == BlockStatus || r.Op == Read {
		m.checkExtents(r, want)
	}
}

// checkExtents holds that a hole, or a range of zeros, is never reported where
// there is data, and that the extents cover the range.
func (m *modelClient) checkExtents(r *Request, want []byte) {
	at := 0
	for _, e := range r.Extents {
		if at+int(e.Length) > len(want) {
			break
		}
		for _, b := range want[at : at+int(e.Length)] {
			if (e.Hole || e.Zero) && b != 0 {
				m.t.Errorf("%v at %d: a hole is reported over data", r.Op, r.Offset)
				return
			}
		}
		at += int(e.Length)
	}
	if at != len(want) {
		m.t.Errorf("%v at %d: extents cover %d bytes of %d", r.Op, r.Offset, at, len(want))
	}
}
