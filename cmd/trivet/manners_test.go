package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"trivet/control"
)

// flusherFlags are PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE (linux/sched.h), what
// PR_SET_IO_FLUSHER sets. prctl tells them of the calling thread alone; /proc
// tells them of all.
const flusherFlags = 0x00080000 | 0x00100000

// threadFlags reads the ninth field of each thread's stat.
func threadFlags(t *testing.T, pid int) map[string]uint64 {
	t.Helper()
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no threads of %d: %v", pid, err)
	}
	flags := map[string]uint64{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if flags[path], err = strconv.ParseUint(fields[6], 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return flags
}

// memoryOf returns a size from /proc/PID/status in bytes.
func memoryOf(t *testing.T, pid int, field string) uint64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, field+":"); found {
			kib, err := strconv.ParseUint(strings.Fields(value)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no %s of %d", field, pid)
	return 0
}

func checkNamed(t *testing.T, checks []control.Check, name string) control.Check {
	t.Helper()
	for _, c := range checks {
		if c.Name == name {
			if !c.OK && c.Note == "" {
				t.Errorf("%s was not granted, and nobody says why", name)
			}
			return c
		}
	}
	t.Fatalf("no check %q in %+v", name, checks)
	return control.Check{}
}

// TestMannersAreWhatStatusSays looks from outside at what a server says of
// itself. What this machine does not grant is skipped by name.
func TestMannersAreWhatStatusSays(t *testing.T) {
	dir := tempDir(t)
	server := startChild(t, "serve", dir, "--size", "16M")
	server.uri(t)
	pid, checks := server.cmd.Process.Pid, server.status(t, dir).Process

	flusher := checkNamed(t, checks, "io-flusher")
	for path, flags := range threadFlags(t, pid) {
		if set := flags&flusherFlags == flusherFlags; set != flusher.OK {
			t.Errorf("%s: flags %#x, while status says %+v", path, flags, flusher)
		}
	}
	locked := checkNamed(t, checks, "memory-lock")
	if bytes := memoryOf(t, pid, "VmLck"); (bytes > 0) != locked.OK {
		t.Errorf("%d bytes locked, while status says %+v", bytes, locked)
	}
	if resident := memoryOf(t, pid, "VmRSS"); !raceEnabled && resident > 64<<20 {
		t.Errorf("%d bytes resident after the start", resident)
	}
	score := checkNamed(t, checks, "oom-score")
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	if err != nil || (strings.TrimSpace(string(text)) == strconv.Itoa(oomScoreAdj)) != score.OK {
		t.Errorf("oom_score_adj is %s, %v, while status says %+v", text, err, score)
	}
	for _, c := range checks {
		if !c.OK { // then the above has tested only that it is said
			t.Run(c.Name, func(t *testing.T) { t.Skip(c.Note) })
		}
	}
}

// TestLockedMemoryStaysUntouched maps a gigabyte after mlockall and touches
// little of it: nothing may be populated ahead. It runs in a child, because
// mlockall is for ever.
func TestLockedMemoryStaysUntouched(t *testing.T) {
	report := runRole(t, "locked")
	if locked := checkNamed(t, report.Checks, "memory-lock"); !locked.OK {
		t.Skipf("memory-lock: %s", locked.Note)
	}
	if grown := report.ResidentAfter - report.ResidentBefore; grown > 8<<20 {
		t.Errorf("a gigabyte that was mapped and not touched made %d bytes resident", grown)
	}
}

// TestMannersWithoutPrivileges gives up every capability first: nothing may
// fail, everything must say so, and later mappings must still work.
func TestMannersWithoutPrivileges(t *testing.T) {
	report := runRole(t, "unprivileged")
	for _, name := range []string{"io-flusher", "memory-lock", "oom-score"} {
		if c := checkNamed(t, report.Checks, name); c.OK {
			t.Errorf("%+v without capabilities", c)
		}
	}
	if !strings.Contains(report.Log, "level=WARN") || !strings.Contains(report.Log, "CAP_SYS_RESOURCE") {
		t.Errorf("the log does not say what is missing: %s", report.Log)
	}
}

// childReport is what a child tells on standard output.
type childReport struct {
	Checks                        []control.Check
	Log                           string
	ResidentBefore, ResidentAfter int64
}

func runRole(t *testing.T, role string) (report childReport) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childRole+"="+role)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("child: %v", err)
	}
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatal(err)
	}
	return report
}

// mannersChild takes the manners, without capabilities if told so, maps a
// gigabyte and reports. Capabilities belong to threads, hence the lock.
func mannersChild(drop bool) {
	runtime.LockOSThread()
	if drop {
		dropCapabilities()
	}
	var log bytes.Buffer
	report := childReport{Checks: takeManners(slog.New(slog.NewTextHandler(&log, nil)), divideMemory(0, defaultConnections).heap)}
	report.Log = log.String()
	report.ResidentBefore = resident()
	mapping, err := unix.Mmap(-1, 0, 1<<30, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		panic(err)
	}
	mapping[0] = 1
	report.ResidentAfter = resident()
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		panic(err)
	}
}

func dropCapabilities() {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		panic(err)
	}
	// A root that has no capabilities still has the limits of root's session.
	limit := unix.Rlimit{Cur: 8 << 20, Max: 8 << 20}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		panic(err)
	}
}

// resident returns the bytes of this process that are in memory.
func resident() int64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		panic(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		panic(err)
	}
	return pages * int64(os.Getpagesize())
}
