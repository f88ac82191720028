package nbd

import (
	"encoding/binary"
	"errors"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"trivet/device"
)

// Constants of the protocol that go-nbd's protocol package lacks. The names
// follow proto.md, in Go's spelling.
const (
	handshakeNoZeroes = uint16(1 << 1)

	clientFixedNewstyle = uint32(1 << 0)
	clientNoZeroes      = uint32(1 << 1)

	optExportName      = uint32(1)
	optStartTLS        = uint32(5)
	optStructuredReply = uint32(8)
	optListMetaContext = uint32(9)
	optSetMetaContext  = uint32(10)

	repMetaContext = uint32(4)
	repErrPolicy   = uint32(2 | 1<<31)
	repErrInvalid  = uint32(3 | 1<<31)
	repErrTooBig   = uint32(9 | 1<<31)

	transSendFlush       = uint16(1 << 2)
	transSendFUA         = uint16(1 << 3)
	transSendTrim        = uint16(1 << 5)
	transSendWriteZeroes = uint16(1 << 6)
	transSendDF          = uint16(1 << 7)
	transSendCache       = uint16(1 << 10)
	transSendFastZero    = uint16(1 << 11)

	cmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	cmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	cmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	cmdFlush       = uint16(3)
	cmdTrim        = uint16(4)
	cmdCache       = uint16(5)
	cmdWriteZeroes = uint16(6)
	cmdBlockStatus = uint16(7)

	flagFUA      = uint16(1 << 0)
	flagNoHole   = uint16(1 << 1)
	flagDF       = uint16(1 << 2)
	flagReqOne   = uint16(1 << 3)
	flagFastZero = uint16(1 << 4)

	chunkMagic       = uint32(0x668e33ef)
	chunkFlagDone    = uint16(1 << 0)
	chunkNone        = uint16(0)
	chunkOffsetData  = uint16(1)
	chunkOffsetHole  = uint16(2)
	chunkBlockStatus = uint16(5)
	chunkError       = uint16(1<<15 | 1)

	stateHole = uint32(1 << 0)
	stateZero = uint32(1 << 1)

	errnoIO       = uint32(5)
	errnoInvalid  = protocol.TRANSMISSION_ERROR_EINVAL
	errnoNoSpace  = uint32(28)
	errnoOverflow = uint32(75)
	errnoNotSup   = uint32(95)
	errnoShutdown = uint32(108)
)

// Lengths on the wire, in bytes.
const (
	optionHeaderBytes = 16
	requestBytes      = 28
	simpleReplyBytes  = 16
	chunkHeaderBytes  = 20
	dataChunkBytes    = chunkHeaderBytes + 8     // offset
	holeChunkBytes    = chunkHeaderBytes + 8 + 4 // offset, length
	statusChunkBytes  = chunkHeaderBytes + 4     // metadata context
	descriptorBytes   = 8
	paddingBytes      = 124 // after EXPORT_NAME, unless NO_ZEROES was agreed
)

// Limits of this server.
const (
	maxPayload = 32 << 20 // advertised: the longest READ and WRITE
	maxString  = 4096     // the protocol's limit on names

	preferredBlock = 4096
)

// allocationName is the one metadata context served, allocationID its number
// on every connection.
const (
	allocationName = "base:allocation"
	allocationID   = uint32(1)
)

// decodeRequest reads a request header from the first requestBytes of b.
func decodeRequest(b []byte) protocol.TransmissionRequestHeader {
	_ = b[requestBytes-1]
	return protocol.TransmissionRequestHeader{
		RequestMagic: binary.BigEndian.Uint32(b[0:]),
		CommandFlags: binary.BigEndian.Uint16(b[4:]),
		Type:         binary.BigEndian.Uint16(b[6:]),
		Handle:       binary.BigEndian.Uint64(b[8:]),
		Offset:       binary.BigEndian.Uint64(b[16:]),
		Length:       binary.BigEndian.Uint32(b[24:]),
	}
}

// appendSimple appends a simple reply's header.
func appendSimple(b []byte, cookie uint64, errno uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, protocol.TRANSMISSION_MAGIC_REPLY)
	b = binary.BigEndian.AppendUint32(b, errno)
	return binary.BigEndian.AppendUint64(b, cookie)
}

// chunkHeader is the fixed part of a structured reply chunk.
type chunkHeader struct {
	flags, kind uint16
	cookie      uint64
	length      int // of what follows the header, bytes
}

func (h chunkHeader) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, chunkMagic)
	b = binary.BigEndian.AppendUint16(b, h.flags)
	b = binary.BigEndian.AppendUint16(b, h.kind)
	b = binary.BigEndian.AppendUint64(b, h.cookie)
	return binary.BigEndian.AppendUint32(b, uint32(h.length))
}

// appendErrorChunk appends a final error chunk; the message is for people.
func appendErrorChunk(b []byte, cookie uint64, errno uint32, message string) []byte {
	h := chunkHeader{chunkFlagDone, chunkError, cookie, 6 + len(message)}
	b = h.appendTo(b)
	b = binary.BigEndian.AppendUint32(b, errno)
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	return append(b, message...)
}

// appendDataHeader appends what precedes the payload of a data chunk of n
// bytes.
func appendDataHeader(b []byte, flags uint16, cookie, offset uint64, n int) []byte {
	b = chunkHeader{flags, chunkOffsetData, cookie, 8 + n}.appendTo(b)
	return binary.BigEndian.AppendUint64(b, offset)
}

// appendHoleChunk appends a chunk that says that n bytes read as zeros.
func appendHoleChunk(b []byte, flags uint16, cookie, offset uint64, n int) []byte {
	b = chunkHeader{flags, chunkOffsetHole, cookie, 12}.appendTo(b)
	b = binary.BigEndian.AppendUint64(b, offset)
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

// appendStatusChunk appends the final chunk of a block status reply.
func appendStatusChunk(b []byte, cookie uint64, extents []device.Extent) []byte {
	h := chunkHeader{chunkFlagDone, chunkBlockStatus, cookie, 4 + descriptorBytes*len(extents)}
	b = binary.BigEndian.AppendUint32(h.appendTo(b), allocationID)
	for _, e := range extents {
		var state uint32
		if e.Hole {
			state |= stateHole
		}
		if e.Zero {
			state |= stateZero
		}
		b = binary.BigEndian.AppendUint32(b, uint32(e.Length))
		b = binary.BigEndian.AppendUint32(b, state)
	}
	return b
}

// errnoOf maps the device's errors to the protocol's.
func errnoOf(err error) (errno uint32, reason string) {
	switch {
	case err == nil:
		return 0, ""
	case errors.Is(err, device.ErrNoSpace):
		return errnoNoSpace, "no space left on the slots"
	case errors.Is(err, device.ErrInvalid):
		return errnoInvalid, "the device refused the request"
	case errors.Is(err, device.ErrUnsupported):
		return errnoNotSup, "not faster than a write"
	case errors.Is(err, device.ErrShutdown):
		return errnoShutdown, "the device is shutting down"
	case errors.Is(err, device.ErrDeadline):
		return errnoIO, "the request missed its deadline"
	}
	return errnoIO, "input/output error"
}
