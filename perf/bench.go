package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"trivet/e2e/server"
)

// rawName is how the disk itself is called in the results of cold reads.
const rawName = "raw disk"

// settle is how long a fresh server is left alone before it counts as idle,
// and watch is how long it is watched then.
const (
	settle = 20 * time.Second
	watch  = 5 * time.Second
)

// A bench measures targets and collects the results.
type bench struct {
	targets  []target
	jobs     []string // the chosen ones
	rounds   int
	runtime  time.Duration
	ramp     time.Duration
	span     string // as fio and Trivet read it
	spanSize int64
	dir      string // everything is below it
	progress io.Writer

	results results
	visits  int // so far; they number the directories
}

// run does all rounds. Within a round every job visits the targets one after
// another, so that a slow minute of the machine hits neighbours alike; each
// round starts with the next target.
func (b *bench) run(ctx context.Context) error {
	for round := range b.rounds {
		order := slices.Concat(b.targets[round%len(b.targets):], b.targets[:round%len(b.targets)])
		for _, j := range warmJobs {
			for _, t := range order {
				if err := b.visit(ctx, round, t, j, b.warm); err != nil {
					return err
				}
			}
		}
		if err := b.cold(ctx, round, order); err != nil {
			return err
		}
		for _, t := range order {
			if err := b.visit(ctx, round, t, job{name: openName}, b.open); err != nil {
				return err
			}
		}
	}
	for _, t := range b.targets {
		if err := b.visit(ctx, 0, t, job{name: idleName}, b.idle); err != nil {
			return err
		}
	}
	return nil
}

// cold does the cold reads of a round.
func (b *bench) cold(ctx context.Context, round int, order []target) error {
	for _, c := range coldJobs {
		measure := func(ctx context.Context, srv *server.Server, j job) (result, error) {
			return b.coldRead(ctx, srv, c)
		}
		for _, t := range order {
			if t.volatile {
				continue
			}
			if err := b.visit(ctx, round, t, c.job, measure); err != nil {
				return err
			}
		}
		if err := b.visitDisk(ctx, round, c); err != nil {
			return err
		}
	}
	return nil
}

// A measure starts the server, and may leave it running.
type measure func(context.Context, *server.Server, job) (result, error)

// visit measures one target with fresh data, if the job was chosen.
func (b *bench) visit(ctx context.Context, round int, t target, j job, m measure) error {
	if !slices.Contains(b.jobs, j.name) || (t.replicas == 0 && (j.name == idleName || j.name == openName)) {
		return nil
	}
	p, err := b.newPlace()
	if err != nil {
		return err
	}
	defer p.remove()
	srv, err := t.server(p)
	if err != nil {
		return err
	}
	defer srv.Close()
	r, err := m(ctx, srv, j)
	if err != nil {
		return fmt.Errorf("%s on %s: %w", j.name, t.name, err)
	}
	if err := end(ctx, srv); err != nil {
		return fmt.Errorf("%s on %s: %w", j.name, t.name, err)
	}
	b.record(round, j.name, t.name, r)
	return nil
}

// newPlace makes directories that no earlier visit has used.
func (b *bench) newPlace() (place, error) {
	b.visits++
	return newPlace(filepath.Join(b.dir, fmt.Sprint(b.visits)))
}

// record keeps a result and shows it.
func (b *bench) record(round int, job, target string, r result) {
	b.results.add(job, target, r)
	fmt.Fprintf(b.progress, "round %d  %-22s  %-14s  %s\n", round+1, job, target, r)
}

// warm runs a job on a span that was written once and flushed, and that is in
// memory if it is to be read.
func (b *bench) warm(ctx context.Context, srv *server.Server, j job) (result, error) {
	if err := begin(ctx, srv); err != nil {
		return result{}, err
	}
	uri := overNBD(srv.URI())
	if _, err := runFio(ctx, fill, b.span, uri); err != nil {
		return result{}, err
	}
	if j.reads {
		if _, err := runFio(ctx, warm, b.span, uri); err != nil {
			return result{}, err
		}
	}
	unix.Sync() // what others have left to write is not this server's business
	before, err := srv.Usage()
	if err != nil {
		return result{}, err
	}
	r, err := runFio(ctx, j, b.span, uri, timed(b.runtime, b.ramp))
	if err != nil {
		return result{}, err
	}
	after, err := srv.Usage()
	if err != nil {
		return result{}, err
	}
	// The ramp's operations are not in the report, but its CPU time is.
	share := float64(b.runtime) / float64(b.runtime+b.ramp)
	r.cpuPerOp = time.Duration(float64(after.CPU-before.CPU) * share / float64(r.ops))
	return r, nil
}

// coldRead reads everything once after a restart, with an empty page cache.
func (b *bench) coldRead(ctx context.Context, srv *server.Server, c coldJob) (result, error) {
	if err := begin(ctx, srv); err != nil {
		return result{}, err
	}
	if _, err := runFio(ctx, c.prepare, b.span, overNBD(srv.URI())); err != nil {
		return result{}, err
	}
	if err := end(ctx, srv); err != nil {
		return result{}, err
	}
	if err := begin(ctx, srv); err != nil {
		return result{}, err
	}
	if err := dropCaches(); err != nil {
		return result{}, err
	}
	return runFio(ctx, c.job, b.span, overNBD(srv.URI()))
}

// visitDisk does a cold read of a preallocated file past the page cache.
func (b *bench) visitDisk(ctx context.Context, round int, c coldJob) error {
	if !slices.Contains(b.jobs, c.name) {
		return nil
	}
	p, err := b.newPlace()
	if err != nil {
		return err
	}
	defer p.remove()
	file := filepath.Join(p.dir, "raw")
	if err := preallocate(file, b.spanSize); err != nil {
		return err
	}
	if _, err := runFio(ctx, c.prepare, b.span, overFile(file)); err != nil {
		return err
	}
	if err := dropCaches(); err != nil {
		return err
	}
	r, err := runFio(ctx, c.job, b.span, overFile(file))
	if err != nil {
		return err
	}
	b.record(round, c.name, rawName, r)
	return nil
}

// idle measures the memory and the wake-ups of a fresh server.
func (b *bench) idle(ctx context.Context, srv *server.Server, _ job) (result, error) {
	if err := begin(ctx, srv); err != nil {
		return result{}, err
	}
	if err := pause(ctx, settle); err != nil {
		return result{}, err
	}
	before, err := srv.Usage()
	if err != nil {
		return result{}, err
	}
	if err := pause(ctx, watch); err != nil {
		return result{}, err
	}
	after, err := srv.Usage()
	if err != nil {
		return result{}, err
	}
	return result{
		resident:  after.ResidentBytes,
		processes: after.Processes,
		wakeups:   float64(after.Switches-before.Switches) / watch.Seconds(),
	}, nil
}

// open measures how long a killed server takes to serve again.
func (b *bench) open(ctx context.Context, srv *server.Server, _ job) (result, error) {
	if err := begin(ctx, srv); err != nil {
		return result{}, err
	}
	if _, err := runFio(ctx, halfGiB, b.span, overNBD(srv.URI())); err != nil {
		return result{}, err
	}
	srv.Kill()
	start := time.Now()
	if err := begin(ctx, srv); err != nil {
		return result{}, err
	}
	return result{opened: time.Since(start)}, nil
}

// pause waits, or returns the context's error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
