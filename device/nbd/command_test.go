package nbd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"trivet/device"
	"trivet/device/nbd"
)

// TestGolden pins every byte of a conversation.
func TestGolden(t *testing.T) {
	f := newFake(1 << 20)
	_, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(false)
	c.send([]byte{
		0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8,
		0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 4, 'a', 'b', 'c', 'd',
	})
	c.expect([]byte{0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8})
	c.send([]byte{
		0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1,
		0, 0, 0, 0, 0, 0, 0x0f, 0xff, 0, 0, 0, 6,
	})
	c.expect([]byte{0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0, 'a', 'b', 'c', 'd', 0})

	c = dial(t, path).enter(true)
	c.send([]byte{
		0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1,
		0, 0, 0, 0, 0, 0, 0x0f, 0xff, 0, 0, 0, 6,
	})
	c.expect([]byte{
		0x66, 0x8e, 0x33, 0xef, 0, 0, 0, 2, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 12, // hole
		0, 0, 0, 0, 0, 0, 0x0f, 0xff, 0, 0, 0, 1,
		0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 13, // data, last
		0, 0, 0, 0, 0, 0, 0x10, 0, 'a', 'b', 'c', 'd', 0,
	})
	c.send([]byte{
		0x25, 0x60, 0x95, 0x13, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x30, 0,
	})
	c.expect([]byte{
		0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 28, // status, last
		0, 0, 0, 1, 0, 0, 0x10, 0, 0, 0, 0, 3, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 3,
	})
	c.send([]byte{
		0x25, 0x60, 0x95, 0x13, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 3,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x30, 0,
	})
	c.expect([]byte{
		0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 21, // error, last
		0, 0, 0, 22, 0, 15,
	}, "unknown command")
}

// bothKinds runs a test with simple and with structured replies.
func bothKinds(t *testing.T, test func(t *testing.T, structured bool)) {
	for _, structured := range []bool{false, true} {
		t.Run(fmt.Sprintf("structured=%v", structured), func(t *testing.T) { test(t, structured) })
	}
}

// TestReadWrite writes and reads back ranges of all sizes and alignments.
func TestReadWrite(t *testing.T) {
	bothKinds(t, func(t *testing.T, structured bool) {
		const size = 40<<20 + 513
		f := newFake(size)
		_, path := start(t, f, nbd.Options{})
		c := dial(t, path).enter(structured)
		model := make([]byte, size)
		rng := rand.New(rand.NewPCG(3, 4))
		for i, n := range []int{1, 511, 4096, 4097, 64 << 10, 256 << 10, 256<<10 + 1, 1<<20 + 3, 5 << 20, 32 << 20} {
			off := rng.IntN(size - n)
			if i%2 == 0 {
				off &^= 4095
			}
			data := bytes.Repeat(binary.BigEndian.AppendUint64(nil, rng.Uint64()), n/8+1)[:n]
			copy(model[off:], data)
			c.must(req{kind: cmdWrite, offset: uint64(off), payload: data})
			from := max(0, off-100)
			to := min(size, off+n+5000, from+32<<20)
			for _, flags := range []uint16{0, flagDF} {
				if flags == flagDF && !structured {
					continue
				}
				got := c.must(req{kind: cmdRead, flags: flags, offset: uint64(from), length: uint32(to - from)})
				if !bytes.Equal(got.data, model[from:to]) {
					t.Fatalf("read of %d bytes at %d differs", to-from, from)
				}
				if flags == flagDF && len(got.chunks) != 1 {
					t.Fatalf("DF: %d chunks", len(got.chunks))
				}
			}
		}
		if v, _ := f.snapshot(); !bytes.Equal(v, model) {
			t.Error("the device holds something else than what was written")
		}
	})
}

