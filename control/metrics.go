package control

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// newMetricsHandler serves the target's status as Prometheus text, from a
// registry of its own: nothing else in the process can add to it.
func newMetricsHandler(target Target) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collector{target},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// collector turns one Status into metrics at each scrape, so that the data path
// pays for its own counters alone.
type collector struct{ target Target }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("trivet_"+name, help, labels, nil)
}

// The metrics, in the design's words: one word an idea, units in names.
var (
	infoDesc        = desc("info", "Always 1; the labels say which volume and build this is.", "version", "name", "uuid")
	stateDesc       = desc("state", "1 for the state that the volume is in.", "state")
	generationDesc  = desc("generation", "Generation of the volume: incremented by every activation.")
	uptimeDesc      = desc("uptime_seconds", "Time since the server started.")
	sizeDesc        = desc("size_bytes", "Size of the volume.")
	quorumDesc      = desc("quorum", "Current slots that a write needs.")
	inflightDesc    = desc("inflight_requests", "Requests that have not completed.")
	pressureDesc    = desc("pressure_ratio", "How much writes are slowed, for log space or for checkpoints that lag: at 1 they wait.")
	connectionsDesc = desc("connections", "Connections of NBD clients.")

	requestsDesc = desc("requests_total", "Requests completed, failed ones included.", "op")
	bytesDesc    = desc("request_bytes_total", "Bytes read and written by clients.", "op")
	errorsDesc   = desc("request_errors_total", "Requests that completed with an error.", "op")
	latencyDesc  = desc("latency_seconds", "Time from submit to completion over the last 10 to 20 s, by quantile; 1 is the maximum.", "op", "quantile")

	cacheHitsDesc   = desc("cache_hits_total", "Blocks read from the block cache.")
	cacheMissesDesc = desc("cache_misses_total", "Blocks that had to be read from a log.")
	cacheSizeDesc   = desc("cache_size_bytes", "Budget of the block cache.")
	cacheUsedDesc   = desc("cache_used_bytes", "Block cache in use.")
	arenaSizeDesc   = desc("arena_size_bytes", "Size of the payload arena.", "kind")
	arenaFreeDesc   = desc("arena_free_bytes", "Payload arena not in use.", "kind")
	checkDesc       = desc("process_check", "1 when the process obtained what it asked of the kernel.", "check")

	slotStateDesc         = desc("slot_state", "1 for the state that the slot is in.", "slot", "state")
	slotLogDesc           = desc("slot_log_bytes", "Written in the slot's segments in use, descriptors included.", "slot")
	slotLiveDesc          = desc("slot_live_bytes", "Of the bytes of the slot's log, those that the map names.", "slot")
	slotPressureDesc      = desc("slot_pressure_ratio", "How short of log space the slot is by itself, 0 to 1.", "slot")
	slotCheckpointLagDesc = desc("slot_checkpoint_lag_ratio", "How far the slot's checkpoints are behind, 0 to 1.", "slot")
	slotSegmentsDesc      = desc("slot_segments", "Segments of the slot.", "slot", "use")
	slotBacklogDesc       = desc("slot_backlog_bytes", "Accepted, not yet appended on the slot.", "slot")
	slotLagDesc           = desc("slot_durable_lag_bytes", "Appended, not yet synced on the slot.", "slot")
	slotMissingDesc       = desc("slot_missing_regions", "Regions that a resync still has to copy.", "slot")
	slotCheckpointDesc    = desc("slot_checkpoint_sequence", "Sequence number of the slot's last durable checkpoint.", "slot")
	asidesDesc            = desc("asides", "What was set aside and is kept until it is removed; of the slot, or of arenas.", "of")
	asideBytesDesc        = desc("aside_bytes", "What that takes on its disk.", "of")
	slotErrorsDesc        = desc("slot_errors_total", "Errors on the slot.", "slot", "op", "errno")
)

// Describe sends nothing, which makes the collector unchecked: the labels of
// errors are known only when they happen.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends the metrics of one Status.
func (c collector) Collect(out chan<- prometheus.Metric) {
	s, m := c.target.Status(), emitter(out)
	m.volume(s)
	m.requests(s.Counters)
	m.latencies(s.Latencies)
	m.memory(s)
	for _, slot := range s.Slots {
		m.slot(slot)
		m.asides(s.Asides, slot.ID, strconv.Itoa(slot.ID))
	}
	m.asides(s.Asides, -1, "arena")
}

