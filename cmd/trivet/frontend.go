package main

import (
	"context"
	"log/slog"
	"net"
	"sync"

	"trivet/control"
	"trivet/device/nbd"
)

// frontend serves a volume to NBD clients on its listeners, which it owns.
type frontend struct {
	server *nbd.Server
	joined sync.WaitGroup // one goroutine a listener
}

// startFrontend serves as many clients as the plan says, with as much memory for
// the buffers of all of them.
func startFrontend(volume Volume, listeners []net.Listener, plan *servePlan) *frontend {
	log := plan.volume.Log
	f := &frontend{server: nbd.New(volume, nbd.Options{Log: log, MaxConns: plan.connections, MemoryBytes: plan.memory.connections})}
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

// Inflight lists the requests that connections have no room for yet.
func (f *frontend) Inflight() (list []control.Inflight) {
	for _, h := range f.server.Held() {
		list = append(list, control.Inflight{
			Op: h.Op, OffsetBytes: h.Offset, LengthBytes: uint64(h.Length), Stage: "connection",
			AgeSeconds: h.Age.Seconds(), StageAge: h.Waits.Seconds(), Waiting: "its connection's earlier requests",
		})
	}
	return list
}

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
