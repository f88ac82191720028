package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"trivet/control"
	"trivet/device"
	"trivet/inject"
	"trivet/shard"
)

// VolumeOptions say which volume to open and how. They are validated: sizes are
// whole blocks, slot numbers exist, directories are absolute.
type VolumeOptions struct {
	Dir string // the volume's directory; exists
	// SizeBytes, Replicas and Shards create the volume when Dir holds none, and
	// must agree with it when it does. 0 is 'as it is', or the default for a
	// new volume; a new volume needs SizeBytes.
	SizeBytes   uint64
	Replicas    int
	Shards      int
	Slots       map[int]string // directories of slots that are not Dir/slot-ID
	Name        string
	ArenaDir    string        // a directory on tmpfs; "" lets the volume choose
	MemoryBytes uint64        // budget of arena, map and block cache; 0 is the default
	Deadline    time.Duration // by which every request completes
	Survivor    int           // slot plus one whose state counts, the others being lost; 0 for none
	Replace     uint8         // slots that are made anew: bit i for slot i
	NewIdentity bool          // the volume is a copy, and becomes one of its own
	AdoptArena  bool          // takes what is in shared memory although its volume is elsewhere
	AcceptLoss  bool          // opens although acknowledged writes in shared memory are damaged
	Log         *slog.Logger
	// ReclaimAlways cleans segments whether or not space is short.
	ReclaimAlways bool
}

// errNoVolume is wrapped by openVolume when the directory holds no volume and
// no size was given to create one.
var errNoVolume = errors.New("no volume here")

// Volume is an open volume: what serve needs of it.
type Volume interface {
	// Target's methods work from open on, and after Close too.
	control.Target
	// What front-ends need.
	Info() device.Info
	Submit(*device.Request)
	Post(*device.Request)
	Run()
	Withdraw(client uint64)
	Resume()
	// Faults holds the rules in force; nil when the volume takes none.
	Faults() *inject.Set
	// Close completes what was submitted, flushes, releases everything and
	// joins every goroutine. Requests that are submitted later fail with
	// device.ErrShutdown. When the context ends first it gives up, and returns
	// an error that says what was left.
	Close(ctx context.Context) error
}

// volume shows a device to the control socket.
type volume struct {
	*device.Device
	faults *inject.Set
}

// openVolume creates or opens a volume, and recovers it. It returns early, with
// the context's error, when the context ends.
func openVolume(ctx context.Context, o VolumeOptions) (Volume, error) {
	faults := inject.NewSet(uint64(time.Now().UnixNano()), time.Now)
	d, err := device.Open(ctx, device.Options{
		Dir: o.Dir, Slots: o.Slots, Name: o.Name, Size: o.SizeBytes, Replicas: o.Replicas, Shards: o.Shards,
		ArenaDir: o.ArenaDir, Memory: o.MemoryBytes, Deadline: o.Deadline, Survivor: o.Survivor, Faults: faults, Log: o.Log,
		Replace: o.Replace, NewIdentity: o.NewIdentity, AdoptArena: o.AdoptArena, AcceptLoss: o.AcceptLoss,
		ReclaimAlways: o.ReclaimAlways,
	})
	if errors.Is(err, device.ErrNoVolume) {
		return nil, errNoVolume
	}
	if err != nil {
		return nil, err
	}
	return volume{d, faults}, nil
}

func (v volume) Faults() *inject.Set { return v.faults }

