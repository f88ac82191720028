//go:build !invariants

package sim

// watchArena does nothing: see the file for the build tag invariants.
func (s *server) watchArena() {}
