package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	nbdPort = "10809" // assigned by IANA
	// maxSocketPath is the room for a path in sockaddr_un, without the zero.
	maxSocketPath = 107
)

// endpoint is where a server listens: a unix socket or a TCP address.
type endpoint struct {
	network string // "unix" or "tcp"
	address string // a path, or HOST:PORT
}

// parseEndpoint reads nbd+unix:///?socket=PATH, unix:///PATH, nbd://HOST[:PORT]
// or tcp://HOST:PORT.
func parseEndpoint(uri string) (endpoint, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return endpoint{}, errEndpoint(uri)
	}
	switch u.Scheme {
	case "nbd+unix":
		socket := u.Query().Get("socket")
		if u.Host != "" || strings.Trim(u.Path, "/") != "" || socket == "" {
			return endpoint{}, fmt.Errorf("%q: write nbd+unix:///?socket=PATH", uri)
		}
		return unixEndpoint(socket)
	case "unix":
		if u.Host != "" || u.RawQuery != "" || len(u.Path) < 2 {
			return endpoint{}, fmt.Errorf("%q: write unix:///PATH, with three slashes", uri)
		}
		return unixEndpoint(u.Path)
	case "nbd", "tcp":
		return tcpEndpoint(u)
	}
	return endpoint{}, errEndpoint(uri)
}

func errEndpoint(uri string) error {
	return fmt.Errorf("%q is no address; write nbd+unix:///?socket=PATH, unix:///PATH, nbd://HOST:PORT or tcp://HOST:PORT", uri)
}

// unixEndpoint makes the path absolute, because the URI that the server prints
// is read by processes in other directories.
func unixEndpoint(path string) (endpoint, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return endpoint{}, fmt.Errorf("socket %s: %w", path, err)
	}
	if len(absolute) > maxSocketPath {
		return endpoint{}, fmt.Errorf("socket %s: its path has %d bytes, the kernel takes at most %d; choose a shorter one",
			absolute, len(absolute), maxSocketPath)
	}
	return endpoint{network: "unix", address: absolute}, nil
}

func tcpEndpoint(u *url.URL) (endpoint, error) {
	port := u.Port()
	if port == "" && u.Scheme == "nbd" {
		port = nbdPort
	}
	if port == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return endpoint{}, fmt.Errorf("%q: write %s://HOST:PORT, nothing behind it", u, u.Scheme)
	}
	return endpoint{network: "tcp", address: net.JoinHostPort(u.Hostname(), port)}, nil
}

// uri returns what a client is to be given, for the listener's true address:
// port 0 has become a number.
func (e endpoint) uri(l net.Listener) string {
	if e.network == "unix" {
		return "nbd+unix:///?socket=" + escapeQuery(e.address)
	}
	return "nbd://" + l.Addr().String()
}

// escapeQuery is url.QueryEscape for clients that do not read '+' as a space,
// and with slashes left readable.
func escapeQuery(path string) string {
	return strings.NewReplacer("+", "%20", "%2F", "/").Replace(url.QueryEscape(path))
}

// listen binds the endpoint. A unix socket that a killed server left behind is
// removed first.
func (e endpoint) listen() (net.Listener, error) {
	if e.network == "unix" {
		if err := removeStaleSocket(e.address); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen(e.network, e.address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", e.address, bareSyscall(err))
	}
	return l, nil
}

// removeStaleSocket removes the socket at path if nobody listens on it. It is
// called with the volume's lock held, so no second server of the same volume
// does the same at the same time.
func removeStaleSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", path, bareSyscall(err))
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listen on %s: a file that is no socket is in the way; move it or choose another path", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("listen on %s: another process listens there; stop it or choose another path", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}

// bareSyscall returns the errno inside an error, if there is one: the wrappers
// of net repeat the address that our own message names already.
func bareSyscall(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// closeAll closes listeners that came to nothing.
func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}
