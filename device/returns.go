package device

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"trivet/disk"
	"trivet/journal"
	"trivet/replica"
	"trivet/resync"
	"trivet/shard"
)

// A slot that takes no part is tried again, after a pause that grows with every
// failure, and at the least pause when only its disk was full. One that was
// steady for a while begins with the least pause again.
const (
	defaultReturn = 5 * time.Second
	mostReturn    = time.Minute
	steadyAfter   = 5 * time.Minute
	// vainTimes as long as a try took that failed is the next one waited for.
	vainTimes = 4
)

// tellEvery is how often an event tells how far a return has come.
const tellEvery = 10 * time.Second

// errClosing ends a return.
var errClosing = errors.New("device is closing")

// returns brings slots back. Its goroutine sleeps while every slot is live.
type returns struct {
	device *Device
	wake   chan struct{} // capacity 1: a slot was dropped
	orders chan order    // of operators; unbuffered
	ctx    context.Context
	cancel context.CancelFunc
	ended  chan struct{} // closed by the goroutine

	// doubts are, by slot, why what it holds cannot be believed; nil: it can. Set by
	// whoever finds that out, taken away by the goroutine.
	doubts [journal.MaxSlots]atomic.Pointer[error]

	absent  []absentSlot       // by ID; the goroutine's, as is what follows
	highest journal.Generation // tried
}

// absentSlot is when a slot is tried again.
type absentSlot struct {
	due      time.Time // zero: the slot is live
	pause    time.Duration
	returned time.Time
	told     string // kind of the error that was told last
}

// start begins to look after the slots that are not live.
func (r *returns) start(d *Device) {
	r.device, r.highest = d, d.group.Generation
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.absent = make([]absentSlot, d.group.Replicas)
	r.ended = make(chan struct{})
	go func() {
		defer close(r.ended)
		timer := time.NewTimer(0)
		defer timer.Stop()
		for {
			select {
			case <-r.ctx.Done():
				return
			case <-r.wake:
			case <-timer.C:
			case o := <-r.orders:
				o.answer <- r.replace(o)
			}
			if next := r.look(); next > 0 {
				timer.Reset(next)
			}
		}
	}()
}

// join waits until the goroutine has ended, which has been cancelled. When the
// context ends first, something of the slot has not answered.
func (r *returns) join(ctx context.Context) error {
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close: a slot that was to come back does not answer: %w", ctx.Err())
	}
}

// notify tells that a slot was dropped. It never blocks.
func (r *returns) notify() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// doubt notes that what a slot holds cannot be believed.
func (r *returns) doubt(slot int, why error) { r.doubts[slot].CompareAndSwap(nil, &why) }

// look tries the slots that are due, and returns after how long to look again: 0
// when every slot is live, or nothing can be done any more.
func (r *returns) look() (next time.Duration) {
	d := r.device
	d.survey()
	if d.stopped.Load() != nil || d.group.Replicas == 1 {
		return 0
	}
	for i, live := range d.membership.Live() {
		a := &r.absent[i]
		switch {
		case live:
			continue
		case a.due.IsZero():
			r.lost(i)
		case !time.Now().Before(a.due):
			r.try(i)
		}
		if wait := time.Until(a.due); !a.due.IsZero() && (next == 0 || wait < next) {
			next = max(wait, time.Millisecond)
		}
	}
	return next
}

// lost decides when a slot is tried that was found missing.
func (r *returns) lost(slot int) {
	a := &r.absent[slot]
	if a.pause == 0 || time.Since(a.returned) > steadyAfter {
		a.pause = r.device.opt.ReturnAfter
	}
	a.due = time.Now().Add(a.pause)
}

// try brings a slot back, or decides when it is tried again.
func (r *returns) try(slot int) {
	a, d := &r.absent[slot], r.device
	began := time.Now()
	err := r.bring(slot)
	if err == nil {
		d.events.note(slot, "slot is back: it has all that its peers have", nil)
		a.due, a.told, a.returned, a.pause = time.Time{}, "", time.Now(), min(2*a.pause, mostReturn)
		return
	}
	if kind := kindOf(err); r.ctx.Err() == nil && kind != a.told { // it is tried for as long as it takes
		a.told = kind
		d.events.note(slot, "slot cannot come back yet", err)
	}
	if !errors.Is(err, unix.ENOSPC) {
		a.pause = min(2*a.pause, mostReturn)
	}
	// What was done in vain was done by the other slots, too.
	a.due = time.Now().Add(max(a.pause, vainTimes*time.Since(began)))
}

