package e2e

import (
	"context"
	"errors"
	"sync"
	"testing"
)

// A reconnector does what the kernel's client does with -persist: when the
// connection breaks it makes a new one and sends again what was in flight.
type reconnector struct {
	ctx    context.Context // ends the attempts
	socket string

	mu sync.Mutex // guards c while it is replaced
	c  *client
}

// do sends a request until it is answered.
func (r *reconnector) do(cmd, flags uint16, offset uint64, length uint32, data []byte) error {
	for {
		c := r.current()
		err := c.do(cmd, flags, offset, length, data)
		if !errors.Is(err, errBroken) {
			return err
		}
		if err := r.replace(c); err != nil {
			return err
		}
	}
}

// current is the connection in use.
func (r *reconnector) current() *client {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.c
}

// replace makes a new connection unless another caller has.
func (r *reconnector) replace(old *client) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.c != old {
		return nil
	}
	c, err := redial(r.ctx, r.socket)
	if err != nil {
		return errors.Join(errBroken, err)
	}
	old.close()
	r.c = c
	return nil
}

func (r *reconnector) sizeBytes() uint64 { return r.current().size }
func (r *reconnector) close()            { r.current().close() }

// TestRestartUnderReconnectingClient kills and restarts the server under a
// client that resends: it sees no error and, at the end, every byte that it
// was told is there. An ordered stop is as invisible as a kill.
func TestRestartUnderReconnectingClient(t *testing.T) {
	restarts := 4
	if long() {
		restarts = 40
	}
	v := newVolume(t, volumeOptions{size: killSize, replicas: 3})
	v.start(t)
	socket := v.socket(t)
	random, m := newRand(t), newModel(killSizeBytes)
	giveUp, cancel := context.WithCancel(t.Context())
	defer cancel()
	l := startLoadOn(t.Context(), m, random, func(ctx context.Context) (export, error) {
		c, err := redial(ctx, socket)
		if err != nil {
			return nil, err
		}
		return &reconnector{ctx: giveUp, socket: socket, c: c}, nil
	})
	k := &killer{volume: v, random: random}
	for n := range restarts {
		k.wait(t, 50, 300)
		if n%4 == 3 && !v.standin { // nbdkit answers ESHUTDOWN, which a kernel takes for an I/O error
			v.stop(t)
		} else {
			v.Kill()
		}
		v.start(t)
	}
	k.wait(t, 50, 100)
	acked, err := l.stop()
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(t.Context(), m, socket); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d restarts, %d requests acknowledged", restarts, acked)
	v.stop(t)
}
