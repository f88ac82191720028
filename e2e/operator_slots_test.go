package e2e

import (
	"fmt"
	"os"
	"path/filepath"
)

// stores returns the mistakes that are made with a slot's metadata store: while
// the server is stopped, and under a server that has lost its helper.
func stores() (rows []mistake) {
	for _, how := range []struct {
		name  string
		spoil func(slot string) step
		long  bool
	}{
		{"removed", func(slot string) step { return removed(slot + "/meta/badger") }, false},
		{"removed with its directory", func(slot string) step { return removed(slot + "/meta") }, true},
		{"rolled back", func(slot string) step { return refilled(slot+"/meta", "oldmeta") }, false},
		{"rolled back to the day it was made", func(slot string) step { return refilled(slot+"/meta", "oldestmeta") }, true},
		{"cut short", func(slot string) step { return truncated(slot+"/meta/badger/*", 0.5) }, true},
		{"cut to nothing", func(slot string) step { return truncated(slot+"/meta/badger/*", 0) }, true},
		{"another volume's", func(slot string) step { return refilled(slot+"/meta/badger", "o/slot-0/meta/badger") }, true},
		{"another slot's", anotherStore, false},
	} {
		soon := []string{"--deadline", "3s"} // what cannot be read is waited for until then
		aged := do(another("o"), create, stop("v"), copied("v/slot-1/meta", "oldestmeta"), later("v"), copied("v/slot-1/meta", "oldmeta"), later("v"))
		one := do(another("o"), create, stop("v"), copied("v/slot-0/meta", "oldestmeta"), later("v"), copied("v/slot-0/meta", "oldmeta"), later("v"))
		spoiled, spoiledOne := how.spoil("v/slot-1"), how.spoil("v/slot-0")
		rows = append(rows,
			mistake{name: "store " + how.name, steps: do(aged, spoiled), want: right, long: how.long},
			mistake{
				name: "store " + how.name + " after a kill", steps: do(aged, start("v"), flushed("v"), inMemory("v"), kill("v"), spoiled), want: right, long: true,
			},
			mistake{name: "store " + how.name + " under the server", steps: do(aged, start("v"), helperless(1, spoiled)), want: running, long: how.long},
			mistake{
				name: "only store " + how.name, shape: alone, steps: do(one, copied("v/slot-0/meta", "good"), spoiledOne),
				serve: append([]string{"v"}, soon...), want: rightOrErrors, undo: refilled("v/slot-0/meta", "good"), long: how.long,
			},
			mistake{
				name: "only store " + how.name + " under the server", shape: alone,
				steps: do(one, start("v", soon...), helperless(0, do(copied("v/slot-0/meta", "good"), spoiledOne))),
				want:  rightOrErrors, undo: refilled("v/slot-0/meta", "good"), long: how.long,
			},
		)
	}
	return rows
}

// anotherStore puts the store of slot 2 into a slot; into the only one, that of
// another volume.
func anotherStore(slot string) step {
	return func(s *site) {
		s.t.Helper()
		from := "v/slot-2/meta/badger"
		if _, err := os.Stat(s.path(from)); err != nil {
			from = "o/slot-0/meta/badger"
		}
		do(removed(slot+"/meta/badger"), copied(from, filepath.Join(slot, "meta", "badger")))(s)
	}
}

// helperless does something to a store behind its helper's back, and kills that.
func helperless(slot int, st step) step {
	return func(s *site) {
		s.t.Helper()
		s.withoutHelper("v", slot, func() { st(s) })
	}
}

