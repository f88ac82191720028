package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"trivet/inject"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var instant = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// fixed is a target that always answers the same.
type fixed struct{}

func (fixed) Status() Status {
	return Status{
		Version:       "1.2",
		Volume:        Volume{Name: "vol", UUID: "u-1", SizeBytes: 1 << 30, Shards: 4, Replicas: 3},
		State:         Degraded,
		Reason:        "slot 1 is faulted",
		Generation:    7,
		UptimeSeconds: 1.5,
		Quorum:        2,
		PressureRatio: 0.25,
		Inflight:      3,
		Connections:   2,
		Slots: []Slot{
			{ID: 0, Where: "/v/slot-0", State: Current, LogBytes: 10, LiveBytes: 7, PressureRatio: 0.75, CheckpointLagRatio: 0.125, SegmentsInUse: 2, SegmentsFree: 6, CheckpointSequence: 9},
			{
				ID: 1, Where: "/v/slot-1", State: Faulted, Reason: "sync: EIO", BacklogBytes: 4096, DurableLagBytes: 8192,
				MissingRegions: 5, Errors: []SlotError{{Op: "log.sync", Errno: "EIO", Count: 11, First: instant, Last: instant}},
			},
		},
		Counters: Counters{
			Reads: 1, Writes: 2, Flushes: 3, Trims: 4, ReadBytes: 5, WriteBytes: 6,
			ReadErrors: 7, WriteErrors: 8, FlushErrors: 9, CacheHits: 10, CacheMisses: 11,
		},
		Latencies: []Latency{{Op: "read", Count: 4, P50Seconds: 0.001, P99Seconds: 0.002, P999Seconds: 0.003, MaxSeconds: 0.25}},
		Arena:     Arena{Kind: "shared", SizeBytes: 64, FreeBytes: 32},
		Cache:     Cache{SizeBytes: 128, UsedBytes: 1},
		Process:   []Check{{Name: "io-flusher", OK: true}, {Name: "memory-lock", Note: "no"}},
	}
}

func (fixed) Inflight() []Inflight {
	return []Inflight{{Op: "write", OffsetBytes: 0x3a000, LengthBytes: 4096, Stage: "replicate", AgeSeconds: 5.2, Waiting: "slot 2"}}
}

// ReplaceSlot refuses every slot but one.
func (fixed) ReplaceSlot(_ context.Context, slot int, at string) error {
	if slot != 1 {
		return fmt.Errorf("slot %d is needed", slot)
	}
	if at != "" && at != "/new" {
		return fmt.Errorf("not at %q", at)
	}
	return nil
}

func (fixed) Events() []Event { return []Event{{Time: instant, What: "slot 1 faulted"}} }

// listenHere binds a socket in a directory whose name is short enough for it.
func listenHere(t *testing.T) (net.Listener, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l, path
}

