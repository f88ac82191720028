// Package control is the window into a running volume: HTTP and JSON on a unix
// socket, so that 'curl --unix-socket' works, the command line is a thin client
// and Prometheus can scrape it.
//
//	GET    /status         Status
//	GET    /inflight       []Inflight, the oldest first
//	GET    /events         []Event, the oldest first
//	GET    /faults         []inject.Status
//	POST   /faults         a rule as text; answers its inject.Status
//	DELETE /faults/{id}    one rule, or 'all'; answers Removed
//	POST   /slots/{id}/replace  the new slot's directory, or nothing for that of the
//	                       old one; answers Replaced once the slot is made
//	GET    /metrics        Prometheus text
//	GET    /debug/pprof/   the Go profiler
//
// A refusal is a JSON object {"error": "one line"} with a status of 400 and up.
//
// The package stores nothing and promises nothing on a crash. The Server owns
// its listener, its connections and its goroutines, and Close ends and joins
// them all; the Target it asks belongs to the caller and must outlive it. It
// never holds anything while it waits for a client, and a client costs a
// bounded amount of memory: connections, header and body have limits.
package control

import (
	"context"
	"time"
)

// Target is what the server shows. Its methods are called from many goroutines
// at once and return values that the caller may keep. But for ReplaceSlot they
// must not block on I/O.
type Target interface {
	// Status describes the volume now.
	Status() Status
	// Inflight lists the requests that have not completed, the oldest first.
	Inflight() []Inflight
	// Events returns what happened last, the oldest first.
	Events() []Event
	// ReplaceSlot makes a new slot in the place of one, in a directory, or where
	// the old one was if that is empty.
	ReplaceSlot(ctx context.Context, slot int, at string) error
}

// State is how well a volume serves.
type State string

// The states of a volume.
const (
	Starting State = "starting"
	Serving  State = "serving"  // every slot is current
	Degraded State = "degraded" // a quorum is current, not all
	Stopped  State = "stopped"  // writes and flushes fail; Reason says why
	Draining State = "draining" // shutting down
)

// SlotState is how far a slot can be relied on.
type SlotState string

// The states of a slot.
const (
	Current   SlotState = "current"   // has everything; votes
	Resyncing SlotState = "resyncing" // takes writes, misses regions; does not vote
	Faulted   SlotState = "faulted"   // dropped; Reason says why
	Blank     SlotState = "blank"     // never held this volume, or was replaced
)

// Status describes a volume at one instant. Counters never decrease while a
// server lives, so rates are differences of two answers.
type Status struct {
	Version       string  `json:"version"`
	Volume        Volume  `json:"volume"`
	State         State   `json:"state"`
	Reason        string  `json:"reason,omitempty"` // why State is not serving
	Generation    uint64  `json:"generation"`       // incremented by every activation
	UptimeSeconds float64 `json:"uptime_seconds"`
	Quorum        int     `json:"quorum"` // current slots that a write needs
	// PressureRatio tells how much writes are slowed: 0 while they enter unhindered,
	// and at 1 they wait. Lagging tells for what: until the checkpoints of the slot
	// that lags most have caught up, or until log space was reclaimed, of which a
	// slot that alone is short does not count.
	PressureRatio float64   `json:"pressure_ratio"`
	Lagging       bool      `json:"lagging"`
	Inflight      int       `json:"inflight_requests"`
	Connections   int       `json:"connections"` // of NBD clients
	Slots         []Slot    `json:"slots"`
	Asides        []Aside   `json:"asides,omitempty"`
	Counters      Counters  `json:"counters"`
	Latencies     []Latency `json:"latencies,omitempty"`
	Arena         Arena     `json:"arena"`
	Cache         Cache     `json:"cache"`
	Process       []Check   `json:"process"`
}

// Volume is what does not change while a volume is open.
type Volume struct {
	Name      string `json:"name"`
	UUID      string `json:"uuid"`
	SizeBytes uint64 `json:"size_bytes"`
	Shards    int    `json:"shards"`
	Replicas  int    `json:"replicas"`
}

