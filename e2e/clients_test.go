package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// eachReplicas runs a test with three replicas and with one.
func eachReplicas(t *testing.T, size string, test func(t *testing.T, v *volume)) {
	for _, replicas := range []int{3, 1} {
		t.Run(fmt.Sprintf("replicas=%d", replicas), func(t *testing.T) {
			v := newVolume(t, volumeOptions{size: size, replicas: replicas})
			v.start(t)
			test(t, v)
			v.stop(t)
		})
	}
}

// TestNbdinfo asks what the export can do.
func TestNbdinfo(t *testing.T) {
	needTools(t, "nbdinfo")
	v := newVolume(t, volumeOptions{size: "64M", replicas: 3})
	v.start(t)
	type exports struct {
		Exports []struct {
			Size         uint64 `json:"export-size"`
			ReadOnly     bool   `json:"is_read_only"`
			MultiConn    bool   `json:"can_multi_conn"`
			Flush        bool   `json:"can_flush"`
			FUA          bool   `json:"can_fua"`
			Trim         bool   `json:"can_trim"`
			Zero         bool   `json:"can_zero"`
			BlockMinimum uint64 `json:"block_size_minimum"`
			BlockMaximum uint64 `json:"block_size_maximum"`
		} `json:"exports"`
	}
	var got exports
	if err := json.Unmarshal([]byte(command(t, "nbdinfo", "--json", v.URI())), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Exports) != 1 {
		t.Fatalf("%d exports", len(got.Exports))
	}
	e := got.Exports[0]
	if e.Size != 64<<20 || e.ReadOnly || !e.MultiConn || !e.Flush || !e.FUA || !e.Trim || !e.Zero {
		t.Errorf("the export says of itself %+v", e)
	}
	if !standin() && (e.BlockMinimum != 1 || e.BlockMaximum != 32<<20) {
		t.Errorf("blocks from %d to %d bytes, expected 1 to 32 MiB", e.BlockMinimum, e.BlockMaximum)
	}
	if list := command(t, "nbdinfo", "--list", v.URI()); !strings.Contains(list, "export-size: 67108864") {
		t.Errorf("the list of exports has none of that size:\n%s", list)
	}
	v.stop(t)
}

// TestNbdinfoMap writes in the middle of nothing and asks what is allocated.
func TestNbdinfoMap(t *testing.T) {
	needTools(t, "nbdinfo")
	eachReplicas(t, "64M", func(t *testing.T, v *volume) {
		if holes := allocated(t, v); len(holes) != 0 {
			t.Errorf("allocated in a fresh volume: %v", holes)
		}
		c, err := dial(t.Context(), v.socket(t))
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		if err := c.write(bytes.Repeat([]byte{1}, 64<<10), 3<<20, 0); err != nil {
			t.Fatal(err)
		}
		if got := allocated(t, v); len(got) != 1 || got[0] != [2]uint64{3 << 20, 64 << 10} {
			t.Errorf("allocated after a write of 64 KiB at 3 MiB: %v", got)
		}
		if err := c.do(cmdTrim, 0, 3<<20, 32<<10, nil); err != nil {
			t.Fatal(err)
		}
		if got := allocated(t, v); len(got) != 1 || got[0] != [2]uint64{3<<20 + 32<<10, 32 << 10} {
			t.Errorf("allocated after a trim of its first half: %v", got)
		}
	})
}

// allocated lists the extents (offset, length) that are neither hole nor zero.
func allocated(t *testing.T, v *volume) [][2]uint64 {
	t.Helper()
	var extents []struct {
		Offset, Length uint64
		Type           int
	}
	if err := json.Unmarshal([]byte(command(t, "nbdinfo", "--map", "--json", v.URI())), &extents); err != nil {
		t.Fatal(err)
	}
	var data [][2]uint64
	for _, e := range extents {
		if e.Type == 0 {
			data = append(data, [2]uint64{e.Offset, e.Length})
		}
	}
	return data
}

