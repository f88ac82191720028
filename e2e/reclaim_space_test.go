package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestReclaimSpace overwrites a volume until several times its size has been
// written. All the while the log of a slot stays within its bound on the host;
// afterwards the cleaner has not written more than it may, and in no second
// has it kept the clients waiting.
func TestReclaimSpace(t *testing.T) {
	needTools(t, "fio")
	// What a lane holds ready is more of a small volume than of a large one, and
	// less is left to choose from: the short version only sees that nothing grew.
	most := choose(3.5, 2.5)
	cases := []overwrite{
		{name: "random, 80% full", percent: 80, amplification: most},
		{name: "random, 100% full", percent: 100, amplification: most},
	}
	if long() {
		cases = append(cases,
			overwrite{"zipfian 1.2, 80% full", 80, []string{"--random_distribution=zipf:1.2"}, 1.5},
			overwrite{"zipfian 1.1, 80% full", 80, []string{"--random_distribution=zipf:1.1"}, 1.5},
			overwrite{"sequential, 80% full", 80, []string{"--rw=write"}, 1.5},
		)
	}
	for _, o := range cases {
		t.Run(o.name, func(t *testing.T) { o.run(t, choose[int64](256<<20, 1<<30), choose[int64](2, 10)) })
	}
}

// TestReclaimFullVolume overwrites a full volume at random for ten minutes:
// there is always space for it, and it never stands still.
func TestReclaimFullVolume(t *testing.T) {
	if !long() {
		t.Skip("the short version is in TestReclaimSpace; TRIVET_LONG=1 runs this one")
	}
	needTools(t, "fio")
	o := overwrite{percent: 100, fio: []string{"--time_based", "--runtime=600"}, amplification: 2.5}
	o.run(t, 512<<20, 1)
}

// An overwrite is one way to write what is there already.
type overwrite struct {
	name          string
	percent       int64    // of the volume that is filled, and then overwritten
	fio           []string // what makes it more than random
	amplification float64  // the most that may be written to the host, by slot
}

// samplesPerSecond is how often the volume is looked at.
const samplesPerSecond = 4

// A spaceSample is what one look at the volume finds.
type spaceSample struct {
	at       time.Time
	written  uint64 // bytes, by clients, since the server started
	logBytes int64  // of the slot that occupies most
}

// run fills a new volume and overwrites it until that many times its size
// has been written.
func (o *overwrite) run(t *testing.T, sizeBytes, times int64) {
	v := newReclaimed(t, fmt.Sprint(sizeBytes), "auto")
	v.start(t)
	live := sizeBytes * o.percent / 100 &^ (1<<20 - 1)
	c, err := dial(t.Context(), v.socket(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	fill(t, c, 0, live)
	before, used := v.status(t).Counters.WriteBytes, v.usage(t)

	args := append([]string{
		"--name=overwrite", "--ioengine=nbd", "--uri=" + v.URI(), "--rw=randwrite", "--bs=4k", "--iodepth=32",
		"--norandommap", "--randrepeat=0", "--size=" + fmt.Sprint(live), "--io_size=" + fmt.Sprint(sizeBytes*times),
	}, o.fio...)
	samples := v.sampleWhile(t, func(ctx context.Context) error {
		_, err := attemptFor(ctx, 20*time.Minute, "fio", args...)
		return err
	})

	after := v.usage(t)
	clients := float64(v.status(t).Counters.WriteBytes - before)
	factor := float64(after-used) / clients / 3
	t.Logf("%s live, %s overwritten; write amplification %.2f", mib(live), mib(int64(clients)), factor)
	if factor > o.amplification {
		t.Errorf("write amplification %.2f, at most %.1f is right", factor, o.amplification)
	}
	o.checkSpace(t, v, samples, live, sizeBytes)
	checkSteady(t, samples)
	v.healthy(t)
	v.stop(t)
	if o.percent == 100 || long() {
		command(t, program, "check", v.dir)
	}
}

// checkSpace compares what the log occupied with what it may.
func (o *overwrite) checkSpace(t *testing.T, v *volume, samples []spaceSample, live, sizeBytes int64) {
	t.Helper()
	var most int64
	for _, s := range samples {
		most = max(most, s.logBytes)
	}
	last := v.logBytes(t)
	slots := v.status(t).Slots
	t.Logf("log of a slot on the host: at most %s, at the end %s (%.2f of what is live); in all of slot 0 %s; it says %s live, %d segments in use, %d free",
		mib(most), mib(last), float64(last)/float64(live), mib(hostBytes(t, v.dir+"/slot-0")),
		mib(int64(slots[0].LiveBytes)), slots[0].SegmentsInUse, slots[0].SegmentsFree)
	if bound := spaceBound(live, sizeBytes); max(most, last) > bound {
		t.Errorf("the log of a slot occupied %s for %s of live data, at most %s is right", mib(max(most, last)), mib(live), mib(bound))
	}
}

// checkSteady compares the slowest second with the median one. Only the long
// version has enough of them to judge.
func checkSteady(t *testing.T, samples []spaceSample) {
	t.Helper()
	var rates []float64 // MiB/s, of one second each
	for i := samplesPerSecond; i < len(samples); i++ {
		from, to := samples[i-samplesPerSecond], samples[i]
		rates = append(rates, float64(to.written-from.written)/to.at.Sub(from.at).Seconds()/(1<<20))
	}
	if len(rates) == 0 {
		return
	}
	lowest := slices.Min(rates)
	t.Logf("throughput by second: lowest %.1f, median %.1f MiB/s, of %d", lowest, median(rates), len(rates))
	if long() && lowest < median(rates)/2 {
		t.Errorf("the lowest second did %.1f MiB/s, less than half of the median %.1f", lowest, median(rates))
	}
}

// usage is what the server and its helpers have written to disks.
func (v *volume) usage(t *testing.T) int64 {
	t.Helper()
	u, err := v.Usage()
	if err != nil {
		t.Fatal(err)
	}
	return u.WrittenBytes
}

// sampleWhile watches the volume while something is done to it.
func (v *volume) sampleWhile(t *testing.T, do func(context.Context) error) (samples []spaceSample) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- do(t.Context()) }()
	tick := time.NewTicker(time.Second / samplesPerSecond)
	defer tick.Stop()
	for {
		samples = append(samples, spaceSample{time.Now(), v.status(t).Counters.WriteBytes, v.logBytes(t)})
		select {
		case <-tick.C:
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return samples
		}
	}
}

