//go:build invariants

package arena

// watch is what an arena has besides in tests: somebody who looks at it after
// every store that changes what Recover would find.
type watch struct{ stored func() }

// Watch makes the arena call fn after every such store, on the goroutine that
// stores: what Recover returns within fn is what a process finds that starts
// after a kill at this instruction. It is to be called before the arena is
// used, and is there in tests alone, with the build tag invariants.
func (a *Arena) Watch(fn func()) { a.watch.stored = fn }

func (w *watch) changed() {
	if w.stored != nil {
		w.stored()
	}
}
