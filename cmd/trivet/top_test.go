package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"golang.org/x/sys/unix"

	"trivet/control"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.Local)

// sampled is an answer of a server with one slot in trouble, seconds after its
// start.
func sampled(seconds int) sample {
	n := uint64(seconds)
	return sample{
		at: noon.Add(time.Duration(seconds) * time.Second),
		status: control.Status{
			Version: "1.2", State: control.Degraded, Reason: "slot 1 is faulted", Generation: 7, UptimeSeconds: float64(seconds),
			PressureRatio: 0.372,
			Quorum:        2, Connections: 1, Inflight: 32,
			Volume: control.Volume{Name: "vol", SizeBytes: 1 << 30, Shards: 4, Replicas: 3},
			Slots: []control.Slot{
				{ID: 0, Where: "/v/slot-0", State: control.Current, LogBytes: n << 24, LiveBytes: n << 23, PressureRatio: 0.9996, SegmentsInUse: 12, SegmentsFree: 52},
				{
					ID: 1, Where: "/v/slot-1", State: control.Faulted, Reason: "log.sync failed 3 times", BacklogBytes: 4096,
					Errors: []control.SlotError{{Op: "log.sync", Errno: "EIO", Count: 3, First: noon, Last: noon}},
				},
				{ID: 2, Where: "/v/slot-2", State: control.Resyncing, MissingRegions: 17},
			},
			Counters: control.Counters{
				Reads: 1000 * n, Writes: 2000 * n, Flushes: 10 * n, ReadBytes: 4096000 * n, WriteBytes: 8192000 * n,
				WriteErrors: n, CacheHits: 900 * n, CacheMisses: 100 * n,
			},
			Latencies: []control.Latency{{Op: "write", Count: 31234, P50Seconds: 45e-6, P99Seconds: 0.0012, P999Seconds: 0.02, MaxSeconds: 1.5}},
			Arena:     control.Arena{Kind: "shared", SizeBytes: 64 << 20, FreeBytes: 60 << 20},
			Cache:     control.Cache{SizeBytes: 128 << 20, UsedBytes: 1 << 20},
			Process:   []control.Check{{Name: "io-flusher", Note: "not granted"}, {Name: "memory-lock", OK: true}},
		},
		events: []control.Event{{Time: noon, What: "slot 1 faulted: log.sync: EIO"}},
	}
}

// TestScreens compares what people see with golden files.
func TestScreens(t *testing.T) {
	unreachable := sample{at: noon.Add(9 * time.Second), err: errors.New("control socket v/control.sock: no server answers")}
	restarted := sampled(1)
	restarted.at = noon.Add(20 * time.Second)
	screens := map[string]func(width, height int) string{
		"first":       func(w, h int) string { return joined(screenLines(sample{}, sampled(5), w, h)) },
		"running":     func(w, h int) string { return joined(screenLines(sampled(3), sampled(5), w, h)) },
		"unreachable": func(w, h int) string { return joined(screenLines(sampled(5), unreachable, w, h)) },
		"never":       func(w, h int) string { return joined(screenLines(sample{}, unreachable, w, h)) },
		"restarted":   func(w, h int) string { return joined(screenLines(sampled(5), restarted, w, h)) },
		"plain": func(int, int) string {
			return plainLine(sample{}, sampled(3)) + "\n" + plainLine(sampled(3), sampled(5)) + "\n" +
				plainLine(sampled(5), unreachable) + "\n" + plainLine(sampled(5), restarted) + "\n"
		},
		"status": func(int, int) string {
			var out strings.Builder
			printStatus(&out, sampled(5).status)
			return out.String()
		},
		"inflight": func(int, int) string {
			var out strings.Builder
			printInflight(&out, []control.Inflight{
				{Op: "write", OffsetBytes: 0x3a000, LengthBytes: 4096, Stage: "replicate", AgeSeconds: 5.2, Waiting: "slot 2"},
				{Op: "write", OffsetBytes: 0x3b000, LengthBytes: 512, Stage: "admission", AgeSeconds: 1.5, Waiting: "log space"},
				{Op: "flush", Stage: "sync", AgeSeconds: 0.012},
			})
			return out.String()
		},
	}
	datadriven.RunTest(t, filepath.Join("testdata", "screens"), func(t *testing.T, d *datadriven.TestData) string {
		var width, height int
		d.MaybeScanArgs(t, "width", &width)
		d.MaybeScanArgs(t, "height", &height)
		screen, found := screens[d.Cmd]
		if !found {
			d.Fatalf(t, "no screen %q", d.Cmd)
		}
		return screen(width, height)
	})
}