// serving starts a server and returns its client and socket.
func serving(t *testing.T, faults *inject.Set) (*Client, string) {
	t.Helper()
	l, path := listenHere(t)
	server := Start(l, Options{Target: fixed{}, Faults: faults, Log: slog.New(slog.DiscardHandler)})
	client := NewClient(path)
	t.Cleanup(func() {
		client.Close()
		if err := server.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return client, path
}

func newFaults() *inject.Set { return inject.NewSet(1, func() time.Time { return instant }) }

func TestStatusSurvivesTheWire(t *testing.T) {
	client, _ := serving(t, newFaults())
	ctx := t.Context()
	status, err := client.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if want := (fixed{}).Status(); !reflect.DeepEqual(status, want) {
		t.Errorf("status\n got %+v\nwant %+v", status, want)
	}
	inflight, err := client.Inflight(ctx)
	if err != nil || !reflect.DeepEqual(inflight, fixed{}.Inflight()) {
		t.Errorf("inflight %+v, %v", inflight, err)
	}
	events, err := client.Events(ctx)
	if err != nil || !reflect.DeepEqual(events, fixed{}.Events()) {
		t.Errorf("events %+v, %v", events, err)
	}
}

func TestFaultsComeAndGo(t *testing.T) {
	set := newFaults()
	client, _ := serving(t, set)
	ctx := t.Context()
	first, err := client.AddFault(ctx, "  log.sync  error=EIO slot=1 \n")
	if err != nil || first.Rule.String() != "log.sync slot=1 error=EIO" {
		t.Fatalf("added %+v, %v", first, err)
	}
	second, err := client.AddFault(ctx, "any delay=1ms")
	if err != nil {
		t.Fatal(err)
	}
	set.Check(inject.Point{Site: inject.LogSync, Slot: 1})
	list, err := client.Faults(ctx)
	if err != nil || len(list) != 2 || list[0].Hits != 1 || list[1].ID != second.ID {
		t.Fatalf("listed %+v, %v", list, err)
	}
	if n, err := client.RemoveFault(ctx, "1"); n != 1 || err != nil {
		t.Fatalf("removed %d, %v", n, err)
	}
	if n, err := client.RemoveFault(ctx, "all"); n != 1 || err != nil {
		t.Fatalf("removed %d, %v", n, err)
	}
	if !set.Empty() {
		t.Errorf("rules left: %+v", set.List())
	}
}

func TestRefusals(t *testing.T) {
	set := newFaults()
	full := newFaults()
	for range inject.MaxRules {
		if _, err := full.Add(inject.MustParse("any delay=1ms")); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name, method, path, body string
		faults                   *inject.Set
		status                   int
		says                     string
	}{
		{"bad rule", "POST", "/faults", "log.sync", set, 400, "has no effect"},
		{"no rule", "POST", "/faults", "", set, 400, "empty"},
		{"too long", "POST", "/faults", strings.Repeat("x", maxBodyBytes+1), set, 413, "too large"},
		{"nobody meets it", "POST", "/faults", "frontend delay=1ms", set, 400, "nothing meets rules for frontend"},
		{"one rule too many", "POST", "/faults", "any delay=1ms", full, 409, "too many"},
		{"no such rule", "DELETE", "/faults/9", "", set, 404, `no fault "9"`},
		{"not a number", "DELETE", "/faults/x", "", set, 404, `no fault "x"`},
		{"id of 64 bits", "DELETE", "/faults/4294967297", "", set, 404, "no fault"},
		{"without faults", "GET", "/faults", "", nil, 501, "no fault rules"},
		{"without faults", "POST", "/faults", "any delay=1ms", nil, 501, "no fault rules"},
		{"slot that is needed", "POST", "/slots/0/replace", "", set, 409, "slot 0 is needed"},
		{"slot elsewhere", "POST", "/slots/1/replace", "/old", set, 409, "not at"},
		{"slot that is none", "POST", "/slots/x/replace", "", set, 404, "no slot"},
		{"slot nonsense", "POST", "/slots/1/frob", "", set, 404, "not here"},
		{"elsewhere", "GET", "/nowhere", "", set, 404, "/status"},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, _ := serving(t, test.faults)
			err := client.call(t.Context(), test.method, test.path, test.body, nil)
			var refused *Refusal
			if !errors.As(err, &refused) {
				t.Fatalf("error %v is no refusal", err)
			}
			if refused.StatusCode != test.status || !strings.Contains(refused.Reason, test.says) {
				t.Errorf("%d %q, want %d and %q", refused.StatusCode, refused.Reason, test.status, test.says)
			}
			if strings.Contains(refused.Reason, "\n") {
				t.Errorf("more than a line: %q", refused.Reason)
			}
		})
	}
}

// TestMetrics compares all that the volume shows with a golden file; the Go
// runtime's and the process's own metrics only have to be there.
func TestMetrics(t *testing.T) {
	_, path := serving(t, newFaults())
	body := httpBody(t, path, "/metrics")
	var ours []string
	for line := range strings.Lines(body) {
		if strings.Contains(line, "trivet_") {
			ours = append(ours, line)
		}
	}
	golden := filepath.Join("testdata", "metrics.txt")
	if os.Getenv("REWRITE") != "" {
		if err := os.WriteFile(golden, []byte(strings.Join(ours, "")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(ours, ""); got != string(want) {
		t.Errorf("metrics differ from %s (REWRITE=1 rewrites it):\n%s", golden, got)
	}
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes"} {
		if !strings.Contains(body, name) {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestProfilerAnswers(t *testing.T) {
	_, path := serving(t, newFaults())
	if body := httpBody(t, path, "/debug/pprof/goroutine?debug=1"); !strings.Contains(body, "goroutine profile") {
		t.Errorf("no profile: %.80q", body)
	}
}

// httpBody asks as curl would, without our client.
func httpBody(t *testing.T, socket, path string) string {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Get("http://trivet" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", path, response.Status, err)
	}
	return string(body)
}
