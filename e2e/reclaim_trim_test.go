package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// trimSize is the size of the volumes that are trimmed.
const (
	trimSize      = "256M"
	trimSizeBytes = 256 << 20
)

// givesBack waits until the logs of all slots are within the bound of what the
// map says is there.
func (v *volume) givesBack(t *testing.T, sizeBytes int64) {
	t.Helper()
	live := allocatedBytes(t, v)
	start := time.Now()
	eventually(t, time.Minute, func() error {
		if now, bound := v.logBytes(t), spaceBound(live, sizeBytes); now > bound {
			return fmt.Errorf("a slot's log occupies %s for %s of live data, at most %s is right", mib(now), mib(live), mib(bound))
		}
		return nil
	})
	t.Logf("%s live, the log of a slot is %s after %v", mib(live), mib(v.logBytes(t)), time.Since(start).Round(10*time.Millisecond))
}

// TestReclaimTrim fills a filesystem with files, deletes them and trims: the
// space comes back to the host, and the map shows the holes. Mkfs discards what
// was there before.
func TestReclaimTrim(t *testing.T) {
	needTools(t, "fstrim", "mkfs.ext4", "e2fsck", "nbdinfo")
	ext4 := filesystems[0]
	v := newReclaimed(t, trimSize, "auto")
	v.start(t)
	c, err := dial(t.Context(), v.socket(t))
	if err != nil {
		t.Fatal(err)
	}
	fill(t, c, 0, trimSizeBytes) // what mkfs will find
	c.close()
	a := attach(t, v)
	ext4.make = []string{"mkfs.ext4", "-q", "-F", "-E", "discard,lazy_itable_init=0"}
	ext4.format(t, a.loop)
	if live := allocatedBytes(t, v); live > 32<<20 {
		t.Errorf("after mkfs with discard %s are allocated", mib(live))
	}
	v.givesBack(t, trimSizeBytes)

	dir := a.mount(t, "ext4")
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i * 7)
	}
	for i := range 128 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	command(t, "sync", "-f", dir)
	full, onHost := allocatedBytes(t, v), v.logBytes(t)
	if full < 128<<20 || onHost < 128<<20 {
		t.Fatalf("128 MiB of files: %s allocated, %s on the host", mib(full), mib(onHost))
	}
	for i := range 128 {
		if i%8 != 0 { // what stays lies among what goes
			if err := os.Remove(filepath.Join(dir, fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	command(t, "sync", "-f", dir)
	command(t, "fstrim", dir)
	if live := allocatedBytes(t, v); live > full-96<<20 {
		t.Errorf("%s allocated with the files, %s without 112 of them", mib(full), mib(live))
	}
	v.givesBack(t, trimSizeBytes)
	a.unmount(t)
	ext4.clean(t, a.loop)
	a.detach(t)
	v.healthy(t)
	v.stop(t)
}

// TestReclaimZeroes writes zeroes and trims, each over most of a full volume,
// in one request: both give the space back, and what they left reads as zeros.
func TestReclaimZeroes(t *testing.T) {
	needTools(t, "nbdinfo")
	for _, way := range []struct {
		name string
		cmd  uint16
	}{{"zeroes", cmdWriteZeroes}, {"trim", cmdTrim}} {
		t.Run(way.name, func(t *testing.T) {
			v := newReclaimed(t, trimSize, "auto")
			v.start(t)
			c, err := dial(t.Context(), v.socket(t))
			if err != nil {
				t.Fatal(err)
			}
			defer c.close()
			fill(t, c, 0, trimSizeBytes)
			full := v.logBytes(t)
			const from, length = 8 << 20, 240 << 20
			if err := c.do(way.cmd, 0, from, length, nil); err != nil {
				t.Fatal(err)
			}
			if live := allocatedBytes(t, v); live != trimSizeBytes-length {
				t.Errorf("%s allocated, expected %s", mib(live), mib(trimSizeBytes-length))
			}
			if full < trimSizeBytes {
				t.Fatalf("a full volume occupies %s", mib(full))
			}
			v.givesBack(t, trimSizeBytes)
			checkZeroes(t, c, from, length)
			v.stop(t)
			v.start(t)
			after, err := dial(t.Context(), v.socket(t))
			if err != nil {
				t.Fatal(err)
			}
			defer after.close()
			checkZeroes(t, after, from, length)
			v.stop(t)
		})
	}
}

// checkZeroes reads a range and its neighbours: zeros in it, none beside it.
func checkZeroes(t *testing.T, c *client, offset, length uint64) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for at := offset; at < offset+length; at += uint64(len(buf)) {
		if err := c.read(buf, at); err != nil {
			t.Fatal(err)
		}
		for i, b := range buf {
			if b != 0 {
				t.Fatalf("byte %#x is %#x, expected 0", at+uint64(i), b)
			}
		}
	}
	for _, at := range []uint64{offset - blockSize, offset + length} {
		if err := c.read(buf[:blockSize], at); err != nil {
			t.Fatal(err)
		}
		if [blockSize]byte(buf[:blockSize]) == [blockSize]byte{} {
			t.Errorf("the block at %#x was not to be zeroed, and is", at)
		}
	}
}
