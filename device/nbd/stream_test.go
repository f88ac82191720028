package nbd_test

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"trivet/device/nbd"
)

// FuzzStream sends arbitrary bytes after a valid handshake: the server neither
// crashes nor hangs nor loses a buffer, and ends the connection by itself once
// the client has nothing more to say.
func FuzzStream(f *testing.F) {
	f.Add([]byte{}, true)
	f.Add(req{kind: cmdRead, length: 9000}.wire(), true)
	f.Add(req{kind: cmdWrite, length: 9, payload: []byte("123456789")}.wire(), false)
	f.Add(wire(req{kind: cmdWrite, length: 1 << 20, payload: make([]byte, 300<<10)}.wire()), false)
	f.Add(wire(req{kind: cmdBlockStatus, length: 1 << 20}.wire(), req{kind: cmdTrim, offset: 7, length: 99}.wire()), true)
	f.Add(wire(req{kind: cmdWrite, length: 33 << 20}.wire(), "short"), true)
	f.Add(wire(req{kind: 77, flags: 1 << 9}.wire(), req{kind: cmdDisc}.wire()), false)
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		f.Fatal(err)
	}
	s := nbd.New(newFake(2<<20), nbd.Options{MessageTimeout: time.Second})
	startServing(f, s, l)
	f.Fuzz(func(t *testing.T, data []byte, structured bool) {
		c := dial(t, path).enter(structured)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		stop := context.AfterFunc(ctx, func() { c.Close() })
		defer stop()
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = c.Write(data) // fails when the server hung up first
			_ = c.Conn.(*net.UnixConn).CloseWrite()
		}()
		_, _ = io.Copy(io.Discard, c.Conn)
		<-sent
		if ctx.Err() != nil {
			t.Fatal("the server did not end the connection")
		}
	})
}
