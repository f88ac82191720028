package meta

import (
	"math/rand/v2"
	"testing"
)

// TestCompaction: every compaction that is begun gets rid of the tables for which
// it was begun, the first one too, when there is nothing but level 0. One that
// does nothing would read the whole store through with every commit.
func TestCompaction(t *testing.T) {
	e, err := openEngine(t.TempDir(), BadgerOptions{Expect: Expect{Create: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.close(); err != nil {
			t.Error(err)
		}
	}()
	r := rand.New(rand.NewPCG(1, 1))
	compactions := 0
	for sequence := uint64(1); compactions < 2; sequence++ {
		if sequence > 1000 {
			t.Fatal("level 0 never filled up")
		}
		b, err := e.begin(named(sequence))
		if err != nil {
			t.Fatal(err)
		}
		var run []byte
		for _, pair := range randomPairs(r, 200, 1500) {
			run = appendPair(run, pair)
		}
		if err := b.append(run); err != nil {
			t.Fatal(err)
		}
		if err := e.commitDirect(b.name, b.run); err != nil {
			t.Fatal(err)
		}
		if e.levelZero() < compactAt {
			continue
		}
		e.compaction <- struct{}{} // joins the one that the commit began, or keeps it out
		if before := e.levelZero(); before >= compactAt {
			if err := e.compact(); err != nil {
				t.Fatal(err)
			}
		}
		<-e.compaction
		if n := e.levelZero(); n >= compactAt {
			t.Fatalf("%d tables are left in level 0", n)
		}
		compactions++
	}
}
