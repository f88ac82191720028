package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// A filesystem is how one is made and checked.
type filesystem struct {
	name  string
	make  []string // the device follows
	check []string // read-only; the device follows
}

// filesystems are those that must live on the device.
var filesystems = []filesystem{
	{"ext4", []string{"mkfs.ext4", "-q", "-F"}, []string{"e2fsck", "-fn"}},
	{"xfs", []string{"mkfs.xfs", "-q", "-f"}, []string{"xfs_repair", "-n"}},
	{"btrfs", []string{"mkfs.btrfs", "-q", "-f"}, []string{"btrfs", "check", "--readonly"}},
}

// filesystemSize is enough for each of them; XFS wants 300 MiB at least.
const filesystemSize = "512M"

// need skips the test when the filesystem's tools, or the filesystem, are missing.
func (f filesystem) need(t *testing.T) {
	t.Helper()
	needRoot(t)
	needTools(t, f.make[0], f.check[0])
}

// format makes the filesystem on a device.
func (f filesystem) format(t *testing.T, device string) {
	t.Helper()
	command(t, f.make[0], append(f.make[1:len(f.make):len(f.make)], device)...)
}

// clean checks the unmounted filesystem.
func (f filesystem) clean(t *testing.T, device string) {
	t.Helper()
	command(t, f.check[0], append(f.check[1:len(f.check):len(f.check)], device)...)
}

// TestFilesystem makes each filesystem on the device, runs fio on it with
// verification and fsync, unmounts it and checks it, twice.
func TestFilesystem(t *testing.T) {
	size := "32m"
	if long() {
		size = "128m"
	}
	for _, f := range filesystems {
		t.Run(f.name, func(t *testing.T) {
			f.need(t)
			needTools(t, "fio")
			v := newVolume(t, volumeOptions{size: filesystemSize, replicas: 3})
			v.start(t)
			a := attach(t, v)
			f.format(t, a.loop)
			dir := a.mount(t, f.name)
			command(t, "fio", "--name=verify", "--directory="+dir, "--size="+size, "--rw=randwrite", "--bs=4k",
				"--fsync=32", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--numjobs=2", "--ioengine=psync")
			a.unmount(t)
			f.clean(t, a.loop)
			a.detach(t)

			b := attach(t, v)
			dir = b.mount(t, f.name)
			command(t, "fio", "--name=verify", "--directory="+dir, "--size="+size, "--rw=randwrite", "--bs=4k",
				"--verify=crc32c", "--verify_only", "--verify_fatal=1", "--verify_state_save=0", "--numjobs=2", "--ioengine=psync")
			b.unmount(t)
			f.clean(t, b.loop)
			b.detach(t)
			v.stop(t)
		})
	}
}

// TestFilesystemKill kills the server in the middle of a load of small files,
// restarts it, and mounts again, which replays the filesystem's log: it checks
// clean, and every file that was fsynced before the kill is intact.
func TestFilesystemKill(t *testing.T) {
	kills := 1
	if long() {
		kills = 8
	}
	for _, f := range filesystems {
		t.Run(f.name, func(t *testing.T) {
			f.need(t)
			random := newRand(t)
			v := newVolume(t, volumeOptions{size: filesystemSize, replicas: 3})
			v.start(t)
			a := attach(t, v)
			f.format(t, a.loop)
			w := &writers{sums: map[string][sha256.Size]byte{}}
			for n := range kills {
				dir := a.mount(t, f.name)
				w.start(t.Context(), dir, n, random)
				wait := 500*time.Millisecond + time.Duration(random.IntN(500))*time.Millisecond
				if err := pause(t.Context(), wait); err != nil {
					t.Fatal(err)
				}
				v.Kill()
				w.wait()
				if err := a.release(); err != nil {
					t.Logf("what a filesystem says whose disk went away: %v", err)
				}
				v.start(t)
				a = attach(t, v)
				w.verify(t, a.mount(t, f.name))
				a.unmount(t)
				f.clean(t, a.loop)
			}
			a.detach(t)
			v.stop(t)
			v.sound(t)
			t.Logf("%d kills, %d files fsynced and intact", kills, len(w.sums))
		})
	}
}

// writers create files, fsync each with its directory, and remember those of
// which they were told that they are durable.
type writers struct {
	mu   sync.Mutex // guards sums
	sums map[string][sha256.Size]byte
	done sync.WaitGroup
}

// maxFiles bounds what one writer makes in one round.
const maxFiles = 500

// start begins a round; each writer has a directory of its own, and ends when
// the device does not take its writes any more.
func (w *writers) start(ctx context.Context, root string, round int, random *rand.Rand) {
	for n := range 4 {
		own := rand.New(rand.NewPCG(random.Uint64(), 3))
		dir := fmt.Sprintf("round-%d-%d", round, n)
		w.done.Go(func() {
			if os.Mkdir(filepath.Join(root, dir), 0o755) != nil {
				return
			}
			for i := 0; i < maxFiles && ctx.Err() == nil; i++ {
				if !w.one(root, filepath.Join(dir, fmt.Sprint(i)), own) {
					return
				}
			}
		})
	}
}

// one writes a file and tells whether it became durable.
func (w *writers) one(root, name string, random *rand.Rand) bool {
	data := make([]byte, 1+random.IntN(128<<10))
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	path := filepath.Join(root, name)
	if os.WriteFile(path, data, 0o644) != nil || fsync(path) != nil || fsync(filepath.Dir(path)) != nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sums[name] = sha256.Sum256(data)
	return true
}

// fsync makes a file or directory durable.
func fsync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("fsync: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("fsync: %w", err)
	}
	return nil
}

// wait waits until the writers have noticed that their device is gone.
func (w *writers) wait() { w.done.Wait() }

// verify reads every file that was durable.
func (w *writers) verify(t *testing.T, root string) {
	t.Helper()
	if len(w.sums) == 0 {
		t.Error("no file was made durable before the kill: this proves nothing")
	}
	for name, want := range w.sums {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Errorf("fsynced before the kill, and now: %v", err)
		} else if sha256.Sum256(data) != want {
			t.Errorf("%s was fsynced before the kill, and its content has changed", name)
		}
	}
}
