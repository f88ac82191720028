package e2e

// copies: a volume, or a backup of it, is served beside it or in its place.
var copies = []mistake{
	{
		name: "copy of a stopped volume", long: true, steps: do(stopped, copied("v", "copy")), serve: []string{"copy"}, want: refused("W/v", "--new-identity"),
	},
	{
		name: "copy of a killed volume", steps: do(killed, copied("v", "copy")), serve: []string{"copy"}, want: refused("W/v", "--new-identity"),
	},
	{
		name: "copy of a running volume", steps: do(create, flushed("v"), copied("v", "copy")), serve: []string{"copy"}, want: refused("W/v"),
	},
	{
		name: "copy of a stopped volume, a new identity", long: true, steps: do(stopped, copied("v", "copy"), start("v")),
		serve: []string{"copy", "--new-identity"}, want: beside("v"),
	},
	{
		name: "copy of a killed volume, a new identity", steps: do(killed, copied("v", "copy")),
		serve: []string{"copy", "--new-identity"}, want: right,
	},
	{
		name: "copy of a running volume, a new identity", steps: do(create, flushed("v"), copied("v", "copy")),
		serve: []string{"copy", "--new-identity"}, want: beside("v"),
	},
	{
		name: "copy in the place of a killed volume", steps: do(stopped, copied("v", "copy"), start("v"), flushed("v"), inMemory("v"), kill("v"), moved("v", "held"), moved("copy", "v")),
		want: rightOr("W/held"), undo: do(removed("v"), moved("held", "v"), arenaBack),
	},
	{
		name: "backup of all slots in the place of a stopped volume", steps: do(stopped, copied("v", "copy"), later("v"), slotsOf("copy", "v")),
		want: right,
	},
	{
		name:  "backup of all slots in the place of a killed volume",
		steps: do(stopped, copied("v", "copy"), start("v"), flushed("v"), inMemory("v"), kill("v"), slotsOf("copy", "v")),
		want:  saying("aside"),
	},
	{
		name: "backup of a running volume in its place", steps: do(create, flushed("v"), copied("v", "copy"), flushed("v"), released("v"), kill("v"), slotsOf("copy", "v")),
		want: rightBytes,
	},
	{
		name: "backup of a killed volume in its place, later", long: true, steps: do(killed, copied("v", "copy"), later("v"), slotsOf("copy", "v")), want: right,
	},
	{
		name: "backup of one slot", long: true, steps: do(stopped, copied("v/slot-1", "old1"), later("v"), removed("v/slot-1"), moved("old1", "v/slot-1")), want: right,
	},
	{
		name: "backup of one slot, after a kill", steps: do(stopped, copied("v/slot-1", "old1"), start("v"), flushed("v"), inMemory("v"), kill("v"), removed("v/slot-1"), moved("old1", "v/slot-1")), want: right,
	},
	{
		name: "backups of two slots", long: true, steps: do(stopped, copied("v/slot-1", "old1"), copied("v/slot-2", "old2"), later("v"), moved("v/slot-1", "new1"), moved("v/slot-2", "new2"), moved("old1", "v/slot-1"), moved("old2", "v/slot-2")),
		want: rightOr("--survivor"), undo: do(refilled("v/slot-1", "new1"), refilled("v/slot-2", "new2")),
	},
	{
		name: "backups of two slots, after a kill", steps: do(stopped, copied("v/slot-1", "old1"), copied("v/slot-2", "old2"), start("v"), flushed("v"), inMemory("v"), kill("v"), moved("v/slot-1", "new1"), moved("v/slot-2", "new2"), moved("old1", "v/slot-1"), moved("old2", "v/slot-2")),
		want: rightOr("--survivor"), undo: do(refilled("v/slot-1", "new1"), refilled("v/slot-2", "new2")),
	},
	{
		name: "backup of the only slot, after a kill", shape: alone,
		steps: do(stopped, copied("v", "copy"), start("v"), flushed("v"), inMemory("v"), kill("v"), slotsOf("copy", "v")), want: saying("aside"),
	},
	{
		name: "copied to another place, and the original removed", steps: do(killed, copied("v", "w"), kept("v", "w"), removed("v")),
		serve: []string{"w"}, want: right, undo: moved("w", "v"),
	},
}

// kept says that a copy is the volume now, with all that is in memory.
func kept(from, to string) step {
	return func(s *site) { s.loose[to] = false }
}

// beside: it serves right bytes beside another server, which goes on, under an
// ID of its own.
func beside(other string) want {
	return func(s *site, dir string, args []string) {
		s.t.Helper()
		s.start(dir, args...)
		s.verify(dir)
		for range 2 {
			for _, name := range []string{dir, other} {
				s.write(name, s.some(), true)
			}
			for _, name := range []string{dir, other} {
				s.verify(name)
			}
		}
		if a, b := s.status(dir).Volume.UUID, s.status(other).Volume.UUID; a == b {
			s.t.Errorf("both are volume %s", a)
		}
		s.stop(dir)
		right(s, dir, nil)
	}
}

