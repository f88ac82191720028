// Package sim runs a whole volume in one goroutine from one seed: a server
// with three slots, clients, disks that fail, and crashes. The code under test
// is the real one (shard, journal, replica, arena, cache); what is simulated is
// the clock, the order and the time in which I/O is carried out, the disks and
// the metadata stores.
//
// # What happens
//
// A run is a number of lives of the server. In each, clients with several
// requests under way read, write, flush, trim and zero, in whole blocks and
// parts of them, while disks return errors, lie, hang or are slow. A life ends
// with a clean close, a kill, or a power cut: between two events, in the
// middle of a turn of a shard, or at a disk operation of recovery. While the
// server is down a slot may be missing, blank, or have flipped bytes. A kill
// leaves what was written and the arena; a power cut leaves of each sector that
// was not durable the old, the new or garbage, and no arena.
//
// # What is checked
//
// A model knows, for every block, the versions that it may hold: see model.go.
// Every read returns one of them and narrows them down; status never calls data
// a hole. After a kill nothing acknowledged is missing, after a power cut
// nothing flushed, and no block is a mixture, or older than what was flushed, or
// a version that was known not to be there. As long as at most one slot is in
// trouble no request fails, and no slot is dropped that is not; once the device
// has stopped, no write and no flush succeeds. Every request completes by its
// deadline. At the end nothing is left in the arena, no frame is out, no
// segment is pinned, and each slot by itself has the data.
//
// Everything is drawn from the seed, so a seed that failed fails again, with a
// trace if one is asked for.
package sim
