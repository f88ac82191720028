package device

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"trivet/journal"
	"trivet/replica"
	"trivet/resync"
)

// spareTries and sparePause bound how long a slot that is to be replaced is waited
// for: what it had made durable must be in its peers first.
const (
	spareTries = 200
	sparePause = 50 * time.Millisecond
)

// errReplacing is why a slot is dropped that is to be replaced.
var errReplacing = errors.New("an operator replaces it")

// order is what an operator wants of the goroutine that brings slots back.
type order struct {
	slot   int
	at     string     // the new slot's directory; empty: where the old one was
	answer chan error // capacity 1
}

// ReplaceSlot makes a new slot in the place of one, or at another place, while the
// others serve, and returns once it is made: it is filled after that. What is in
// the place is set aside if it is a slot of this volume, and refused else.
func (d *Device) ReplaceSlot(ctx context.Context, slot int, at string) error {
	if slot < 0 || slot >= d.group.Replicas || d.group.Replicas == 1 {
		return fmt.Errorf("there is no slot %d that could be replaced", slot)
	}
	if at != "" && !filepath.IsAbs(at) {
		return fmt.Errorf("the new slot's directory is %q; give an absolute path", at)
	}
	o := order{slot: slot, at: at, answer: make(chan error, 1)}
	select {
	case d.returns.orders <- o:
	case <-d.returns.ended:
		return ErrShutdown
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-o.answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// replace carries out an order.
func (r *returns) replace(o order) error {
	d := r.device
	live := d.membership.Live()
	for i := range live {
		if i != o.slot && !live[i] {
			return fmt.Errorf("slot %d cannot be replaced, slot %d takes no part: %w", o.slot, i, replica.ErrNotWhole)
		}
	}
	dir := o.at
	if dir == "" {
		dir = d.layout.dirs[o.slot]
	}
	if slices.Contains(slices.Delete(slices.Clone(d.layout.dirs), o.slot, o.slot+1), dir) {
		return fmt.Errorf("%s is another slot's", dir)
	}
	if err := d.mayHold(dir, o.slot); err != nil {
		return err
	}
	if live[o.slot] {
		d.slotFaulted(o.slot, true, errReplacing)
	}
	r.highest++
	volume := r.volume(o.slot)
	err := retry(r.ctx, func() error {
		return volume.Replace(o.slot, r.highest, func(next replica.Replaced) error { return r.makeNew(o.slot, dir, next) })
	})
	if err != nil {
		return err
	}
	d.slotsMu.Lock()
	d.group.Generation = r.highest
	d.slotsMu.Unlock()
	a := &r.absent[o.slot]
	a.due, a.pause, a.told = time.Now(), d.opt.ReturnAfter, ""
	return d.keepRecord()
}

// retry calls fn again for as long as the slot is still in use.
func retry(ctx context.Context, fn func() error) (err error) {
	for range spareTries {
		if err = fn(); !errors.Is(err, resync.ErrNotSpared) {
			return err
		}
		if err := pause(ctx, sparePause); err != nil {
			return errClosing
		}
	}
	return err
}

// makeNew makes the slot in its directory.
func (r *returns) makeNew(slot int, dir string, next replica.Replaced) error {
	d := r.device
	if err := r.shut(slot); err != nil {
		return err
	}
	d.slotsMu.Lock()
	d.layout.dirs[slot], d.layout.places[slot] = dir, placeIn(d.opt.Dir, dir)
	d.group.SetPlace(slot, d.layout.places[slot])
	d.group.Absent[slot] = replica.ErrFilling
	d.slotsMu.Unlock()
	s, err := d.replaceSlot(dir, next())
	if err == nil {
		return s.Close()
	}
	if super, errInspect := inspectSlot(dir); errInspect == nil && super == nil {
		err = fmt.Errorf("%w: %w", replica.ErrNotMade, err)
	}
	return err
}

// mayHold returns why a directory cannot take a new slot, nil when it can.
func (d *Device) mayHold(dir string, slot int) error {
	super, err := inspectSlot(dir)
	switch {
	case errors.Is(err, journal.ErrNoSuperblock):
		return nil // it is set aside
	case err != nil:
		return fmt.Errorf("%s: %w", dir, err)
	case super != nil && (super.Volume != d.group.Volume || int(super.Slot) != slot):
		return fmt.Errorf("%s holds slot %d of volume %x; empty it, or give another with --at: %w", dir, super.Slot, super.Volume[:4], replica.ErrForeign)
	}
	return nil
}
