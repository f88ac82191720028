//go:build invariants

package sim

// watchArena makes every store in the arena a moment at which the process may be
// killed.
func (s *server) watchArena() {
	w := s.w
	s.arena.Watch(func() {
		if w.fuse == 1 {
			w.cover["killed at a store in the arena"]++
		}
		w.crossing()
	})
}