// TestChunks checks how reads of sparse ranges are described.
func TestChunks(t *testing.T) {
	f := newFake(4 << 20)
	_, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(true)
	c.must(req{kind: cmdWrite, offset: 8192, payload: bytes.Repeat([]byte{1}, 4096)})
	c.must(req{kind: cmdWrite, offset: 20480, payload: bytes.Repeat([]byte{2}, 8192)})
	for _, tc := range []struct {
		flags  uint16
		offset uint64
		length uint32
		want   []chunk
	}{
		{0, 0, 4096, []chunk{{kind: 2, at: 0, n: 4096}}},
		{0, 8192, 4096, []chunk{{kind: 1, at: 8192, n: 4096}}},
		{0, 8191, 4098, []chunk{{kind: 2, at: 8191, n: 1}, {kind: 1, at: 8192, n: 4096}, {kind: 2, at: 12288, n: 1}}},
		{0, 0, 32768, []chunk{{kind: 2, at: 0, n: 8192}, {kind: 1, at: 8192, n: 4096}, {kind: 2, at: 12288, n: 8192}, {kind: 1, at: 20480, n: 8192}, {kind: 2, at: 28672, n: 4096}}},
		{flagDF, 0, 32768, []chunk{{kind: 1, at: 0, n: 32768}}},
		{flagDF, 0, 4096, []chunk{{kind: 1, at: 0, n: 4096}}},
		{0, 5, 0, []chunk{{kind: 0}}},
	} {
		got := c.must(req{kind: cmdRead, flags: tc.flags, offset: tc.offset, length: tc.length})
		if !equalChunks(got.chunks, tc.want) {
			t.Errorf("read %d+%d flags %d: %+v, want %+v", tc.offset, tc.length, tc.flags, got.chunks, tc.want)
		}
		if !bytes.Equal(got.data, f.bytes(tc.offset, tc.length)) {
			t.Errorf("read %d+%d: wrong bytes", tc.offset, tc.length)
		}
	}

	// Too fragmented for one header each: the zeros are spelled out.
	for at := uint64(0); at < 2<<20; at += 8192 {
		c.must(req{kind: cmdWrite, offset: at, payload: []byte{7}})
		c.must(req{kind: cmdTrim, offset: at + 4096, length: 4096})
	}
	got := c.must(req{kind: cmdRead, length: 2 << 20})
	if len(got.chunks) != 1 || !bytes.Equal(got.data, f.bytes(0, 2<<20)) {
		t.Errorf("fragmented read: %d chunks", len(got.chunks))
	}
	got = c.must(req{kind: cmdRead, length: 512 << 10})
	if len(got.chunks) != 128 || !bytes.Equal(got.data, f.bytes(0, 512<<10)) {
		t.Errorf("read of 128 extents: %d chunks", len(got.chunks))
	}
}

func equalChunks(a, b []chunk) bool {
	return slices.EqualFunc(a, b, func(x, y chunk) bool {
		return x.kind == y.kind && x.at == y.at && x.n == y.n && slices.Equal(x.extents, y.extents)
	})
}

func TestBlockStatus(t *testing.T) {
	f := newFake(256 << 20)
	_, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(true)
	c.must(req{kind: cmdWrite, offset: 4096, payload: make([]byte, 8192)})
	c.must(req{kind: cmdWriteZeroes, flags: flagNoHole, offset: 1 << 20, length: 4096})
	for _, tc := range []struct {
		flags  uint16
		offset uint64
		length uint32
		want   []uint32
	}{
		{0, 0, 16384, []uint32{4096, 3, 8192, 0, 4096, 3}},
		{flagReqOne, 0, 16384, []uint32{4096, 3}},
		{flagReqOne | flagFUA, 4096, 4096, []uint32{4096, 0}},
		{0, 4097, 1, []uint32{1, 0}},
		{0, 1 << 20, 8192, []uint32{4096, 0, 4096, 3}},
		{0, 128 << 20, 128 << 20, []uint32{64 << 20, 3}}, // answered in part
	} {
		got := c.must(req{kind: cmdBlockStatus, flags: tc.flags, offset: tc.offset, length: tc.length})
		if len(got.chunks) != 1 || !slices.Equal(got.chunks[0].extents, tc.want) {
			t.Errorf("%+v: %+v", tc, got.chunks)
		}
	}
	for at := uint64(0); at < 1<<20; at += 8192 { // more extents than fit a small reply
		c.must(req{kind: cmdTrim, offset: at, length: 4096})
		c.must(req{kind: cmdWrite, offset: at + 4096, payload: []byte{7}})
	}
	if got := c.must(req{kind: cmdBlockStatus, length: 1 << 20}); len(got.chunks[0].extents) != 512 {
		t.Errorf("%d extents", len(got.chunks[0].extents)/2)
	}
	if got := c.do(req{kind: cmdBlockStatus}); got.errno != einval {
		t.Errorf("empty range: error %d", got.errno)
	}
}

