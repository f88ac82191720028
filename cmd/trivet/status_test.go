package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"trivet/control"
	"trivet/device"
	"trivet/journal"
)

// asked runs a command against a server in this process and returns what it
// prints.
func asked(t *testing.T, s *server, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	args = append(args, "--control", s.plan.control.address)
	if status := run(t.Context(), args, &stdout, &stderr); status != exitOK {
		t.Fatalf("%s: exit %d: %s", strings.Join(args, " "), status, &stderr)
	}
	return stdout.String()
}

// statusOf asks for the status as a script does.
func statusOf(t *testing.T, s *server) (status control.Status) {
	t.Helper()
	if err := json.Unmarshal([]byte(asked(t, s, "status", "--json")), &status); err != nil {
		t.Fatal(err)
	}
	return status
}

// written writes blocks from the volume's start on, and flushes.
func written(t *testing.T, s *server, blocks int) {
	t.Helper()
	for n := range blocks {
		submit(t, s.volume, &device.Request{Op: device.Write, Offset: uint64(n) * journal.BlockSize, Length: journal.BlockSize, Data: checkedBlock(n, 0)})
	}
	submit(t, s.volume, &device.Request{Op: device.Flush})
}

// TestStatusTellsLatencies: what was asked of the volume lately is in its
// status, as people and as scripts read it; what was not, is not.
func TestStatusTellsLatencies(t *testing.T) {
	s := plannedServer(t, serveFlags{size: 16 << 20})
	defer s.close()
	if text := asked(t, s, "status"); strings.Contains(text, "latency") {
		t.Errorf("before the first request:\n%s", text)
	}
	written(t, s, 30)
	submit(t, s.volume, &device.Request{Op: device.WriteZeroes, Length: 1 << 20})
	want := map[string]uint64{"write": 30, "flush": 1, "zero": 1}
	for _, l := range statusOf(t, s).Latencies {
		if l.Count != want[l.Op] || l.P50Seconds <= 0 || l.P50Seconds > l.MaxSeconds || l.MaxSeconds > 1 {
			t.Errorf("%+v, expected %d", l, want[l.Op])
		}
		delete(want, l.Op)
	}
	if len(want) > 0 {
		t.Errorf("nothing of %v", want)
	}
	text := asked(t, s, "status")
	for _, want := range []string{"latency   write  ", " median, ", "(30 in the last 10 to 20 s)", "latency   zero "} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// TestStatusTellsUsage: how much of each slot's log is live is in the status.
func TestStatusTellsUsage(t *testing.T) {
	s := plannedServer(t, serveFlags{size: 16 << 20})
	defer s.close()
	for range 2 {
		written(t, s, 64)
	}
	for _, slot := range statusOf(t, s).Slots {
		// The slot that no flush waits for may have some of it to write yet, or under way.
		if slot.LiveBytes > 64*journal.BlockSize || slot.BacklogBytes+slot.DurableLagBytes == 0 && slot.LiveBytes != 64*journal.BlockSize || slot.LogBytes < slot.LiveBytes {
			t.Errorf("64 blocks were written twice: %+v", slot)
		}
	}
	if text := asked(t, s, "status"); !strings.Contains(text, "(256 KiB live)") || strings.Contains(text, "short of") || strings.Contains(text, "longer than") {
		t.Errorf("status:\n%s", text)
	}
}
