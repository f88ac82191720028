package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"trivet/control"
	"trivet/device"
	"trivet/inject"
)

const stubRegion = 1 << 20 // bytes

// stubVolume keeps everything in memory and promises nothing: it stands in for
// the device until that is plugged in.
type stubVolume struct {
	options VolumeOptions
	faults  *inject.Set
	reads   atomic.Uint64
	writes  atomic.Uint64
	flushes atomic.Uint64

	mu      sync.RWMutex      // guards closed and regions with their content
	closed  bool              // set by Close
	regions map[uint64][]byte // an absent region reads as zeros
}

func openStub(_ context.Context, o VolumeOptions) (Volume, error) {
	superblock := filepath.Join(o.Dir, "stub-size")
	if text, err := os.ReadFile(superblock); err == nil {
		o.SizeBytes, _ = strconv.ParseUint(string(text), 10, 64)
	}
	if o.SizeBytes == 0 {
		return nil, errNoVolume
	}
	if err := os.WriteFile(superblock, strconv.AppendUint(nil, o.SizeBytes, 10), 0o644); err != nil {
		return nil, fmt.Errorf("create volume: %w", err)
	}
	o.Log.Warn("this build keeps the volume in memory alone")
	return &stubVolume{options: o, faults: inject.NewSet(1, time.Now), regions: map[uint64][]byte{}}, nil
}

func (v *stubVolume) Info() device.Info {
	return device.Info{Name: v.options.Name, SizeBytes: v.options.SizeBytes}
}

func (v *stubVolume) Submit(r *device.Request) {
	r.Err = v.apply(r)
	r.Done(r)
}

func (v *stubVolume) apply(r *device.Request) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	end := r.Offset + uint64(r.Length)
	switch {
	case v.closed:
		return device.ErrShutdown
	case end < r.Offset || end > v.options.SizeBytes:
		return device.ErrInvalid
	}
	switch r.Op {
	case device.Flush:
		v.flushes.Add(1)
	case device.BlockStatus:
		r.Extents = append(r.Extents[:0], device.Extent{Length: uint64(r.Length)})
	case device.Read:
		v.reads.Add(1)
		if r.Flags&device.WantExtents != 0 {
			r.Extents = append(r.Extents[:0], device.Extent{Length: uint64(r.Length)})
		}
		v.each(r, func(at int, region []byte) { copy(r.Data[at:], region) })
	case device.Write:
		v.writes.Add(1)
		v.each(r, func(at int, region []byte) { copy(region, r.Data[at:]) })
	case device.Trim, device.WriteZeroes:
		v.each(r, func(_ int, region []byte) { clear(region) })
	}
	return nil
}

// each calls fn with the parts of the regions that a request covers, and the
// place of each in the request.
func (v *stubVolume) each(r *device.Request, fn func(at int, region []byte)) {
	for at := 0; at < int(r.Length); {
		offset := r.Offset + uint64(at)
		region := v.regions[offset/stubRegion]
		if region == nil {
			region = make([]byte, stubRegion)
			v.regions[offset/stubRegion] = region
		}
		part := region[offset%stubRegion:]
		part = part[:min(len(part), int(r.Length)-at)]
		fn(at, part)
		at += len(part)
	}
}

func (v *stubVolume) Faults() *inject.Set { return v.faults }

func (v *stubVolume) Inflight() []control.Inflight { return nil }

func (v *stubVolume) Events() []control.Event { return nil }

func (v *stubVolume) Status() control.Status {
	s := control.Status{
		Volume: control.Volume{
			Name: v.options.Name, SizeBytes: v.options.SizeBytes, Shards: 1, Replicas: 3,
		},
		State:      control.Serving,
		Generation: 1,
		Quorum:     2,
		Counters:   control.Counters{Reads: v.reads.Load(), Writes: v.writes.Load(), Flushes: v.flushes.Load()},
		Arena:      control.Arena{Kind: "private", Note: "stub"},
	}
	for id := range 3 {
		s.Slots = append(s.Slots, control.Slot{ID: id, Where: "memory", State: control.Current})
	}
	return s
}

func (v *stubVolume) Close(context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	return nil
}
