package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"trivet/control"
)

// short chooses between the two versions of a test.
func choose[T any](short, longer T) T {
	if long() {
		return longer
	}
	return short
}

// newReclaimed makes a volume of three replicas whose cleaner runs as asked:
// 'auto' or 'always'.
func newReclaimed(t *testing.T, size, reclaim string, extra ...string) *volume {
	t.Helper()
	needTrivet(t)
	return newVolume(t, volumeOptions{size: size, replicas: 3, extra: append([]string{"--reclaim", reclaim}, extra...)})
}

// ask runs a command of the program on the volume's control socket, and reads
// the JSON that it answers.
func (v *volume) ask(ctx context.Context, answer any, args ...string) error {
	args = append(args, "--json", "--control", filepath.Join(v.dir, "control.sock"))
	out, err := attempt(ctx, program, args...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), answer); err != nil {
		return fmt.Errorf("trivet %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// A reclaimStatus is the program's status with what only the cleaner needs.
type reclaimStatus struct {
	control.Status
	Slots []struct {
		control.Slot
		LiveBytes uint64 `json:"live_bytes"` // what the map points at; 0 when it is not told
	} `json:"slots"`
}

// status asks how the volume is.
func (v *volume) status(t *testing.T) (s reclaimStatus) {
	t.Helper()
	if err := v.ask(context.WithoutCancel(t.Context()), &s, "status"); err != nil {
		t.Fatal(err)
	}
	return s
}

// addFault puts a rule in force and returns its id.
func (v *volume) addFault(t *testing.T, rule string) string {
	t.Helper()
	var f struct{ ID json.Number }
	if err := v.ask(t.Context(), &f, append([]string{"fault", "add"}, strings.Fields(rule)...)...); err != nil {
		t.Fatal(err)
	}
	return f.ID.String()
}

// removeFault takes a rule away. A rule that was never hit proved nothing.
func (v *volume) removeFault(t *testing.T, id string) {
	t.Helper()
	var faults []struct {
		ID   json.Number
		Hits uint64
	}
	if err := v.ask(t.Context(), &faults, "faults"); err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		if f.ID.String() == id && f.Hits == 0 {
			t.Errorf("the fault rule %s was never hit: this proves nothing", id)
		}
	}
	var removed control.Removed
	if err := v.ask(t.Context(), &removed, "fault", "rm", id); err != nil {
		t.Fatal(err)
	}
}

// healthy fails the test when the volume lost a slot or failed a request.
func (v *volume) healthy(t *testing.T) {
	t.Helper()
	s := v.status(t)
	if s.State != control.Serving {
		t.Errorf("the volume is %s: %s", s.State, s.Reason)
	}
	if c := s.Counters; c.ReadErrors+c.WriteErrors+c.FlushErrors > 0 {
		t.Errorf("%d reads, %d writes, %d flushes failed", c.ReadErrors, c.WriteErrors, c.FlushErrors)
	}
}

// hostBytes is what the files below a directory occupy. Those that vanish
// while it looks count for nothing.
func hostBytes(t *testing.T, dir string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		var st syscall.Stat_t
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case d.Type().IsRegular() && syscall.Lstat(path, &st) == nil:
			sum += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// logBytes is what the log of the slot that occupies most occupies on the host.
func (v *volume) logBytes(t *testing.T) (most int64) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(v.dir, "slot-[0-9]", "log"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("no logs in %s: %v", v.dir, err)
	}
	for _, dir := range logs {
		most = max(most, hostBytes(t, dir))
	}
	return most
}

// allocatedBytes is what the volume's map says is there.
func allocatedBytes(t *testing.T, v *volume) (sum int64) {
	t.Helper()
	for _, extent := range allocated(t, v) {
		sum += int64(extent[1])
	}
	return sum
}

// spaceBound is what a slot's log may occupy on the host: 1.35 times what is
// live, and 5 % of the volume. Below 1 GiB segments have their least size, which is
// 2 MiB, and what is reserved of them is more than that: 15 in each of two lanes
// beyond what is live, six free ones that the slot keeps, and one that each lane
// has asked for.
func spaceBound(live, volumeBytes int64) int64 {
	const segment = 2 << 20
	bound := live*135/100 + volumeBytes/20
	if volumeBytes < 1<<30 {
		bound = max(bound, live+2*15*segment) + (6+2)*segment
	}
	return bound
}

// mib prints bytes.
func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// timings are how long operations took; it is safe for concurrent use.
type timings struct {
	mu  sync.Mutex
	all []time.Duration
}

// add notes one.
func (l *timings) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, d)
}

// at returns the quantile q, 1 for the longest, and how many there are.
func (l *timings) at(q float64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.all) == 0 {
		return 0
	}
	slices.Sort(l.all)
	return l.all[int(q*float64(len(l.all)-1))]
}

// String gives the quantiles that are worth looking at.
func (l *timings) String() string {
	return fmt.Sprintf("n=%d p50=%v p99=%v max=%v", len(l.all), l.at(0.5), l.at(0.99), l.at(1))
}

// median of numbers; 0 when there are none.
func median[T cmp.Ordered](of []T) (m T) {
	if len(of) == 0 {
		return m
	}
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}

// fill writes a range of the export from front to back with what does not
// compress.
func fill(t *testing.T, c *client, offset, length int64) {
	t.Helper()
	const chunk = 1 << 20
	random := rand.New(rand.NewPCG(uint64(offset), uint64(length)))
	data := make([]byte, chunk)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	for end := offset + length; offset < end; offset += chunk {
		if err := c.write(data[:min(chunk, end-offset)], uint64(offset), 0); err != nil {
			t.Fatalf("fill at %d: %v", offset, err)
		}
	}
}
