package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// Frames between a server and its helper, in little-endian order:
//
//	0  length  u32  of the payload, at most maxPayloadBytes
//	4  id      u64  of the request; a reply repeats it. 0 is the greeting, which
//	                the helper sends once its store is open
//	12 kind    u8   the operation of a request, the status of a reply
//	13 payload
//
// The payload of an unsuccessful reply is the errno (u32) and a text.
const (
	frameHeaderBytes = 13
	maxPayloadBytes  = chunkBytes + 64<<10
)

var errBadFrame = errors.New("malformed frame")

type frame struct {
	id      uint64
	kind    uint8
	payload []byte
}

// status is the kind of a reply.
type status uint8

const (
	statusOK       status = iota
	statusProgress        // the request is still being worked on; another reply follows
	statusError           // any error that is none of these
	statusCorrupt
	statusFailed
	statusSequence
	statusTooLarge
	statusUnavailable
	statusClosed
)

// statusErrors are the sentinels that keep their meaning across the socket, the
// more important first.
var statusErrors = []struct {
	status status
	err    error
}{
	{statusCorrupt, ErrCorrupt},
	{statusSequence, ErrSequence},
	{statusTooLarge, ErrTooLarge},
	{statusUnavailable, ErrUnavailable},
	{statusFailed, ErrFailed},
	{statusClosed, ErrClosed},
}

func writeFrame(out io.Writer, f frame) error {
	buf := make([]byte, frameHeaderBytes, frameHeaderBytes+len(f.payload))
	binary.LittleEndian.PutUint32(buf, uint32(len(f.payload)))
	binary.LittleEndian.PutUint64(buf[4:], f.id)
	buf[12] = f.kind
	if _, err := out.Write(append(buf, f.payload...)); err != nil {
		return fmt.Errorf("write frame %d: %w", f.id, err)
	}
	return nil
}

func readFrame(in io.Reader) (frame, error) {
	var head [frameHeaderBytes]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return frame{}, fmt.Errorf("read frame: %w", err)
	}
	length := binary.LittleEndian.Uint32(head[:])
	if length > maxPayloadBytes {
		return frame{}, fmt.Errorf("payload of %d bytes, at most %d: %w", length, maxPayloadBytes, errBadFrame)
	}
	f := frame{id: binary.LittleEndian.Uint64(head[4:]), kind: head[12], payload: make([]byte, length)}
	if _, err := io.ReadFull(in, f.payload); err != nil {
		return frame{}, fmt.Errorf("read payload of frame %d: %w", f.id, err)
	}
	return f, nil
}

func replyFrame(id uint64, reply []byte, err error) frame {
	if err == nil {
		return frame{id: id, kind: uint8(statusOK), payload: reply}
	}
	var errno syscall.Errno
	errors.As(err, &errno)
	kind := statusError
	for _, s := range statusErrors {
		if errors.Is(err, s.err) {
			kind = s.status
			break
		}
	}
	text := err.Error()
	text = text[:min(len(text), 4<<10)]
	payload := append(binary.LittleEndian.AppendUint32(nil, uint32(errno)), text...)
	return frame{id: id, kind: uint8(kind), payload: payload}
}

// remoteError is an error as it came from the helper.
type remoteError struct {
	text  string
	kinds []error // its sentinel and its errno, where it had them
}

func (e *remoteError) Error() string   { return "helper: " + e.text }
func (e *remoteError) Unwrap() []error { return e.kinds }

// replyError is the error of a reply; nil for a successful one.
func replyError(f frame) error {
	if status(f.kind) == statusOK {
		return nil
	}
	if len(f.payload) < 4 {
		return fmt.Errorf("status %d with %d bytes: %w", f.kind, len(f.payload), errBadFrame)
	}
	e := &remoteError{text: string(f.payload[4:])}
	for _, s := range statusErrors {
		if s.status == status(f.kind) {
			e.kinds = append(e.kinds, s.err)
		}
	}
	if errno := syscall.Errno(binary.LittleEndian.Uint32(f.payload)); errno != 0 {
		e.kinds = append(e.kinds, errno)
	}
	return e
}
