package nbd_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"trivet/device/nbd"
)

// Transmission flags: all that is served, and DF only with structured replies.
const (
	flagsSimple     = 1 | 4 | 8 | 32 | 64 | 256 | 1024 | 2048
	flagsStructured = flagsSimple | 128
)

func TestExportName(t *testing.T) {
	_, path := start(t, newFake(1<<20), nbd.Options{})
	for _, name := range []string{"", "volume"} {
		c := dial(t, path)
		c.greet(3)
		c.option(optExportName, name)
		c.expect(uint64(1<<20), uint16(flagsSimple))
		c.must(req{kind: cmdFlush})
		// Without NO_ZEROES there is padding, also for plain newstyle clients.
		for _, flags := range []uint32{1, 0} {
			c = dial(t, path)
			c.greet(flags)
			c.option(optExportName, name)
			c.expect(uint64(1<<20), uint16(flagsSimple), make([]byte, 124))
			c.must(req{kind: cmdFlush})
		}
	}
	c := dial(t, path)
	c.greet(3)
	c.option(optExportName, "nope")
	c.expectEnd()
}

func TestAbort(t *testing.T) {
	_, path := start(t, newFake(1<<20), nbd.Options{})
	c := dial(t, path)
	c.greet(3)
	c.option(optAbort, "data that is ignored")
	c.expectReply(optAbort, repAck)
	c.expectEnd()
}

func TestList(t *testing.T) {
	_, path := start(t, newFake(1<<20), nbd.Options{})
	c := dial(t, path)
	c.greet(3)
	c.option(optList)
	if got := c.expectReply(optList, repServer); !bytes.Equal(got, wire(uint32(6), "volume")) {
		t.Errorf("listed %q", got)
	}
	c.expectReply(optList, repAck)
	c.option(optList, "x")
	c.expectReply(optList, errInvalid)
	c.option(optAbort)
	c.expectReply(optAbort, repAck)
}

func TestInfoAndGo(t *testing.T) {
	_, path := start(t, newFake(1<<20), nbd.Options{})
	c := dial(t, path)
	c.greet(3)
	c.option(optInfo, uint32(0), uint16(0))
	c.expect(uint64(0x3e889045565a9), uint32(optInfo), uint32(repInfo), uint32(12), uint16(0), uint64(1<<20), uint16(flagsSimple))
	c.expectReply(optInfo, repAck)

	// The items that are asked for, in any order and even twice, come once.
	all := wire(uint32(6), "volume", uint16(6), uint16(3), uint16(1), uint16(99), uint16(2), uint16(1), uint16(0))
	want := map[uint16][]byte{
		0: wire(uint64(1<<20), uint16(flagsSimple)),
		1: []byte("volume"),
		2: []byte("Trivet volume"),
		3: wire(uint32(1), uint32(4096), uint32(32<<20)),
	}
	c.option(optInfo, all)
	for range want {
		item := c.expectReply(optInfo, repInfo)
		kind := binary.BigEndian.Uint16(item)
		if !bytes.Equal(item[2:], want[kind]) {
			t.Errorf("item %d: %x, want %x", kind, item[2:], want[kind])
		}
	}
	c.expectReply(optInfo, repAck)

	c.option(optGo, uint32(4), "nope", uint16(0))
	c.expectReply(optGo, errUnknown)
	c.option(optGo, uint32(6), "volume", uint16(0))
	c.expectReply(optGo, repInfo)
	c.expectReply(optGo, repAck)
	c.must(req{kind: cmdFlush})
}

func TestInfoMalformed(t *testing.T) {
	_, path := start(t, newFake(1<<20), nbd.Options{})
	c := dial(t, path)
	c.greet(3)
	for name, data := range map[string][]byte{
		"empty":               {},
		"half a length":       wire(uint16(0)),
		"name past the data":  wire(uint32(7), "volume"),
		"name of 4 GiB":       wire(uint32(1<<32-1), "volume", uint16(0)),
		"no count":            wire(uint32(6), "volume"),
		"count past the data": wire(uint32(0), uint16(2), uint16(0)),
		"data past the count": wire(uint32(0), uint16(0), uint16(0)),
		"name over the limit": wire(uint32(5000), strings.Repeat("x", 5000), uint16(0)),
	} {
		for _, id := range []uint32{optInfo, optGo} {
			c.option(id, data)
			c.expectReply(id, errInvalid)
			if t.Failed() {
				t.Fatal(name)
			}
		}
	}
	c.option(optGo, uint32(0), uint16(0)) // still in step
	c.expectReply(optGo, repInfo)
	c.expectReply(optGo, repAck)
}

func TestStructuredReplyOption(t *testing.T) {
	_, path := start(t, newFake(1<<20), nbd.Options{})
	c := dial(t, path)
	c.greet(3)
	c.option(optStructured, "x")
	c.expectReply(optStructured, errInvalid)
	c.option(optStructured)
	c.expectReply(optStructured, repAck)
	c.option(optGo, uint32(0), uint16(0))
	c.expect(uint64(0x3e889045565a9), uint32(optGo), uint32(repInfo), uint32(12), uint16(0), uint64(1<<20), uint16(flagsStructured))
	c.expectReply(optGo, repAck)
}

