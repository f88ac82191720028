//go:build race

package disk_test

// raceDetector tells that sync.Pool drops a quarter of what it is given.
const raceDetector = true
