// Package server starts and ends NBD servers for the end-to-end tests and the
// benchmarks: Trivet itself, and the peers it is compared with. A Server is a
// child process in a process group of its own, so that whatever it leaves
// behind can be ended without naming anything that this program did not start.
//
// A Server belongs to one goroutine; only Exited may be used by others.
package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// readyLine is what Trivet prints before the address once it serves.
const readyLine = "serving "

// ErrExited is wrapped when a server ends before it is ready.
var ErrExited = errors.New("server exited")

// ErrRunning is returned by Start when the process is there already.
var ErrRunning = errors.New("server is running already")

// Config says how a server is run.
type Config struct {
	// Name is how results and errors call the server.
	Name string
	// Args is the command and its arguments.
	Args []string
	// Env is added to this process's environment.
	Env []string
	// Socket is the unix socket that is known to be served before the start;
	// the server is ready when it accepts. When it is empty, the server tells
	// the address itself, in a line 'serving URI' on standard output.
	Socket string
	// LogPath is the file that standard error is appended to.
	LogPath string
}

// Server is one server process and how to reach it.
type Server struct {
	cfg    Config
	uri    string
	cmd    *exec.Cmd
	exited chan struct{} // closed by the waiter once cmd has ended
	state  error         // how it ended; read after exited is closed
}

// New returns a server that is not started.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

// Name returns the configured name.
func (s *Server) Name() string { return s.cfg.Name }

// URI returns the NBD URI of the default export, once Start has returned nil.
func (s *Server) URI() string { return s.uri }

// Pid returns the process id of the running server, 0 when it is not running.
func (s *Server) Pid() int {
	if !s.Running() {
		return 0
	}
	return s.cmd.Process.Pid
}

// Running tells whether the process was started and has not ended.
func (s *Server) Running() bool {
	if s.cmd == nil {
		return false
	}
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}

// ExitCode returns the status with which the process of the last Start ended;
// -1 when a signal ended it, or when it has not ended.
func (s *Server) ExitCode() int {
	var exit *exec.ExitError
	switch {
	case s.Running():
		return -1
	case errors.As(s.state, &exit):
		return exit.ExitCode()
	case s.state != nil:
		return -1
	}
	return 0
}

// Exited is closed when the process of the last Start has ended.
func (s *Server) Exited() <-chan struct{} { return s.exited }

// Start launches the process and returns once it serves. When the context
// ends first, or the process does, nothing is left running.
func (s *Server) Start(ctx context.Context) error {
	ready, err := s.Launch()
	if err != nil {
		return err
	}
	return s.Await(ctx, ready)
}

// Launch starts the process without waiting for it to serve: a test that kills
// a server while it recovers needs the time in between. The channel carries
// the address and is closed with nothing in it when there will be none.
func (s *Server) Launch() (<-chan string, error) {
	if s.Running() {
		return nil, fmt.Errorf("start %s: %w", s.cfg.Name, ErrRunning)
	}
	if s.cmd != nil {
		s.endGroup()
	}
	log, err := os.OpenFile(s.cfg.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: log: %w", s.cfg.Name, err)
	}
	defer log.Close()
	if s.cfg.Socket != "" {
		os.Remove(s.cfg.Socket) // what a killed peer left would keep it from listening
	}
	stdout, childStdout, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.cfg.Name, err)
	}
	defer childStdout.Close()
	cmd := exec.Command(s.cfg.Args[0], s.cfg.Args[1:]...)
	cmd.Env = append(os.Environ(), s.cfg.Env...)
	cmd.Stdout, cmd.Stderr = childStdout, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		stdout.Close()
		return nil, fmt.Errorf("start %s: %w", s.cfg.Name, err)
	}
	s.cmd, s.exited, s.uri = cmd, make(chan struct{}), ""
	s.startWaiter(cmd, s.exited)
	return s.startReader(stdout, s.exited), nil
}

// Await returns once a launched server serves, and ends it otherwise.
func (s *Server) Await(ctx context.Context, ready <-chan string) error {
	select {
	case uri, ok := <-ready:
		if ok {
			s.uri = uri
			return nil
		}
		<-s.exited
		s.endGroup()
		return fmt.Errorf("%w before it served: %s: %v\n%s", ErrExited, s.cfg.Name, s.state, s.LogTail(20))
	case <-ctx.Done():
		s.Kill()
		return fmt.Errorf("wait for %s to serve: %w\n%s", s.cfg.Name, ctx.Err(), s.LogTail(20))
	}
}