func TestUnknownOptions(t *testing.T) {
	_, path := start(t, newFake(1<<20), nbd.Options{})
	c := dial(t, path)
	c.greet(3)
	for _, id := range []uint32{0, 4, optStartTLS, 11, 1 << 31, 1<<32 - 1} {
		c.option(id, "some data")
		c.expectReply(id, errUnsup)
	}
	c.option(optGo, uint32(0), uint16(0))
	c.expectReply(optGo, repInfo)
	c.expectReply(optGo, repAck)
}

// metaOption is the data of a metadata context option.
func metaOption(export string, queries ...string) []byte {
	out := wire(uint32(len(export)), export, uint32(len(queries)))
	for _, q := range queries {
		out = append(out, wire(uint32(len(q)), q)...)
	}
	return out
}

func TestMetaContext(t *testing.T) {
	_, path := start(t, newFake(1<<20), nbd.Options{})
	c := dial(t, path)
	c.greet(3)
	c.option(optListMeta, metaOption(""))
	c.expectReply(optListMeta, errInvalid) // structured replies first
	c.option(optSetMeta, metaOption("", "base:allocation"))
	c.expectReply(optSetMeta, errInvalid)
	c.option(optStructured)
	c.expectReply(optStructured, repAck)

	for _, tc := range []struct {
		id      uint32
		queries []string
		found   bool
	}{
		{optListMeta, nil, true},
		{optListMeta, []string{"base:"}, true},
		{optListMeta, []string{"x-other:thing", "base:allocation"}, true},
		{optListMeta, []string{"qemu:"}, false},
		{optListMeta, []string{"base:other"}, false},
		{optSetMeta, nil, false},
		{optSetMeta, []string{"base:"}, false},
		{optSetMeta, []string{"base:other", "qemu:dirty-bitmap:x"}, false},
		{optSetMeta, []string{"base:other", "base:allocation", "base:allocation"}, true},
	} {
		c.option(tc.id, metaOption("volume", tc.queries...))
		if tc.found {
			id := uint32(0)
			if tc.id == optSetMeta {
				id = 1
			}
			if got := c.expectReply(tc.id, repMeta); !bytes.Equal(got, wire(id, "base:allocation")) {
				t.Errorf("%d %q: %q", tc.id, tc.queries, got)
			}
		}
		c.expectReply(tc.id, repAck)
	}
	c.option(optSetMeta, metaOption("nope", "base:allocation"))
	c.expectReply(optSetMeta, errUnknown)
	for _, data := range [][]byte{
		{},
		wire(uint32(0)), wire(uint32(0), uint32(1)), wire(uint32(0), uint32(1<<32-1)),
		wire(uint32(0), uint32(1), uint32(1<<32-1), "base:"), wire(uint32(9), "volume"),
		wire(uint32(0), uint32(0), "trailing"),
	} {
		c.option(optSetMeta, data)
		c.expectReply(optSetMeta, errInvalid)
	}
}

// TestMetaContextScope checks that a selection counts only for the export name
// that it was made for, and not after a later one failed.
func TestMetaContextScope(t *testing.T) {
	_, path := start(t, newFake(1<<20), nbd.Options{})
	for _, tc := range []struct {
		name   string
		setFor string
		then   []byte // data of another SET_META_CONTEXT
		enter  string
		ok     bool
	}{
		{"same name", "volume", nil, "volume", true},
		{"other name", "", nil, "volume", false},
		{"failed since", "volume", wire(uint32(0)), "volume", false},
		{"replaced by none", "volume", metaOption("volume"), "volume", false},
		{"too big since", "volume", make([]byte, 100<<10), "volume", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := dial(t, path)
			c.structured = true
			c.greet(3)
			c.option(optStructured)
			c.expectReply(optStructured, repAck)
			c.option(optSetMeta, metaOption(tc.setFor, "base:allocation"))
			c.expectReply(optSetMeta, repMeta)
			c.expectReply(optSetMeta, repAck)
			if tc.then != nil {
				c.option(optSetMeta, tc.then)
				c.recv(16)
				c.recv(int(binary.BigEndian.Uint32(c.recv(4))))
			}
			c.option(optGo, uint32(len(tc.enter)), tc.enter, uint16(0))
			c.expectReply(optGo, repInfo)
			c.expectReply(optGo, repAck)
			got := c.do(req{kind: cmdBlockStatus, length: 4096})
			if (got.errno == 0) != tc.ok {
				t.Errorf("block status: error %d", got.errno)
			}
		})
	}
}

// TestPipelined sends a whole session ahead, as a hasty client may.
func TestPipelined(t *testing.T) {
	_, path := start(t, newFake(1<<20), nbd.Options{})
	c := dial(t, path)
	c.send(uint32(3), "IHAVEOPT", uint32(optExportName), uint32(0),
		req{kind: cmdWrite, cookie: 7, offset: 512, length: 4, payload: []byte("data")}.wire(),
		req{kind: cmdRead, cookie: 8, offset: 512, length: 4}.wire(),
		req{kind: cmdDisc}.wire())
	c.expect("NBDMAGIC", "IHAVEOPT", uint16(3), uint64(1<<20), uint16(flagsSimple))
	c.expect(uint32(0x67446698), uint32(0), uint64(7), uint32(0x67446698), uint32(0), uint64(8), "data")
	c.expectEnd()
}
