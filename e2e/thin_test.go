package e2e

import (
	"fmt"
	"testing"
	"time"
)

// TestThinVolume writes at random over all of a large volume (in the long version
// 10 GiB over 1 TiB), so that nearly every write is to a region of its own: far more
// of the map changes than fits in memory. The server keeps to its memory all the
// while, and after a kill starts within 2 s.
func TestThinVolume(t *testing.T) {
	needTools(t, "fio")
	needTrivet(t)
	size := choose("64G", "1T")
	memory, written := choose[int64](160<<20, 512<<20), choose[int64](1<<30, 10<<30)
	v := newVolume(t, volumeOptions{size: size, replicas: 3, extra: []string{"--memory", fmt.Sprint(memory)}})
	v.start(t)
	began := time.Now()
	_, err := attemptFor(t.Context(), 20*time.Minute, "fio",
		"--name=thin", "--ioengine=nbd", "--uri="+v.URI(), "--rw=randwrite", "--bs=4k", "--iodepth=32",
		"--norandommap", "--randrepeat=0", "--size=100%", "--io_size="+fmt.Sprint(written))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s at random, %.0f writes/s", mib(written), float64(written/4096)/time.Since(began).Seconds())
	usage, err := v.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if most := usage.PeakBytes; most <= 0 || most > memory {
		t.Errorf("the server took %s of memory, for --memory %s", mib(most), mib(memory))
	} else {
		t.Logf("the server took %s of memory at most, for --memory %s", mib(most), mib(memory))
	}
	v.Kill()
	began = time.Now()
	v.start(t)
	took := time.Since(began)
	t.Logf("it starts %v after a kill", took.Round(time.Millisecond))
	if took > 2*time.Second {
		t.Errorf("it took %v to start after a kill", took)
	}
	v.healthy(t)
	v.stop(t)
	command(t, program, "check", v.dir)
}
