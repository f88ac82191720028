package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"trivet/control"
	"trivet/device"
	"trivet/inject"
)

// child is 'trivet' as a process of its own.
type child struct {
	cmd    *exec.Cmd
	stdout *bufio.Reader
	stderr bytes.Buffer // complete after wait
}

// startChild runs the command; the test's end kills what is left of it.
func startChild(t *testing.T, args ...string) *child {
	t.Helper()
	if args[0] == "serve" { // what a killed server leaves in memory goes with the test
		shared := filepath.Join("/dev/shm", filepath.Base(filepath.Dir(args[1])))
		if err := os.MkdirAll(shared, 0o700); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(shared) })
		args = append(args, "--arena", shared)
	}
	c := &child{cmd: exec.Command("/proc/self/exe", args...)}
	c.cmd.Env = append(os.Environ(), childRole+"=command")
	c.cmd.Stderr = &c.stderr
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.stdout = bufio.NewReader(stdout)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
		if t.Failed() {
			t.Logf("standard error of trivet %s:\n%s", strings.Join(args, " "), &c.stderr)
		}
	})
	return c
}

// uri reads the next line that the server prints when it serves.
func (c *child) uri(t *testing.T) string {
	t.Helper()
	line, err := c.stdout.ReadString('\n')
	uri, found := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "serving ")
	if err != nil || !found {
		t.Fatalf("read %q, %v instead of 'serving URI'", line, err)
	}
	return uri
}

func (c *child) signal(t *testing.T, signal os.Signal) {
	t.Helper()
	if err := c.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// wait returns the exit status, -1 for a signal.
func (c *child) wait(t *testing.T) int {
	t.Helper()
	err := c.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return c.cmd.ProcessState.ExitCode()
}

func (c *child) status(t *testing.T, dir string) control.Status {
	t.Helper()
	client := control.NewClient(filepath.Join(dir, controlSocketName))
	defer client.Close()
	status, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// greeted connects to what the server said it serves, and reads NBD's magic.
func greeted(t *testing.T, uri string) {
	t.Helper()
	network, address := "tcp", strings.TrimPrefix(uri, "nbd://")
	if u, err := url.Parse(uri); err == nil && u.Scheme == "nbd+unix" {
		network, address = "unix", u.Query().Get("socket")
	}
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatalf("%s: %v", uri, err)
	}
	defer conn.Close()
	magic := make([]byte, 8)
	if _, err := io.ReadFull(conn, magic); err != nil || string(magic) != "NBDMAGIC" {
		t.Fatalf("%s greets with %q, %v", uri, magic, err)
	}
}

func TestServeTermAndServeAgain(t *testing.T) {
	dir := tempDir(t)
	volume := filepath.Join(dir, "vol")
	server := startChild(t, "serve", volume, "--size", "16M",
		"--listen", "unix://"+dir+"/a+b.sock", "--listen", "nbd://127.0.0.1:0")
	greeted(t, server.uri(t))
	greeted(t, server.uri(t))
	status := server.status(t, volume)
	if status.Volume.Name != "vol" || status.Volume.SizeBytes != 16<<20 || status.Version == "" || len(status.Process) == 0 {
		t.Errorf("status %+v", status)
	}
	server.signal(t, syscall.SIGTERM)
	if code := server.wait(t); code != exitOK {
		t.Fatalf("SIGTERM: exit %d", code)
	}
	for _, path := range []string{dir + "/a+b.sock", filepath.Join(volume, controlSocketName)} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left behind", path)
		}
	}
	again := startChild(t, "serve", volume)
	if uri := again.uri(t); uri != "nbd+unix:///?socket="+volume+"/nbd.sock" {
		t.Errorf("default address %s", uri)
	}
	again.signal(t, syscall.SIGINT)
	if code := again.wait(t); code != exitOK {
		t.Fatalf("SIGINT: exit %d", code)
	}
}

func TestServeAfterKill(t *testing.T) {
	volume := tempDir(t)
	first := startChild(t, "serve", volume, "--size", "16M")
	uri := first.uri(t)
	first.signal(t, syscall.SIGKILL)
	first.wait(t)
	second := startChild(t, "serve", volume)
	if again := second.uri(t); again != uri {
		t.Errorf("served %s, then %s", uri, again)
	}
	greeted(t, uri)
}