// TestSubmitted checks what each command asks of the device.
func TestSubmitted(t *testing.T) {
	f := newFake(0)
	f.info.SizeBytes = 8 << 30 // without the memory
	f.record = true
	f.fail = func(*device.Request) error { return device.ErrIO } // nothing is performed
	_, path := start(t, f, nbd.Options{})
	const gib = 1 << 30
	for _, tc := range []struct {
		req  req
		want []call
	}{
		{req{kind: cmdRead, offset: 1, length: 2}, []call{{device.Read, device.WantExtents, 1, 2}}},
		{req{kind: cmdRead, flags: flagDF | flagFUA, offset: 1, length: 2}, []call{{device.Read, 0, 1, 2}}},
		{req{kind: cmdWrite, offset: 5, payload: []byte("ab")}, []call{{device.Write, 0, 5, 2}}},
		{req{kind: cmdWrite, flags: flagFUA, offset: 5, payload: []byte("ab")}, []call{{device.Write, device.FUA, 5, 2}}},
		{req{kind: cmdFlush}, []call{{op: device.Flush}}},
		{req{kind: cmdFlush, flags: flagFUA}, []call{{op: device.Flush}}},
		{req{kind: cmdTrim, offset: gib + 1, length: 3 * gib}, []call{{device.Trim, 0, gib + 1, 3 * gib}}},
		{req{kind: cmdTrim, flags: flagFUA, offset: 0, length: 1}, []call{{device.Trim, device.FUA, 0, 1}}},
		{req{kind: cmdWriteZeroes, offset: 7, length: 3 * gib}, []call{{device.WriteZeroes, 0, 7, 3 * gib}}},
		{req{kind: cmdWriteZeroes, flags: flagFUA | flagNoHole | flagFastZero, length: 9}, []call{{device.WriteZeroes, device.FUA | device.NoHole | device.FastZero, 0, 9}}},
		{req{kind: cmdCache, flags: flagFUA, offset: 3, length: 9}, []call{{device.Cache, 0, 3, 9}}},
		{req{kind: cmdCache, offset: 3, length: gib}, []call{{device.Cache, 0, 3, 32 << 20}}},
		{req{kind: cmdBlockStatus, flags: flagReqOne, length: gib}, []call{{device.BlockStatus, device.ReqOne, 0, 64 << 20}}},
	} {
		c := dial(t, path).enter(true)
		if got := c.do(tc.req); got.errno != eio {
			t.Errorf("%+v: error %d", tc.req, got.errno)
		}
		if got := f.recorded(); !slices.Equal(got, tc.want) {
			t.Errorf("%+v: submitted %v, want %v", tc.req, got, tc.want)
		}
	}
}

// TestLongWrite checks how a long write is cut: at multiples of 256 KiB, FUA
// on each part, and no more parts after one has failed.
func TestLongWrite(t *testing.T) {
	f := newFake(8 << 20)
	f.record = true
	_, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(true)
	const k = 1 << 10
	c.must(req{kind: cmdWrite, flags: flagFUA, offset: 100 * k, payload: make([]byte, 600*k)})
	want := []call{{device.Write, device.FUA, 100 * k, 156 * k}, {device.Write, device.FUA, 256 * k, 256 * k}, {device.Write, device.FUA, 512 * k, 188 * k}}
	if got := f.recorded(); !slices.Equal(got, want) {
		t.Errorf("submitted %v, want %v", got, want)
	}
	f.failWith(func(r *device.Request) error {
		if r.Offset == 256*k {
			return device.ErrNoSpace
		}
		return nil
	})
	if got := c.do(req{kind: cmdWrite, offset: 0, payload: make([]byte, 2048*k)}); got.errno != enospc {
		t.Errorf("error %d", got.errno)
	}
	if got := f.recorded(); len(got) != 2 {
		t.Errorf("submitted %v", got)
	}
	c.must(req{kind: cmdFlush}) // still in step
}