// TestReclaimSorts writes a volume at random and leaves it alone under forced
// reclaim, which sorts it by address: then it reads from front to back as fast
// as the disk, nearly.
func TestReclaimSorts(t *testing.T) {
	if !long() {
		t.Skip("takes minutes; TRIVET_LONG=1 runs it")
	}
	needTools(t, "fio")
	const size = 512 << 20
	v := newReclaimed(t, fmt.Sprint(size), "always")
	v.start(t)
	common := []string{"--name=sorts", "--size=" + fmt.Sprint(size), "--group_reporting"}
	command(t, "fio", append([]string{"--ioengine=nbd", "--uri=" + v.URI(), "--rw=randwrite", "--bs=4k", "--iodepth=32"}, common...)...)
	if err := pause(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	v.stop(t)
	raw := v.workDir + "/raw"
	command(t, "fio", append([]string{"--ioengine=psync", "--filename=" + raw, "--rw=write", "--bs=1m", "--direct=1"}, common...)...)
	defer os.Remove(raw)
	var ours, disks []float64
	for range 5 {
		v.start(t) // with nothing in memory
		ours = append(ours, readMiBPerSecond(t, append([]string{"--ioengine=nbd", "--uri=" + v.URI(), "--rw=read", "--bs=256k", "--iodepth=8"}, common...)))
		v.stop(t)
		disks = append(disks, readMiBPerSecond(t, append([]string{"--ioengine=libaio", "--filename=" + raw, "--rw=read", "--bs=256k", "--iodepth=8", "--direct=1"}, common...)))
	}
	t.Logf("cold, front to back, MiB/s: trivet %.0f, the disk %.0f; ratio of the medians %.2f", ours, disks, median(ours)/median(disks))
	if median(ours) < 0.8*median(disks) {
		t.Errorf("reads at %.2f of the disk, 0.8 is right", median(ours)/median(disks))
	}
}

// readMiBPerSecond runs fio and returns its read bandwidth.
func readMiBPerSecond(t *testing.T, args []string) float64 {
	t.Helper()
	fields := strings.Split(command(t, "fio", append(args, "--output-format=terse", "--terse-version=3")...), ";")
	var kib float64
	if len(fields) < 7 {
		t.Fatalf("fio answered %q", fields)
	}
	if _, err := fmt.Sscan(fields[6], &kib); err != nil {
		t.Fatalf("fio answered %q: %v", fields, err)
	}
	return kib / 1024
}
