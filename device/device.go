// Package device is the block device: it takes requests of any size and
// alignment from front-ends, cuts them into parts that lie in one region, and
// completes them when the last part has. How a part is stored is the shards'
// business.
//
// # What is promised
//
// A Write that completed is in shared memory and in the hands of a quorum of
// slots: it survives a kill of the process. A Flush that completed covers
// every write that completed before it was submitted, on any connection, and
// these survive a power cut. Every request completes or fails by its deadline.
//
// # Who owns what
//
// A Request belongs to its front-end, then from Submit to Done to the device.
// Opening and closing are one goroutine's; everything else may be called from
// any. The goroutines are: the door's, the one that brings slots back, one
// runner a shard, and those of the slots' engines; Close joins them.
package device

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"trivet/arena"
	"trivet/cache"
	"trivet/replica"
	"trivet/shard"
)

// Device is an open volume.
type Device struct {
	info       Info
	opt        Options
	layout     *layout // of the volume; a slot's place changes under slotsMu
	group      *replica.Group
	membership *replica.Membership
	slotsMu    sync.Mutex        // guards engines, and of the group Slots, Absent and Generation; held for no I/O
	engines    []*replica.Engine // by slot; nil for one of which nothing is open
	asides     []Aside           // what was set aside; of the last survey; guarded by slotsMu
	returns    returns
	arena      *arena.Arena
	memory     *cache.Memory
	shards     []*shard.Shard
	hosts      []*shard.SystemHost
	events     *events
	epoch      time.Time
	cacheBytes uint64
	arenaKind  string
	arenaNote  string
	arenaPages uint64
	held       *replica.Held // what the last server left in the arena; for Open alone

	latencies latencies

	door     door
	parts    sync.Pool // *part
	inflight atomic.Int64
	stopped  atomic.Pointer[error] // why nothing is written any more; set once
	closing  atomic.Bool
	drained  chan struct{} // capacity 1: inflight fell to zero while closing
}

// Info describes the device to front-ends.
func (d *Device) Info() Info { return d.info }

// enter counts a request in, unless the device is closing.
func (d *Device) enter() bool {
	d.inflight.Add(1)
	if d.closing.Load() {
		d.exit()
		return false
	}
	return true
}

// leave gives a request back and counts it out.
func (d *Device) leave(r *Request) {
	r.Done(r)
	d.exit()
}

func (d *Device) exit() {
	if d.inflight.Add(-1) == 0 && d.closing.Load() {
		select {
		case d.drained <- struct{}{}:
		default:
		}
	}
}

// now is the shards' clock.
func (d *Device) now() time.Duration { return time.Since(d.epoch) + 1 }

// slotFaulted decides what becomes of a slot whose lane was lost or stands
// still, and tells every shard.
func (d *Device) slotFaulted(slot int, lost bool, err error) {
	if replica.Unbelievable(err) {
		d.returns.doubt(slot, err)
	}
	if !d.membership.Report(slot, lost) {
		if !lost {
			d.events.note(slot, "slot is slow, but cannot be spared", err)
		}
		return
	}
	d.events.note(slot, "slot is faulted: it is brought back once it can be used again", err)
	if d.membership.Count() < d.group.Quorum() {
		stopped := fmt.Errorf("%w: slot %d: %w", shard.ErrStopped, slot, err)
		d.stopped.CompareAndSwap(nil, &stopped)
		d.door.notify()
	}
	for _, s := range d.shards {
		s.Drop(slotID(slot), err)
	}
	d.returns.notify()
}

// Close completes what was submitted, flushes, stores a checkpoint, and
// releases everything. When the context ends first it gives up and says what
// was left; the volume is then as after a kill.
func (d *Device) Close(ctx context.Context) error {
	if d.closing.Swap(true) {
		return errors.New("device is closed already")
	}
	d.returns.cancel()
	if err := d.drain(ctx); err != nil {
		return err
	}
	d.door.close()
	flushErr := d.flushAll(ctx)
	if err := d.checkpoint(ctx); err != nil {
		return errors.Join(flushErr, err)
	}
	if err := d.returns.join(ctx); err != nil {
		return errors.Join(flushErr, err)
	}
	for _, h := range d.hosts {
		h.Close()
	}
	return errors.Join(flushErr, d.release(flushErr == nil))
}

func (d *Device) drain(ctx context.Context) error {
	for d.inflight.Load() > 0 {
		select {
		case <-d.drained:
		case <-ctx.Done():
			return fmt.Errorf("close: %d requests are still under way: %w", d.inflight.Load(), ctx.Err())
		}
	}
	return nil
}

// flushAll makes everything durable that was acknowledged.
func (d *Device) flushAll(ctx context.Context) error {
	results := make(chan error, len(d.shards))
	for _, s := range d.shards {
		s.Submit(&shard.Part{Op: shard.Flush, Done: func(p *shard.Part) { results <- p.Err }})
	}
	var errs []error
	for range d.shards {
		select {
		case err := <-results:
			errs = append(errs, err)
		case <-ctx.Done():
			return fmt.Errorf("close: flush: %w", ctx.Err())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close: flush: %w", err)
	}
	return nil
}

// checkpoint stores the maps, and waits until nothing is under way.
func (d *Device) checkpoint(ctx context.Context) error {
	quiet := make(chan struct{}, len(d.shards))
	for _, s := range d.shards {
		s.Checkpoint(func() { quiet <- struct{}{} })
	}
	for range d.shards {
		select {
		case <-quiet:
		case <-ctx.Done():
			return fmt.Errorf("close: checkpoint: %w", ctx.Err())
		}
	}
	return nil
}

// release closes slots and memory. A clean arena holds nothing and goes away.
func (d *Device) release(clean bool) error {
	var errs []error
	for _, e := range d.engines {
		if e == nil {
			continue
		}
		if !e.Close(closeWait) {
			errs = append(errs, fmt.Errorf("slot %d: an operation has not returned for %v", e.Slot().ID, closeWait))
			continue
		}
		errs = append(errs, e.Slot().Close())
	}
	if clean && d.arena.Live() == 0 {
		errs = append(errs, d.arena.Discard())
	}
	errs = append(errs, d.arena.Close(), d.memory.Close())
	return errors.Join(errs...)
}

// closeWait is how long Close waits for a slot's system calls to return.
const closeWait = 5 * time.Second
