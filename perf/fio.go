package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"time"
)

// A result is what one run measured; what it did not is 0.
type result struct {
	iops     float64
	mibs     float64 // MiB/s
	p50, p99 time.Duration
	cpuPerOp time.Duration // of the server's processes; 0 when not known
	ops      int64

	// Of the measurements that are no fio job.
	opened    time.Duration // from the start of a killed server until it served
	resident  int64         // bytes in memory of all processes
	processes int
	wakeups   float64 // a second
}

// fioReport is the part of fio's JSON output that is used.
type fioReport struct {
	Jobs []struct {
		Error int          `json:"error"`
		Read  fioDirection `json:"read"`
		Write fioDirection `json:"write"`
	} `json:"jobs"`
}

// fioDirection describes the reads, or the writes, of a job.
type fioDirection struct {
	TotalIOs int64   `json:"total_ios"`
	IOPS     float64 `json:"iops"`
	BWBytes  float64 `json:"bw_bytes"`
	Clat     struct {
		Percentile map[string]int64 `json:"percentile"` // ns
	} `json:"clat_ns"`
}

// errNoIO is returned for a run that moved no data.
var errNoIO = errors.New("fio did no I/O")

// timed are the options of a run by time; without them a run covers the span once.
func timed(runtime, ramp time.Duration) []string {
	args := []string{"--time_based", "--runtime=" + seconds(runtime), "--randrepeat=1"}
	if ramp > 0 {
		args = append(args, "--ramp_time="+seconds(ramp))
	}
	return args
}

// seconds writes a duration as fio reads it.
func seconds(d time.Duration) string { return fmt.Sprintf("%dms", d.Milliseconds()) }

// overNBD are the options that send a job to a server.
func overNBD(uri string) []string { return []string{"--ioengine=nbd", "--uri=" + uri} }

// overFile are the options that send a job to a file, past the page cache.
func overFile(path string) []string {
	return []string{"--ioengine=libaio", "--direct=1", "--filename=" + path}
}

// runFio runs a job of the given span and returns what it measured.
func runFio(ctx context.Context, j job, span string, options ...[]string) (result, error) {
	args := []string{"--name=" + j.name, "--size=" + span, "--output-format=json"}
	args = append(args, j.args...)
	for _, o := range options {
		args = append(args, o...)
	}
	cmd := exec.CommandContext(ctx, "fio", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return result{}, fmt.Errorf("fio %s: %w: %s%s", j.name, err, tail(stderr.Bytes()), tail(out))
	}
	r, err := parseFio(out)
	if err != nil {
		return result{}, fmt.Errorf("fio %s: %w", j.name, err)
	}
	return r, nil
}

// parseFio reads fio's JSON output, before which fio may print remarks.
func parseFio(out []byte) (result, error) {
	start := bytes.IndexByte(out, '{')
	if start < 0 {
		return result{}, fmt.Errorf("no report in %q: %w", tail(out), errNoIO)
	}
	var report fioReport
	if err := json.Unmarshal(out[start:], &report); err != nil {
		return result{}, fmt.Errorf("parse report: %w", err)
	}
	if len(report.Jobs) != 1 {
		return result{}, fmt.Errorf("report of %d jobs, expected 1: %w", len(report.Jobs), errNoIO)
	}
	j := report.Jobs[0]
	if j.Error != 0 {
		return result{}, fmt.Errorf("job ended with errno %d", j.Error)
	}
	d := j.Write
	if j.Read.TotalIOs > 0 {
		d = j.Read
	}
	if d.TotalIOs == 0 {
		return result{}, errNoIO
	}
	return result{
		iops: d.IOPS,
		mibs: d.BWBytes / (1 << 20),
		p50:  time.Duration(d.Clat.Percentile["50.000000"]),
		p99:  time.Duration(d.Clat.Percentile["99.000000"]),
		ops:  d.TotalIOs,
	}, nil
}

// tail keeps the end of a program's output, for an error message.
func tail(out []byte) []byte {
	const most = 2000
	return out[max(0, len(out)-most):]
}