// TestErrors checks the protocol's error for each request that is wrong, and
// that the connection stays in step.
func TestErrors(t *testing.T) {
	bothKinds(t, func(t *testing.T, structured bool) {
		const size = 128 << 20
		_, path := start(t, newFake(size), nbd.Options{})
		c := dial(t, path).enter(structured)
		overflow := map[bool]uint32{false: einval, true: eoverflow}[structured]
		for _, tc := range []struct {
			name  string
			req   req
			errno uint32
		}{
			{"read past the end", req{kind: cmdRead, offset: size - 1, length: 2}, einval},
			{"read far past the end", req{kind: cmdRead, offset: 1<<64 - 1, length: 2}, einval},
			{"read that wraps", req{kind: cmdRead, offset: 1<<64 - 4096, length: 8192}, einval},
			{"read above the maximum", req{kind: cmdRead, length: 32<<20 + 1}, overflow},
			{"write past the end", req{kind: cmdWrite, offset: size - 1, payload: []byte("ab")}, enospc},
			{"write far past the end", req{kind: cmdWrite, offset: 1 << 63, payload: make([]byte, 300<<10)}, enospc},
			{"write above the maximum", req{kind: cmdWrite, payload: make([]byte, 32<<20+1)}, einval},
			{"trim past the end", req{kind: cmdTrim, offset: size, length: 1}, einval},
			{"zeroes past the end", req{kind: cmdWriteZeroes, offset: size, length: 1}, enospc},
			{"cache past the end", req{kind: cmdCache, offset: size, length: 1}, einval},
			{"status past the end", req{kind: cmdBlockStatus, offset: size, length: 1}, einval},
			{"flush with a range", req{kind: cmdFlush, length: 1}, einval},
			{"flush with an offset", req{kind: cmdFlush, offset: 1}, einval},
			{"unknown command", req{kind: 8}, einval},
			{"unknown command 65535", req{kind: 65535, length: 1 << 31}, einval},
			{"unknown flag", req{kind: cmdRead, flags: 1 << 15, length: 1}, einval},
			{"write with a flag of reads", req{kind: cmdWrite, flags: flagDF, payload: []byte("ab")}, einval},
			{"write with PAYLOAD_LEN", req{kind: cmdWrite, flags: 32, payload: make([]byte, 1<<20)}, einval},
			{"trim with NO_HOLE", req{kind: cmdTrim, flags: flagNoHole, length: 1}, einval},
			{"cache with a flag", req{kind: cmdCache, flags: flagDF, length: 1}, einval},
			{"flush with a flag", req{kind: cmdFlush, flags: flagNoHole}, einval},
			{"empty read", req{kind: cmdRead}, 0},
			{"empty write", req{kind: cmdWrite, offset: size}, 0},
			{"empty write past the end", req{kind: cmdWrite, offset: size + 1}, enospc},
			{"empty trim", req{kind: cmdTrim}, 0},
			{"empty zeroes", req{kind: cmdWriteZeroes, flags: flagFUA}, 0},
			{"empty cache", req{kind: cmdCache}, 0},
		} {
			if got := c.do(tc.req); got.errno != tc.errno {
				t.Errorf("%s: error %d, want %d", tc.name, got.errno, tc.errno)
			}
		}
		if got := c.do(req{kind: cmdRead, flags: flagDF, length: 1}); (got.errno == 0) != structured {
			t.Errorf("DF: error %d", got.errno)
		}
		if got := c.do(req{kind: cmdBlockStatus, length: 1}); (got.errno == 0) != structured {
			t.Errorf("block status: error %d", got.errno)
		}
	})
}

// TestDeviceErrors checks how the device's errors reach the client.
func TestDeviceErrors(t *testing.T) {
	bothKinds(t, func(t *testing.T, structured bool) {
		f := newFake(1 << 20)
		_, path := start(t, f, nbd.Options{})
		c := dial(t, path).enter(structured)
		for err, errno := range map[error]uint32{
			device.ErrIO:       eio,
			device.ErrNoSpace:  enospc,
			device.ErrInvalid:  einval,
			device.ErrShutdown: eshutdown,
			device.ErrDeadline: eio,
			fmt.Errorf("slot 1: %w", device.ErrNoSpace): enospc,
			errors.New("something else"):                eio,
		} {
			f.failWith(func(*device.Request) error { return err })
			for _, r := range []req{
				{kind: cmdRead, length: 4096},
				{kind: cmdWrite, payload: make([]byte, 4096)},
				{kind: cmdFlush},
			} {
				if got := c.do(r); got.errno != errno {
					t.Errorf("%v: command %d: error %d, want %d", err, r.kind, got.errno, errno)
				}
			}
		}
	})
}

// TestDurability cuts the power of the device after each reply: what the
// client was promised is there.
func TestDurability(t *testing.T) {
	f := newFake(4 << 20)
	f.durable = make([]byte, 4<<20)
	_, path := start(t, f, nbd.Options{})
	c := dial(t, path).enter(true)
	other := dial(t, path).enter(false)

	ones := bytes.Repeat([]byte{1}, 1<<20+77)
	c.must(req{kind: cmdWrite, flags: flagFUA, offset: 4000, payload: ones})
	if v, d := f.snapshot(); !bytes.Equal(v, d) {
		t.Error("a FUA write of several chunks was answered before all of it was durable")
	}
	c.must(req{kind: cmdWrite, offset: 9, payload: []byte("volatile")})
	if v, d := f.snapshot(); bytes.Equal(v, d) {
		t.Error("the fake makes everything durable: the test proves nothing")
	}
	other.must(req{kind: cmdFlush}) // CAN_MULTI_CONN
	if v, d := f.snapshot(); !bytes.Equal(v, d) {
		t.Error("a flush on another connection did not cover an answered write")
	}
	for _, kind := range []uint16{cmdTrim, cmdWriteZeroes} {
		c.must(req{kind: kind, flags: flagFUA, offset: 8192, length: 100 << 10})
		if v, d := f.snapshot(); !bytes.Equal(v, d) {
			t.Errorf("command %d with FUA was answered before it was durable", kind)
		}
	}
}
