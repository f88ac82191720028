package main

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// The parts of the kernel's interfaces that are used: include/uapi/linux/
// netlink.h, genetlink.h and nbd-netlink.h.
const (
	cmdConnect     = 1
	cmdReconfigure = 3
	cmdLinkDead    = 4

	attrIndex           = 1
	attrSizeBytes       = 2
	attrBlockSizeBytes  = 3
	attrTimeout         = 4
	attrServerFlags     = 5
	attrSockets         = 7
	attrDeadConnTimeout = 8
	attrSocketItem      = 1
	attrSocketFD        = 1

	controlAttrFamilyID   = 1
	controlAttrFamilyName = 2
	controlAttrGroups     = 7
	controlGroupID        = 2
	nested                = 1 << 15
)

// attr encodes one netlink attribute: length, type, payload, padding to 4.
func attr(kind uint16, payload []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(payload)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, payload...)
	return append(b, make([]byte, -len(b)&3)...)
}

func attr32(kind uint16, v uint32) []byte {
	return attr(kind, binary.NativeEndian.AppendUint32(nil, v))
}

func attr64(kind uint16, v uint64) []byte {
	return attr(kind, binary.NativeEndian.AppendUint64(nil, v))
}

// attrs decodes attributes; a later one of a kind replaces an earlier one.
func attrs(b []byte) map[uint16][]byte {
	found := map[uint16][]byte{}
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			break
		}
		found[binary.NativeEndian.Uint16(b[2:])&^nested] = b[4:n]
		b = b[min(len(b), (n+3)&^3):]
	}
	return found
}

// A link is a generic netlink socket.
type link struct{ fd int }

// open makes a link.
func open() (*link, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("bind netlink socket: %w", err)
	}
	return &link{fd}, nil
}

// call sends one command and returns the attributes of its answer, which is
// empty for commands that are only acknowledged.
func (l *link) call(family uint16, command uint8, payload ...[]byte) (map[uint16][]byte, error) {
	body := []byte{command, 1, 0, 0} // genlmsghdr: command, version
	for _, p := range payload {
		body = append(body, p...)
	}
	message := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
	message = binary.NativeEndian.AppendUint16(message, family)
	message = binary.NativeEndian.AppendUint16(message, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	message = append(message, 1, 0, 0, 0, 0, 0, 0, 0) // sequence, port
	message = append(message, body...)
	if err := unix.Sendto(l.fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send netlink command %d: %w", command, err)
	}
	var answer map[uint16][]byte
	for {
		kind, body, err := l.receive()
		if err != nil {
			return nil, err
		}
		if kind != unix.NLMSG_ERROR {
			answer = attrs(body[4:])
			continue
		}
		if errno := -int32(binary.NativeEndian.Uint32(body)); errno != 0 {
			return nil, fmt.Errorf("netlink command %d: %w", command, unix.Errno(errno))
		}
		return answer, nil
	}
}

// receive returns the type and the body of the next message. The kernel sends
// one message a datagram here.
func (l *link) receive() (uint16, []byte, error) {
	buf := make([]byte, 16<<10)
	n, _, err := unix.Recvfrom(l.fd, buf, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("receive from netlink: %w", err)
	}
	if n < 20 {
		return 0, nil, fmt.Errorf("netlink message of %d bytes, expected 20 or more", n)
	}
	length := min(n, int(binary.NativeEndian.Uint32(buf)))
	return binary.NativeEndian.Uint16(buf[4:]), buf[16:length], nil
}

// resolve finds the kernel's nbd: the number of the family, and of the group
// that hears of broken connections.
func (l *link) resolve() (family uint16, group uint32, err error) {
	const getFamily = 3
	answer, err := l.call(unix.GENL_ID_CTRL, getFamily, attr(controlAttrFamilyName, []byte("nbd\x00")))
	if err != nil {
		return 0, 0, fmt.Errorf("find the kernel's nbd: %w", err)
	}
	id, groups := answer[controlAttrFamilyID], attrs(answer[controlAttrGroups])
	first := attrs(groups[1])[controlGroupID]
	if len(id) < 2 || len(first) < 4 {
		return 0, 0, fmt.Errorf("find the kernel's nbd: its description is incomplete: %v", answer)
	}
	return binary.NativeEndian.Uint16(id), binary.NativeEndian.Uint32(first), nil
}
