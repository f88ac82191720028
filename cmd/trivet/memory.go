package main

import (
	"trivet/device"
	"trivet/device/nbd"
)

// --memory bounds the whole server but for its metadata helpers, which are
// processes of their own: the arena, the block cache, the map's pages, the
// buffers of the connections, and the program itself.
const (
	// programBytes is for the program: code, runtime, the tables of shards and
	// lanes, and by how much the heap exceeds its limit, which is a soft one.
	// heapBytes of them are on the heap.
	programBytes = 56 << 20
	heapBytes    = 16 << 20
	// mostConnectionBytes lets 64 connections borrow most of it, and more of them
	// still enough.
	mostConnectionBytes = 256 << 20
	// minMemoryBytes is the least that a server can do with.
	minMemoryBytes = 128 << 20
)

// memoryShares is what becomes of --memory, in bytes.
type memoryShares struct {
	connections uint64
	volume      uint64 // device.Options.Memory; 0 lets the device choose
	heap        uint64 // of all, what the garbage collector sees
}

// leastMemory is the least budget of a server with that many connections.
func leastMemory(connections int) uint64 {
	return max(minMemoryBytes, programBytes+nbd.MinMemoryBytes(connections)+device.MinMemory)
}

// divideMemory divides a budget of at least leastMemory; 0 is the default.
func divideMemory(total uint64, connections int) (s memoryShares) {
	least := nbd.MinMemoryBytes(connections)
	s.connections = max(least, mostConnectionBytes)
	if total > 0 {
		s.connections = min(s.connections, max(least, total/8*3))
		s.volume = total - programBytes - s.connections
	}
	s.heap = heapBytes + s.connections + device.MapShare(s.volume)
	return s
}
