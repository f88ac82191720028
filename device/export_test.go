package device

import "sync/atomic"

// Press stands in for the shards' pressure, which is what the result says from now
// on, in all of them.
func (d *Device) Press() *atomic.Int32 {
	level := new(atomic.Int32)
	d.door.mu.Lock()
	defer d.door.mu.Unlock()
	d.door.forced = func(int) int { return int(level.Load()) }
	return level
}

// Waiting is how many parts wait at the door.
func (d *Device) Waiting() int { return int(d.door.waiting.Load()) }

// Leaked is how many pages of the arena are in use when everything is closed.
func (d *Device) Leaked() int { return int(d.arenaPages) - d.arena.FreePages() }
