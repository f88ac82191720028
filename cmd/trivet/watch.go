package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"trivet/control"
	"trivet/inject"
)

func newStatusCommand() *cobra.Command {
	return query(&cobra.Command{
		Use:   "status",
		Short: "Show the state of the volume, its slots and its process",
		Args:  wantArgs(),
	}, func(cmd *cobra.Command, c *control.Client, _ []string) (control.Status, error) {
		return c.Status(cmd.Context())
	}, printStatus)
}

func newInflightCommand() *cobra.Command {
	return query(&cobra.Command{
		Use:   "inflight",
		Short: "List the requests that have not completed, and what they wait for",
		Args:  wantArgs(),
	}, func(cmd *cobra.Command, c *control.Client, _ []string) ([]control.Inflight, error) {
		return c.Inflight(cmd.Context())
	}, printInflight)
}

func newEventsCommand() *cobra.Command {
	return query(&cobra.Command{
		Use:   "events",
		Short: "List what happened last",
		Args:  wantArgs(),
	}, func(cmd *cobra.Command, c *control.Client, _ []string) ([]control.Event, error) {
		return c.Events(cmd.Context())
	}, func(out io.Writer, list []control.Event) {
		for _, e := range list {
			fmt.Fprintf(out, "%s  %s\n", e.Time.Local().Format("2006-01-02 15:04:05.000"), e.What)
		}
	})
}

func newFaultsCommand() *cobra.Command {
	return query(&cobra.Command{
		Use:   "faults",
		Short: "List the fault rules in force and how often each took effect",
		Args:  wantArgs(),
	}, func(cmd *cobra.Command, c *control.Client, _ []string) ([]inject.Status, error) {
		return c.Faults(cmd.Context())
	}, func(out io.Writer, list []inject.Status) {
		for _, f := range list {
			fmt.Fprintf(out, "%-4d %6d hits of %6d  %s\n", f.ID, f.Hits, f.Seen, f.Rule)
		}
	})
}

const faultHelp = `A rule is a site, filters and one effect:

  log.sync slot=1 nth=3 count=2 error=EIO     the 3rd and 4th sync of slot 1 fail
  segment.read slot=0 block=100-200 flip      one bit of those blocks flips
  log.append p=0.01 delay=50ms                one append in a hundred is slow
  any slot=1 error=EIO                        the disk of slot 1 is dead

Sites: log.append log.sync segment.read segment.alloc superblock checkpoint
reclaim any (net.send net.recv frontend are reserved). Filters: op= slot= shard=
block= nth= p= count= for=. Effects: error=ERRNO delay=TIME hang drop duplicate
reorder torn lost misdirect flip crash.`

func newFaultCommand() *cobra.Command {
	fault := &cobra.Command{
		Use:   "fault",
		Short: "Add and remove fault rules",
		Long:  faultHelp,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("fault: unknown action %q; write 'fault add RULE' or 'fault rm ID|all'", args[0])
			}
			return usagef("fault: no action given; write 'fault add RULE' or 'fault rm ID|all'")
		},
		Args: cobra.ArbitraryArgs,
	}
	fault.AddCommand(newFaultAddCommand(), newFaultRmCommand())
	return fault
}

func newFaultAddCommand() *cobra.Command {
	return query(&cobra.Command{
		Use:     "add RULE",
		Short:   "Put a fault rule in force; prints its id",
		Long:    faultHelp,
		Example: "  trivet fault add log.sync slot=1 count=1 error=EIO",
		Args: func(cmd *cobra.Command, args []string) error {
			// The same parser as the server's, so that a slip costs nothing.
			if _, err := inject.Parse(strings.Join(args, " ")); err != nil {
				return usagef("fault add: %w", err)
			}
			return nil
		},
	}, func(cmd *cobra.Command, c *control.Client, args []string) (inject.Status, error) {
		return c.AddFault(cmd.Context(), strings.Join(args, " "))
	}, func(out io.Writer, f inject.Status) {
		fmt.Fprintf(out, "%d  %s\n", f.ID, f.Rule)
	})
}

func newFaultRmCommand() *cobra.Command {
	return query(&cobra.Command{
		Use:   "rm ID|all",
		Short: "Remove one fault rule, or all, and release what hangs on them",
		Args:  wantArgs("ID|all"),
	}, func(cmd *cobra.Command, c *control.Client, args []string) (control.Removed, error) {
		removed, err := c.RemoveFault(cmd.Context(), args[0])
		return control.Removed{Count: removed}, err
	}, func(out io.Writer, r control.Removed) {
		fmt.Fprintf(out, "%d removed\n", r.Count)
	})
}

// printStatus prints everything that a status holds, for people.
func printStatus(out io.Writer, s control.Status) {
	for _, line := range summaryLines(s) {
		fmt.Fprintln(out, line)
	}
	c := s.Counters
	fmt.Fprintf(out, "requests  %d reads (%s), %d writes (%s), %d flushes, %d trims\n",
		c.Reads, formatSize(c.ReadBytes), c.Writes, formatSize(c.WriteBytes), c.Flushes, c.Trims)
	if c.ReadErrors+c.WriteErrors+c.FlushErrors > 0 {
		fmt.Fprintf(out, "errors    %d reads, %d writes, %d flushes failed\n", c.ReadErrors, c.WriteErrors, c.FlushErrors)
	}
	for _, l := range s.Latencies {
		fmt.Fprintf(out, "latency   %-6s %s median, %s 99%%, %s 99.9%%, %s at most (%s in the last %s)\n", l.Op,
			formatLatency(l.P50Seconds), formatLatency(l.P99Seconds), formatLatency(l.P999Seconds), formatLatency(l.MaxSeconds),
			formatCount(float64(l.Count)), latencySpan)
	}
	for _, line := range append(spaceLines(s), slotLines(s)...) {
		fmt.Fprintln(out, line)
	}
	for _, a := range s.Asides {
		fmt.Fprintf(out, "aside     %s: %s; 'trivet aside rm PATH' removes it\n", a.Path, formatSize(a.SizeBytes))
	}
	fmt.Fprintln(out, memoryLine(s))
	for _, check := range s.Process {
		fmt.Fprintf(out, "process   %-12s %s\n", check.Name, checkText(check))
	}
}

