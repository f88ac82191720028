package nbd_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"trivet/device/nbd"
)

// run runs a real client and returns what it printed; the test is skipped, with
// the reason, where the client is not installed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed: %v", name, err)
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = t.TempDir() // fio leaves files where it runs
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

func uri(path string) string { return "nbd+unix:///volume?socket=" + path }

// bothCompletions runs a test with a device that completes inline, and with
// one that completes elsewhere and out of order.
func bothCompletions(t *testing.T, size uint64, test func(t *testing.T, f *fake, path string)) {
	for _, async := range []bool{false, true} {
		t.Run(fmt.Sprintf("async=%v", async), func(t *testing.T) {
			f := newFake(size)
			if async {
				f.startAsync(t, 11)
			}
			_, path := start(t, f, nbd.Options{})
			test(t, f, path)
		})
	}
}

func TestNbdinfo(t *testing.T) {
	f := newFake(10<<20 + 512)
	_, path := start(t, f, nbd.Options{})
	var info struct{ Exports []map[string]any }
	out := run(t, "nbdinfo", "--list", "--json", "nbd+unix:///?socket="+path)
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatal(err)
	}
	if len(info.Exports) != 1 {
		t.Fatalf("exports: %s", out)
	}
	for key, want := range map[string]any{
		"export-name": "volume", "export-size": float64(10<<20 + 512), "contexts": []any{"base:allocation"},
		"block_size_minimum": 1.0, "block_size_preferred": 4096.0, "block_size_maximum": float64(32 << 20),
		"is_read_only": false, "is_rotational": false, "can_cache": true, "can_df": true, "can_fast_zero": true,
		"can_flush": true, "can_fua": true, "can_multi_conn": true, "can_trim": true, "can_zero": true,
	} {
		if got := info.Exports[0][key]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", key, got, want)
		}
	}
}

func TestNbdinfoMap(t *testing.T) {
	f := newFake(200 << 20) // more than one block status command answers
	f.mark(1<<20, 3<<20, true)
	f.mark(100<<20, 101<<20, true)
	_, path := start(t, f, nbd.Options{})
	var extents []struct{ Offset, Length, Type uint64 }
	out := run(t, "nbdinfo", "--map", "--json", uri(path))
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		t.Fatal(err)
	}
	// nbdinfo joins neighbours that are alike.
	want := []struct{ Offset, Length, Type uint64 }{
		{0, 1 << 20, 3},
		{1 << 20, 2 << 20, 0},
		{3 << 20, 97 << 20, 3},
		{100 << 20, 1 << 20, 0},
		{101 << 20, 99 << 20, 3},
	}
	if fmt.Sprint(extents) != fmt.Sprint(want) {
		t.Errorf("map %v, want %v", extents, want)
	}
}

// sparseImage writes a file with data, holes and ragged ends.
func sparseImage(t *testing.T, size int64) (path string, content []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "image")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	content = make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	for at := int64(0); at < size; at += int64(1+rng.IntN(40)) * blockSize * 8 {
		n := min(int64(1+rng.IntN(300<<10)), size-at)
		for i := range n {
			content[at+i] = byte(rng.Uint32())
		}
		if _, err := file.WriteAt(content[at:at+n], at); err != nil {
			t.Fatal(err)
		}
	}
	return path, content
}

// TestNbdcopy copies a sparse image in and out again: equal, and holes stay.
func TestNbdcopy(t *testing.T) {
	const size = 16<<20 + 512
	bothCompletions(t, size, func(t *testing.T, f *fake, path string) {
		image, content := sparseImage(t, size)
		run(t, "nbdcopy", "--connections=4", image, uri(path))
		if got, _ := f.snapshot(); !bytes.Equal(got, content) {
			t.Fatal("the device holds something else than the image")
		}
		if f.countStored() == len(f.stored) {
			t.Error("no holes on the device")
		}
		back := filepath.Join(t.TempDir(), "back")
		run(t, "nbdcopy", "--connections=4", uri(path), back)
		if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("the copy differs from the image (%v)", err)
		}
		// And in small requests, out of order.
		run(t, "nbdcopy", "--request-size=4096", "--requests=64", uri(path), back)
		if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("the copy in small requests differs from the image (%v)", err)
		}
	})
}

// countStored returns how many blocks are not holes.
func (f *fake) countStored() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, s := range f.stored {
		if s {
			n++
		}
	}
	return n
}

func TestQemuImg(t *testing.T) {
	const size = 16 << 20
	bothCompletions(t, size, func(t *testing.T, f *fake, path string) {
		image, content := sparseImage(t, size)
		run(t, "qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", image, uri(path))
		if got, _ := f.snapshot(); !bytes.Equal(got, content) {
			t.Fatal("the device holds something else than the image")
		}
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri(path))
		back := filepath.Join(t.TempDir(), "back")
		run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri(path), back)
		if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("the copy differs from the image (%v)", err)
		}
	})
}

// TestQemuIO does FUA writes, discards and zeroes at odd offsets.
func TestQemuIO(t *testing.T) {
	const size = 16 << 20
	bothCompletions(t, size, func(t *testing.T, f *fake, path string) {
		f.mu.Lock()
		f.durable = make([]byte, size)
		f.mu.Unlock()
		out := run(t, "qemu-io", "-f", "raw", "-t", "none",
			"-c", "write -P 0x11 0 1M",
			"-c", "write -f -P 0x22 513 70001",
			"-c", "write -z 4097 9001",
			"-c", "write -z -f -u 100001 40007",
			"-c", "discard 200003 60013",
			"-c", "aio_write -P 0x33 300007 5003",
			"-c", "aio_flush",
			"-c", "read -P 0x11 0 513",
			"-c", "read -P 0x22 513 3584",
			"-c", "read -P 0 4097 9001",
			"-c", "read -P 0x22 13098 57416",
			"-c", "read -P 0 100001 40007",
			"-c", "read -P 0x33 300007 5003",
			"-c", "flush",
			uri(path))
		if strings.Contains(out, "failed") {
			t.Errorf("qemu-io:\n%s", out)
		}
		if v, d := f.snapshot(); !bytes.Equal(v, d) {
			t.Error("not everything is durable after the flush")
		}
	})
}

// TestFio verifies checksums of random reads and writes over 4 connections.
func TestFio(t *testing.T) {
	bothCompletions(t, 64<<20, func(t *testing.T, f *fake, path string) {
		out := run(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+uri(path), "--rw=randrw", "--bsrange=512-128k",
			"--bs_unaligned", "--iodepth=16", "--numjobs=4", "--size=16m", "--offset_increment=16m", "--fsync=64",
			"--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--group_reporting", "--output-format=terse")
		if strings.Contains(out, "verify:") {
			t.Errorf("fio:\n%s", out)
		}
	})
}
