package journal

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestRegionSet compares sets with maps.
func TestRegionSet(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	bases := []Region{0, 1 << 15, 5 << 15, 1 << 24}
	var sets [2]RegionSet
	var models [2]map[Region]bool
	for round := range 20000 {
		if round%500 == 0 {
			for i := range sets {
				sets[i], models[i] = make(RegionSet), make(map[Region]bool)
			}
		}
		i, r := random.IntN(2), bases[random.IntN(len(bases))]+Region(random.IntN(130))
		switch random.IntN(8) {
		case 0:
			sets[i].AddAll(sets[1-i])
			maps.Copy(models[i], models[1-i])
		case 1, 2, 3:
			sets[i].Remove(r)
			delete(models[i], r)
		default:
			sets[i].Add(r)
			models[i][r] = true
		}
		var all []Region
		for r, ok := sets[i].Next(0); ok; r, ok = sets[i].Next(r + 1) {
			all = append(all, r)
		}
		var each []Region
		sets[i].Each(func(r Region) { each = append(each, r) })
		if !slices.Equal(each, all) {
			t.Fatalf("round %d: each of %v, next of %v", round, each, all)
		}
		if want := slices.Sorted(maps.Keys(models[i])); !slices.Equal(all, want) || sets[i].Len() != len(want) {
			t.Fatalf("round %d: %v, expected %v", round, all, want)
		}
		if sets[i].Has(r) != models[i][r] {
			t.Fatalf("round %d: region %d", round, r)
		}
	}
}
