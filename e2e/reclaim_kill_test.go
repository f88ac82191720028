package e2e

import (
	"fmt"
	"testing"
	"time"
)

// reclaimKillBytes is small, so that every round fills the log and the cleaner
// has always something under way when the server is killed.
const reclaimKillBytes = 64 << 20

// TestReclaimKill is TestKill on a small volume under forced reclaim: whatever
// the cleaner was at, nothing acknowledged is missing after a kill, nothing
// flushed after a power cut, and every checksum and map entry is right.
func TestReclaimKill(t *testing.T) {
	kills := choose(5, 60)
	v := newReclaimed(t, fmt.Sprint(reclaimKillBytes), "always")
	k := &killer{volume: v, random: newRand(t), model: newModel(reclaimKillBytes)}
	var logged uint64
	for n := range kills {
		k.round(t, n)
		logged += k.more(t)
	}
	v.start(t)
	k.verify(t)
	v.givesBack(t, reclaimKillBytes)
	v.stop(t)
	command(t, program, "check", v.dir)
	v.start(t)
	k.verify(t)
	v.healthy(t)
	v.stop(t)
	if logged < 2*reclaimKillBytes {
		t.Errorf("only %s were logged: the cleaner had nothing to do", mib(int64(logged)))
	}
	t.Logf("%d kills, %d of them in recovery, %d power cuts; %d requests acknowledged, %s logged in the rounds without a kill at the start; slowest start %v",
		k.kills, k.inRecovery, k.powerCuts, k.acked, mib(int64(logged)), k.slowest.Round(time.Millisecond))
}

// more is a round of its own that goes on until the log has been written once
// over, and returns how many bytes the server logged to a slot.
func (k *killer) more(t *testing.T) (logged uint64) {
	t.Helper()
	k.start(t)
	k.path = k.socket(t)
	l := startLoad(t.Context(), k.model, k.path, k.random)
	eventually(t, 30*time.Second, func() error {
		if logged = k.status(t).Slots[0].LogBytes; logged < reclaimKillBytes {
			return fmt.Errorf("%s logged", mib(int64(logged)))
		}
		return nil
	})
	k.wait(t, 0, 100)
	k.kill(t, l)
	return logged
}