// bring brings a slot back.
func (r *returns) bring(slot int) error {
	d := r.device
	r.highest++
	volume := r.volume(slot)
	if err := volume.Return(slot, r.highest); err != nil {
		var content *replica.ContentError
		if errors.As(err, &content) {
			r.doubt(slot, content)
		}
		return err
	}
	d.slotsMu.Lock()
	d.group.Generation, d.group.Absent[slot] = r.highest, nil
	d.slotsMu.Unlock()
	return nil
}

// volume is what a slot comes back to.
func (r *returns) volume(slot int) *resync.Volume {
	d := r.device
	return &resync.Volume{
		Group: d.group, Shards: d.shards, Arena: d.arena, Members: d.membership, Live: d.liveSlots,
		Open: func() (*replica.Slot, error) {
			if err := r.shut(slot); err != nil {
				return nil, err
			}
			return r.reopenSlot(slot)
		},
		Start: func(s *replica.Slot) shard.Slot { return d.startEngine(slot, s) },
		Wait:  r.wait, Progress: r.progress(slot),
	}
}

// shut closes what a dropped slot has left open. Nothing of it is under way in the
// shards.
func (r *returns) shut(slot int) error {
	d := r.device
	d.slotsMu.Lock()
	e := d.engines[slot]
	d.slotsMu.Unlock()
	if e == nil {
		return nil
	}
	if !e.Close(closeWait) {
		return fmt.Errorf("an operation has not returned for %v", closeWait)
	}
	d.slotsMu.Lock()
	d.engines[slot], d.group.Slots[slot] = nil, nil
	d.slotsMu.Unlock()
	return e.Slot().Close()
}

// wait calls start and waits until done is called.
func (r *returns) wait(start func(done func())) error {
	if r.ctx.Err() != nil {
		return errClosing
	}
	done := make(chan struct{}, 1)
	start(func() { done <- struct{}{} })
	select {
	case <-done:
		return nil
	case <-r.ctx.Done():
		return errClosing
	}
}

// progress tells how far a return has come, now and then: the status always does.
func (r *returns) progress(slot int) func(done, left int) {
	said := time.Now()
	return func(done, left int) {
		if time.Since(said) > tellEvery {
			said = time.Now()
			r.device.events.note(slot, fmt.Sprintf("coming back: %d regions brought up to date, %d of this shard are left", done, left), nil)
		}
	}
}

// reopenSlot opens a slot again, if there is room for it. It is in its place, or it
// is waited for: its disk may not be mounted.
func (r *returns) reopenSlot(slot int) (*replica.Slot, error) {
	d := r.device
	files, err := disk.Real(d.layout.dirs[slot], disk.Options{})
	if err != nil {
		return nil, err
	}
	if err := d.group.RoomToReturn(files); err != nil {
		return nil, err
	}
	if why := r.doubts[slot].Load(); why != nil {
		if err := r.blank(slot, *why); err != nil {
			return nil, err
		}
		r.doubts[slot].Store(nil)
		d.survey()
	}
	return d.openSlot(slot, d.layout)
}

// liveSlots are the slots that take part.
func (d *Device) liveSlots() (slots []*replica.Slot) {
	live := d.membership.Live()
	d.slotsMu.Lock()
	defer d.slotsMu.Unlock()
	for i, s := range d.group.Slots {
		if live[i] {
			slots = append(slots, s)
		}
	}
	return slots
}

// startEngine begins to work for a slot that comes back.
func (d *Device) startEngine(slot int, s *replica.Slot) *replica.Engine {
	e := replica.StartEngine(s)
	d.slotsMu.Lock()
	defer d.slotsMu.Unlock()
	d.engines[slot], d.group.Slots[slot] = e, s
	return e
}
