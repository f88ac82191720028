//go:build race

package sim

const defaultSeeds = 60 // the race detector makes them ten times slower