// startWaiter reaps the process. It ends with the process.
func (s *Server) startWaiter(cmd *exec.Cmd, exited chan struct{}) {
	go func() {
		s.state = cmd.Wait()
		close(exited)
	}()
}

// startReader finds out when the server serves, and keeps its standard output
// from filling up. It ends with the process.
func (s *Server) startReader(stdout *os.File, exited <-chan struct{}) <-chan string {
	ready := make(chan string, 1)
	go func() {
		defer stdout.Close()
		defer close(ready)
		if s.cfg.Socket != "" {
			if awaitSocket(s.cfg.Socket, exited) {
				ready <- UnixURI(s.cfg.Socket)
			}
			return
		}
		lines := bufio.NewScanner(stdout)
		for told := false; lines.Scan(); {
			uri, ok := strings.CutPrefix(lines.Text(), readyLine)
			if ok && !told {
				ready <- strings.TrimSpace(uri)
				told = true
			}
		}
	}()
	return ready
}

// awaitSocket connects until it succeeds or the server has exited. A foreign
// server announces nothing, so this one asks it every few milliseconds.
func awaitSocket(path string, exited <-chan struct{}) bool {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close()
			return true
		}
		select {
		case <-exited:
			return false
		case <-tick.C:
		}
	}
}

// Stop asks the server to end (SIGTERM) and waits. It returns an error when
// the server does not exit with status 0 before the context ends; then it was
// killed.
func (s *Server) Stop(ctx context.Context) error {
	if s.cmd == nil {
		return nil
	}
	defer s.endGroup()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", s.cfg.Name, err)
	}
	select {
	case <-s.exited:
	case <-ctx.Done():
		return fmt.Errorf("stop %s: killed, it did not end by itself: %w\n%s", s.cfg.Name, ctx.Err(), s.LogTail(20))
	}
	if s.state != nil {
		return fmt.Errorf("stop %s: %w\n%s", s.cfg.Name, s.state, s.LogTail(20))
	}
	return nil
}

// Kill ends the server's main process with SIGKILL, as 'kill -9' does, and
// waits until it is gone. Its helper processes are left to notice by themselves.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Kill() // the only error is that it has ended already
	<-s.exited
}

// Close ends whatever is left of the server, at once. It may be called always.
func (s *Server) Close() {
	s.Kill()
	if s.cmd != nil {
		s.endGroup()
	}
}

// endGroup kills what is left of the process group. The group exists only if
// some member does, and its id is not given to others while it does.
func (s *Server) endGroup() {
	syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	<-s.exited
	s.cmd = nil
}

// LogTail returns the last lines of the server's standard error.
func (s *Server) LogTail(lines int) string {
	text, err := os.ReadFile(s.cfg.LogPath)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// UnixURI returns the NBD URI of the default export on a unix socket.
func UnixURI(path string) string { return "nbd+unix:///?socket=" + path }

// TrivetOptions are what 'trivet serve' is told besides the directory.
type TrivetOptions struct {
	Binary   string   // path of the program
	Size     string   // as on the command line: 1G
	Replicas int      // 1 or 3
	ArenaDir string   // directory of the arena; empty for the default
	Listen   string   // URI; empty for the unix socket in the volume's directory
	LogPath  string   // standard error; empty for a file beside the volume
	Extra    []string // further arguments
}

// Trivet returns a server of the volume in dir, created at its first start.
func Trivet(dir string, o TrivetOptions) *Server {
	args := []string{
		o.Binary, "serve", dir, "--size", o.Size, "--replicas", fmt.Sprint(o.Replicas),
		"--control", filepath.Join(dir, "control.sock"),
	}
	if o.Listen != "" {
		args = append(args, "--listen", o.Listen)
	}
	if o.ArenaDir != "" {
		args = append(args, "--arena", o.ArenaDir)
	}
	if o.LogPath == "" {
		o.LogPath = dir + ".log"
	}
	return New(Config{
		Name:    fmt.Sprintf("trivet%d", o.Replicas),
		Args:    append(args, o.Extra...),
		LogPath: o.LogPath,
	})
}

// NBDKit returns an nbdkit server with the given plugin and its parameters,
// listening on dir/nbdkit.sock.
func NBDKit(dir string, plugin ...string) *Server {
	socket := filepath.Join(dir, "nbdkit.sock")
	return New(Config{
		Name:    "nbdkit-" + plugin[0],
		Args:    append([]string{"nbdkit", "--foreground", "--unix", socket}, plugin...),
		Socket:  socket,
		LogPath: filepath.Join(dir, "nbdkit.log"),
	})
}
