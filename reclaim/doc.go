// Package reclaim says what of a slot's log is cleaned, when, and how short of
// space a lane is. It is pure: a lane (package journal) asks it with a table of
// its segments, and has what it answers carried out by its slot on a bounded
// pool of its own (package replica).
//
//	lane ── Table ──► Policy ── victims ──► lane
//	lane ── Clean: list, copy ──► slot's workers ──► segments on disk
//	lane ◄── moves: if the block is still there, it is now here
//
// Reclaim never enters the I/O path: this package imports neither a device nor
// a shard, the workers read and write files by themselves, and what they offer
// is taken or refused in a step that waits for nothing. The I/O path meets
// reclaim in one place: admission slows writes by the pressure found here.
//
// A crash loses nothing, whenever it comes: see journal's clean.go.
package reclaim
