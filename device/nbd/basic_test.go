package nbd_test

import (
	"bytes"
	"testing"

	"trivet/device/nbd"
)

func TestBasic(t *testing.T) {
	for _, structured := range []bool{false, true} {
		f := newFake(64 << 20)
		_, path := start(t, f, nbd.Options{})
		c := dial(t, path).enter(structured)
		data := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
		c.must(req{kind: cmdWrite, offset: 4000, payload: data})
		got := c.must(req{kind: cmdRead, offset: 4000, length: uint32(len(data))})
		if !bytes.Equal(got.data, data) {
			t.Fatal("differs")
		}
		got = c.must(req{kind: cmdRead, offset: 0, length: 32 << 20})
		if !bytes.Equal(got.data, f.volatil[:32<<20]) {
			t.Fatal("differs")
		}
		c.must(req{kind: cmdFlush})
	}
}
