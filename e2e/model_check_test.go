package e2e

import "testing"

// TestModelFindsWhatIsLost breaks every promise that the model stands for, by
// hand, and expects it to notice.
func TestModelFindsWhatIsLost(t *testing.T) {
	whole := span{8, 8} // block 1
	half := span{8, 4}
	write := func(m *model, s span, durable bool) uint32 {
		m.claim(s)
		v := m.begin(s, false)
		m.ack(s, durable)
		return v
	}
	content := func(versions ...uint32) []byte {
		data := make([]byte, blockSize)
		for k := range sectorsPerBlock {
			if v := versions[k*len(versions)/sectorsPerBlock]; v != 0 {
				encodeSector(data[k*sectorSize:][:sectorSize], sectorsPerBlock+k, v)
			}
		}
		return data
	}
	for _, c := range []struct {
		name string
		run  func(m *model) []byte // returns what block 1 reads as
		good bool
	}{
		{"stale read", func(m *model) []byte { write(m, whole, false); write(m, whole, false); return content(1) }, false},
		{"acknowledged write lost", func(m *model) []byte { write(m, whole, false); m.crash(false); return content(0) }, false},
		{"acknowledged write kept", func(m *model) []byte { write(m, whole, false); m.crash(false); return content(1) }, true},
		{"unflushed write lost with the power", func(m *model) []byte { write(m, whole, false); m.crash(true); return content(0) }, true},
		{"FUA lost with the power", func(m *model) []byte { write(m, whole, true); m.crash(true); return content(0) }, false},
		{"flushed write lost with the power", func(m *model) []byte {
			write(m, whole, false)
			m.flushed(m.now())
			m.crash(true)
			return content(0)
		}, false},
		{"write after the flush was sent", func(m *model) []byte {
			at := m.now()
			write(m, whole, false)
			m.flushed(at)
			m.crash(true)
			return content(0)
		}, true},
		{"what outlived a kill, lost with the power", func(m *model) []byte {
			write(m, whole, false)
			m.crash(false)
			m.crash(true)
			return content(0)
		}, true},
		{"the same, read in between", func(m *model) []byte {
			write(m, whole, false)
			m.crash(false)
			if err := m.check(1, content(1)); err != nil {
				t.Error(err)
			}
			m.crash(true)
			return content(0)
		}, true},
		{"what outlived a kill and was flushed, lost with the power", func(m *model) []byte {
			write(m, whole, false)
			m.crash(false)
			m.flushed(m.now())
			m.crash(true)
			return content(0)
		}, false},
		{"the same, read in between", func(m *model) []byte {
			write(m, whole, false)
			m.crash(false)
			if err := m.check(1, content(1)); err != nil {
				t.Error(err)
			}
			m.flushed(m.now())
			m.crash(true)
			return content(0)
		}, false},
		{"what outlived a kill, lost in the next", func(m *model) []byte {
			write(m, whole, false)
			m.crash(false)
			m.crash(false)
			return content(0)
		}, false},
		{"what was durable before a kill, lost with the power", func(m *model) []byte {
			write(m, whole, true)
			write(m, whole, false)
			m.crash(false)
			m.crash(true)
			return content(0)
		}, false},
		{"write in flight applied", func(m *model) []byte { m.claim(whole); m.begin(whole, false); m.crash(false); return content(1) }, true},
		{"write in flight torn", func(m *model) []byte { m.claim(whole); m.begin(whole, false); m.crash(false); return content(1, 0) }, false},
		{"half a block written", func(m *model) []byte { write(m, whole, false); write(m, half, false); return content(2, 1) }, true},
		{"mix of two states", func(m *model) []byte {
			write(m, whole, false)
			write(m, whole, false)
			m.crash(true)
			return content(1, 2)
		}, false},
		{"garbage", func(m *model) []byte {
			write(m, whole, false)
			data := content(1)
			data[3000] ^= 1
			return data
		}, false},
	} {
		m := newModel(4 * blockSize)
		if err := m.check(1, c.run(m)); (err == nil) != c.good {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
