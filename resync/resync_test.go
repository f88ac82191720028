package resync

import (
	"errors"
	"testing"

	"trivet/replica"
)

// TestBeginsWithEverybody: a peer is reported lost while the shards have not been
// told, and it still votes. No generation begins without it: nothing is even
// promised, which these slots could not do (hazard 6).
func TestBeginsWithEverybody(t *testing.T) {
	v := Volume{Group: &replica.Group{Geometry: replica.Geometry{Replicas: 3}}}
	if err := v.begin(1, 5, make([]*replica.Slot, 2)); !errors.Is(err, replica.ErrQuorum) {
		t.Errorf("a generation begins with two slots of three: %v", err)
	}
}
