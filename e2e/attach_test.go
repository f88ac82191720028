package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// An attachment makes an export a block device without the kernel's nbd:
// nbdfuse shows it as a file, and a loop device is put on that.
type attachment struct {
	fuseDir string
	fuse    *exec.Cmd
	ended   chan struct{} // closed when nbdfuse has ended
	loop    string        // /dev/loopN
	mounted string        // where the device is mounted, "" when it is not
}

// attach makes a block device of the volume's export. It is taken apart at the
// end of the test if it still is there.
func attach(t *testing.T, v *volume) *attachment {
	t.Helper()
	needRoot(t)
	needTools(t, "nbdfuse", "losetup", "mount", "umount")
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("there is no FUSE here: %v", err)
	}
	dir, err := os.MkdirTemp(v.workDir, "fuse-")
	if err != nil {
		t.Fatal(err)
	}
	a := &attachment{fuseDir: dir, ended: make(chan struct{})}
	t.Cleanup(func() { a.tearDown(t) })
	a.startFuse(t, v)
	file := filepath.Join(dir, "disk")
	eventually(t, 20*time.Second, func() error {
		select {
		case <-a.ended:
			t.Fatalf("nbdfuse ended: %v", a.fuse.ProcessState)
		default:
		}
		_, err := os.Stat(file)
		return err
	})
	a.loop = strings.TrimSpace(command(t, "losetup", "--find", "--show", file))
	return a
}

// startFuse runs nbdfuse in the foreground.
func (a *attachment) startFuse(t *testing.T, v *volume) {
	t.Helper()
	a.fuse = exec.Command("nbdfuse", filepath.Join(a.fuseDir, "disk"), v.URI())
	log, err := os.Create(a.fuseDir + ".log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	a.fuse.Stdout, a.fuse.Stderr = log, log
	a.fuse.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := a.fuse.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		a.fuse.Wait() // how it ends says nothing: it is killed, or loses its server
		close(a.ended)
	}()
}

// mount mounts the device on a directory of the attachment's own.
func (a *attachment) mount(t *testing.T, fstype string) string {
	t.Helper()
	dir := a.fuseDir + ".mnt"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, "mount", "-t", fstype, a.loop, dir)
	a.mounted = dir
	return dir
}

// unmount unmounts in order and fails the test when that does not work.
func (a *attachment) unmount(t *testing.T) {
	t.Helper()
	command(t, "umount", a.mounted)
	a.mounted = ""
}

// detach takes the block device away in order.
func (a *attachment) detach(t *testing.T) {
	t.Helper()
	if err := a.release(); err != nil {
		t.Fatal(err)
	}
}

// release unmounts, removes the loop device, and ends nbdfuse, as far as each
// is there. It goes on after a failure, and reports all of them.
func (a *attachment) release() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	run := func(name string, args ...string) bool {
		_, err := attempt(ctx, name, args...)
		errs = append(errs, err)
		return err == nil
	}
	if a.mounted != "" && (run("umount", a.mounted) || run("umount", "--lazy", a.mounted)) {
		a.mounted = ""
	}
	if a.loop != "" && run("losetup", "--detach", a.loop) {
		a.loop = ""
	}
	if a.fuse != nil && a.fuse.Process != nil {
		// A loop device goes only when its last user has, which a filesystem
		// that was unmounted a moment ago may still be for another.
		unmountFuse(ctx, a.fuseDir)
		select {
		case <-a.ended:
		case <-ctx.Done():
			a.fuse.Process.Kill()
			errs = append(errs, fmt.Errorf("nbdfuse did not end: %w", ctx.Err()))
			<-a.ended
		}
		a.fuse = nil
	}
	return errors.Join(errs...)
}

// unmountFuse ends nbdfuse by unmounting its file, which may be busy for a moment.
func unmountFuse(ctx context.Context, dir string) {
	for {
		if _, err := attempt(ctx, "umount", dir); err == nil {
			return
		}
		if mounts, err := os.ReadFile("/proc/self/mounts"); err == nil && !strings.Contains(string(mounts), " "+dir+" ") {
			return
		}
		if pause(ctx, 20*time.Millisecond) != nil {
			return
		}
	}
}

// tearDown is release for the end of a test, which may have failed anywhere.
func (a *attachment) tearDown(t *testing.T) {
	t.Helper()
	if err := a.release(); err != nil {
		t.Logf("taking the block device apart: %v", err)
	}
	if t.Failed() {
		if said, err := os.ReadFile(a.fuseDir + ".log"); err == nil && len(said) > 0 {
			t.Logf("nbdfuse said:\n%s", said)
		}
	}
}
