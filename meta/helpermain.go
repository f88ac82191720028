package meta

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"math"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const helperSocket = 3 // the descriptor that the parent passes

// The exit codes of a helper. Badger's own fatal errors are 1, a panic of the
// Go runtime is 2.
const (
	exitClosed  = 0 // asked to close, or the parent is gone
	exitUsage   = 64
	exitRefused = 65 // the store could not be opened; the greeting said why
	exitFailed  = 66 // the store gave itself up
)

// HelperMain is the helper process of a store: it serves the directory named by
// its arguments over the socket at descriptor 3, and returns its exit code.
// Programs that call StartHelper call it for the hidden subcommand meta-helper,
// with the arguments after that word.
//
// It exits when the socket closes, so it never outlives its parent. Signals
// meant for the parent's terminal or service do not end it: the parent still
// needs it while it drains.
func HelperMain(args []string) int {
	dir, opt, err := parseHelperArgs(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "meta-helper:", err)
		return exitUsage
	}
	socket := os.NewFile(helperSocket, "parent")
	conn, err := net.FileConn(socket)
	if err != nil {
		fmt.Fprintf(os.Stderr, "meta-helper: no socket from a parent at descriptor %d: %v\n", helperSocket, err)
		return exitUsage
	}
	socket.Close()
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	beSmall()
	return serveHelper(conn, dir, opt)
}

func parseHelperArgs(args []string) (dir string, opt BadgerOptions, err error) {
	flags := flag.NewFlagSet("meta-helper", flag.ContinueOnError)
	flags.StringVar(&dir, "dir", "", "the store's directory")
	flags.Int64Var(&opt.MinFreeBytes, "min-free", 0, "bytes that stay free")
	flags.Int64Var(&opt.ReserveBytes, "reserve", 0, "bytes to preallocate")
	flags.DurationVar(&opt.RestAfter, "rest-after", 0, "how long nothing is asked before the store rests")
	flags.BoolVar(&opt.Expect.Create, "create", false, "make the store if there is none")
	flags.Func("owner", "whose store it is, in hexadecimal", opt.Expect.Owner.parse)
	flags.DurationVar(&opt.LockWait, "lock-wait", 0, "how long to wait for the directory's lock")
	if err := flags.Parse(args); err != nil {
		return "", opt, err
	}
	if dir == "" || flags.NArg() > 0 {
		return "", opt, errors.New("usage: meta-helper -dir DIR")
	}
	return dir, opt, nil
}

func helperArgs(dir string, opt BadgerOptions) []string {
	return []string{
		"-dir", dir,
		fmt.Sprintf("-owner=%x", opt.Expect.Owner[:]),
		fmt.Sprintf("-create=%v", opt.Expect.Create),
		fmt.Sprintf("-min-free=%d", opt.MinFreeBytes),
		fmt.Sprintf("-reserve=%d", opt.ReserveBytes),
		fmt.Sprintf("-rest-after=%s", opt.RestAfter),
		fmt.Sprintf("-lock-wait=%s", opt.LockWait),
	}
}

// beSmall makes this process cheap to keep and first to be killed: losing it
// costs a restart, losing the parent the device. Under a load that changes much of
// a large map 40 to 90 MiB of its heap are in use (memtables, compaction): a limit
// below that has it collect garbage all the time.
func beSmall() {
	runtime.GOMAXPROCS(2)
	debug.SetGCPercent(100)
	debug.SetMemoryLimit(128 << 20)
	_ = unix.Munlockall() // page faults are this process's purpose
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("700"), 0); err != nil {
		fmt.Fprintln(os.Stderr, "meta-helper: oom_score_adj:", err)
	}
}

// helper serves one parent.
type helper struct {
	server *server
	active sync.WaitGroup // requests under way
	idle   *time.Timer    // started anew by every request; nil when the store never rests
	after  time.Duration  // what idle waits

	out  sync.Mutex // held while a frame is written
	conn net.Conn
}

func serveHelper(conn net.Conn, dir string, opt BadgerOptions) int {
	h := &helper{conn: conn}
	e, err := openEngine(dir, opt)
	if err != nil {
		h.reply(replyFrame(0, nil, err))
		return exitRefused
	}
	h.server = newServer(e)
	debug.FreeOSMemory()
	if after := opt.withDefaults().RestAfter; after > 0 {
		h.startIdleTimer(after)
	}
	h.reply(replyFrame(0, e.state.Identity.encode(nil), nil))
	return h.receive()
}

// startIdleTimer makes the store rest when nothing was asked for that long.
func (h *helper) startIdleTimer(after time.Duration) {
	h.after = after
	h.idle = time.AfterFunc(math.MaxInt64, func() {
		if !h.server.rest() {
			h.idle.Reset(after)
		}
		debug.FreeOSMemory()
	})
	h.idle.Reset(after)
}

// receive starts the requests as they come. It returns when the parent is gone,
// without closing the store: everything acknowledged is durable, and the next
// helper may be waiting for the directory.
func (h *helper) receive() int {
	in := bufio.NewReaderSize(h.conn, 16<<10)
	for {
		f, err := readFrame(in)
		if err != nil {
			return exitClosed
		}
		if operation(f.kind) == opClose {
			h.active.Wait()
			if h.idle != nil {
				h.idle.Stop()
			}
			h.reply(replyFrame(f.id, nil, h.server.close()))
			return exitClosed
		}
		h.startRequest(f)
	}
}

// startRequest needs no bound of its own: the parent has maxInFlight. A store
// that gave itself up ends the process; the next helper opens it anew, and finds
// the rot, if that was why, as this one did.
func (h *helper) startRequest(f frame) {
	h.active.Go(func() {
		progress := func() { h.reply(frame{id: f.id, kind: uint8(statusProgress)}) }
		reply, err := h.server.handle(request{operation(f.kind), f.payload}, progress)
		if errors.Is(err, ErrFailed) {
			if !errors.Is(err, ErrCorrupt) { // which another helper would find as well
				err = fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
			h.reply(replyFrame(f.id, nil, err))
			os.Exit(exitFailed)
		}
		h.reply(replyFrame(f.id, reply, err))
		if operation(f.kind) == opCommit && len(f.payload) > chunkBytes/2 {
			debug.FreeOSMemory()
		}
		if h.idle != nil {
			h.idle.Reset(h.after)
		}
	})
}

// reply ignores errors: the reader meets them too, and ends the process.
func (h *helper) reply(f frame) {
	h.out.Lock()
	defer h.out.Unlock()
	_ = writeFrame(h.conn, f)
}
