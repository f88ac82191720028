package disk

import (
	"bytes"
	"testing"
	"unsafe"

	"pgregory.net/rapid"
)

// TestAdvance compares what is left of a vector after a short transfer with
// what is left of the bytes.
func TestAdvance(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bufs := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 8), 0, 8).Draw(t, "bufs")
		all := bytes.Join(bufs, nil)
		list, n := gather(nil, bufs)
		if n != int64(len(all)) {
			t.Fatalf("gather counts %d bytes of %d", n, len(all))
		}
		moved := 0
		for len(list) > 0 {
			step := rapid.IntRange(1, len(all)-moved).Draw(t, "step")
			list, moved = advance(list, step), moved+step
			var left []byte
			for _, iov := range list {
				left = append(left, unsafe.Slice(iov.Base, iov.Len)...)
			}
			if !bytes.Equal(left, all[moved:]) {
				t.Fatalf("after %d bytes %x is left, want %x", moved, left, all[moved:])
			}
		}
		if moved != len(all) {
			t.Fatalf("the vector ended after %d bytes of %d", moved, len(all))
		}
	})
}