// snapshots: slots that are put back to what they were while the server ran,
// without a restart of the machine.
var snapshots = []mistake{
	{
		name: "snapshots of all slots", steps: do(create, flushed("v"), copied("v", "snap"), flushed("v"), flushed("v"), released("v"), inMemory("v"), kill("v"), slotsOf("snap", "v")),
		want: saying("aside"),
	},
	{
		name: "snapshot of one slot", steps: do(create, flushed("v"), copied("v/slot-0", "snap0"), flushed("v"), inMemory("v"), kill("v"), refilled("v/slot-0", "snap0")),
		want: right,
	},
	{
		name: "snapshots of two slots", steps: do(create, flushed("v"), copied("v/slot-0", "snap0"), copied("v/slot-1", "snap1"), flushed("v"), inMemory("v"), kill("v"), refilled("v/slot-0", "snap0"), refilled("v/slot-1", "snap1")),
		want: right,
	},
	{
		name: "snapshot of the only slot", shape: alone, steps: do(create, flushed("v"), copied("v", "snap"), flushed("v"), flushed("v"), released("v"), inMemory("v"), kill("v"), slotsOf("snap", "v")),
		want: saying("aside"),
	},
	{
		name: "snapshot that lacks only what is in memory", steps: do(create, flushed("v"), copied("v", "snap"), inMemory("v"), kill("v"), completed("snap", "v")),
		want: rightBytes,
	},
}

// twoLives: a volume and its copy were both served on, and their slots are mixed.
// One life is in v, the other in a, a copy of v in b.
var twoLives = []mistake{
	{
		name: "one slot of another life", steps: do(livedTwice, moved("v/slot-1", "held"), copied("a/slot-1", "v/slot-1")),
		want: otherLife(1, "v/slot-1"), undo: refilled("v/slot-1", "held"),
	},
	{
		name:  "one slot of another life, after a kill",
		steps: do(livedTwice, start("v"), flushed("v"), inMemory("v"), kill("v"), moved("v/slot-0", "held"), copied("a/slot-0", "v/slot-0")),
		want:  otherLife(0, "v/slot-0"), undo: refilled("v/slot-0", "held"),
	},
	{
		name: "two slots of another life", steps: do(livedTwice, refilled("v/slot-1", "a/slot-1"), refilled("v/slot-2", "a/slot-2"), holds("a", "v")),
		want: rightOr("life"), undo: do(removed("v"), moved("b", "v")),
	},
	{
		name: "one slot of each life", steps: do(livedTwice, refilled("v/slot-1", "a/slot-1"), removed("v/slot-2")),
		want: refused("life"), undo: do(removed("v"), moved("b", "v")),
	},
	{
		name:  "backups of two slots, and the third away for a while",
		steps: do(stopped, copied("v", "copy"), later("v"), moved("v/slot-0", "held"), oldQuorum, refilled("v/slot-0", "held")),
		want:  rightOr("life"), undo: mended("v", 0),
	},
}

// livedTwice makes two lives of a volume. The original is no more, as if each
// had been served on a machine of its own.
var livedTwice = do(stopped, copied("v", "safe"), later("v"), copied("v", "a"), removed("v"), moved("safe", "v"), later("v"), copied("v", "b"))

// holds says that what one volume holds is what the other one does.
func holds(from, to string) step {
	return func(s *site) { s.content[to], s.loose[to] = s.content[from].copy(), true }
}

// otherLife is without a slot, for that reason.
func otherLife(id int, where string) want {
	return func(s *site, dir string, args []string) {
		s.t.Helper()
		s.start(dir, args...)
		s.verify(dir)
		if !s.says(dir, "another life") {
			s.t.Error("no event says that the slot is of another life")
		}
		s.stop(dir)
		without(id, where)(s, dir, args)
	}
}

// oldQuorum puts two slots of the copy into v and starts it. It may be refused;
// if it is served, it is what it was.
func oldQuorum(s *site) {
	s.t.Helper()
	newest := s.content["v"]
	for _, slot := range []string{"/slot-1", "/slot-2"} {
		refilled("v"+slot, "copy"+slot)(s)
	}
	holds("copy", "v")(s)
	if r := s.try("v"); r != nil {
		s.holdRefusal(r, nil)
		s.content["v"] = newest
		return
	}
	s.verify("v")
	s.goOn("v")
}

// completed puts the slots of a snapshot back that lacks nothing but what is in
// memory: that may be taken from there, or not.
func completed(from, to string) step {
	return func(s *site) {
		s.t.Helper()
		newest := s.content[to]
		slotsOf(from, to)(s)
		for i := range newest {
			s.content[to][i] = append(s.content[to][i], newest[i]...)
		}
	}
}
