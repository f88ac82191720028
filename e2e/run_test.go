package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRun does what a newcomer does: 'make run', work on the mounted
// filesystem, kill -9 of the server, which comes back under the filesystem's
// feet, and an end in order. What fio wrote all the while it reads back.
func TestRun(t *testing.T) {
	needTrivet(t)
	needRoot(t)
	needTools(t, "nbdfuse", "nbdkit", "fio", "mkfs.ext4")
	r := newRun(t)
	r.start(t)
	verified := make(chan error, 1)
	go func() {
		_, err := attempt(t.Context(), "fio", "--name=verify", "--directory="+r.mnt, "--size=48m", "--rw=randwrite",
			"--bs=4k", "--fsync=16", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--ioengine=psync",
			"--rate_iops=1500", "--time_based", "--runtime=8")
		verified <- err
	}()
	for range 2 {
		if err := pause(t.Context(), 2*time.Second); err != nil {
			t.Fatal(err)
		}
		r.killServer(t)
	}
	if err := <-verified; err != nil {
		t.Error(err)
	}
	r.stop(t)

	r.start(t)
	if _, err := os.Stat(filepath.Join(r.mnt, "verify.0.0")); err != nil {
		t.Errorf("the file of the first run: %v", err)
	}
	// A script that is killed leaves everything behind; the next one clears up.
	r.cmd.Process.Kill()
	<-r.ended
	r.start(t)
	if !strings.Contains(r.said(t), "left something behind") {
		t.Errorf("the script does not say that it cleared up:\n%s", r.said(t))
	}
	r.stop(t)
}

// A run is one scripts/run.
type run struct {
	volume, mnt, output, arena string
	cmd                        *exec.Cmd
	ended                      chan struct{} // closed when the script has
}

// newRun makes a place for a run; whatever is left there is taken apart at the
// end of the test.
func newRun(t *testing.T) *run {
	t.Helper()
	work, err := os.MkdirTemp("", "trivet-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	r := &run{volume: filepath.Join(work, "volume"), mnt: filepath.Join(work, "mnt"), output: filepath.Join(work, "output")}
	r.arena = newArenaDir(t, work)
	t.Cleanup(func() {
		r.clear(t)
		os.RemoveAll(work)
	})
	return r
}

// start runs the script until the filesystem is mounted.
func (r *run) start(t *testing.T) {
	t.Helper()
	out, err := os.Create(r.output)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	r.cmd = exec.Command("../scripts/run")
	r.cmd.Env = append(os.Environ(), "VOLUME="+r.volume, "MNT="+r.mnt, "TRIVET_BIN="+program, "SIZE=256M", "ARENA="+r.arena)
	r.cmd.Stdout, r.cmd.Stderr = out, out
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	r.ended = ended
	go func() {
		r.cmd.Wait() // how it ended is read from ProcessState
		close(ended)
	}()
	eventually(t, time.Minute, func() error {
		select {
		case <-ended:
			t.Fatalf("the script ended:\n%s", r.said(t))
		default:
		}
		if said := r.said(t); !strings.Contains(said, "running") {
			return fmt.Errorf("not running yet:\n%s", said)
		}
		return nil
	})
}

// said is what the script printed so far.
func (r *run) said(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(r.output)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// killServer kills the server that the script has started.
func (r *run) killServer(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(r.volume + ".run/server.pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill the server: %v", err)
	}
}

// stop ends the script in order: it exits with 0 and leaves nothing mounted.
func (r *run) stop(t *testing.T) {
	t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-r.ended
	if status := r.cmd.ProcessState.ExitCode(); status != 0 {
		t.Fatalf("the script ended with %d:\n%s", status, r.said(t))
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), filepath.Dir(r.volume)) {
		t.Fatalf("still mounted:\n%s", mounts)
	}
}

// clear lets a failed test leave nothing: a new run takes apart what an old
// one left, and is ended at once.
func (r *run) clear(t *testing.T) {
	t.Helper()
	if !t.Failed() {
		return
	}
	t.Logf("the script said:\n%s", r.said(t))
	if log, err := os.ReadFile(r.volume + ".run/server.log"); err == nil {
		t.Logf("the server said:\n%s", log)
	}
	r.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-r.ended:
	case <-time.After(time.Minute):
		r.cmd.Process.Kill()
		<-r.ended
	}
}
