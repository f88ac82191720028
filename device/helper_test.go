package device

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// helperOf returns the process that keeps the metadata of a slot: the one of
// this user whose arguments name the slot's directory.
func helperOf(t *testing.T, slotDir string) int {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		args, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		if text := string(args); strings.Contains(text, "meta-helper") && strings.Contains(text, slotDir+"/meta") {
			pid, err := strconv.Atoi(strings.Split(name, "/")[2])
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("no metadata helper of %s", slotDir)
	return 0
}

// TestMetadataHelper: one slot's metadata helper is killed, another's is stuck
// (hazard 20). Writes, flushes and reads go on; the checkpoint at the end needs
// both again.
func TestMetadataHelper(t *testing.T) {
	v := newVolume(t, nil)
	killed, stuck := helperOf(t, v.opt.Dir+"/slot-0"), helperOf(t, v.opt.Dir+"/slot-1")
	if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(stuck, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for i := range 32 {
		v.must(v.write(uint64(i)<<20, pattern(i, 16<<10), 0))
		v.must(v.flush())
	}
	for i := range 32 {
		v.expect(uint64(i)<<20, pattern(i, 16<<10))
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("32 writes and flushes took %v with two metadata helpers out of order", took)
	}
	if err := syscall.Kill(stuck, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	v.reopen()
	for i := range 32 {
		v.expect(uint64(i)<<20, pattern(i, 16<<10))
	}
}
