package e2e

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
)

// A client is one NBD connection with as many requests in flight as it has
// callers. It speaks just enough of the protocol to be independent of the
// code under test: fixed newstyle, GO, simple replies.
type client struct {
	conn net.Conn
	size uint64 // of the export, bytes

	sendMu sync.Mutex // guards writing to conn

	mu      sync.Mutex // guards what follows
	next    uint64     // the cookie of the next request
	pending map[uint64]*call
	broken  error // why the connection ended

	receiver sync.WaitGroup
}

// A call is one request in flight.
type call struct {
	buf  []byte     // destination of a read
	done chan error // receives the outcome once
}

// The parts of the protocol that the client uses.
const (
	nbdMagic     = 0x4e42444d41474943 // "NBDMAGIC"
	optionMagic  = 0x49484156454f5054 // "IHAVEOPT"
	optionReply  = 0x3e889045565a9
	requestMagic = 0x25609513
	replyMagic   = 0x67446698

	flagFixedNewstyle = 1 << 0
	optionGo          = 7
	replyAck          = 1
	replyInfo         = 3
	infoExport        = 0

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
	flagFUA        = 1 << 0
)

// errBroken is wrapped by the outcome of every request that the connection
// did not live to see answered.
var errBroken = errors.New("connection broken")

// dial connects to the default export on a unix socket.
func dial(ctx context.Context, socket string) (*client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	c := &client{conn: conn, pending: map[uint64]*call{}}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := c.negotiate(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("negotiate: %w", err)
	}
	c.startReceiver()
	return c, nil
}

// negotiate does the handshake and enters transmission with GO.
func (c *client) negotiate() error {
	var hello struct {
		Magic, Option uint64
		Flags         uint16
	}
	if err := binary.Read(c.conn, binary.BigEndian, &hello); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if hello.Magic != nbdMagic || hello.Option != optionMagic || hello.Flags&flagFixedNewstyle == 0 {
		return fmt.Errorf("greeting %+v is not fixed newstyle", hello)
	}
	request := struct {
		Flags       uint32
		Magic       uint64
		Option      uint32
		Length      uint32
		NameLength  uint32
		InfoRequest uint16
	}{flagFixedNewstyle, optionMagic, optionGo, 6, 0, 0}
	if err := binary.Write(c.conn, binary.BigEndian, &request); err != nil {
		return fmt.Errorf("option GO: %w", err)
	}
	for {
		done, err := c.optionReply()
		if done || err != nil {
			return err
		}
	}
}

// optionReply reads one reply to GO; the last one is an acknowledgement.
func (c *client) optionReply() (done bool, err error) {
	var reply struct {
		Magic                uint64
		Option, Type, Length uint32
	}
	if err := binary.Read(c.conn, binary.BigEndian, &reply); err != nil {
		return false, fmt.Errorf("reply to GO: %w", err)
	}
	if reply.Magic != optionReply || reply.Option != optionGo || reply.Length > 1<<16 {
		return false, fmt.Errorf("reply to GO %+v is malformed", reply)
	}
	payload := make([]byte, reply.Length)
	if _, err := io.ReadFull(c.conn, payload); err != nil {
		return false, fmt.Errorf("reply to GO: %w", err)
	}
	switch reply.Type {
	case replyAck:
		return true, nil
	case replyInfo:
		if len(payload) >= 10 && binary.BigEndian.Uint16(payload) == infoExport {
			c.size = binary.BigEndian.Uint64(payload[2:])
		}
		return false, nil
	}
	return false, fmt.Errorf("GO was refused: %#x %q", reply.Type, payload)
}

// startReceiver hands replies to their callers until the connection ends.
func (c *client) startReceiver() {
	c.receiver.Add(1)
	go func() {
		defer c.receiver.Done()
		in := bufio.NewReaderSize(c.conn, 256<<10)
		for {
			if err := c.receive(in); err != nil {
				c.abandon(err)
				return
			}
		}
	}()
}

// receive takes one reply.
func (c *client) receive(in *bufio.Reader) error {
	var reply struct {
		Magic, Errno uint32
		Cookie       uint64
	}
	if err := binary.Read(in, binary.BigEndian, &reply); err != nil {
		return err
	}
	if reply.Magic != replyMagic {
		return fmt.Errorf("reply with magic %#x", reply.Magic)
	}
	c.mu.Lock()
	pending := c.pending[reply.Cookie]
	delete(c.pending, reply.Cookie)
	c.mu.Unlock()
	if pending == nil {
		return fmt.Errorf("reply to cookie %d, which is not in flight", reply.Cookie)
	}
	if reply.Errno != 0 {
		pending.done <- syscall.Errno(reply.Errno)
		return nil
	}
	if _, err := io.ReadFull(in, pending.buf); err != nil {
		pending.done <- fmt.Errorf("%w: %w", errBroken, err)
		return err
	}
	pending.done <- nil
	return nil
}

// abandon fails everything in flight.
func (c *client) abandon(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = fmt.Errorf("%w: %w", errBroken, err)
	for cookie, pending := range c.pending {
		delete(c.pending, cookie)
		pending.done <- c.broken
	}
}

// do sends one request and waits for its outcome: nil, the server's errno, or
// an error that wraps errBroken when it is not known. data is the payload of a
// write or the destination of a read.
func (c *client) do(cmd, flags uint16, offset uint64, length uint32, data []byte) error {
	pending := &call{done: make(chan error, 1)}
	if cmd == cmdRead {
		pending.buf = data
	}
	c.mu.Lock()
	if c.broken != nil {
		c.mu.Unlock()
		return c.broken
	}
	c.next++
	cookie := c.next
	c.pending[cookie] = pending
	c.mu.Unlock()

	request := make([]byte, 28, 28+len(data))
	binary.BigEndian.PutUint32(request, requestMagic)
	binary.BigEndian.PutUint16(request[4:], flags)
	binary.BigEndian.PutUint16(request[6:], cmd)
	binary.BigEndian.PutUint64(request[8:], cookie)
	binary.BigEndian.PutUint64(request[16:], offset)
	binary.BigEndian.PutUint32(request[24:], length)
	if cmd == cmdWrite {
		request = append(request, data...)
	}
	c.sendMu.Lock()
	_, err := c.conn.Write(request)
	c.sendMu.Unlock()
	if err != nil {
		c.conn.Close() // the receiver fails everything in flight, this included
	}
	return <-pending.done
}

// read reads len(buf) bytes.
func (c *client) read(buf []byte, offset uint64) error {
	return c.do(cmdRead, 0, offset, uint32(len(buf)), buf)
}

// write writes data.
func (c *client) write(data []byte, offset uint64, flags uint16) error {
	return c.do(cmdWrite, flags, offset, uint32(len(data)), data)
}

// sizeBytes is the size of the export.
func (c *client) sizeBytes() uint64 { return c.size }

// close ends the connection; requests in flight fail.
func (c *client) close() {
	c.conn.Close()
	c.receiver.Wait()
}
