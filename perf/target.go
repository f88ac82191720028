package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"trivet/e2e/server"
)

// startLimit and stopLimit bound how long a server may take to serve, and to end.
const (
	startLimit = 60 * time.Second
	stopLimit  = 60 * time.Second
)

// sharedMemory is where arenas are put.
const sharedMemory = "/dev/shm"

// A target is a server that jobs are sent to.
type target struct {
	name     string
	replicas int  // 0 for a peer
	volatile bool // its data ends with the process
	// server returns the server that keeps its data in the place.
	server func(place) (*server.Server, error)
}

// A place is where a server keeps its data: a directory on the disk, and one
// in shared memory when the machine has it, else "".
type place struct{ dir, arena string }

// newPlace makes the directories of one target. The one in shared memory is
// named after the other, so that it can be told whose it was.
func newPlace(dir string) (place, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return place{}, fmt.Errorf("directory for a server: %w", err)
	}
	if _, err := os.Stat(sharedMemory); err != nil {
		return place{dir: dir}, nil
	}
	arena, err := os.MkdirTemp(sharedMemory, "trivet-perf-")
	if err != nil {
		return place{}, fmt.Errorf("directory for an arena: %w", err)
	}
	return place{dir, arena}, nil
}

// remove deletes all data.
func (p place) remove() {
	os.RemoveAll(p.dir)
	if p.arena != "" {
		os.RemoveAll(p.arena)
	}
}

// trivetTarget runs the given program with 1 or 3 replicas, and with memory
// enough to hold the span: its peers have the whole page cache.
func trivetTarget(name, binary, volume, memory string, replicas int) target {
	return target{name: name, replicas: replicas, server: func(p place) (*server.Server, error) {
		return server.Trivet(filepath.Join(p.dir, "volume"), server.TrivetOptions{
			Binary: binary, Size: volume, Replicas: replicas, ArenaDir: p.arena,
			Extra: []string{"--memory", memory},
		}), nil
	}}
}

// nbdkitMemory is nbdkit with its data in its own memory.
func nbdkitMemory(span string) target {
	return target{name: "nbdkit-memory", volatile: true, server: func(p place) (*server.Server, error) {
		return server.NBDKit(p.dir, "memory", "size="+span), nil
	}}
}

// nbdkitFile is nbdkit on a preallocated file.
func nbdkitFile(spanBytes int64) target {
	return target{name: "nbdkit-file", server: func(p place) (*server.Server, error) {
		image := filepath.Join(p.dir, "image")
		if err := preallocate(image, spanBytes); err != nil {
			return nil, err
		}
		return server.NBDKit(p.dir, "file", image), nil
	}}
}

// preallocate makes a file of the given size, or leaves the one that is there.
func preallocate(path string, sizeBytes int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("preallocate: %w", err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, sizeBytes); err != nil {
		return fmt.Errorf("preallocate %s: %w", path, err)
	}
	return nil
}

// begin starts a server within the limit.
func begin(ctx context.Context, srv *server.Server) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return srv.Start(ctx)
}

// end stops a server within the limit.
func end(ctx context.Context, srv *server.Server) error {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	return srv.Stop(ctx)
}

// dropCaches makes what is in the page cache durable and forgets it.
func dropCaches() error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return fmt.Errorf("drop the page cache (cold reads need root): %w", err)
	}
	return nil
}
