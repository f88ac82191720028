package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// killSize is the size of the volumes that are killed.
const (
	killSize      = "256M"
	killSizeBytes = 256 << 20
)

// TestKill kills the server with SIGKILL at random points under load, in half
// of the cases with the arena deleted before the restart, which is what a
// power cut looks like to the server. Nothing acknowledged may be missing, or
// nothing flushed when the power was cut, and no block may be a mix.
func TestKill(t *testing.T) {
	for _, c := range []struct{ replicas, short, long int }{{3, 8, 160}, {1, 2, 40}} {
		kills := c.short
		if long() {
			kills = c.long
		}
		t.Run(fmt.Sprintf("replicas=%d", c.replicas), func(t *testing.T) {
			v := newVolume(t, volumeOptions{size: killSize, replicas: c.replicas})
			k := &killer{volume: v, random: newRand(t), model: newModel(killSizeBytes)}
			for n := range kills {
				k.round(t, n)
			}
			v.start(t)
			k.verify(t)
			v.stop(t)
			v.sound(t)
			v.start(t)
			k.verify(t)
			v.stop(t)
			v.sound(t)
			if k.acked < kills*10 {
				t.Errorf("only %d requests were acknowledged in %d rounds: this proves nothing", k.acked, kills)
			}
			t.Logf("%d kills, %d of them in recovery, %d power cuts; %d requests acknowledged; slowest start %v",
				k.kills, k.inRecovery, k.powerCuts, k.acked, k.slowest)
		})
	}
}

// A killer repeats: start, load, kill.
type killer struct {
	*volume
	random *rand.Rand
	model  *model

	kills, inRecovery, powerCuts, acked int
	slowest                             time.Duration
	path                                string // of the socket, once known
}

// round starts the server, loads it and kills it. Sometimes the start is
// killed, too; mostly the load begins while the server still recovers.
func (k *killer) round(t *testing.T, n int) {
	if n > 0 && k.random.IntN(3) == 0 {
		k.killRecovery(t)
	}
	start := time.Now()
	ready, err := k.Launch()
	if err != nil {
		t.Fatal(err)
	}
	var l *load
	if k.path != "" && k.random.IntN(4) != 0 {
		l = startLoad(t.Context(), k.model, k.path, k.random)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := k.Await(ctx, ready); err != nil {
		t.Fatal(err)
	}
	k.slowest = max(k.slowest, time.Since(start))
	k.path = k.socket(t)
	if l == nil {
		k.verify(t)
		l = startLoad(t.Context(), k.model, k.path, k.random)
	}
	k.wait(t, 50, 400)
	k.kill(t, l)
}

// kill ends the server in the middle of the load, and the power in half of
// the cases.
func (k *killer) kill(t *testing.T, l *load) {
	t.Helper()
	k.Kill()
	acked, err := l.stop()
	if err != nil {
		t.Fatalf("before kill %d: %v", k.kills+1, err)
	}
	k.kills++
	k.acked += acked
	powerLost := k.random.IntN(2) == 0
	k.model.crash(powerLost)
	if powerLost {
		k.powerCuts++
		k.losePower(t)
	}
}

// killRecovery starts the server and kills it before, or just as, it serves.
func (k *killer) killRecovery(t *testing.T) {
	t.Helper()
	if _, err := k.Launch(); err != nil {
		t.Fatal(err)
	}
	k.wait(t, 0, 60)
	k.Kill()
	k.kills++
	k.inRecovery++
}

// wait waits for a random number of milliseconds.
func (k *killer) wait(t *testing.T, least, most int) {
	t.Helper()
	d := time.Duration(least*1000+k.random.IntN((most-least)*1000)) * time.Microsecond
	if err := pause(t.Context(), d); err != nil {
		t.Fatal(err)
	}
}

// verify reads everything.
func (k *killer) verify(t *testing.T) {
	t.Helper()
	if err := verify(t.Context(), k.model, k.socket(t)); err != nil {
		t.Fatalf("after kill %d: %v", k.kills, err)
	}
}
