package shard

import (
	"sync"
	"time"
)

// SystemHost runs a shard on the system's clock, with a timer and a runner
// goroutine of its own. Close joins both.
type SystemHost struct {
	epoch  time.Time
	shard  *Shard
	timer  *time.Timer
	handed chan struct{} // capacity 1: a hand-over is waiting; closed by Close
	mu     sync.Mutex    // guards closed against a late wake or hand-over
	closed bool
	done   sync.WaitGroup
}

// NewSystemHost makes a host whose clock counts from epoch. Start must be
// called before the shard is used.
func NewSystemHost(epoch time.Time) *SystemHost {
	return &SystemHost{epoch: epoch, handed: make(chan struct{}, 1)}
}

// Start attaches the shard and starts its runner.
func (h *SystemHost) Start(s *Shard) {
	h.shard = s
	h.timer = time.AfterFunc(time.Hour, s.Tick)
	h.timer.Stop()
	h.startRunner()
}

func (h *SystemHost) startRunner() {
	h.done.Go(func() {
		for range h.handed {
			h.shard.Run()
		}
	})
}

// Now returns the time since the epoch.
func (h *SystemHost) Now() time.Duration { return time.Since(h.epoch) + 1 }

// WakeAt sets the timer.
func (h *SystemHost) WakeAt(at time.Duration) { h.timer.Reset(at - h.Now()) }

// HandOver wakes the runner.
func (h *SystemHost) HandOver() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	select {
	case h.handed <- struct{}{}:
	default: // it will run, and see what there is
	}
}

// Close stops the timer and the runner. The shard must be quiet.
func (h *SystemHost) Close() {
	h.timer.Stop()
	h.mu.Lock()
	if !h.closed {
		h.closed = true
		close(h.handed)
	}
	h.mu.Unlock()
	h.done.Wait()
}
