package replica

import (
	"errors"
	"strings"
	"testing"

	"trivet/arena"
	"trivet/disk"
	"trivet/journal"
)

// life describes a slot of a volume to the checks of identity.
type life struct {
	absent      bool
	volume      byte // 0 is the volume's own
	incarnation byte // 0 is what the first members name
	members     uint64
	named       [3]byte // incarnations that its members name; 0 as above
	history     string  // generations: 5a is number 5, name a; 5a! was promised only; 5a:021 was confirmed by these slots
	promised    string
	retired     bool
	filling     bool
	home        string
}

var incarnations = func(slot int, n byte) journal.Incarnation {
	return journal.Incarnation{byte(slot) + 1, n}
}

func idOf(text string) journal.GenerationID {
	id := journal.GenerationID{Number: journal.Generation(text[0] - '0')}
	if len(text) > 1 {
		id.Name = uint64(text[1])
	}
	return id
}

// historyOf reads generations as life.history has them.
func historyOf(text string) (h journal.History) {
	for field := range strings.FieldsSeq(text) {
		field, slots, _ := strings.Cut(field, ":")
		id, promised := strings.CutSuffix(field, "!")
		b := journal.Begin{GenerationID: idOf(id), Started: !promised}
		for _, slot := range slots {
			b.Slots |= 1 << (slot - '0')
		}
		if b.Started {
			b.LSNs = make([]journal.LSN, smallGeometry.Shards)
		}
		h = h.Add(b)
	}
	return h
}

func (l *life) superblock(slot int) *journal.Superblock {
	g := smallGeometry
	g.Volume[0] = l.volume
	members := journal.Members{Number: max(l.members, 1)}
	for i := range members.Slots {
		members.Slots[i] = incarnations(i, l.named[i])
	}
	s := g.superblock(journal.SlotID(slot), members, func([]byte) {})
	s.Incarnation, s.Original, s.Retired, s.Home = incarnations(slot, l.incarnation), l.incarnation == 0, l.retired, l.home
	s.History = historyOf(l.history)
	s.Promised = s.History.Last().GenerationID
	if l.promised != "" {
		s.Promised = idOf(l.promised)
	}
	if l.filling {
		s.Filling = 1
	}
	return s
}

