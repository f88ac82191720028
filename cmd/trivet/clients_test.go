package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// entered connects to a server's unix socket and enters transmission.
func entered(t *testing.T, uri string) net.Conn {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("unix", u.Query().Get("socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	sent := "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00"
	if _, err := io.WriteString(nc, sent); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(nc, make([]byte, 18)); err != nil {
		t.Fatalf("greeting: %v", err)
	}
	for kind := uint32(0); kind != 1; {
		head := make([]byte, 20)
		if _, err := io.ReadFull(nc, head); err != nil {
			t.Fatalf("option: %v", err)
		}
		if kind = binary.BigEndian.Uint32(head[12:]); kind >= 1<<31 {
			t.Fatalf("refused: %#x", kind)
		}
		if _, err := io.ReadFull(nc, make([]byte, binary.BigEndian.Uint32(head[16:]))); err != nil {
			t.Fatal(err)
		}
	}
	return nc
}

// request is one of NBD's, and its reply without an error.
func request(kind uint16, offset uint64, length uint32, payload []byte) (sent, reply []byte) {
	sent = binary.BigEndian.AppendUint32(nil, 0x25609513)
	sent = binary.BigEndian.AppendUint32(sent, uint32(kind))
	sent = binary.BigEndian.AppendUint64(sent, 7)
	sent = binary.BigEndian.AppendUint64(sent, offset)
	sent = append(binary.BigEndian.AppendUint32(sent, length), payload...)
	reply = binary.BigEndian.AppendUint64(nil, 0x67446698<<32)
	return sent, binary.BigEndian.AppendUint64(reply, 7)
}

// carriedOut makes a request and expects its reply and what follows.
func carriedOut(t *testing.T, nc net.Conn, kind uint16, length uint32, payload, want []byte) {
	t.Helper()
	sent, reply := request(kind, 0, length, payload)
	if _, err := nc.Write(sent); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(reply)+len(want))
	if _, err := io.ReadFull(nc, got); err != nil || !bytes.Equal(got, append(reply, want...)) {
		t.Fatalf("request %d: %x..., %v", kind, got[:16], err)
	}
}

// TestConnections: with the least memory there are as many places as by default, and
// all of them are of use; --connections says how many.
func TestConnections(t *testing.T) {
	volume := tempDir(t)
	server := startChild(t, "serve", volume, "--size", "16M", "--memory", "128M")
	uri := server.uri(t)
	var all []net.Conn
	for range 64 {
		all = append(all, entered(t, uri))
	}
	data := bytes.Repeat([]byte("data"), 1024)
	for _, nc := range all {
		carriedOut(t, nc, 1, 4096, data, nil)
		carriedOut(t, nc, 0, 4096, nil, data)
	}
	if n := server.status(t, volume).Connections; n != 64 {
		t.Errorf("%d connections in the status", n)
	}
}

// TestStoodStill: a server that was stopped for longer than a request may take does
// not begin what a client sent meanwhile: its connection is cut (hazard 68).
func TestStoodStill(t *testing.T) {
	volume := tempDir(t)
	server := startChild(t, "serve", volume, "--size", "16M", "--deadline", "1s")
	uri := server.uri(t)
	idle := entered(t, uri)
	data, late := bytes.Repeat([]byte("data"), 1024), bytes.Repeat([]byte("late"), 1024)
	carriedOut(t, idle, 1, 4096, data, nil)
	server.signal(t, syscall.SIGSTOP)
	sent, _ := request(1, 0, 4096, late)
	if _, err := idle.Write(sent); err != nil {
		t.Fatal(err)
	}
	select {
	case <-time.After(9 * time.Second): // as long as the server may take to notice at all, and more
	case <-t.Context().Done():
	}
	server.signal(t, syscall.SIGCONT)
	if n, err := idle.Read(make([]byte, 16)); err == nil {
		t.Errorf("%d bytes answer what was sent long ago", n)
	}
	carriedOut(t, entered(t, uri), 0, 4096, nil, data)
}

// TestDescriptorsRunOut: when there are no file descriptors left, clients are hung up
// on instead of left waiting, and the control socket answers. Those that are
// connected are served.
func TestDescriptorsRunOut(t *testing.T) {
	volume := tempDir(t)
	server := startChild(t, "serve", volume, "--size", "16M")
	uri := server.uri(t)
	first := entered(t, uri)
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", server.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	limit := unix.Rlimit{Cur: uint64(len(open)) + 8, Max: 8192}
	if err := unix.Prlimit(server.cmd.Process.Pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for range 30 {
		nc, err := net.Dial("unix", filepath.Join(volume, "nbd.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if err := nc.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		switch n, err := io.ReadFull(nc, make([]byte, 18)); {
		case errors.Is(err, io.EOF):
			refused++
		case err != nil:
			t.Fatalf("a client for whom there is no descriptor gets %d bytes, %v", n, err)
		}
	}
	if refused < 10 {
		t.Errorf("%d of 30 clients were hung up on", refused)
	}
	for range 3 {
		if n := server.status(t, volume).Connections; n != 1 {
			t.Errorf("%d connections in the status", n)
		}
	}
	carriedOut(t, first, 0, 4096, nil, make([]byte, 4096))
}

// TestTooFewDescriptors: a start that is bound to run out of them says so.
func TestTooFewDescriptors(t *testing.T) {
	volume := filepath.Join(tempDir(t), "vol")
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	few := unix.Rlimit{Cur: 96, Max: before.Max}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &few, nil); err != nil {
		t.Skipf("cannot lower RLIMIT_NOFILE: %v", err)
	}
	defer func() {
		if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &before, nil); err != nil {
			t.Errorf("cannot raise RLIMIT_NOFILE again: %v", err)
		}
	}()
	flags := serveFlags{size: 16 << 20, shards: 64, deadline: durationFlag(defaultDeadline), logLevel: "info"}
	plan, err := flags.plan(volume)
	if err != nil {
		t.Fatal(err)
	}
	err = enoughDescriptors(&plan)
	if err == nil || !strings.Contains(err.Error(), "96 file descriptors are allowed, but 64 shards on 3 slots with 64 connections need ") {
		t.Errorf("with 96 file descriptors and 64 shards: %v", err)
	}
	flags.shards, flags.replicas, flags.connections = 1, 1, 1
	if plan, err = flags.plan(volume); err != nil {
		t.Fatal(err)
	}
	plan.connections = 64
	few.Cur = 130
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &few, nil); err != nil {
		t.Fatal(err)
	}
	if err := enoughDescriptors(&plan); err == nil || !strings.Contains(err.Error(), "or give --connections ") {
		t.Errorf("with 130 file descriptors and one shard: %v", err)
	}
}
