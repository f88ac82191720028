package control

import (
	"net"
	"sync"
)

// limitedListener accepts at most cap(slots) connections at a time; the others
// wait in the kernel's backlog. net/http itself has no such limit, and every
// connection costs it a goroutine and buffers.
type limitedListener struct {
	net.Listener
	slots  chan struct{} // a token for every open connection
	closed chan struct{} // closed by Close, so that a waiting Accept returns
	once   sync.Once     // guards closed
}

func newLimitedListener(l net.Listener, connections int) *limitedListener {
	return &limitedListener{
		Listener: l,
		slots:    make(chan struct{}, connections),
		closed:   make(chan struct{}),
	}
}

// Accept waits for a free place, then for a client.
func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: conn, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close ends the accepting; connections stay open.
func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// limitedConn gives its place back when it is closed, once.
type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
