package main

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"trivet/control"
)

// rates are differences of two statuses by time.
type rates struct {
	reads, writes, flushes, trims float64 // a second
	readBytes, writeBytes         float64 // a second
	errors                        float64 // a second
}

// ratesOf compares two answers of the same server; ok is false when there are
// no two, or the server was started again in between.
func ratesOf(previous, last sample) (r rates, ok bool) {
	seconds := last.at.Sub(previous.at).Seconds()
	if previous.at.IsZero() || last.err != nil || seconds <= 0 ||
		last.status.UptimeSeconds < previous.status.UptimeSeconds {
		return rates{}, false
	}
	a, b := previous.status.Counters, last.status.Counters
	per := func(before, after uint64) float64 {
		return float64(max(after, before)-before) / seconds // a new server counts from 0
	}
	return rates{
		reads: per(a.Reads, b.Reads), writes: per(a.Writes, b.Writes),
		flushes: per(a.Flushes, b.Flushes), trims: per(a.Trims, b.Trims),
		readBytes: per(a.ReadBytes, b.ReadBytes), writeBytes: per(a.WriteBytes, b.WriteBytes),
		errors: per(a.ReadErrors+a.WriteErrors+a.FlushErrors, b.ReadErrors+b.WriteErrors+b.FlushErrors),
	}, true
}

// String prints the rates in one line.
func (r rates) String() string {
	line := fmt.Sprintf("read %s/s %s/s, write %s/s %s/s, flush %s/s, trim %s/s",
		formatCount(r.reads), formatSize(uint64(r.readBytes)),
		formatCount(r.writes), formatSize(uint64(r.writeBytes)),
		formatCount(r.flushes), formatCount(r.trims))
	if r.errors > 0 {
		line += fmt.Sprintf(", %s errors/s", formatCount(r.errors))
	}
	return line
}

// plainLine is one line for logs and pipes.
func plainLine(previous, last sample) string {
	stamp := last.at.Format("15:04:05")
	if last.err != nil {
		return stamp + "  " + last.err.Error()
	}
	var slots []string
	for _, s := range last.status.Slots {
		slots = append(slots, fmt.Sprintf("%d:%s", s.ID, s.State))
	}
	line := fmt.Sprintf("%s  %s  slots %s  %s", stamp, last.status.State, strings.Join(slots, " "),
		plural(last.status.Connections, "connection"))
	if r, ok := ratesOf(previous, last); ok {
		line += "  " + r.String()
	}
	return line
}

// screenLines lays one screen out: at most height lines of at most width runes.
func screenLines(previous, last sample, width, height int) []string {
	lines := []string{fmt.Sprintf("trivet top  %s  (q quits)", last.at.Format("15:04:05")), ""}
	if last.err != nil {
		lines = append(lines, "waiting: "+last.err.Error())
		if !previous.at.IsZero() {
			lines = append(lines, "", "before that:", "")
			lines = append(lines, statusLines(sample{}, previous)...)
		}
		return fit(lines, width, height)
	}
	lines = append(lines, statusLines(previous, last)...)
	lines = append(lines, eventLines(last.events)...)
	return fit(lines, width, height)
}

func statusLines(previous, last sample) []string {
	s := last.status
	lines := summaryLines(s)
	if r, ok := ratesOf(previous, last); ok {
		lines = append(lines, "rates     "+r.String())
	} else {
		lines = append(lines, "rates     …")
	}
	for _, l := range s.Latencies {
		lines = append(lines, fmt.Sprintf("latency   %-6s %8s median %8s 99%%", l.Op,
			formatLatency(l.P50Seconds), formatLatency(l.P99Seconds)))
	}
	lines = append(lines, spaceLines(s)...)
	lines = append(lines, "")
	lines = append(lines, slotLines(s)...)
	lines = append(lines, memoryLine(s))
	return append(lines, missingManners(s.Process)...)
}

// missingManners names what the process did not get; the rest is for status.
func missingManners(checks []control.Check) []string {
	var missing []string
	for _, c := range checks {
		if !c.OK {
			missing = append(missing, c.Name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return []string{"process   without " + strings.Join(missing, ", ") + " ('trivet status' says why)"}
}

func eventLines(events []control.Event) []string {
	if len(events) == 0 {
		return nil
	}
	lines := []string{"", "last events"}
	for _, e := range events[max(0, len(events)-topEvents):] {
		lines = append(lines, "  "+e.Time.Local().Format("15:04:05")+"  "+e.What)
	}
	return lines
}

// fit cuts lines to the screen. What it cuts is at the end: the screen is
// ordered by importance.
func fit(lines []string, width, height int) []string {
	lines = lines[:min(len(lines), height)]
	for i, line := range lines {
		lines[i] = cut(line, width)
	}
	return lines
}

// cut shortens a line to width runes and replaces what would move the cursor.
func cut(line string, width int) string {
	line = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, line)
	if utf8.RuneCountInString(line) <= width {
		return line
	}
	return string([]rune(line)[:width])
}