// TestServeOutlivesItsLog closes the pipes that the server prints and logs to.
func TestServeOutlivesItsLog(t *testing.T) {
	volume := tempDir(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	server := &child{cmd: exec.Command("/proc/self/exe", "serve", volume, "--size", "16M")}
	server.cmd.Env = append(os.Environ(), childRole+"=command")
	server.cmd.Stdout, server.cmd.Stderr = write, write
	if err := server.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.cmd.Process.Kill() }()
	write.Close()
	lines := bufio.NewScanner(read)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "serving ") {
	}
	read.Close()
	client := control.NewClient(filepath.Join(volume, controlSocketName))
	defer client.Close()
	for range 3 { // each is logged
		if _, err := client.AddFault(t.Context(), "log.sync delay=1ms"); err != nil {
			t.Fatal(err)
		}
	}
	server.signal(t, syscall.SIGTERM)
	if code := server.wait(t); code != exitOK {
		t.Fatalf("exit %d", code)
	}
}

func TestServeRefusesWhatItCannotDo(t *testing.T) {
	dir := tempDir(t)
	busy := filepath.Join(dir, "busy")
	l, err := net.Listen("unix", busy)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, test := range []struct {
		args []string
		says string
	}{
		{[]string{"serve", filepath.Join(dir, "new")}, "no volume here; give --size"},
		{[]string{"serve", filepath.Join(dir, "v"), "--size", "16M", "--listen", "unix://" + busy}, "another process listens"},
		{[]string{"serve", filepath.Join(dir, "v"), "--size", "16M", "--listen", "unix:///nowhere/at/all"}, "no such file"},
	} {
		c := startChild(t, test.args...)
		if code := c.wait(t); code != exitFailure {
			t.Errorf("%v: exit %d", test.args, code)
		}
		if _, err := os.Stat(filepath.Join(dir, "new")); !os.IsNotExist(err) {
			t.Errorf("a directory was made for nothing: %v", err)
		}
		refusal := lastLine(c.stderr.String())
		if !strings.HasPrefix(refusal, "trivet: serve ") || !strings.Contains(refusal, test.says) {
			t.Errorf("%v: refused with %q, want %q", test.args, refusal, test.says)
		}
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	return lines[len(lines)-1]
}

// plannedServer starts a server inside the test, without manners or signals.
func plannedServer(t *testing.T, flags serveFlags) *server {
	t.Helper()
	flags.deadline, flags.logLevel = durationFlag(time.Second), "info"
	plan, err := flags.plan(filepath.Join(tempDir(t), "vol"))
	if err != nil {
		t.Fatal(err)
	}
	plan.volume.Log = slog.New(slog.DiscardHandler)
	s, err := startServer(t.Context(), plan, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestServerLeavesNothing opens and closes everything in this process, with a
// client that stays and a fault that hangs; VerifyTestMain looks for leaks.
func TestServerLeavesNothing(t *testing.T) {
	s := plannedServer(t, serveFlags{size: 16 << 20})
	conn, err := net.Dial("unix", s.plan.listen[0].address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := s.volume.Faults().Add(inject.MustParse("log.sync hang")); err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if !s.volume.Faults().Empty() {
		t.Error("the hang was not released")
	}
	r := &device.Request{Op: device.Flush, Done: func(*device.Request) {}}
	if s.volume.Submit(r); !errors.Is(r.Err, device.ErrShutdown) {
		t.Errorf("after close: %v", r.Err)
	}
}

// TestSecondSignalEndsAtOnce replaces nothing but the exit.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	exited := make(chan int, 1)
	ctx, signals := startStopSignals(context.Background(), slog.New(slog.DiscardHandler), func(status int) { exited <- status })
	defer signals.Close()
	signals.signals <- syscall.SIGTERM
	<-ctx.Done()
	signals.signals <- syscall.SIGTERM
	if status := <-exited; status != exitFailure {
		t.Errorf("exit %d", status)
	}
}

// TestLogWriterNeverWaits writes far more than a reader who does not read.
func TestLogWriterNeverWaits(t *testing.T) {
	release := make(chan struct{})
	out := &blockedWriter{release: release}
	w := startLogWriter(out)
	line := []byte("line\n")
	for range 3 * maxLogLines {
		if n, err := w.Write(line); n != len(line) || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
	}
	close(release)
	w.Close()
	if _, err := w.Write(line); err != nil {
		t.Errorf("write after close: %v", err)
	}
	if text := out.String(); !strings.Contains(text, "log lines dropped") || strings.Count(text, "line\n") < maxLogLines {
		t.Errorf("%d bytes of log without the count of what was dropped", len(text))
	}
}

// blockedWriter takes nothing until it is released.
type blockedWriter struct {
	bytes.Buffer
	release <-chan struct{}
}

func (w *blockedWriter) Write(p []byte) (int, error) {
	<-w.release
	return w.Buffer.Write(p)
}
