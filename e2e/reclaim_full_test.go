package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"trivet/control"
)

// TestReclaimHostFull puts one slot on a small filesystem that another program
// fills to the last byte. That slot is dropped, at once, and nothing else
// happens: the process lives, no request fails or stands still, and two slots go
// on. With space again, a restart makes the slot whole.
func TestReclaimHostFull(t *testing.T) {
	needTrivet(t)
	needRoot(t)
	needTools(t, "mkfs.ext4", "losetup")
	disk := newSmallDisk(t)
	v := newReclaimed(t, killSize, "auto", "--slot", "2="+filepath.Join(disk, "slot"))
	k := &killer{volume: v, random: newRand(t), model: newModel(killSizeBytes)}
	v.start(t)
	pid := v.Pid()
	l := startLoad(t.Context(), k.model, v.socket(t), k.random)
	still := l.startStopwatch(t.Context())
	filler := fillDisk(t, disk)
	start := time.Now()
	eventually(t, time.Minute, func() error {
		if s := v.status(t).Slots[2]; s.State != control.Faulted {
			return fmt.Errorf("slot 2 is %s", s.State)
		}
		return nil
	})
	s := v.status(t)
	t.Logf("slot 2 was dropped %v after its disk was full: %s", time.Since(start).Round(time.Millisecond), s.Slots[2].Reason)
	if s.State != control.Degraded || s.Slots[0].State != control.Current || s.Slots[1].State != control.Current {
		t.Errorf("the volume is %s, its slots are %s, %s, %s", s.State, s.Slots[0].State, s.Slots[1].State, s.Slots[2].State)
	}
	k.wait(t, 500, 1500)
	longest := still()
	acked, err := l.stop()
	if err != nil {
		t.Fatal(err)
	}
	if longest > 5*time.Second {
		t.Errorf("nothing was acknowledged for %v because one disk of three was full", longest)
	}
	after := v.status(t)
	c := after.Counters
	if v.Pid() != pid || c.ReadErrors+c.WriteErrors+c.FlushErrors > 0 || after.Counters.Writes <= s.Counters.Writes {
		t.Errorf("the device does not just go on: %+v", c)
	}
	k.verify(t)

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	l = startLoad(t.Context(), k.model, v.socket(t), k.random)
	v.current(t)
	t.Logf("slot 2 was back %v after there was space again", time.Since(start).Round(time.Millisecond))
	if v.Pid() != pid {
		t.Error("the slot came back with another server")
	}
	more, err := l.stop()
	if err != nil {
		t.Fatal(err)
	}
	k.verify(t)
	v.stop(t)
	v.start(t)
	k.verify(t)
	k.verify(t)
	v.stop(t)
	t.Logf("%d requests acknowledged, %d of them while the slot came back; the longest time without one was %v", acked+more, more, longest.Round(time.Millisecond))
}

// startStopwatch measures the longest time in which nothing is acknowledged to
// the load; the function that it returns ends that and returns the result.
func (l *load) startStopwatch(ctx context.Context) func() time.Duration {
	ctx, cancel := context.WithCancel(ctx)
	result := make(chan time.Duration, 1)
	go func() {
		var longest time.Duration
		last, changed := -1, time.Now()
		for pause(ctx, 5*time.Millisecond) == nil {
			l.mu.Lock()
			now := l.acked
			l.mu.Unlock()
			longest = max(longest, time.Since(changed))
			if now != last {
				last, changed = now, time.Now()
			}
		}
		result <- longest
	}()
	return func() time.Duration {
		cancel()
		return <-result
	}
}

// newSmallDisk mounts a new ext4 of 512 MiB and returns where. It is unmounted
// at the end of the test, after whatever uses it has ended.
func newSmallDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "trivet-e2e-disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	command(t, "truncate", "-s", "512M", image)
	command(t, "mkfs.ext4", "-q", "-F", "-m", "0", image)
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	loop := strings.TrimSpace(command(t, "losetup", "--find", "--show", image))
	t.Cleanup(func() {
		if _, err := attempt(context.Background(), "losetup", "--detach", loop); err != nil {
			t.Log(err)
		}
	})
	command(t, "mount", loop, mnt)
	t.Cleanup(func() {
		if _, err := attempt(context.Background(), "umount", mnt); err != nil {
			t.Log(err)
			attempt(context.Background(), "umount", "--lazy", mnt)
		}
	})
	return mnt
}

// fillDisk writes a file until the filesystem has no byte left.
func fillDisk(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, zeroes{}, make([]byte, 1<<20))
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	return path
}

// zeroes is an endless file of zeros.
type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }
