package shard

import (
	"fmt"
	"testing"

	"trivet/journal"
)

// TestQuorumPressure: a slot that alone is short of space does not count, and
// asking costs no memory, for every turn does.
func TestQuorumPressure(t *testing.T) {
	for _, c := range []struct {
		live         []int
		quorum, want int
	}{
		{nil, 1, 0},
		{[]int{700}, 1, 700},
		{[]int{Full}, 2, 0},
		{[]int{0, 300}, 2, 300},
		{[]int{300, 0}, 2, 300},
		{[]int{0, 0, Full}, 2, 0},
		{[]int{Full, 0, 0}, 2, 0},
		{[]int{0, Full, 0}, 2, 0},
		{[]int{1, 2, 3}, 2, 2},
		{[]int{1, 3, 2}, 2, 2},
		{[]int{2, 1, 3}, 2, 2},
		{[]int{2, 3, 1}, 2, 2},
		{[]int{3, 1, 2}, 2, 2},
		{[]int{3, 2, 1}, 2, 2},
		{[]int{Full, 5, Full}, 2, Full},
		{[]int{3, 1, 2}, 1, 1},
	} {
		t.Run(fmt.Sprint(c.live), func(t *testing.T) {
			got := 0
			allocs := testing.AllocsPerRun(10, func() {
				var lanes [journal.MaxSlots]int
				n := copy(lanes[:], c.live)
				got = quorumPressure(lanes[:n], c.quorum)
			})
			if got != c.want || allocs > 0 {
				t.Errorf("a quorum of %d is at %d, expected %d; %v allocations", c.quorum, got, c.want, allocs)
			}
		})
	}
}