// emitter shortens the sending of constant metrics.
type emitter chan<- prometheus.Metric

func (m emitter) gauge(d *prometheus.Desc, value float64, labels ...string) {
	m <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

func (m emitter) counter(d *prometheus.Desc, value uint64, labels ...string) {
	m <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
}

func (m emitter) volume(s Status) {
	m.gauge(infoDesc, 1, s.Version, s.Volume.Name, s.Volume.UUID)
	for _, state := range []State{Starting, Serving, Degraded, Stopped, Draining} {
		m.gauge(stateDesc, oneIf(s.State == state), string(state))
	}
	m.gauge(generationDesc, float64(s.Generation))
	m.gauge(uptimeDesc, s.UptimeSeconds)
	m.gauge(sizeDesc, float64(s.Volume.SizeBytes))
	m.gauge(quorumDesc, float64(s.Quorum))
	m.gauge(inflightDesc, float64(s.Inflight))
	m.gauge(pressureDesc, s.PressureRatio)
	m.gauge(connectionsDesc, float64(s.Connections))
	for _, check := range s.Process {
		m.gauge(checkDesc, oneIf(check.OK), check.Name)
	}
}

func (m emitter) requests(c Counters) {
	m.counter(requestsDesc, c.Reads, "read")
	m.counter(requestsDesc, c.Writes, "write")
	m.counter(requestsDesc, c.Flushes, "flush")
	m.counter(requestsDesc, c.Trims, "trim")
	m.counter(bytesDesc, c.ReadBytes, "read")
	m.counter(bytesDesc, c.WriteBytes, "write")
	m.counter(errorsDesc, c.ReadErrors, "read")
	m.counter(errorsDesc, c.WriteErrors, "write")
	m.counter(errorsDesc, c.FlushErrors, "flush")
}

func (m emitter) latencies(list []Latency) {
	for _, l := range list {
		m.gauge(latencyDesc, l.P50Seconds, l.Op, "0.5")
		m.gauge(latencyDesc, l.P99Seconds, l.Op, "0.99")
		m.gauge(latencyDesc, l.P999Seconds, l.Op, "0.999")
		m.gauge(latencyDesc, l.MaxSeconds, l.Op, "1")
	}
}

func (m emitter) memory(s Status) {
	m.counter(cacheHitsDesc, s.Counters.CacheHits)
	m.counter(cacheMissesDesc, s.Counters.CacheMisses)
	m.gauge(cacheSizeDesc, float64(s.Cache.SizeBytes))
	m.gauge(cacheUsedDesc, float64(s.Cache.UsedBytes))
	m.gauge(arenaSizeDesc, float64(s.Arena.SizeBytes), s.Arena.Kind)
	m.gauge(arenaFreeDesc, float64(s.Arena.FreeBytes), s.Arena.Kind)
}

func (m emitter) slot(s Slot) {
	id := strconv.Itoa(s.ID)
	for _, state := range []SlotState{Current, Resyncing, Faulted, Blank} {
		m.gauge(slotStateDesc, oneIf(s.State == state), id, string(state))
	}
	m.gauge(slotLogDesc, float64(s.LogBytes), id)
	m.gauge(slotLiveDesc, float64(s.LiveBytes), id)
	m.gauge(slotPressureDesc, s.PressureRatio, id)
	m.gauge(slotCheckpointLagDesc, s.CheckpointLagRatio, id)
	m.gauge(slotSegmentsDesc, float64(s.SegmentsInUse), id, "live")
	m.gauge(slotSegmentsDesc, float64(s.SegmentsFree), id, "free")
	m.gauge(slotBacklogDesc, float64(s.BacklogBytes), id)
	m.gauge(slotLagDesc, float64(s.DurableLagBytes), id)
	m.gauge(slotMissingDesc, float64(s.MissingRegions), id)
	m.gauge(slotCheckpointDesc, float64(s.CheckpointSequence), id)
	for _, e := range s.Errors {
		m.counter(slotErrorsDesc, e.Count, id, e.Op, e.Errno)
	}
}

func (m emitter) asides(all []Aside, slot int, of string) {
	count, sizeBytes := 0, uint64(0)
	for _, a := range all {
		if a.Slot == slot {
			count++
			sizeBytes += a.SizeBytes
		}
	}
	m.gauge(asidesDesc, float64(count), of)
	m.gauge(asideBytesDesc, float64(sizeBytes), of)
}

func oneIf(condition bool) float64 {
	if condition {
		return 1
	}
	return 0
}
