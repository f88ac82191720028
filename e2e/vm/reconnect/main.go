// Reconnect attaches an NBD export to the kernel's nbd in such a way that a
// server may die and come back: requests wait for it instead of failing. It
// is the guest's program: nbd-client's -persist fails all requests until it
// has reconnected, and its netlink mode does not reconnect.
//
//	reconnect HOST:PORT /dev/nbdN READY
//
// It attaches in the background of the caller, makes the file READY, and stays
// to make a new connection whenever the kernel tells that the old one broke.
package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// timeout is when the kernel gives up a request on a connection and sends
	// it again on the next one; with a broken connection that is the pause.
	timeout = 5 // s
	// patience is how long requests wait for a new connection.
	patience = 60 // s
	// retry is how often a server is looked for that is away.
	retry = 50 * time.Millisecond
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: reconnect HOST:PORT /dev/nbdN READY")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "reconnect:", err)
		os.Exit(1)
	}
}

// run attaches the device and keeps it connected, for ever.
func run(address, device, ready string) error {
	index, err := strconv.ParseUint(strings.TrimPrefix(device, "/dev/nbd"), 10, 32)
	if err != nil {
		return fmt.Errorf("device %q: expected /dev/nbdN: %w", device, err)
	}
	commands, err := open()
	if err != nil {
		return err
	}
	family, group, err := commands.resolve()
	if err != nil {
		return err
	}
	events, err := open()
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(events.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(group)); err != nil {
		return fmt.Errorf("listen for broken connections: %w", err)
	}
	e, err := dial(address)
	if err != nil {
		return err
	}
	_, err = commands.call(family, cmdConnect, attr32(attrIndex, uint32(index)), attr64(attrSizeBytes, e.size),
		attr64(attrBlockSizeBytes, 4096), attr64(attrTimeout, timeout), attr64(attrServerFlags, uint64(e.flags)),
		attr64(attrDeadConnTimeout, patience), e.socket())
	if err != nil {
		return fmt.Errorf("attach %s: %w", device, err)
	}
	e.conn.Close() // the kernel has its own reference
	if err := os.WriteFile(ready, nil, 0o644); err != nil {
		return fmt.Errorf("tell that it is ready: %w", err)
	}
	return keep(commands, events, family, uint32(index), address)
}

// keep makes a new connection for each that breaks.
func keep(commands, events *link, family uint16, index uint32, address string) error {
	for {
		kind, body, err := events.receive()
		if err != nil {
			return err
		}
		if kind != family || body[0] != cmdLinkDead {
			continue
		}
		e := redial(address)
		if _, err := commands.call(family, cmdReconfigure, attr32(attrIndex, index), e.socket()); err != nil {
			return fmt.Errorf("reconnect: %w", err)
		}
		e.conn.Close()
	}
}

// An export is a connection that has been negotiated.
type export struct {
	conn  *net.TCPConn
	fd    uint32
	size  uint64
	flags uint16
}

// socket is the attribute that hands the connection to the kernel.
func (e *export) socket() []byte {
	return attr(attrSockets|nested, attr(attrSocketItem|nested, attr32(attrSocketFD, e.fd)))
}

// redial is dial until it succeeds.
func redial(address string) *export {
	tick := time.NewTicker(retry)
	defer tick.Stop()
	for {
		if e, err := dial(address); err == nil {
			return e
		}
		<-tick.C
	}
}

// dial connects to the default export, with the option EXPORT_NAME.
func dial(address string) (*export, error) {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	e := &export{conn: conn.(*net.TCPConn)}
	if err := e.negotiate(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("negotiate: %w", err)
	}
	raw, err := e.conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("descriptor of the connection: %w", err)
	}
	err = raw.Control(func(fd uintptr) { e.fd = uint32(fd) })
	if err != nil {
		return nil, fmt.Errorf("descriptor of the connection: %w", err)
	}
	return e, nil
}

// negotiate does the handshake: greeting, flags, the option, its answer.
func (e *export) negotiate() error {
	const noZeroes = 1 << 1
	e.conn.SetDeadline(time.Now().Add(5 * time.Second)) // fails only when closed
	greeting := make([]byte, 18)
	if _, err := io.ReadFull(e.conn, greeting); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	flags := binary.BigEndian.Uint16(greeting[16:])
	request := binary.BigEndian.AppendUint32(nil, uint32(flags))
	request = append(request, "IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x00"...)
	if _, err := e.conn.Write(request); err != nil {
		return fmt.Errorf("option: %w", err)
	}
	answer := make([]byte, 10)
	if flags&noZeroes == 0 {
		answer = make([]byte, 10+124)
	}
	if _, err := io.ReadFull(e.conn, answer); err != nil {
		return fmt.Errorf("answer to the option: %w", err)
	}
	e.size, e.flags = binary.BigEndian.Uint64(answer), binary.BigEndian.Uint16(answer[8:])
	return e.conn.SetDeadline(time.Time{})
}