func joined(lines []string) string { return strings.Join(lines, "\n") + "\n" }

// TestTopOnATerminal runs top on a real terminal, across the death of its
// server, and quits with a key.
func TestTopOnATerminal(t *testing.T) {
	volume := tempDir(t)
	server := startChild(t, "serve", volume, "--size", "16M")
	server.uri(t)
	terminal, top := startTop(t, volume)
	before := modes(t, terminal)
	seen := readUntil(t, terminal, "state     serving")
	if !strings.HasPrefix(seen, enterScreen) || modes(t, terminal) == before {
		t.Errorf("the terminal was not taken over: %.60q", seen)
	}
	server.signal(t, syscall.SIGKILL)
	server.wait(t)
	readUntil(t, terminal, "no server answers")
	if _, err := terminal.WriteString("q"); err != nil {
		t.Fatal(err)
	}
	readUntil(t, terminal, leaveScreen)
	if err := top.Wait(); err != nil {
		t.Errorf("top: %v", err)
	}
	if modes(t, terminal) != before {
		t.Error("the terminal is not as it was")
	}
}

// openTerminal makes a pseudo-terminal of 100 by 30: what a person sees of it,
// and the side that a program is given.
func openTerminal(t *testing.T) (terminal, side *os.File) {
	t.Helper()
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { terminal.Close() })
	fd := int(terminal.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0),
		unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 30, Col: 100}))
	if err != nil {
		t.Fatal(err)
	}
	side, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { side.Close() })
	return terminal, side
}

// startTop runs 'trivet top' on a new terminal.
func startTop(t *testing.T, volume string) (*os.File, *exec.Cmd) {
	t.Helper()
	terminal, side := openTerminal(t)
	cmd := exec.Command("/proc/self/exe", "top", "--control", volume)
	cmd.Env = append(os.Environ(), childRole+"=command")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = side, side, side
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return terminal, cmd
}

// readUntil reads what the terminal shows until a text appears.
func readUntil(t *testing.T, terminal io.Reader, text string) string {
	t.Helper()
	var seen bytes.Buffer
	chunk := make([]byte, 4096)
	for !strings.Contains(seen.String(), text) {
		n, err := terminal.Read(chunk)
		seen.Write(chunk[:n])
		if err != nil {
			t.Fatalf("read %v before %q in %q", err, text, &seen)
		}
	}
	return seen.String()
}

// modes returns the line discipline's local modes: echo, signals, lines.
func modes(t *testing.T, terminal *os.File) uint32 {
	t.Helper()
	termios, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return termios.Lflag
}

// TestTopIntoAPipe prints a line at once, and ends with its context.
func TestTopIntoAPipe(t *testing.T) {
	s := plannedServer(t, serveFlags{size: 16 << 20})
	defer s.close()
	client := control.NewClient(s.plan.control.address)
	defer client.Close()
	ctx, cancel := context.WithCancel(t.Context())
	out := &stopWriter{stop: cancel}
	if err := (&watcher{client: client}).runPlain(ctx, out); err != nil {
		t.Fatal(err)
	}
	if line := out.String(); !strings.Contains(line, "serving  slots 0:current") || strings.Count(line, "\n") != 1 {
		t.Errorf("printed %q", line)
	}
}

// stopWriter calls stop on the first write.
type stopWriter struct {
	bytes.Buffer
	stop func()
}

func (w *stopWriter) Write(p []byte) (int, error) {
	defer w.stop()
	return w.Buffer.Write(p)
}