// summaryLines says what is served and how it is, in two lines.
func summaryLines(s control.Status) []string {
	state := string(s.State)
	if s.Reason != "" {
		state += " (" + s.Reason + ")"
	}
	return []string{
		fmt.Sprintf("volume    %s, %s, %s, %s, trivet %s", s.Volume.Name, formatSize(s.Volume.SizeBytes),
			plural(s.Volume.Replicas, "replica"), plural(s.Volume.Shards, "shard"), s.Version),
		fmt.Sprintf("state     %s, generation %d, up %s, %s, %s in flight", state, s.Generation,
			time.Duration(s.UptimeSeconds)*time.Second, plural(s.Connections, "connection"), plural(s.Inflight, "request")),
	}
}

// spaceLines says why writes are slowed, when they are.
func spaceLines(s control.Status) []string {
	switch {
	case s.Lagging && s.PressureRatio > 0:
		return []string{fmt.Sprintf("map       stored more slowly than it changes: writes slowed (%s; at 100%% they wait)", percent(s.PressureRatio))}
	case s.PressureRatio >= 1:
		return []string{"space     out of log space: writes wait until some is reclaimed"}
	case s.PressureRatio > 0:
		return []string{fmt.Sprintf("space     short of log space: writes slowed (%s; at 100%% they wait)", percent(s.PressureRatio))}
	}
	return nil
}

// percent prints a ratio, and none but 0 and 1 as 0 or 100.
func percent(ratio float64) string {
	if ratio <= 0 || ratio >= 1 {
		return fmt.Sprintf("%.0f%%", 100*ratio)
	}
	return fmt.Sprintf("%.0f%%", min(max(100*ratio, 1), 99))
}

// slotLines shows each slot with its errors.
func slotLines(s control.Status) []string {
	var lines []string
	for _, slot := range s.Slots {
		line := fmt.Sprintf("slot %d    %-9s  log %s (%s live), %d of %d segments, backlog %s, not durable %s", slot.ID,
			slot.State, formatSize(slot.LogBytes), formatSize(slot.LiveBytes), slot.SegmentsInUse,
			slot.SegmentsInUse+slot.SegmentsFree, formatSize(slot.BacklogBytes), formatSize(slot.DurableLagBytes))
		if slot.MissingRegions > 0 {
			line += fmt.Sprintf(", %s to copy", plural(slot.MissingRegions, "region"))
		}
		lines = append(lines, line+"  "+slot.Where)
		if slot.PressureRatio > 0 {
			lines = append(lines, fmt.Sprintf("          its log is longer than it should be (%s)", percent(slot.PressureRatio)))
		}
		if slot.CheckpointLagRatio > 0 {
			lines = append(lines, fmt.Sprintf("          checkpoints lag behind (%s)", percent(slot.CheckpointLagRatio)))
		}
		if slot.Reason != "" {
			lines = append(lines, "          "+slot.Reason)
		}
		for _, e := range slot.Errors {
			lines = append(lines, fmt.Sprintf("          %s: %s, %d times, last at %s",
				e.Op, e.Errno, e.Count, e.Last.Local().Format("15:04:05")))
		}
	}
	return lines
}

// arenaOutlives is the kind of arena of which nothing needs to be said.
const arenaOutlives = "tmpfs"

func memoryLine(s control.Status) string {
	line := fmt.Sprintf("memory    cache %s of %s", formatSize(s.Cache.UsedBytes), formatSize(s.Cache.SizeBytes))
	if lookups := s.Counters.CacheHits + s.Counters.CacheMisses; lookups > 0 {
		line += fmt.Sprintf(" (%.0f%% hits)", 100*float64(s.Counters.CacheHits)/float64(lookups))
	}
	line += fmt.Sprintf(", arena %s free of %s, %s", formatSize(s.Arena.FreeBytes), formatSize(s.Arena.SizeBytes), s.Arena.Kind)
	if s.Arena.Note != "" && s.Arena.Kind != arenaOutlives {
		line += " (" + s.Arena.Note + ")"
	}
	return line
}

func checkText(c control.Check) string {
	switch {
	case !c.OK:
		return "no: " + c.Note
	case c.Note == "":
		return "ok"
	default:
		return "ok: " + c.Note
	}
}

func printInflight(out io.Writer, list []control.Inflight) {
	for _, r := range list {
		line := r.Op
		if r.LengthBytes > 0 {
			line += fmt.Sprintf(" %d at %#x", r.LengthBytes, r.OffsetBytes)
		}
		line += fmt.Sprintf(": %s in %s", formatAge(r.AgeSeconds), r.Stage)
		if r.Waiting != "" {
			line += ", waiting for " + r.Waiting
		}
		fmt.Fprintln(out, line)
	}
}

func formatLatency(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(10 * time.Microsecond).String()
	default:
		return d.Round(10 * time.Millisecond).String()
	}
}

func plural(count int, noun string) string {
	if count == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", count, noun)
}
