package style

import (
	"path/filepath"
	"slices"
	"testing"
)

// tree is the root of the project, seen from here.
const tree = "../.."

func TestTreeFollowsTheRules(t *testing.T) {
	packages, err := load(tree)
	if err != nil {
		t.Fatal(err)
	}
	if len(packages) < 5 {
		t.Fatalf("found only %d packages below %s", len(packages), tree)
	}
	for name, check := range rules {
		var found []string
		for _, p := range packages {
			found = append(found, check(p)...)
		}
		slices.Sort(found)
		for _, violation := range found {
			t.Errorf("%s: %s", name, violation)
		}
	}
}

func TestEveryRuleCanFail(t *testing.T) {
	for name, check := range rules {
		packages, err := load(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, p := range packages {
			found = append(found, check(p)...)
		}
		if len(found) == 0 {
			t.Errorf("%s: its fixture breaks nothing", name)
		}
	}
}
