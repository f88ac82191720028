package replica

import (
	"testing"

	"trivet/arena"
	"trivet/disk"
	"trivet/journal"
)

// TestArenaKilledBeforeStart: the server is killed once the arena is of a generation
// with new members, and before any superblock names them. The slots in their places
// are the old three (hazard 39).
func TestArenaKilledBeforeStart(t *testing.T) {
	g := groupOf(t, [3]life{{history: "5a:012", promised: "6b"}, {history: "5a:012", promised: "6b"}, {history: "5a:012"}}, Options{})
	if err := g.identify(); err != nil {
		t.Fatal(err)
	}
	next := g.Members
	next.Number++
	next.Slots[2] = incarnations(2, 9)
	after := &Group{Members: next, settled: g.settled}
	o := after.Owner(idOf("6b"))
	if err := g.ownsArena(&o); err != nil {
		t.Errorf("the arena of a server that was killed is set aside: %v", err)
	}
}

// TestArenaAfterTwoFailedReplaces: two replacements in a row fail once they were
// announced, because the new place cannot be written, and the server is killed.
func TestArenaAfterTwoFailedReplaces(t *testing.T) {
	g := groupOf(t, [3]life{{history: "5a:012"}, {history: "5a:012"}, {history: "5a:012"}}, Options{Draw: func(b []byte) { b[0] = 77 }})
	if err := g.identify(); err != nil {
		t.Fatal(err)
	}
	serving := &Group{Geometry: smallGeometry, Members: g.Members, settled: g.settled, ID: idOf("5a"), opt: g.opt}
	a, err := arena.Open(arena.Options{Volume: [16]byte{1}, Dir: t.TempDir(), FallbackDir: t.TempDir(), SizeBytes: 1 << 24, Shards: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	a.SetOwner(serving.Owner(serving.ID))
	for n := byte(0); n < 2; n++ {
		serving.opt.Draw = func(b []byte) { b[0] = 77 + n }
		members := serving.NextMembers(2)
		serving.Announce(a, members)
		serving.Members = members
		// create fails
		o, err := a.Owner()
		if err != nil {
			t.Fatal(err)
		}
		if err := g.ownsArena(&o); err != nil {
			t.Errorf("after %d failed replacements and a kill the arena is set aside: %v", n+1, err)
		}
	}
}

// TestSurvivorOfMajority: the operator names any slot of the life that counts.
func TestSurvivorOfMajority(t *testing.T) {
	for _, survivor := range []int{1, 3} {
		g := groupOf(t, [3]life{{history: "5a 6b"}, {history: "5a 7c"}, {history: "5a 6b"}}, Options{Survivor: survivor})
		if err := g.identify(); err != nil {
			t.Errorf("--survivor %d: %v", survivor-1, err)
		}
	}
}

// TestRenameForeign: a slot of another volume is in a place of a copy that gets an
// identity of its own, and is left as it is.
func TestRenameForeign(t *testing.T) {
	var files [3]disk.FS
	for i := range files {
		l := life{history: "5a", home: "/original"}
		if i == 1 {
			l = life{volume: 7, history: "8f", home: "/another"}
		}
		fs := disk.Memory(1, disk.MemoryOptions{})
		s, err := MakeSlot(fs, "slot", l.superblock(i))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		files[i] = fs
	}
	if ok, err := renamed(files, journal.Volume{0xee}); !ok || err != nil {
		t.Fatal(ok, err)
	}
	super, err := Inspect(files[1])
	if err != nil {
		t.Fatal(err)
	}
	if super.Volume[0] != 7 || super.Home != "/another" {
		t.Errorf("slot of volume 7 in /another is now of volume %x in %s", super.Volume[:1], super.Home)
	}
}

// TestHistoryAway: a slot is away while the others begin many generations, each of
// them read back from a superblock. What it began last is not forgotten, however
// little room there is.
func TestHistoryAway(t *testing.T) {
	for _, shards := range []int{2, 16, 64, 128, 256} {
		var h journal.History
		sb := &journal.Superblock{Replicas: 3, Shards: uint16(shards), SizeBytes: 1 << 30, SegmentBlocks: 4096}
		f := disk.Memory(1, disk.MemoryOptions{})
		file, err := journal.CreateSuperblock(f, journal.SuperblockFile, sb)
		if err != nil {
			t.Fatal(err)
		}
		begin := func(n int, passed journal.Generation) {
			h = h.Add(journal.Begin{GenerationID: journal.GenerationID{Number: journal.Generation(n), Name: uint64(n)}, Started: true, Slots: 7, LSNs: make([]journal.LSN, shards)}).Forget(passed, shards)
			sb.History = h
			if err := sb.Write(file); err != nil {
				t.Fatal(err)
			}
			back, _, err := journal.ReadSuperblock(file) // a restart
			if err != nil {
				t.Fatal(err)
			}
			h = back.History
		}
		for n := 1; n <= 40; n++ {
			begin(n, journal.Generation(n))
		}
		last := journal.GenerationID{Number: 40, Name: 40}
		away := 0
		for n := 41; n < 400 && h.Knows(last); n++ {
			begin(n, 0)
			away++
		}
		t.Logf("%d shards: the slot that is away is of another life after %d restarts without it", shards, away)
		if away < 90 {
			t.Errorf("%d shards: %d", shards, away)
		}
	}
}

// TestOlderFreshCutShort: a volume of version 1 that was never started is migrated,
// and the server is killed once the first slot has promised.
func TestOlderFreshCutShort(t *testing.T) {
	g := group([3]standIn{{promised: 1}, {older: true}, {older: true}}) // slot 0 migrated as an original
	if err := g.checkQuorum(); err != nil {
		t.Errorf("%v", err)
	}
}

// TestServedButPromisedOnly: slots 0 and 1 have served 6b, which slot 2 promised
// alone. Slot 0 is put back to 5a, and slot 1 is away: 0 and 2 serve 7c. Slot 1 is of
// another life then.
func TestServedButPromisedOnly(t *testing.T) {
	g := groupOf(t, [3]life{{history: "5a:012 6b! 7c:02"}, {history: "5a:012 6b:01"}, {history: "5a:012 6b! 7c:02"}}, Options{})
	if err := g.identify(); err == nil && g.Slots[1] != nil {
		t.Errorf("a slot that was served in 6b takes part beside two that were not")
	}
}
