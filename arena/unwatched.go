//go:build !invariants

package arena

// watch does nothing: see the file for the build tag invariants.
type watch struct{}

func (*watch) changed() {}
