package journal

import "time"

// FullPressure is the pressure, or the lag, at which nothing may be written.
const FullPressure = 1000

// Pressure is how short of log space the lane is, as the policy said last: 0 to
// FullPressure.
func (l *Lane) Pressure() int { return l.cleaner.pressure }

// Lag tells how far the lane's checkpoints are behind its writes, 0 to FullPressure:
// by the memory that map pages take until they are stored, and by the log that a
// restart would have to replay.
func (l *Lane) Lag() int {
	budget := int64(max(l.blocks.budget, leastPages*(pageOverhead+RegionBlocks*entryBytes)))
	bytes := l.cfg.CheckpointBytes // at which a checkpoint is made, or a little later
	return max(PressureBetween(int64(l.blocks.unstored()), budget/2, budget), PressureBetween(l.ckpt.before+l.ckpt.since, bytes*3/2, bytes*2))
}

// LagSince returns since when the lag has been full, or 0.
func (l *Lane) LagSince() time.Duration { return l.lagSince }

func (l *Lane) noteLag(now time.Duration) {
	switch {
	case l.Lag() < FullPressure:
		l.lagSince = 0
	case l.lagSince == 0:
		l.lagSince = now
	}
}

// PressureBetween rises from 0 at soft to FullPressure at hard.
func PressureBetween(n, soft, hard int64) int {
	if n <= soft {
		return 0 // nearly always: no division
	}
	return int(min(FullPressure, FullPressure*(n-soft)/max(hard-soft, 1)))
}
