package main

import (
	"context"
	"log/slog"
	"net"
)

// frontend serves a volume to NBD clients on some listeners.
type frontend interface {
	// Connections counts the clients.
	Connections() int
	// Close stops accepting, answers what was received, ends every connection
	// and joins every goroutine. When the context ends first, connections are
	// cut.
	Close(ctx context.Context) error
}

// startFrontend serves NBD on listeners, which it owns from now on.
func startFrontend(_ Volume, listeners []net.Listener, _ *slog.Logger) frontend {
	return idleFrontend{listeners}
}

// idleFrontend listens and never accepts.
type idleFrontend struct{ listeners []net.Listener }

func (idleFrontend) Connections() int { return 0 }

func (f idleFrontend) Close(context.Context) error {
	closeAll(f.listeners)
	return nil
}
