// Command trivet serves a replicated block device over NBD and talks to running
// servers through their control sockets.
//
// This package is the command line and the wiring, nothing more: it parses and
// validates, opens the volume, puts the front-end and the control socket on top
// and ends them in order. It owns the listeners, the signals, the terminal and
// what the process asks of the kernel (manners.go). On a crash it leaves stale
// sockets behind, which the next start removes once it knows that nobody
// listens on them; everything else is the volume's to keep.
//
// Exit status: 0 success, 1 failure, 2 usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// The exit statuses that scripts may rely on.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	// The metadata helper is started by servers, once a slot: it takes no part
	// in flags, signals or manners, so that it is up at once and stays small.
	if len(os.Args) > 1 && os.Args[1] == metaHelperCommand {
		os.Exit(runMetaHelper())
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit status. Refusals are one
// line on stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "trivet: %s\n", oneLine(err))
	var usage *usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailure
}

// oneLine is an error's text without line breaks: several errors that were
// joined are one refusal.
func oneLine(err error) string {
	lines := strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' })
	return strings.Join(lines, "; ")
}

// usageError is a command line that cannot be carried out, whatever the state
// of the machine.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usagef makes a usageError.
func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}