// Slot describes one replica.
type Slot struct {
	ID                 int         `json:"id"`
	Where              string      `json:"where"` // a directory, or the address of a remote slot
	State              SlotState   `json:"state"`
	Reason             string      `json:"reason,omitempty"`
	LogBytes           uint64      `json:"log_bytes"`            // written in the segments in use, descriptors included
	LiveBytes          uint64      `json:"live_bytes"`           // of those, what the map names: the rest is to be reclaimed
	PressureRatio      float64     `json:"pressure_ratio"`       // how short of log space the slot is by itself, 0 to 1
	CheckpointLagRatio float64     `json:"checkpoint_lag_ratio"` // how far its checkpoints are behind, 0 to 1
	SegmentsInUse      int         `json:"segments_in_use"`
	SegmentsFree       int         `json:"segments_free"`
	BacklogBytes       uint64      `json:"backlog_bytes"`       // accepted, not yet appended
	DurableLagBytes    uint64      `json:"durable_lag_bytes"`   // appended, not yet synced
	MissingRegions     int         `json:"missing_regions"`     // still to be copied by a resync
	CheckpointSequence uint64      `json:"checkpoint_sequence"` // of the last one that is durable
	Errors             []SlotError `json:"errors,omitempty"`
}

// Aside is something that the volume could no longer use, and keeps until it is
// removed.
type Aside struct {
	Slot      int    `json:"slot"` // -1: an arena
	Path      string `json:"path"`
	SizeBytes uint64 `json:"size_bytes"` // that it takes on its disk
}

// SlotError counts the errors of one kind on one slot.
type SlotError struct {
	Op    string    `json:"op"`
	Errno string    `json:"errno"`
	Count uint64    `json:"count"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// Counters count what was completed since the server started.
type Counters struct {
	Reads       uint64 `json:"reads"`
	Writes      uint64 `json:"writes"` // write-zeroes included
	Flushes     uint64 `json:"flushes"`
	Trims       uint64 `json:"trims"`
	ReadBytes   uint64 `json:"read_bytes"`
	WriteBytes  uint64 `json:"write_bytes"`
	ReadErrors  uint64 `json:"read_errors"`
	WriteErrors uint64 `json:"write_errors"` // trims included
	FlushErrors uint64 `json:"flush_errors"`
	CacheHits   uint64 `json:"cache_hits"`   // blocks
	CacheMisses uint64 `json:"cache_misses"` // blocks
}

// Latency holds percentiles of one operation's time from submit to completion,
// over the last 10 to 20 s. An operation that nobody asked for in that time has
// none.
type Latency struct {
	Op          string  `json:"op"`    // read, write, flush, trim, zero
	Count       uint64  `json:"count"` // of requests that these are the percentiles of
	P50Seconds  float64 `json:"p50_seconds"`
	P99Seconds  float64 `json:"p99_seconds"`
	P999Seconds float64 `json:"p999_seconds"`
	MaxSeconds  float64 `json:"max_seconds"`
}

// Arena is the memory that holds payloads until they are durable.
type Arena struct {
	Kind      string `json:"kind"` // 'shared' (outlives the process) or 'private'
	Note      string `json:"note,omitempty"`
	SizeBytes uint64 `json:"size_bytes"`
	FreeBytes uint64 `json:"free_bytes"`
}

// Cache is the memory that answers reads.
type Cache struct {
	SizeBytes uint64 `json:"size_bytes"`
	UsedBytes uint64 `json:"used_bytes"`
}

// Check is one thing that the process tried to obtain from the kernel, such as
// memory that is never paged out. A volume serves without them; Note says what
// that costs.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Note string `json:"note,omitempty"`
}

// Inflight is a request that has not completed.
type Inflight struct {
	Op          string  `json:"op"`
	OffsetBytes uint64  `json:"offset_bytes"`
	LengthBytes uint64  `json:"length_bytes"`
	Shard       int     `json:"shard"`
	Stage       string  `json:"stage"`             // where it is: 'admission', where it holds nothing yet, or 'shard'
	AgeSeconds  float64 `json:"age_seconds"`       // in all
	StageAge    float64 `json:"stage_age_seconds"` // in this stage
	Waiting     string  `json:"waiting,omitempty"` // for what, such as 'log space'
}

// Event is something worth telling that happened to the volume.
type Event struct {
	Time time.Time `json:"time"`
	What string    `json:"what"` // one line
}