// retired returns the mistakes that are made with replaced slots.
func retired() []mistake {
	// moved1 has slot 1 in new1; what was slot 1 is still where it was.
	moved1 := do(create, flushed("v"), replaced("v", 1, "new1"), flushed("v"), stop("v"))
	rows := []mistake{
		{name: "slot replaced elsewhere", long: true, steps: moved1, want: right},
		{
			name: "retired slot named", steps: moved1, serve: []string{"v", "--slot", "1=W/v/slot-1"}, want: without(1, "v/slot-1"),
		},
		{
			name: "retired slot named, and another away", steps: do(moved1, moved("v/slot-0", "held")),
			serve: []string{"v", "--slot", "1=W/v/slot-1"}, want: refused("slot-1"), undo: moved("held", "v/slot-0"),
		},
		{
			name:  "two retired slots",
			steps: do(create, flushed("v"), replaced("v", 2, "new2"), flushed("v"), replaced("v", 1, "new1"), flushed("v"), stop("v"), moved("v/slot-0", "held")),
			serve: []string{"v", "--slot", "1=W/v/slot-1", "--slot", "2=W/v/slot-2"}, want: refused("slot-1", "slot-2"), undo: moved("held", "v/slot-0"),
		},
		{
			name: "two retired slots, and nothing said", steps: do(create, flushed("v"), replaced("v", 2, "new2"), flushed("v"), replaced("v", 1, "new1"), flushed("v"), stop("v"), moved("v/slot-0", "held"), moved("new1", "held1"), moved("new2", "held2")),
			want: refused("new1", "new2"), undo: do(moved("held", "v/slot-0"), moved("held1", "new1"), moved("held2", "new2")),
		},
		{
			name:  "retired slot put back over the new one",
			steps: do(stopped, moved("v/slot-1", "held"), start("v"), replaced("v", 1, ""), flushed("v"), stop("v"), moved("v/slot-1", "new"), moved("held", "v/slot-1")),
			want:  without(1, "v/slot-1"), undo: refilled("v/slot-1", "new"),
		},
		{
			name: "slot replaced where files are", steps: do(create, flushed("v"), file("new1/diary"), noReplacement("new1"), stop("v")), want: right,
		},
		{
			name: "slot replaced where another slot is", long: true, steps: do(create, flushed("v"), noReplacement("v/slot-2"), stop("v")), want: right,
		},
	}
	for _, lines := range choose([]int{0, 3}, []int{0, 1, 2, 3, 4, 6, 8}) {
		rows = append(rows, mistake{
			name:  fmt.Sprintf("replacement cut short at line %d", lines),
			steps: do(create, flushed("v"), replaceKilledAt("v", 1, "new1", lines)), want: rightBytes, undo: mended("v", 1),
		}, mistake{
			name:  fmt.Sprintf("replacement cut short at line %d, and another slot away", lines),
			steps: do(create, flushed("v"), replaceKilledAt("v", 1, "new1", lines), moved("v/slot-0", "held")), want: rightOr("slot"),
			undo: do(moved("held", "v/slot-0"), mended("v", 1)),
		}, mistake{
			name:  fmt.Sprintf("replacement at a start cut short at line %d", lines+4),
			steps: do(stopped, removed("v/slot-1"), killedAt("v", lines+4, "--replace", "1"), moved("v/slot-0", "held")), want: rightOr("slot"),
			undo: do(moved("held", "v/slot-0"), mended("v", 1)), long: lines == 0,
		})
	}
	return rows
}

// noReplacement holds that a slot is not made in a directory that is not empty.
func noReplacement(at string) step {
	return func(s *site) {
		s.t.Helper()
		before := s.picture(false, at)
		if err := s.replace("v", 1, at); err == nil {
			s.t.Errorf("a slot is made in %s", at)
		}
		s.whole("v")
		if at != "v/slot-2" { // which is in use
			s.unchanged(before, s.picture(false, at), "no slot was made there")
		}
	}
}

// survivors returns the mistakes around --survivor: slots 1 and 2 are lost.
func survivors() []mistake {
	lost := do(stopped, moved("v/slot-1", "held1"), moved("v/slot-2", "held2"))
	lostEmpty := do(lost, made("v/slot-1"), made("v/slot-2"))
	rows := []mistake{
		{name: "two slots lost, a survivor", long: true, steps: lost, serve: []string{"v", "--survivor", "0"}, want: right},
		{name: "two slots lost, empty directories, a survivor", steps: lostEmpty, serve: []string{"v", "--survivor", "0"}, want: right},
		{
			name: "a survivor beside other files", steps: do(lost, file("v/slot-1/diary")),
			serve: []string{"v", "--survivor", "0"}, want: beforeSurvivor("v/slot-1"), undo: do(removed("v/slot-1"), mended("v", 1)),
		},
		{
			name: "a survivor, and the lost slots come back", long: true, steps: do(lost, later("v", "--survivor", "0"), moved("v/slot-1", "new1"), moved("v/slot-2", "new2"), moved("held1", "v/slot-1"), moved("held2", "v/slot-2")),
			want: refused("slot-1", "slot-2"), undo: do(removed("v/slot-1", "v/slot-2"), moved("new1", "v/slot-1"), moved("new2", "v/slot-2")),
		},
		{
			name: "a survivor, and the lost slots come back alone", steps: do(lost, later("v", "--survivor", "0"), moved("v/slot-0", "held0"), moved("v/slot-1", "new1"), moved("v/slot-2", "new2"), moved("held1", "v/slot-1"), moved("held2", "v/slot-2")),
			want: refused("slot-1", "slot-2"), undo: do(moved("held0", "v/slot-0"), removed("v/slot-1", "v/slot-2"), moved("new1", "v/slot-1"), moved("new2", "v/slot-2")),
		},
		{
			name: "a survivor that is away itself", steps: do(stopped, moved("v/slot-0", "held0"), moved("v/slot-1", "held1")),
			serve: []string{"v", "--survivor", "0"}, want: refused("slot-0"), undo: do(moved("held0", "v/slot-0"), moved("held1", "v/slot-1")),
		},
	}
	for _, lines := range choose([]int{3, 6}, []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15}) {
		cut := do(lostEmpty, killedAt("v", lines, "--survivor", "0"))
		rows = append(rows, mistake{
			name: fmt.Sprintf("a survivor cut short at line %d, and away for a start", lines), steps: do(cut, moved("v/slot-0", "held0")),
			want: rightOr("slot-0"), undo: moved("held0", "v/slot-0"), again: []string{"--survivor", "0"},
		}, mistake{
			name: fmt.Sprintf("a survivor cut short at line %d", lines), steps: do(cut, killedAt("v", lines+1, "--survivor", "0")),
			want: rightOr("--survivor"), again: []string{"--survivor", "0"},
		})
	}
	return rows
}

