package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of CPU times in /proc: USER_HZ, 100 on every Linux
// that Go runs on.
const clockTick = 10 * time.Millisecond

// Usage is what a server's processes hold and have used.
type Usage struct {
	Processes     int
	ResidentBytes int64         // sum of VmRSS: pages shared by two processes count twice
	PeakBytes     int64         // the most that the main process ever had resident
	CPU           time.Duration // user and system time since their start
	Switches      int64         // voluntary context switches since their start: wake-ups
	WrittenBytes  int64         // sent to disks since their start, as the kernel counts it
}

// ErrNotRunning is returned when a measurement needs a running server.
var ErrNotRunning = errors.New("server is not running")

// Usage adds up the main process and all of its descendants.
func (s *Server) Usage() (Usage, error) {
	if !s.Running() {
		return Usage{}, fmt.Errorf("usage of %s: %w", s.cfg.Name, ErrNotRunning)
	}
	var sum Usage
	for _, pid := range descendants(s.cmd.Process.Pid) {
		if err := sum.add(pid); err != nil && !errors.Is(err, os.ErrNotExist) {
			return Usage{}, fmt.Errorf("usage of %s: %w", s.cfg.Name, err)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return Usage{}, fmt.Errorf("usage of %s: %w", s.cfg.Name, err)
	}
	sum.PeakBytes = statusField(string(status), "VmHWM:") << 10
	return sum, nil
}

// add counts one process with its threads.
func (u *Usage) add(pid int) error {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	fields, err := statFields(proc)
	if err != nil {
		return err
	}
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		return err
	}
	u.Processes++
	u.ResidentBytes += statusField(string(status), "VmRSS:") << 10
	// utime and stime are fields 14 and 15 of proc(5), counted from 1 with the
	// two that statFields has cut.
	u.CPU += time.Duration(atoi(fields[11])+atoi(fields[12])) * clockTick
	if io, err := os.ReadFile(proc + "/io"); err == nil { // only for root and the owner
		u.WrittenBytes += statusField(string(io), "write_bytes:")
	}
	threads, err := filepath.Glob(proc + "/task/*/status")
	if err != nil {
		return err
	}
	for _, thread := range threads {
		if text, err := os.ReadFile(thread); err == nil {
			u.Switches += statusField(string(text), "voluntary_ctxt_switches:")
		}
	}
	return nil
}

// descendants returns pid and every process that descends from it.
func descendants(pid int) []int {
	children := map[int][]int{}
	procs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	for _, proc := range procs {
		if fields, err := statFields(proc); err == nil {
			parent := int(atoi(fields[1]))
			children[parent] = append(children[parent], int(atoi(filepath.Base(proc))))
		}
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// statFields returns /proc/PID/stat from the third field on: the second is
// the program's name, which may hold anything but ends at the last ')'.
func statFields(proc string) ([]string, error) {
	text, err := os.ReadFile(proc + "/stat")
	if err != nil {
		return nil, err
	}
	_, rest, found := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !found || len(fields) < 13 {
		return nil, fmt.Errorf("%s/stat: unknown layout %q", proc, text)
	}
	return fields, nil
}

// statusField returns the number of a line 'name: 123 …', 0 when it is absent.
func statusField(status, name string) int64 {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if fields := strings.Fields(rest); len(fields) > 0 {
				return atoi(fields[0])
			}
		}
	}
	return 0
}

// atoi reads a number that the kernel printed.
func atoi(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}
