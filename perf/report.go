package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// results holds every measurement, by job and target, in the order of rounds.
type results map[string]map[string][]result

// add keeps one more measurement.
func (rs results) add(job, target string, r result) {
	if rs[job] == nil {
		rs[job] = map[string][]result{}
	}
	rs[job][target] = append(rs[job][target], r)
}

// String is the line that is shown as a measurement ends.
func (r result) String() string {
	switch {
	case r.opened > 0:
		return fmt.Sprintf("served again after %v", r.opened.Round(time.Millisecond))
	case r.processes > 0:
		return fmt.Sprintf("%.1f MiB resident in %d processes, %.1f wake-ups/s",
			float64(r.resident)/(1<<20), r.processes, r.wakeups)
	}
	return fmt.Sprintf("%9.0f IOPS %7.0f MiB/s  p50 %-8v p99 %-8v server CPU %v/op",
		r.iops, r.mibs, r.p50.Round(time.Microsecond), r.p99.Round(time.Microsecond),
		r.cpuPerOp.Round(100*time.Nanosecond))
}

// median returns the middle value, or the mean of the two in the middle.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// each applies a function to all measurements of a job on a target.
func (rs results) each(job, target string, f func(result) float64) []float64 {
	var values []float64
	for _, r := range rs[job][target] {
		values = append(values, f(r))
	}
	return values
}

// ratio is the median, over the rounds, of a target's rate to another's.
func (rs results) ratio(job, target, base string) (float64, bool) {
	a, b := rs[job][target], rs[job][base]
	var ratios []float64
	for i := range min(len(a), len(b)) {
		ratios = append(ratios, a[i].iops/b[i].iops)
	}
	return median(ratios), len(ratios) > 0
}

func iops(r result) float64 { return r.iops }
func mibs(r result) float64 { return r.mibs }

// rate prints the median rate of a job: MiB/s for big blocks, IOPS for small.
func (rs results) rate(job, target string, big bool) string {
	if len(rs[job][target]) == 0 {
		return "–"
	}
	if big {
		return fmt.Sprintf("%.0f MiB/s", median(rs.each(job, target, mibs)))
	}
	return thousands(median(rs.each(job, target, iops)))
}

// thousands prints a number with separators.
func thousands(v float64) string {
	digits := fmt.Sprintf("%.0f", v)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// judged prints a ratio beside its floor; one that misses it stands out.
func judged(ratio, floor float64) string {
	switch {
	case floor == 0:
		return fmt.Sprintf("%.2f", ratio)
	case ratio < floor:
		return fmt.Sprintf("**%.2f** (below %g)", ratio, floor)
	}
	return fmt.Sprintf("%.2f (floor %g)", ratio, floor)
}

// big tells whether a job's rate is better read in MiB/s.
func (j job) big() bool { return slices.Contains(j.args, "--bs=1m") }

// print writes everything that was measured as markdown.
func (b *bench) print(w io.Writer, base string) {
	b.printWarm(w, base)
	b.printCold(w)
	b.printOthers(w)
}

// printWarm writes the table of the jobs that every target ran.
func (b *bench) printWarm(w io.Writer, base string) {
	var rows [][]string
	for _, j := range warmJobs {
		if b.results[j.name] == nil {
			continue
		}
		row := []string{j.name}
		for _, t := range b.targets {
			row = append(row, b.results.rate(j.name, t.name, j.big()))
		}
		for _, t := range b.compared(base) {
			cell := "–"
			if ratio, ok := b.results.ratio(j.name, t.name, base); ok {
				cell = judged(ratio, b.floor(j, t, base))
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	header := []string{"job"}
	for _, t := range b.targets {
		header = append(header, t.name)
	}
	for _, t := range b.compared(base) {
		header = append(header, t.name+" / "+base)
	}
	table(w, header, rows)
}

// compared lists the targets that get a column of ratios.
func (b *bench) compared(base string) []target {
	var ts []target
	for _, t := range b.targets {
		if t.replicas > 0 && t.name != base {
			ts = append(ts, t)
		}
	}
	return ts
}

// floor is what a ratio must reach; floors hold against 'nbdkit file' alone.
func (b *bench) floor(j job, t target, base string) float64 {
	if base != "nbdkit-file" {
		return 0
	}
	return j.floors[t.replicas]
}

// printCold writes the table of the reads with nothing in memory.
func (b *bench) printCold(w io.Writer) {
	var rows [][]string
	for _, c := range coldJobs {
		if b.results[c.name] == nil {
			continue
		}
		row := []string{c.name, b.results.rate(c.name, rawName, c.big())}
		for _, t := range b.targets {
			cell := b.results.rate(c.name, t.name, c.big())
			if ratio, ok := b.results.ratio(c.name, t.name, rawName); ok {
				cell += ", " + judged(ratio, c.least)
			}
			if rate := median(b.results.each(c.name, t.name, mibs)); c.leastMiBs > 0 && rate > 0 {
				cell += ", in MiB/s " + judged(rate, c.leastMiBs)
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	header := []string{"cold read", rawName}
	for _, t := range b.targets {
		header = append(header, t.name+", / raw disk")
	}
	table(w, header, rows)
}

// printOthers writes the open times and the idle memory.
func (b *bench) printOthers(w io.Writer) {
	var rows [][]string
	opened := func(r result) float64 { return r.opened.Seconds() }
	for _, t := range b.targets {
		if times := b.results.each(openName, t.name, opened); len(times) > 0 {
			rows = append(rows, []string{"open after kill -9, 512 MiB written", t.name, fmt.Sprintf("%.2f s (limit 3 s)", median(times))})
		}
		for _, r := range b.results[idleName][t.name] {
			rows = append(rows, []string{"idle, fresh volume (limit 80 MiB)", t.name, r.String()})
		}
	}
	table(w, []string{"what", "server", "figure"}, rows)
}

// table writes a markdown table, or nothing without rows.
func table(w io.Writer, header []string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(w, "\n| %s |\n|%s\n", strings.Join(header, " | "), strings.Repeat("---|", len(header)))
	for _, row := range rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
}