// beforeSurvivor: the survivor is served, and what is no slot of the volume is
// left as it is.
func beforeSurvivor(where string) want {
	return func(s *site, dir string, args []string) {
		s.t.Helper()
		before := s.picture(true, where)
		rightOr("slot-1")(s, dir, args)
		s.unchanged(before, s.picture(true, where), "it is no slot")
	}
}

// servers: two servers at once.
var servers = []mistake{
	{name: "two servers", steps: do(create, flushed("v")), want: refusedBeside("v", "W/v")},
	{
		name: "two servers, one by the slots' names", steps: do(create, flushed("v"), made("w")),
		serve: []string{"w", "--slot", "0=W/v/slot-0", "--slot", "1=W/v/slot-1", "--slot", "2=W/v/slot-2"}, want: refusedBeside("v", "W/v"),
	},
	{
		name: "two servers, one of a copy of a killed volume", steps: do(killed, copied("v", "copy"), start("v"), flushed("v")),
		serve: []string{"copy"}, want: refusedBeside("v", "W/v"),
	},
	{
		name: "two servers, one that creates", long: true, steps: do(create, flushed("v")), serve: []string{"v", "--size", sizeArg}, want: refusedBeside("v", "W/v"),
	},
}

// refusedBeside is refused, while another server does not notice.
func refusedBeside(other string, texts ...string) want {
	return func(s *site, dir string, args []string) {
		s.t.Helper()
		r := s.try(dir, args...)
		if r == nil {
			s.t.Fatalf("a second server serves; %s", s.describe(other))
		}
		s.holdRefusal(r, texts)
		s.verify(other)
		s.write(other, s.some(), true)
		s.verify(other)
		s.whole(other)
	}
}

// arenas: shared memory that is not what the slots left there.
var arenas = []mistake{
	{
		name: "older memory put back", steps: do(killed, memory("arena", false), later("v"), later("v"), memory("arena", true)), want: saying("aside"),
	},
	{
		name:  "memory of before a kill put back after another",
		steps: do(killed, memory("arena", false), start("v"), flushed("v"), inMemory("v"), kill("v"), memory("arena", true), holdsFlushed), want: rightBytes,
	},
	{
		name: "memory cut short", steps: do(killed, cutMemory, holdsFlushed), want: saying("aside"),
	},
	{
		name: "slots named under another directory", steps: do(killed, holdsToo("v", "w"), made("w")),
		serve: []string{"w", "--slot", "0=W/v/slot-0", "--slot", "1=W/v/slot-1", "--slot", "2=W/v/slot-2"},
		want:  rightOr("W/v", "W/w"), undo: gone("w", "v"),
	},
	{
		name: "slots named under another directory, memory adopted", steps: do(killed, holdsToo("v", "w"), made("w")),
		serve: []string{"w", "--adopt-arena", "--slot", "0=W/v/slot-0", "--slot", "1=W/v/slot-1", "--slot", "2=W/v/slot-2"},
		want:  rightOr("W/v"), undo: gone("w", "v"), long: true,
	},
	{
		name: "memory adopted by a copy of a killed volume", steps: do(killed, copied("v", "copy"), kept("v", "copy")),
		serve: []string{"copy", "--new-identity", "--adopt-arena"}, want: misused("--new-identity"),
	},
}

// holdsToo says that what is in one volume is in the other, memory included.
func holdsToo(from, to string) step {
	return func(s *site) { s.content[to] = s.content[from].copy() }
}

// gone removes a directory whose slots are in another one.
func gone(from, to string) step {
	return func(s *site) {
		s.t.Helper()
		s.content[to] = s.content[from]
		removed(from)(s)
	}
}

// holdsFlushed says that what was not flushed may be lost.
func holdsFlushed(s *site) { s.loose["v"] = true }

// memory takes a copy of what is in shared memory, or puts it back.
func memory(name string, put bool) step {
	return func(s *site) {
		s.t.Helper()
		from, to := s.arena, s.path(name)
		if put {
			from, to = to, s.arena
		}
		s.must(os.MkdirAll(to, 0o755))
		s.command("cp", "-a", from+"/.", to)
	}
}

// cutMemory leaves half of what is in shared memory.
func cutMemory(s *site) {
	s.t.Helper()
	truncated(filepath.Join(s.arena, "*.arena"), 0.5)(s)
}
