//go:build race

package journal

// The lane has no goroutines: the race detector finds at most a pointer gone
// astray, and a part of the seeds is enough for that.
const fewer = 4
