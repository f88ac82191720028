package nbd

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"trivet/device"
)

// FuzzOption feeds options to a negotiation: replies are well-formed, end with
// exactly one final reply, and their size is bounded by that of the request.
func FuzzOption(f *testing.F) {
	f.Add(uint32(7), []byte{0, 0, 0, 0, 0, 1, 0, 3}, true)
	f.Add(uint32(6), []byte{0, 0, 0, 3, 'v', 'o', 'l', 0, 4, 0, 0, 0, 1, 0, 2, 0, 3}, false)
	f.Add(uint32(10), []byte("\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation"), true)
	f.Add(uint32(9), []byte("\x00\x00\x00\x03vol\x00\x00\x00\x02\x00\x00\x00\x05base:\x00\x00\x00\x02x:"), true)
	f.Add(uint32(9), []byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, true)
	f.Add(uint32(1), []byte("vol"), false)
	f.Add(uint32(2), []byte("bye"), false)
	f.Add(uint32(3), []byte{}, false)
	f.Add(uint32(5), []byte{}, true)
	f.Add(uint32(8), []byte{}, false)
	f.Add(uint32(1<<31), []byte{}, false)
	f.Fuzz(func(t *testing.T, id uint32, data []byte, structured bool) {
		h := &handshake{export: device.Info{Name: "vol", SizeBytes: 1 << 20}, structured: structured}
		out, next := h.option(id, data, nil)
		if id == optExportName {
			if known := h.serves(string(data)); (next == transmit) != known || (next == hangUp) == known {
				t.Fatalf("EXPORT_NAME %q: outcome %d", data, next)
			}
			return
		}
		if len(out) > 4*len(data)+512 {
			t.Fatalf("%d bytes of replies to %d bytes", len(out), len(data))
		}
		checkReplies(t, id, out)
		if next == transmit && id != protocol.NEGOTIATION_ID_OPTION_GO {
			t.Fatalf("option %d entered transmission", id)
		}
	})
}

// checkReplies parses option replies: only the last one is final.
func checkReplies(t *testing.T, id uint32, out []byte) {
	t.Helper()
	for {
		if len(out) < 20 {
			t.Fatalf("reply of %d bytes", len(out))
		}
		var h protocol.NegotiationReplyHeader
		if _, err := binary.Decode(out, binary.BigEndian, &h); err != nil {
			t.Fatal(err)
		}
		out = out[20:]
		if h.ReplyMagic != protocol.NEGOTIATION_MAGIC_REPLY || h.ID != id || int(h.Length) > len(out) {
			t.Fatalf("reply %+v with %d bytes left", h, len(out))
		}
		out = out[h.Length:]
		final := h.Type == protocol.NEGOTIATION_TYPE_REPLY_ACK || h.Type>>31 == 1
		if final != (len(out) == 0) {
			t.Fatalf("reply %+v with %d bytes after it", h, len(out))
		}
		if final {
			return
		}
	}
}

// FuzzRequest checks that no request reaches the device that it could not
// perform, and that the memory set aside for one suffices and is bounded.
func FuzzRequest(f *testing.F) {
	seed := func(flags, kind uint16, offset uint64, length uint32) {
		h := protocol.TransmissionRequestHeader{
			RequestMagic: protocol.TRANSMISSION_MAGIC_REQUEST,
			CommandFlags: flags, Type: kind, Handle: 1, Offset: offset, Length: length,
		}
		f.Add(appendWire(nil, h), true, true)
		f.Add(appendWire(nil, h), false, false)
	}
	for kind := range uint16(10) {
		seed(0, kind, 4096, 4096)
		seed(flagFUA, kind, 1<<30-1, 1)
		seed(1<<kind, kind, 1<<64-1, 1<<32-1)
		seed(flagDF, kind, 0, maxPayload+1)
	}
	f.Fuzz(func(t *testing.T, b []byte, structured, allocation bool) {
		if len(b) < requestBytes {
			return
		}
		h := decodeRequest(b)
		if again := appendWire(nil, h); !bytes.Equal(again, b[:requestBytes]) {
			t.Fatalf("decoded %x as %x", b[:requestBytes], again)
		}
		s := session{sizeBytes: 1 << 30, structured: structured, allocation: allocation}
		errno, reason := s.check(&h)
		if (errno == 0) != (reason == "") {
			t.Fatalf("error %d, reason %q", errno, reason)
		}
		if errno != 0 {
			return
		}
		checkAccepted(t, &s, &h)
	})
}

func checkAccepted(t *testing.T, s *session, h *protocol.TransmissionRequestHeader) {
	t.Helper()
	n := deviceLength(h)
	reserved := reservation(h)
	flags := s.deviceFlags(h)
	switch {
	case h.Type > cmdBlockStatus || h.Type == cmdDisc:
		t.Fatalf("command %d accepted", h.Type)
	case h.Offset > s.sizeBytes || uint64(h.Length) > s.sizeBytes-h.Offset:
		t.Fatalf("%d bytes at %d accepted", h.Length, h.Offset)
	case n > h.Length || reserved > maxReplyBytes:
		t.Fatalf("device asked for %d bytes, %d reserved", n, reserved)
	case h.Type == cmdRead && reserved < uint64(n):
		t.Fatalf("%d bytes reserved to read %d", reserved, n)
	case (h.Type == cmdRead || h.Type == cmdWrite) && n > maxPayload:
		t.Fatalf("payload of %d bytes accepted", n)
	case h.Type == cmdBlockStatus && !s.allocation:
		t.Fatal("block status accepted without a context")
	case flags&device.WantExtents != 0 && (!s.structured || h.CommandFlags&flagDF != 0):
		t.Fatalf("extents wanted with flags %#x", h.CommandFlags)
	}
}
