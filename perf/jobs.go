package main

import (
	"fmt"
	"slices"
	"strings"
)

// A job is one fio run against a server.
type job struct {
	name string
	args []string
	// reads says that the data must be written, and in memory, before.
	reads bool
	// floors are the least ratios to 'nbdkit file' that the project promises
	// itself, by number of replicas; absent for none.
	floors map[int]float64
}

// warmJobs are run against every server, all on one span of 1 GiB.
var warmJobs = []job{
	{"seqwrite", []string{"--rw=write", "--bs=1m", "--iodepth=8"}, false, map[int]float64{3: 0.25, 1: 0.6}},
	{"seqread", []string{"--rw=read", "--bs=1m", "--iodepth=8"}, true, map[int]float64{3: 0.8, 1: 0.8}},
	{"randread-1", []string{"--rw=randread", "--bs=4k", "--iodepth=1"}, true, map[int]float64{3: 1.1, 1: 1.1}},
	{"randread-32", []string{"--rw=randread", "--bs=4k", "--iodepth=32"}, true, map[int]float64{3: 1.1, 1: 1.1}},
	{"randwrite-1", []string{"--rw=randwrite", "--bs=4k", "--iodepth=1"}, false, map[int]float64{3: 1.5, 1: 1.5}},
	{"randwrite-32", []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}, false, map[int]float64{3: 2, 1: 2}},
	{"fsync-1", []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"}, false, map[int]float64{3: 0.9, 1: 1.2}},
	{"fsync-32", []string{"--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=32"}, false, map[int]float64{3: 2.5, 1: 3}},
}

// The jobs that set the stage. fill writes the whole span once, in order;
// scatter does it block by block in random order; both end with a flush. warm
// reads it once. halfGiB leaves that much in the log of every slot.
var (
	fill    = job{name: "fill", args: []string{"--rw=write", "--bs=1m", "--iodepth=8", "--end_fsync=1"}}
	scatter = job{name: "scatter", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=32", "--end_fsync=1"}}
	warm    = job{name: "warm", args: []string{"--rw=read", "--bs=1m", "--iodepth=8"}}
	halfGiB = job{name: "half", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=32", "--io_size=512m"}}
)

// A coldJob reads the span once, with nothing in memory. It is compared with
// the raw disk; least is the ratio to it that is promised, leastMiBs the rate.
type coldJob struct {
	job
	prepare   job
	least     float64
	leastMiBs float64
}

// coldJobs read every byte once, so that no read finds what an earlier one
// brought into memory.
var coldJobs = []coldJob{
	{job: job{name: "cold-randread-32", args: []string{"--rw=randread", "--bs=4k", "--iodepth=32"}}, prepare: fill, least: 0.8},
	{job: job{name: "cold-seqread", args: []string{"--rw=read", "--bs=1m", "--iodepth=8"}}, prepare: fill, least: 0.8},
	{job: job{name: "cold-seqread-scattered", args: []string{"--rw=read", "--bs=1m", "--iodepth=8"}}, prepare: scatter, leastMiBs: 250},
}

// The measurements that are no fio job.
const (
	idleName = "idle"
	openName = "open"
)

// jobNames lists everything that can be measured, in the order of the report.
func jobNames() []string {
	var names []string
	for _, j := range warmJobs {
		names = append(names, j.name)
	}
	for _, j := range coldJobs {
		names = append(names, j.name)
	}
	return append(names, idleName, openName)
}

// choose splits a list given by commas and checks it against what there is; a
// name that is none of those stands for all that begin with it.
func choose(list string, known []string) ([]string, error) {
	if list == "" || list == "all" {
		return known, nil
	}
	var chosen []string
	for name := range strings.SplitSeq(list, ",") {
		matches := []string{name}
		if !slices.Contains(known, name) {
			matches = slices.DeleteFunc(slices.Clone(known), func(k string) bool { return !strings.HasPrefix(k, name) })
		}
		if len(matches) == 0 {
			return nil, fmt.Errorf("%q is none of %s", name, strings.Join(known, ", "))
		}
		for _, m := range matches {
			if !slices.Contains(chosen, m) {
				chosen = append(chosen, m)
			}
		}
	}
	return chosen, nil
}
