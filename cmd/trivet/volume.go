package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"trivet/control"
	"trivet/device"
	"trivet/inject"
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
	MemoryBytes uint64        // budget of arena and block cache; 0 is the default
	Deadline    time.Duration // by which every request completes
	Log         *slog.Logger
}

// errNoVolume is wrapped by openVolume when the directory holds no volume and
// no size was given to create one.
var errNoVolume = errors.New("no volume here")

// Volume is an open volume: what serve needs of it.
type Volume interface {
	// Target's methods work from open on, and after Close too.
	control.Target
	// Info and Submit are what front-ends need.
	Info() device.Info
	Submit(*device.Request)
	// Faults holds the rules in force; nil when the volume takes none.
	Faults() *inject.Set
	// Close completes what was submitted, flushes, releases everything and
	// joins every goroutine. Requests that are submitted later fail with
	// device.ErrShutdown. When the context ends first it gives up, and returns
	// an error that says what was left.
	Close(ctx context.Context) error
}

// openVolume creates or opens a volume, and recovers it. It returns early, with
// the context's error, when the context ends.
func openVolume(ctx context.Context, o VolumeOptions) (Volume, error) {
	return openStub(ctx, o)
}

// checkVolume verifies a volume that nobody serves and prints what it finds.
func checkVolume(context.Context, string, io.Writer) error {
	return errors.New("check: not in this build")
}
