package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"trivet/control"
)

// A process that serves its own host's kernel must not make the kernel wait for
// it: memory that the kernel frees by writing to our device cannot come from
// waiting for our device. Each manner below is asked for, and what was not
// granted is told in the status and in the log; the server works without.
//
// The manners are for the server alone. The metadata helper inherits the flag
// of the I/O flusher and the OOM score, which do it good, and never locks its
// memory.

const (
	// ioFlusherTried marks the process after the exec, so that there is one
	// exec at most, whatever it brought.
	ioFlusherTried = "TRIVET_IO_FLUSHER_TRIED"
	// oomScoreAdj makes the server one of the last to be killed, but leaves
	// -1000, 'never', to those who would rather lose it than the machine.
	oomScoreAdj = -900
	// wantFiles is room for the segments of three slots and for clients.
	wantFiles = 8192
)

// becomeIOFlusher sets PR_SET_IO_FLUSHER on this thread and executes the
// program again: the flag belongs to threads, survives exec and is inherited by
// every thread that starts later, while the Go runtime has started some
// already. It returns in the process that has been through that, or that was
// refused the flag. It is called before there is anything to lose.
func becomeIOFlusher() error {
	if os.Getenv(ioFlusherTried) != "" {
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if isIOFlusher() {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
		return nil // ioFlusher reports it
	}
	err := syscall.Exec(ownProgram(), os.Args, append(os.Environ(), ioFlusherTried+"=1"))
	return fmt.Errorf("execute the server again as I/O flusher: %w", err)
}

// ownProgram is the program's file, under its own name while it has one: ps
// shows the name that was executed. The link works for a file that an upgrade
// has replaced, too.
func ownProgram() string {
	path, err := os.Executable()
	if err != nil || unix.Access(path, unix.X_OK) != nil {
		return "/proc/self/exe"
	}
	return path
}

// isIOFlusher reports whether the calling thread has the flag.
func isIOFlusher() bool {
	set, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
	return err == nil && set == 1
}

// takeManners asks the kernel for all the rest and returns what was granted.
// From heapBytes on the garbage collector works harder.
func takeManners(log *slog.Logger, heapBytes uint64) []control.Check {
	os.Unsetenv(ioFlusherTried) // nothing that we start needs it
	checks := []control.Check{
		manner("io-flusher", ioFlusher),
		manner("memory-lock", lockMemory),
		manner("oom-score", lowerOOMScore),
		manner("open-files", checkFiles),
		manner("heap-limit", func() (string, error) { return limitHeap(heapBytes) }),
	}
	logChecks(log, checks)
	return checks
}

// manner runs one step; its note says what was obtained, or what is missing.
func manner(name string, step func() (note string, err error)) control.Check {
	note, err := step()
	if err != nil {
		return control.Check{Name: name, Note: err.Error()}
	}
	return control.Check{Name: name, OK: true, Note: note}
}

// logChecks writes one line for everything, a warning when something is missing.
func logChecks(log *slog.Logger, checks []control.Check) {
	level, attrs := slog.LevelInfo, []any{}
	for _, c := range checks {
		value := "ok"
		if !c.OK {
			level, value = slog.LevelWarn, c.Note
		}
		attrs = append(attrs, slog.String(c.Name, value))
	}
	log.Log(context.Background(), level, "process", attrs...)
}

// ioFlusher checks the thread it runs on, which stands for all: they descend
// from the one that called exec.
func ioFlusher() (string, error) {
	if _, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0); err != nil {
		return "", fmt.Errorf("not granted (%w, it needs CAP_SYS_RESOURCE): "+
			"when memory is short, the server may wait for its own device", err)
	}
	if !isIOFlusher() {
		return "", errors.New("not set: when memory is short, the server may wait for its own device")
	}
	return "set on every thread", nil
}

// lockMemory keeps what was touched once in memory. ONFAULT: nothing is
// populated ahead, so an untouched cache costs nothing. With MCL_FUTURE every
// later mapping counts, in full, against RLIMIT_MEMLOCK, and beyond it mmap
// fails, in the Go runtime too; so a finite limit that binds means no lock.
func lockMemory() (string, error) {
	infinite := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	raised := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &infinite)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return "", fmt.Errorf("read RLIMIT_MEMLOCK: %w", err)
	}
	if limit.Cur != unix.RLIM_INFINITY && !mayLockBeyond(limit.Cur) {
		return "", fmt.Errorf("not granted (RLIMIT_MEMLOCK is %s, raising it: %w, and no CAP_IPC_LOCK): "+
			"the server's memory may be paged out", formatSize(limit.Cur), raised)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return "", fmt.Errorf("mlockall: %w: the server's memory may be paged out", err)
	}
	return "what was touched stays in memory", nil
}

// mayLockBeyond finds out by trying whether the limit binds this process:
// having a capability in a container does not mean that the host honours it.
// The mapping is never touched and costs nothing.
func mayLockBeyond(limitBytes uint64) bool {
	if limitBytes > math.MaxInt/2 {
		return true
	}
	probe, err := unix.Mmap(-1, 0, int(limitBytes)+os.Getpagesize(), unix.PROT_READ,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return false
	}
	defer unix.Munmap(probe)
	return mlockOnFault(probe) == nil
}

func lowerOOMScore() (string, error) {
	const path = "/proc/self/oom_score_adj"
	if err := os.WriteFile(path, []byte(strconv.Itoa(oomScoreAdj)), 0); err != nil {
		return "", fmt.Errorf("not granted (%w, it needs CAP_SYS_RESOURCE): "+
			"the server is killed like any other process when memory is short", bareSyscall(err))
	}
	return strconv.Itoa(oomScoreAdj), nil
}

// checkFiles looks at what the Go runtime did: it raises the soft limit to the
// hard one before main, and gives children the old one back.
func checkFiles() (string, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return "", fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	if limit.Cur < wantFiles {
		raised := unix.Rlimit{Cur: wantFiles, Max: max(wantFiles, limit.Max)}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err != nil {
			return "", fmt.Errorf("%d, %d are wanted, raising it: %w: connections may be refused",
				limit.Cur, wantFiles, err)
		}
		limit = raised
	}
	return strconv.FormatUint(limit.Cur, 10), nil
}

// limitHeap sets the soft limit of the garbage collector unless GOMEMLIMIT did.
// The arena and the block cache are outside the heap.
func limitHeap(bytes uint64) (string, error) {
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		limit = int64(bytes)
		debug.SetMemoryLimit(limit)
	}
	return formatSize(uint64(limit)), nil
}

// mlockOnFault is mlock2(2) with MLOCK_ONFAULT, which x/sys does not wrap.
func mlockOnFault(mapping []byte) error {
	const mlockOnfault = 1
	_, _, errno := unix.Syscall(unix.SYS_MLOCK2,
		uintptr(unsafe.Pointer(unsafe.SliceData(mapping))), uintptr(len(mapping)), mlockOnfault)
	if errno != 0 {
		return errno
	}
	return nil
}
