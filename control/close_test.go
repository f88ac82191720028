package control

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"
)

// stuck is a target whose Status waits until it is released.
type stuck struct {
	fixed
	entered chan struct{} // sent to by every Status
	release chan struct{} // closed by the test
}

func (s stuck) Status() Status {
	s.entered <- struct{}{}
	<-s.release
	return s.fixed.Status()
}

func dial(t *testing.T, path string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// ask sends a request on a connection that stays open.
func ask(t *testing.T, conn net.Conn, path string) {
	t.Helper()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
}

// TestCloseCutsOffAndJoins closes a server with a silent client, one in the
// middle of a request, one that profiles and one whose answer is under way.
// VerifyTestMain finds what it would leave behind.
func TestCloseCutsOffAndJoins(t *testing.T) {
	l, path := listenHere(t)
	target := stuck{entered: make(chan struct{}), release: make(chan struct{})}
	server := Start(l, Options{Target: target, Log: slog.New(slog.DiscardHandler)})
	dial(t, path)
	half := dial(t, path)
	if _, err := io.WriteString(half, "GET /status HTTP/1.1\r\nHo"); err != nil {
		t.Fatal(err)
	}
	profiling := dial(t, path)
	ask(t, profiling, "/debug/pprof/trace?seconds=60")
	if _, err := profiling.Read(make([]byte, 1)); err != nil { // it has begun
		t.Fatal(err)
	}
	waiting := dial(t, path)
	ask(t, waiting, "/status")
	<-target.entered

	closed := make(chan error)
	go func() { closed <- server.Close() }()
	refuseSoon(t, path)
	close(target.release)
	response, err := http.ReadResponse(bufio.NewReader(waiting), nil)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("the answer under way was lost: %v", err)
	}
	if err := <-closed; err != nil {
		t.Errorf("close: %v", err)
	}
	if err := server.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

// refuseSoon waits until the socket takes no clients any more.
func refuseSoon(t *testing.T, path string) {
	t.Helper()
	for {
		conn, err := net.Dial("unix", path)
		if err != nil {
			return
		}
		conn.Close()
	}
}

// TestConnectionsAreBounded fills every place and sees the next client wait
// until one is given back.
func TestConnectionsAreBounded(t *testing.T) {
	_, path := serving(t, nil)
	var conns []net.Conn
	for range maxConnections {
		conn := dial(t, path)
		ask(t, conn, "/events")
		readAnswer(t, conn)
		conns = append(conns, conn)
	}
	next := dial(t, path)
	ask(t, next, "/events")
	if err := next.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := next.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("one connection too many was served: %v", err)
	}
	conns[0].Close()
	if err := next.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	readAnswer(t, next)
}

func readAnswer(t *testing.T, conn net.Conn) {
	t.Helper()
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v", response.Status, err)
	}
}

func TestNobodyThere(t *testing.T) {
	l, path := listenHere(t)
	l.Close()
	client := NewClient(path)
	defer client.Close()
	if _, err := client.Status(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("%v does not wrap ErrUnreachable", err)
	}
}
