//go:build !race

package main

// raceEnabled: the race detector's shadow memory is no memory of ours.
const raceEnabled = false
