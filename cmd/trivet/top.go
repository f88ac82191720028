package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"trivet/control"
)

const (
	topInterval   = time.Second     // between two screens
	plainInterval = 5 * time.Second // between two lines, without a terminal
	topTimeout    = 2 * time.Second // for the server to answer
	topEvents     = 8               // last events on the screen
)

func newTopCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch a running server on one screen",
		Long: `Shows rates, slots, connections and the last events of a running server, once a
second, until q or Ctrl-C. It goes on when the server is stopped and started
again. When standard output is no terminal it prints one line every 5 seconds.`,
		Args: wantArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			found, err := topPath(path)
			if err != nil {
				return fmt.Errorf("top: %w", err)
			}
			client := control.NewClient(found)
			defer client.Close()
			w := &watcher{client: client}
			if out, ok := cmd.OutOrStdout().(*os.File); ok && term.IsTerminal(int(out.Fd())) {
				return w.runScreen(ctx, os.Stdin, out)
			}
			return w.runPlain(ctx, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&path, "control", "", "control socket of the server, or the volume's directory")
	nameValue(cmd.Flags(), "control", "PATH")
	return cmd
}

// topPath is controlPath for somebody who waits for the server: a named socket
// need not be there yet.
func topPath(flag string) (string, error) {
	path, err := controlPath(flag)
	var usage *usageError
	if err == nil || flag == "" || errors.As(err, &usage) {
		return path, err
	}
	return flag, nil
}

// sample is one answer of the server, or the reason why there was none.
type sample struct {
	at     time.Time
	status control.Status
	events []control.Event
	err    error
}

// watcher asks the server again and again. It belongs to one goroutine and
// starts none.
type watcher struct {
	client   *control.Client
	previous sample // the answer before the last; never an error
	last     sample
}

func (w *watcher) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, topTimeout)
	defer cancel()
	next := sample{}
	next.status, next.err = w.client.Status(ctx)
	next.at = time.Now()
	if next.err == nil {
		next.events, next.err = w.client.Events(ctx)
	}
	if w.last.err == nil {
		w.previous = w.last
	}
	w.last = next
}

// runPlain prints one line an interval, for logs and pipes.
func (w *watcher) runPlain(ctx context.Context, out io.Writer) error {
	ticker := time.NewTicker(plainInterval)
	defer ticker.Stop()
	for {
		w.ask(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if _, err := fmt.Fprintln(out, plainLine(w.previous, w.last)); err != nil {
			return fmt.Errorf("top: %w", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// The terminal's control sequences (ECMA-48, and xterm's alternate screen).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	cursorHome  = "\x1b[H"
	clearLine   = "\x1b[K"
	clearRest   = "\x1b[J"
)

// runScreen draws until q, Ctrl-C or the end of the context, and gives the
// terminal back as it was.
func (w *watcher) runScreen(ctx context.Context, in, out *os.File) error {
	if saved, err := term.MakeRaw(int(in.Fd())); err == nil {
		defer term.Restore(int(in.Fd()), saved)
	} else {
		in = nil // no keys then; signals still end it
	}
	fmt.Fprint(out, enterScreen)
	defer fmt.Fprint(out, leaveScreen)
	for {
		w.ask(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := draw(out, w.previous, w.last); err != nil {
			return fmt.Errorf("top: %w", err)
		}
		if quit := waitForQuit(ctx, in, topInterval); quit {
			return nil
		}
	}
}

// draw writes one screen in one write, so that it does not flicker.
func draw(out *os.File, previous, last sample) error {
	width, height, err := term.GetSize(int(out.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		width, height = 80, 24
	}
	frame := []byte(cursorHome)
	for i, line := range screenLines(previous, last, width, height) {
		if i > 0 {
			frame = append(frame, "\r\n"...)
		}
		frame = append(frame, line...)
		frame = append(frame, clearLine...)
	}
	_, err = out.Write(append(frame, clearRest...))
	return err
}

// waitForQuit lets the interval pass, and reports whether a key or the context
// asked for the end. It polls rather than reads in a goroutine: a read of a
// terminal cannot be called off.
func waitForQuit(ctx context.Context, in *os.File, interval time.Duration) bool {
	const step = 100 * time.Millisecond // how late a signal may be noticed
	for end := time.Now().Add(interval); time.Now().Before(end); {
		if ctx.Err() != nil {
			return true
		}
		var keys []unix.PollFd
		if in != nil {
			keys = []unix.PollFd{{Fd: int32(in.Fd()), Events: unix.POLLIN}}
		}
		ready, err := unix.Poll(keys, int(step/time.Millisecond))
		if err == nil && ready > 0 && readQuit(in) {
			return true
		}
	}
	return false
}

// readQuit reads the keys that are there; a terminal that went away quits too.
func readQuit(in *os.File) bool {
	const controlC, controlD = 3, 4
	buffer := make([]byte, 64)
	n, err := in.Read(buffer)
	if err != nil {
		return true
	}
	for _, key := range buffer[:n] {
		if key == 'q' || key == 'Q' || key == controlC || key == controlD {
			return true
		}
	}
	return false
}
