package journal

import "fmt"

// FullPressure is the pressure at which nothing may be written.
const FullPressure = 1000

// Pressure tells how much writes have to slow down for the lane, from 0 to
// FullPressure: for the log space that is left, as the policy said last; for the
// memory that map pages take until they are stored; and for the log that a restart
// would have to replay. It is part of the lane's state, so that a policy that is
// asked for space need not know of the other two.
func (l *Lane) Pressure() int {
	budget := l.blocks.floor()
	return max(l.cleaner.pressure,
		pressureBetween(int64(l.blocks.unstored()), int64(budget/2), int64(budget)),
		pressureBetween(l.ckpt.before+l.ckpt.since, l.cfg.CheckpointBytes, l.cfg.CheckpointBytes+l.cfg.CheckpointBytes/3))
}

// pressureBetween rises from 0 at soft to FullPressure at hard.
func pressureBetween(n, soft, hard int64) int {
	return int(FullPressure * min(max(n-soft, 0), hard-soft) / max(hard-soft, 1))
}

// mostAlone is how many times its budget a lane's map may take while its peers
// store theirs and writes go on.
const mostAlone = 3

// checkMemory gives the lane up whose store alone does not keep up: nothing else
// bounds its map then.
func (l *Lane) checkMemory() {
	if n := l.blocks.unstored(); n > mostAlone*l.blocks.floor() && l.fault == nil {
		l.fault = fmt.Errorf("map pages that are not stored take %d KiB", n>>10)
	}
}
