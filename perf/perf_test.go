package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	known := []string{"seqread", "cold-seqread", "cold-seqread-scattered", "open"}
	for list, want := range map[string][]string{
		"":                  known,
		"all":               known,
		"cold":              {"cold-seqread", "cold-seqread-scattered"},
		"cold-seqread":      {"cold-seqread"},
		"open,cold-seqread": {"open", "cold-seqread"},
		"open,open":         {"open"},
	} {
		if got, err := choose(list, known); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; expected %v", list, got, err, want)
		}
	}
	if _, err := choose("randread", known); err == nil {
		t.Error("an unknown name was accepted")
	}
}

func TestParseFio(t *testing.T) {
	r, err := parseFio([]byte(`fio: a remark
{"jobs": [{"error": 0, "read": {"total_ios": 0}, "write": {"total_ios": 8, "iops": 2.5, "bw_bytes": 1048576,
 "clat_ns": {"percentile": {"50.000000": 1000, "99.000000": 2000}}}}]}`))
	if err != nil || r.iops != 2.5 || r.mibs != 1 || r.p50 != 1000 || r.p99 != 2000 || r.ops != 8 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := parseFio([]byte(`{"jobs": [{"error": 0}]}`)); !errors.Is(err, errNoIO) {
		t.Errorf("a run without I/O: %v", err)
	}
	if _, err := parseFio([]byte(`{"jobs": [{"error": 5, "read": {"total_ios": 1}}]}`)); err == nil {
		t.Error("a job that ended with an error was taken for good")
	}
}

// TestRatiosAreTakenWithinARound: two rounds on a machine that was ten times
// slower in the second give the ratio of each, not of the medians.
func TestRatiosAreTakenWithinARound(t *testing.T) {
	b := &bench{results: results{}, targets: []target{{name: "trivet3", replicas: 3}, {name: "nbdkit-file"}}}
	for _, iops := range []float64{1000, 100} {
		b.results.add("fsync-1", "trivet3", result{iops: iops * 0.5})
		b.results.add("fsync-1", "nbdkit-file", result{iops: iops})
	}
	var out strings.Builder
	b.print(&out, "nbdkit-file")
	if !strings.Contains(out.String(), "| fsync-1 | 275 | 550 | **0.50** (below 0.9) |") {
		t.Errorf("printed:\n%s", out.String())
	}
}