// sparseImage makes a file of 96 MiB with data in a few odd places.
func sparseImage(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	random := newRand(t)
	for _, at := range []struct{ offset, length int64 }{
		{0, 4096}, {1<<20 - 512, 1024}, {10 << 20, 3 << 20}, {40<<20 + 12345, 100_001}, {96<<20 - 4096, 4096},
	} {
		data := make([]byte, at.length)
		for i := range data {
			data[i] = byte(random.Uint32() | 1)
		}
		if _, err := f.WriteAt(data, at.offset); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// TestNbdcopy copies a sparse image in and out: the same bytes, the same holes.
func TestNbdcopy(t *testing.T) {
	needTools(t, "nbdcopy", "nbdinfo")
	eachReplicas(t, "96M", func(t *testing.T, v *volume) {
		image, back := sparseImage(t, v.workDir), filepath.Join(v.workDir, "back")
		command(t, "nbdcopy", image, v.URI())
		command(t, "nbdcopy", v.URI(), back)
		command(t, "cmp", image, back)
		if in, out := storedBytes(t, image), storedBytes(t, back); out > in+1<<20 {
			t.Errorf("%d bytes stored before, %d after: holes were lost", in, out)
		}
		var data uint64
		for _, extent := range allocated(t, v) {
			data += extent[1]
		}
		if data == 0 || data > 5<<20 {
			t.Errorf("%d bytes allocated on the device for 3.2 MiB of data", data)
		}
	})
}

// storedBytes is what a file occupies.
func storedBytes(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestQemuImg converts an image to the device and back, and compares.
func TestQemuImg(t *testing.T) {
	needTools(t, "qemu-img")
	eachReplicas(t, "96M", func(t *testing.T, v *volume) {
		image, back := sparseImage(t, v.workDir), filepath.Join(v.workDir, "back")
		command(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, v.URI())
		command(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, v.URI())
		command(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", v.URI(), back)
		command(t, "cmp", image, back)
	})
}

// TestQemuIO writes with FUA, discards and zeroes at odd offsets, and reads
// every edge back.
func TestQemuIO(t *testing.T) {
	needTools(t, "qemu-io")
	eachReplicas(t, "64M", func(t *testing.T, v *volume) {
		steps := []string{
			"write -P 0xaa 0 256k",
			"write -f -P 0xbb 513 1025",
			"read -P 0xaa 0 513", "read -P 0xbb 513 1025", "read -P 0xaa 1538 4096",
			"write -z 10001 9999",
			"read -P 0xaa 9000 1001", "read -P 0 10001 9999", "read -P 0xaa 20000 1000",
			"write -z -u -f 40961 8191",
			"read -P 0xaa 40960 1", "read -P 0 40961 8191", "read -P 0xaa 49152 1000",
			"discard 65537 20001",
			"read -P 0xaa 65536 1", "read -P 0xaa 85538 1000",
			"discard 131072 65536", "read -P 0 131072 65536", "read -P 0xaa 196608 4096",
			"write -f -P 0xcc 1048575 2",
			"read -P 0 1048000 575", "read -P 0xcc 1048575 2", "read -P 0 1048577 1000",
			"write -P 0xdd 67108863 1", "read -P 0xdd 67108863 1",
			"flush",
		}
		args := []string{"-f", "raw", "-d", "unmap"}
		for _, step := range steps {
			args = append(args, "-c", step)
		}
		out := command(t, "qemu-io", append(args, v.URI())...)
		if strings.Contains(out, "failed") || strings.Contains(out, "error") {
			t.Errorf("qemu-io is not content:\n%s", out)
		}
	})
}

// TestFioVerify reads and writes at random over four connections at once, and
// checks every block that it reads.
func TestFioVerify(t *testing.T) {
	needTools(t, "fio")
	size := "16m"
	if long() {
		size = "256m"
	}
	eachReplicas(t, "1G", func(t *testing.T, v *volume) {
		command(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+v.URI(), "--rw=randrw",
			"--bsrange=512-64k", "--iodepth=16", "--numjobs=4", "--size="+size, "--offset_increment=256m",
			"--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--do_verify=1", "--fsync=64", "--group_reporting")
	})
}
