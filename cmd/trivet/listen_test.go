package main

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseEndpoint(t *testing.T) {
	for uri, want := range map[string]endpoint{
		"unix:///run/t.sock":                       {"unix", "/run/t.sock"},
		"nbd+unix:///?socket=/run/t.sock":          {"unix", "/run/t.sock"},
		"nbd+unix:///?socket=/a%20b%2Bc":           {"unix", "/a b+c"},
		"nbd://localhost":                          {"tcp", "localhost:10809"},
		"nbd://127.0.0.1:7":                        {"tcp", "127.0.0.1:7"},
		"tcp://[::1]:7":                            {"tcp", "[::1]:7"},
		"tcp://:7":                                 {"tcp", ":7"},
		"unix:///" + strings.Repeat("x", 106):      {"unix", "/" + strings.Repeat("x", 106)},
		"nbd+unix:///?socket=%2Fwith%26and%3Dsign": {"unix", "/with&and=sign"},
	} {
		if got, err := parseEndpoint(uri); got != want || err != nil {
			t.Errorf("parseEndpoint(%q) = %v, %v; want %v", uri, got, err, want)
		}
	}
}

// FuzzParseEndpoint: the URI that a server prints leads back to where it
// listens.
func FuzzParseEndpoint(f *testing.F) {
	for _, uri := range []string{"unix:///a", "nbd+unix:///?socket=/a+b%2B", "nbd://h", "tcp://h:1", "%", "unix:///%00", "unix:///a?b"} {
		f.Add(uri)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		e, err := parseEndpoint(uri)
		if err != nil || e.network != "unix" {
			return
		}
		back, err := parseEndpoint(e.uri(nil))
		if err != nil || back != e {
			t.Errorf("%q listens on %q, prints %q, which is %q, %v", uri, e.address, e.uri(nil), back.address, err)
		}
		if u, err := url.Parse(e.uri(nil)); err != nil || strings.Contains(u.RawQuery, "+") {
			t.Errorf("%q prints %q, %v", uri, e.uri(nil), err)
		}
	})
}

// leaveStaleSocket makes what a killed server leaves behind.
func leaveStaleSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(tempDir(t), "s")
	leaveStaleSocket(t, path)
	l, err := endpoint{"unix", path}.listen()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestLiveSocketAndFilesStay(t *testing.T) {
	dir := tempDir(t)
	live := filepath.Join(dir, "live")
	l, err := net.Listen("unix", live)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(live, link); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{live: "another process", file: "no socket", link: "no socket"} {
		l, err := endpoint{"unix", path}.listen()
		if err == nil {
			l.Close()
			t.Errorf("%s was taken over", path)
		} else if !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", path, err, says)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s was removed", path)
		}
	}
}
