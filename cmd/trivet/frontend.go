package main

import (
	"context"
	"log/slog"
	"net"
	"sync"

	"trivet/device/nbd"
)

// maxNBDConnections bounds the clients of a server. A kernel attaches with a
// few, a tool with up to 16.
const maxNBDConnections = 64

// frontend serves a volume to NBD clients on its listeners, which it owns.
type frontend struct {
	server *nbd.Server
	joined sync.WaitGroup // one goroutine a listener
}

// startFrontend serves with that much memory for the buffers of all connections.
func startFrontend(volume Volume, listeners []net.Listener, memoryBytes uint64, log *slog.Logger) *frontend {
	f := &frontend{server: nbd.New(volume, nbd.Options{Log: log, MaxConns: maxNBDConnections, MemoryBytes: memoryBytes})}
	for _, l := range listeners {
		f.startServing(l, log)
	}
	return f
}

// startServing accepts on one listener until Close. A listener that fails takes
// no other down with it: the volume goes on, and the log says which one failed.
func (f *frontend) startServing(l net.Listener, log *slog.Logger) {
	f.joined.Add(1)
	go func() {
		defer f.joined.Done()
		if err := f.server.Serve(l); err != nil {
			log.Error("listener failed", "address", l.Addr().String(), "err", err)
		}
	}()
}

// Connections counts the clients.
func (f *frontend) Connections() int { return f.server.Stats().Connections }

// Close stops accepting, answers what was received, ends every connection and
// joins every goroutine. When the context ends first it cuts the connections
// and returns the context's error; what is left then ends with the volume.
func (f *frontend) Close(ctx context.Context) error {
	if err := f.server.Close(ctx); err != nil {
		return err
	}
	f.joined.Wait()
	return nil
}