// Status translates the device's snapshot.
func (v volume) Status() control.Status {
	s := v.Snapshot()
	out := control.Status{
		Volume: control.Volume{
			Name: s.Name, UUID: uuid(s.Volume), SizeBytes: s.SizeBytes, Shards: s.Shards, Replicas: s.Replicas,
		},
		State: control.Serving, PressureRatio: ratio(s.Pressure), Lagging: s.Lagging, Generation: uint64(s.Generation), Quorum: s.Quorum(), Inflight: s.Inflight,
		Counters: control.Counters{
			Reads: s.Counters.Reads, Writes: s.Counters.Writes, Flushes: s.Counters.Flushes, Trims: s.Counters.Trims,
			ReadBytes: s.Counters.ReadBytes, WriteBytes: s.Counters.WriteBytes,
			ReadErrors: s.Counters.ReadErrors, WriteErrors: s.Counters.WriteErrors, FlushErrors: s.Counters.FlushErrors,
			CacheHits: s.Counters.CacheHits, CacheMisses: s.Counters.CacheMisses,
		},
		Arena: control.Arena{Kind: s.ArenaKind, Note: s.ArenaNote, SizeBytes: s.ArenaBytes, FreeBytes: s.ArenaFree},
		Cache: control.Cache{SizeBytes: s.CacheBytes, UsedBytes: s.CacheUsed},
	}
	for _, l := range s.Latencies {
		out.Latencies = append(out.Latencies, latencyStatus(l))
	}
	for _, slot := range s.Slots {
		if !slot.Live {
			out.State = control.Degraded
			out.Reason = fmt.Sprintf("slot %d does not take part", slot.ID)
		}
		out.Slots = append(out.Slots, slotStatus(slot, s.Errors))
	}
	for _, a := range s.Asides {
		out.Asides = append(out.Asides, control.Aside{Slot: a.Slot, Path: a.Path, SizeBytes: uint64(a.SizeBytes)})
	}
	if s.Stopped != nil {
		out.State, out.Reason = control.Stopped, s.Stopped.Error()
	}
	return out
}

// latencySpan is what latencies look back on, for people.
var latencySpan = fmt.Sprintf("%.0f to %.0f s", device.LatencyWindow.Seconds(), 2*device.LatencyWindow.Seconds())

func latencyStatus(l device.Latency) control.Latency {
	op := l.Op.String()
	if l.Op == device.WriteZeroes {
		op = "zero" // as the parts of such a request are called
	}
	return control.Latency{
		Op: op, Count: l.Count,
		P50Seconds: l.P50.Seconds(), P99Seconds: l.P99.Seconds(), P999Seconds: l.P999.Seconds(), MaxSeconds: l.Max.Seconds(),
	}
}

// ratio turns a pressure into a share of what stops all writes.
func ratio(pressure int) float64 { return float64(pressure) / shard.Full }

// slotStatus describes one slot with its errors.
func slotStatus(s device.SlotSnapshot, errs []device.ErrorCount) control.Slot {
	out := control.Slot{
		ID: s.ID, Where: s.Where, State: control.Current, LogBytes: s.LogBytes, LiveBytes: s.LiveBytes, PressureRatio: ratio(s.Pressure), CheckpointLagRatio: ratio(s.Lag),
		SegmentsInUse: s.Segments, SegmentsFree: s.SegmentsFree, CheckpointSequence: s.Checkpoint,
		BacklogBytes: s.BacklogBytes, DurableLagBytes: s.UnsyncedBytes,
	}
	if !s.Live {
		out.State = control.Faulted
		out.BacklogBytes, out.DurableLagBytes, out.PressureRatio, out.CheckpointLagRatio = 0, 0, 0, 0 // it gets nothing any more
		out.Reason = "it was dropped; 'trivet events' says why"
		if s.Reason != nil {
			out.Reason = s.Reason.Error()
		}
	}
	if s.Returning {
		out.State, out.MissingRegions = control.Resyncing, s.Missing
		out.Reason = "it is given what it missed while its peers serve"
	}
	for _, e := range errs {
		if e.Slot == s.ID {
			out.Errors = append(out.Errors, control.SlotError{Op: "log", Errno: e.Errno, Count: e.Count, First: e.First, Last: e.Last})
		}
	}
	return out
}

// Inflight translates what waits at the door and in the shards.
func (v volume) Inflight() []control.Inflight {
	var out []control.Inflight
	for _, p := range v.Device.Inflight() {
		out = append(out, control.Inflight{
			Op: p.Op, OffsetBytes: p.Offset, LengthBytes: uint64(p.Length), Shard: p.Shard, Stage: p.Stage,
			AgeSeconds: p.Age.Seconds(), StageAge: p.StageAge.Seconds(), Waiting: p.Waits,
		})
	}
	return out
}

// Events translates the device's events.
func (v volume) Events() []control.Event {
	var out []control.Event
	for _, e := range v.Device.Events() {
		what := e.What
		if e.Slot >= 0 {
			what = fmt.Sprintf("slot %d: %s", e.Slot, what)
		}
		out = append(out, control.Event{Time: e.Time, What: what})
	}
	return out
}

// uuid prints a volume's ID in the usual form.
func uuid(id [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