// groupOf makes the slots, and a group of them before it has looked at any.
func groupOf(t *testing.T, lives [3]life, opt Options) *Group {
	t.Helper()
	g := &Group{Slots: make([]*Slot, 3), Absent: make([]error, 3), wentBack: make([]bool, 3), opt: opt}
	g.opt.Log = func(slot int, what string, err error) { t.Logf("slot %d: %s: %v", slot, what, err) }
	for i := range lives {
		if lives[i].absent {
			continue
		}
		s, err := MakeSlot(disk.Memory(1, disk.MemoryOptions{}), "slot", lives[i].superblock(i))
		if err != nil {
			t.Fatal(err)
		}
		g.Slots[i] = s
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// TestIdentify: who takes part in a volume, of the slots that are in sight.
func TestIdentify(t *testing.T) {
	copies := Options{Known: Known{Home: "/here", Elsewhere: func(home string, _ journal.Volume) bool { return home == "/there" }}}
	for name, c := range map[string]struct {
		slots [3]life
		opt   Options
		left  string // out: the slots and why, or the whole volume
		why   error
		back  string // slots that went back in time
	}{
		"three of one life": {slots: [3]life{{history: "5a"}, {history: "5a"}, {history: "5a"}}},
		"one foreign slot": { // D29
			slots: [3]life{{history: "5a"}, {volume: 7, history: "5a"}, {history: "5a"}}, left: "1", why: ErrMismatch,
		},
		"two slots of two volumes": {
			slots: [3]life{{history: "5a"}, {volume: 7, history: "5a"}, {absent: true}}, left: "all", why: ErrNoVolume,
		},
		"the volume is known": {
			slots: [3]life{{history: "5a"}, {volume: 7, history: "5a"}, {volume: 7, history: "5a"}},
			opt:   Options{Known: Known{Volume: journal.Volume{7}}}, left: "0", why: ErrMismatch,
		},
		"a copy beside its original": {
			slots: [3]life{{history: "5a", home: "/there"}, {history: "5a", home: "/there"}, {history: "5a", home: "/there"}},
			opt:   copies, left: "all", why: ErrCopy,
		},
		"a volume that was moved": {
			slots: [3]life{{history: "5a", home: "/gone"}, {history: "5a", home: "/gone"}, {history: "5a"}}, opt: copies,
		},
		"hazard 35: the new members are named by one alone": {
			slots: [3]life{{history: "7c", members: 2, named: [3]byte{0, 1, 0}}, {history: "6b"}, {history: "6b 7c!"}}, left: "1", why: ErrRetired,
		},
		"hazard 35: the replaced one and the one that was not told yet": { // nothing was served with the new members
			slots: [3]life{{absent: true}, {history: "6b"}, {history: "6b 7c!"}},
		},
		"hazard 35: two that were replaced, and the record": {
			slots: [3]life{{absent: true}, {history: "6b"}, {history: "6b"}},
			opt:   Options{Known: Known{Members: journal.Members{Number: 3, Slots: [3]journal.Incarnation{incarnations(0, 0), incarnations(1, 1), incarnations(2, 1)}}}},
			left:  "12", why: ErrRetired,
		},
		"one that was told that it is retired": {
			slots: [3]life{{history: "6b"}, {history: "6b", retired: true}, {history: "6b"}}, left: "1", why: ErrRetired,
		},
		"hazard 36: a slot of a copy that went on, of the same number": {
			slots: [3]life{{history: "5a 6b"}, {history: "5a 6c"}, {history: "5a 6b"}}, left: "1", why: ErrOtherLife,
		},
		"hazard 36: a slot of a copy that went further": {
			slots: [3]life{{history: "5a 6b"}, {history: "5a 7c"}, {history: "5a 6b"}}, left: "all", why: ErrOtherLife,
		},
		"hazard 36: the same, and an operator names the life that counts": {
			slots: [3]life{{history: "5a 6b"}, {history: "5a 7c"}, {history: "5a 6b"}}, opt: Options{Survivor: 1}, left: "1", why: ErrOtherLife,
		},
		"an operator's choice that is not needed: its life went on with the others": {
			slots: [3]life{{history: "5a:012"}, {history: "5a:012 6b:12"}, {history: "5a:012 6b:12"}}, opt: Options{Survivor: 1},
		},
		"an operator's choice against the majority": {
			slots: [3]life{{history: "5a 6b"}, {history: "5a 6c"}, {history: "5a 6c"}}, opt: Options{Survivor: 1}, left: "12", why: ErrOtherLife,
		},
		"an operator's choice of what went back": {
			slots: [3]life{{history: "5a:012 9d:012"}, {history: "5a:012"}, {absent: true}}, opt: Options{Survivor: 2}, left: "0", why: ErrOtherLife,
		},
		"hazard 36: two slots of a backup, and the one that outlived it": {
			slots: [3]life{{history: "5a 9d:012"}, {history: "5a:012"}, {history: "5a:012"}}, back: "12",
		},
		"hazard 36: the same, and what they were is forgotten": {
			slots: [3]life{{history: "8c 9d:012"}, {history: "5a:012"}, {history: "5a:012"}}, left: "all", why: ErrOtherLife,
		},
		"hazard 36: a backup was served while the third was away": {
			slots: [3]life{{history: "5a 9d:012"}, {history: "5a 6e:12"}, {history: "5a 6e:12"}}, left: "all", why: ErrOtherLife,
		},
		"one slot of a backup": {
			slots: [3]life{{history: "5a 9d:012"}, {history: "5a"}, {history: "5a 9d:012"}}, back: "1",
		},
		"one that was away": {
			slots: [3]life{{history: "5a:012 6b:02"}, {history: "5a:012"}, {history: "5a:012 6b:02"}},
		},
		"one that alone has started what was never served": {
			slots: [3]life{{history: "5a 6b"}, {history: "5a"}, {history: "5a"}},
		},
		"the same, and the others went on without it": {
			slots: [3]life{{history: "5a 6b"}, {history: "5a 6b! 7c"}, {history: "5a 6b! 7c"}},
		},
		"slots of an older version": {
			slots: [3]life{{history: "6"}, {history: "5"}, {history: "6"}},
		},
		"one that is being filled, and was more before": {
			slots: [3]life{{history: "9d:012"}, {history: "", filling: true}, {history: "9d:012"}},
		},
		"nothing was ever started": {slots: [3]life{{promised: "1a"}, {}, {}}},
	} {
		t.Run(name, func(t *testing.T) {
			g := groupOf(t, c.slots, c.opt)
			err := g.identify()
			if all := c.left == "all"; all != (err != nil) || all && !errors.Is(err, c.why) {
				t.Fatalf("identified: %v, expected %v", err, c.why)
			}
			for i := range c.slots {
				out := strings.Contains(c.left, string(rune('0'+i)))
				if err == nil && (out != (g.Absent[i] != nil) || out && !errors.Is(g.Absent[i], c.why)) {
					t.Errorf("slot %d is left out: %v, expected %v", i, g.Absent[i], out)
				}
				if back := strings.Contains(c.back, string(rune('0'+i))); g.wentBack[i] != back {
					t.Errorf("slot %d went back in time: %v, expected %v", i, g.wentBack[i], back)
				}
			}
		})
	}
}

// TestOwnsArena: which arena is believed, by what the slots in sight say.
func TestOwnsArena(t *testing.T) {
	owner := func(generation string, current, next byte) arena.Owner {
		id := idOf(generation)
		o := arena.Owner{Generation: uint64(id.Number), Name: id.Name}
		if id.Name != 0 {
			o.Members.Number, o.Next.Number = 1, uint64(next)
		}
		for i := range 3 {
			o.Members.Slots[i], o.Next.Slots[i] = incarnations(i, current), incarnations(i, next)
		}
		return o
	}
	three := func(l life) [3]life { return [3]life{l, l, l} }
	for name, c := range map[string]struct {
		slots [3]life
		owner arena.Owner
		ours  bool
	}{
		"killed": {three(life{history: "5a"}), owner("5a", 0, 0), true},
		"killed between the promise and the arena":    {three(life{history: "5a", promised: "6b"}), owner("5a", 0, 0), true},
		"killed between the arena and the start":      {three(life{history: "5a", promised: "6b"}), owner("6b", 0, 0), true},
		"killed there twice":                          {three(life{history: "5a 6b!", promised: "7c"}), owner("6b", 0, 0), true},
		"hazard 26: another life's":                   {three(life{history: "5a"}), owner("6b", 0, 0), false},
		"hazard 26: another life's, of our number":    {three(life{history: "5a 6c"}), owner("6b", 0, 0), false},
		"hazard 26: a later generation was started":   {three(life{history: "5a 6b"}), owner("5a", 0, 0), false},
		"other incarnations":                          {three(life{history: "5a"}), owner("5a", 9, 0), false},
		"hazard 39: a slot was replaced meanwhile":    {[3]life{{history: "5a"}, {history: "5a", incarnation: 4, members: 2, named: [3]byte{0, 4, 0}}, {history: "5a"}}, owner("5a", 0, 0), false},
		"hazard 39: which the arena has been told of": {[3]life{{history: "5a"}, {history: "5a", incarnation: 4, members: 2, named: [3]byte{0, 4, 0}}, {history: "5a"}}, owner("5a", 0, 4), true},
		"hazard 39: and is being filled":              {[3]life{{history: "5a"}, {incarnation: 4, members: 2, named: [3]byte{0, 4, 0}, filling: true}, {history: "5a"}}, owner("5a", 0, 0), true},
		"of an older version":                         {three(life{history: "5", promised: "6"}), owner("5", 0, 0), true},
		"of an older version, of a later generation":  {three(life{history: "5", promised: "5"}), owner("6", 0, 0), false},
	} {
		t.Run(name, func(t *testing.T) {
			g := groupOf(t, c.slots, Options{})
			if err := g.ownsArena(&c.owner); c.ours != (err == nil) || err != nil && !errors.Is(err, errNotOurs) {
				t.Errorf("owns the arena: %v, expected %v", err, c.ours)
			}
		})
	}
}

// TestReach: an arena that has released what no slot has is of a later hour
// (hazard 38).
func TestReach(t *testing.T) {
	a, err := arena.Open(arena.Options{Dir: t.TempDir(), FallbackDir: t.TempDir(), SizeBytes: arena.PageSize, Shards: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	a.Retired(1, 879)
	for best, ours := range map[journal.LSN]bool{0: false, 400: false, 878: false, 879: true, 900: true} {
		g := &Group{Geometry: Geometry{Shards: 2}, Lanes: [][]*journal.Recovery{{{}, nil, nil}, {{Stamp: at(6, best)}, nil, {Stamp: at(6, best/2)}}}}
		retired, err := g.reach(a)
		if ours != (err == nil) || err != nil && !errors.Is(err, errNotOurs) || err == nil && retired[1] != 879 {
			t.Errorf("the best slot is at LSN %d: %v, %v", best, retired, err)
		}
	}
}

// TestPromise: a slot refuses a generation that is not above what it has promised,
// but for the same one again; and it remembers one that never started.
func TestPromise(t *testing.T) {
	s, err := MakeSlot(disk.Memory(1, disk.MemoryOptions{}), "slot", (&life{history: "5a"}).superblock(0))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		id string
		ok bool
	}{{"6b", true}, {"6b", true}, {"6c", false}, {"5d", false}, {"8e", true}, {"7f", false}} {
		if err := s.promise(idOf(step.id)); step.ok != (err == nil) || err != nil && !errors.Is(err, ErrFenced) {
			t.Errorf("promise of %s: %v", step.id, err)
		}
	}
	if b := s.super.History.Find(idOf("6b")); b == nil || b.Started || !s.knows(idOf("6b")) {
		t.Errorf("the promise that never started: %+v", b)
	}
	if err := s.start(journal.Begin{GenerationID: idOf("6b")}, outlook{}); !errors.Is(err, ErrFenced) {
		t.Errorf("a generation starts that is no longer promised: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestTrustInBothCopies: what takes trust away is in both copies of a superblock,
// so that none is left that trusts more when one of them rots (hazard 40).
func TestTrustInBothCopies(t *testing.T) {
	for name, change := range map[string]func(*Slot) error{
		"promise": func(s *Slot) error { return s.promise(idOf("7c")) },
		"retired": (*Slot).Retire,
		"members": func(s *Slot) error {
			if err := s.promise(idOf("7c")); err != nil {
				return err
			}
			return s.start(journal.Begin{GenerationID: idOf("7c")}, outlook{members: journal.Members{Number: 9}})
		},
		"filling": func(s *Slot) error { return s.amend(func(b *journal.Superblock) { b.Filling = 6 }) },
	} {
		t.Run(name, func(t *testing.T) {
			files := disk.Memory(1, disk.MemoryOptions{})
			s, err := MakeSlot(files, "slot", (&life{history: "5a"}).superblock(0))
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(change(s), s.Close()); err != nil {
				t.Fatal(err)
			}
			f, err := files.Open(journal.SuperblockFile)
			if err != nil {
				t.Fatal(err)
			}
			first, err := journal.ReadSuperblockCopy(f, 0)
			if err != nil {
				t.Fatal(err)
			}
			second, err := journal.ReadSuperblockCopy(f, 1)
			if err != nil {
				t.Fatal(err)
			}
			if first.Promised != second.Promised || first.Retired != second.Retired || first.Members != second.Members || first.Filling != second.Filling {
				t.Errorf("the copies differ:\n%+v\n%+v", first, second)
			}
		})
	}
}

// TestMigrate: a slot of version 1 is read, and becomes one of the present version
// with the first thing that it stores, killed at any operation of that.
func TestMigrate(t *testing.T) {
	for n := uint64(0); ; n++ {
		files := disk.Memory(n, disk.MemoryOptions{})
		f, err := files.Create(journal.SuperblockFile, 2*journal.BlockSize)
		if err != nil {
			t.Fatal(err)
		}
		block := superblock1(1, 5, 5)
		if err := f.Write([][]byte{block}, journal.BlockSize, true); err != nil {
			t.Fatal(err)
		}
		faulty, reached := disk.FailNth(files, n, 5)
		s, err := ReadSlot(faulty, 1, "slot")
		done := false
		if err == nil {
			done = s.promise(journal.GenerationID{Number: 6, Name: 66}) == nil
		}
		s, err = ReadSlot(files.Crash(), 1, "slot")
		if err != nil {
			t.Fatalf("killed at operation %d: %v", n, err)
		}
		super := &s.super
		if super.Started() != 5 || super.Promised.Number < 5 || done && (super.Promised.Number != 6 || super.Older()) {
			t.Fatalf("killed at operation %d: %+v", n, super)
		}
		if super.Incarnation != decoded(block).Incarnation || super.Members != decoded(block).Members {
			t.Fatalf("killed at operation %d: incarnation %v", n, super.Incarnation)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if !reached() {
			return
		}
	}
}

// renamed opens three slots as an assembly does, as far as their identity goes.
// It returns whether that went through.
func renamed(files [3]disk.FS, next journal.Volume) (bool, error) {
	a := Assembly{NewID: next, Options: Options{Log: func(int, string, error) {}, Known: Known{Home: "/copy"}}}
	slots := make([]*Slot, 3)
	for i := range slots {
		var err error
		if slots[i], err = ReadSlot(files[i], journal.SlotID(i), "slot"); err != nil {
			return false, errors.Join(err, closeSlots(slots))
		}
	}
	err := a.rename(slots)
	return err == nil, closeSlots(slots)
}

// TestRenameCutShort kills the taking of a new identity at every operation: the next
// start, which is not told of it, goes on with it, and the slots belong together
// with each other and with nobody else. What they sign their logs with stays.
func TestRenameCutShort(t *testing.T) {
	next := journal.Volume{0xee}
	for victim := range 3 {
		for n := uint64(0); ; n++ {
			var files [3]disk.FS
			var disks [3]*disk.MemoryFS
			for i := range files {
				disks[i] = disk.Memory(n, disk.MemoryOptions{})
				s, err := MakeSlot(disks[i], "slot", (&life{history: "5a", home: "/original"}).superblock(i))
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				files[i] = disks[i]
			}
			faulty, reached := disk.FailNth(disks[victim], n, 5)
			files[victim] = faulty
			_, _ = renamed(files, next) // it fails, and that is the point
			announced := false
			for i := range files {
				disks[i] = disks[i].Crash()
				files[i] = disks[i]
				super, err := Inspect(files[i])
				if err != nil {
					t.Fatal(err)
				}
				announced = announced || super.Renaming == next || super.Volume == next
			}
			if done, err := renamed(files, journal.Volume{}); !done || err != nil {
				t.Fatalf("slot %d fails at operation %d: the next start does not go on: %v", victim, n, err)
			}
			holdRenamed(t, files, announced, next)
			if !reached() {
				break
			}
		}
	}
}

// holdRenamed holds that the slots have all taken the new identity, or none of them.
func holdRenamed(t *testing.T, files [3]disk.FS, taken bool, next journal.Volume) {
	t.Helper()
	for i := range files {
		super, err := Inspect(files[i])
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case !taken && (super.Volume == next || super.Home != "/original"):
			t.Fatalf("slot %d has taken an identity that nobody announced", i)
		case taken && (super.Volume != next || super.Renaming != journal.Volume{} || super.Home != "/copy" || super.Signed == next):
			t.Fatalf("slot %d is of volume %x, home %s, signed %x", i, super.Volume[:1], super.Home, super.Signed[:1])
		case super.Incarnation != super.Members.Slots[i]:
			t.Fatalf("slot %d is none of its members", i)
		case taken && super.Incarnation == incarnations(i, 0):
			t.Fatalf("slot %d is called what the original's is", i)
		}
	}
}
