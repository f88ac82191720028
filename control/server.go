package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"trivet/inject"
)

// The limits of a server. They are far above what people and scrapers need.
const (
	maxConnections = 64
	maxHeaderBytes = 16 << 10
	maxBodyBytes   = 64 << 10
	headerTimeout  = 5 * time.Second
	bodyTimeout    = 10 * time.Second
	idleTimeout    = 60 * time.Second
	// writeTimeout bounds how long a client that does not read holds its place.
	// The profiler refuses to run for longer.
	writeTimeout = 120 * time.Second
	// drainTimeout is how long Close waits for the answers under way.
	drainTimeout = time.Second
)

// Options say what a server shows.
type Options struct {
	Target Target
	// Faults may be nil: then every request for them is refused.
	Faults *inject.Set
	Log    *slog.Logger
}

// Server answers on one listener until it is closed.
type Server struct {
	http *http.Server
	// connections counts open connections: up in StateNew, by the accepting
	// goroutine; down in the last state, by the connection's own.
	connections sync.WaitGroup
	accepting   sync.WaitGroup // the one goroutine that accepts
	closeOnce   sync.Once
}

// Start serves on the listener, which the server owns from now on.
func Start(l net.Listener, o Options) *Server {
	s := &Server{}
	s.http = &http.Server{
		Handler:           newHandler(o),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnState:         s.track,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	s.startAccepting(newLimitedListener(l, maxConnections), o.Log)
	return s
}

func (s *Server) startAccepting(l net.Listener, log *slog.Logger) {
	s.accepting.Add(1)
	go func() {
		defer s.accepting.Done()
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("control socket stopped", "err", err)
		}
	}()
}

// track follows a connection from its first to its last state.
func (s *Server) track(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.connections.Add(1)
	case http.StateClosed, http.StateHijacked:
		s.connections.Done()
	}
}

// Close stops accepting, lets the answers under way finish for a second, cuts
// the rest off and returns when no goroutine of the server is left. Calling it
// again is harmless.
func (s *Server) Close() error {
	var err error
	s.closeOnce.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		if s.http.Shutdown(ctx) != nil {
			err = s.http.Close()
		}
		s.accepting.Wait()
		s.connections.Wait()
	})
	if err != nil {
		return fmt.Errorf("close control socket: %w", err)
	}
	return nil
}
