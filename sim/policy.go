package sim

import "trivet/journal"

// policy cleans far more than there is need for: whatever is half dead and, in
// some runs, what lies scattered.
type policy struct{ always bool }

// Always implements journal.Policy, and so do the others.
func (p policy) Always() bool { return p.always }

// Pressure is never any: no test of the simulator is about admission.
func (p policy) Pressure(journal.Table) int { return 0 }

// Choose returns a few segments that are half dead.
func (p policy) Choose(t journal.Table) (all []journal.SegmentUse) {
	for _, s := range t.Sealed {
		if s.Live*2+4 < s.Used && len(all) < 3 {
			all = append(all, s)
		}
	}
	return all
}
