package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"trivet/control"
)

// A step is something that an operator does, or that happens to him.
type step func(*site)

// do makes one step of several.
func do(steps ...step) step {
	return func(s *site) {
		s.t.Helper()
		for _, st := range steps {
			st(s)
		}
	}
}

func create(s *site) { s.create("v") }

func start(dir string, args ...string) step {
	return func(s *site) { s.t.Helper(); s.start(dir, args...) }
}
func stop(dir string) step { return func(s *site) { s.t.Helper(); s.stop(dir) } }
func kill(dir string) step { return func(s *site) { s.t.Helper(); s.kill(dir) } }

// flushed writes to some of the blocks, and flushes.
func flushed(dir string) step {
	return func(s *site) { s.t.Helper(); s.write(dir, s.some(), true) }
}

// stopped is a volume that was made, written to twice and stopped.
var stopped = do(create, flushed("v"), stop("v"))

// released waits until memory holds nothing any more: all is on every slot.
func released(dir string) step {
	return func(s *site) {
		s.t.Helper()
		eventually(s.t, time.Minute, func() error {
			if a := s.status(dir).Arena; a.FreeBytes != a.SizeBytes {
				return fmt.Errorf("%d bytes are in memory", a.SizeBytes-a.FreeBytes)
			}
			return nil
		})
	}
}

// inMemory writes to some of the blocks while every log stands still: what was
// acknowledged is in shared memory alone, until the server is killed.
func inMemory(dir string) step {
	return func(s *site) {
		s.t.Helper()
		_, err := s.client(dir).AddFault(s.t.Context(), "log.append hang")
		s.must(err)
		some, share := s.some(), sizeMiB()/16 // memory is as small for a large volume
		s.write(dir, func(lba int) bool { return some(lba) && lba/24%share == 0 }, false)
	}
}

// killed is a volume whose server was killed with records in memory.
var killed = do(create, flushed("v"), inMemory("v"), kill("v"))

// later starts the volume in dir, writes to it and stops it, so that it is
// further on.
func later(dir string, args ...string) step {
	return do(start(dir, args...), flushed(dir), stop(dir))
}

// copied is 'cp -a'. A copy of a volume holds what the volume does, but for what
// is in memory.
func copied(from, to string) step {
	return func(s *site) {
		s.t.Helper()
		s.command("cp", "-a", s.path(from), s.path(to))
		if c, ok := s.content[from]; ok {
			s.content[to], s.loose[to] = c.copy(), true
		}
	}
}

// moved is 'mv'.
func moved(from, to string) step {
	return func(s *site) {
		s.t.Helper()
		s.must(os.Rename(s.path(from), s.path(to)))
		if c, ok := s.content[from]; ok {
			s.content[to], s.loose[to] = c, s.loose[from]
			delete(s.content, from)
			delete(s.loose, from)
		}
	}
}

// removed is 'rm -rf'.
func removed(names ...string) step {
	return func(s *site) {
		s.t.Helper()
		for _, name := range names {
			s.must(os.RemoveAll(s.path(name)))
			delete(s.content, name)
		}
	}
}

// slotsOf puts the slots of one directory into the place of another's; what the
// volume holds is then what that one did.
func slotsOf(from, to string) step {
	return func(s *site) {
		s.t.Helper()
		for id := range s.shape.replicas {
			slot := fmt.Sprintf("slot-%d", id)
			s.must(os.RemoveAll(s.path(filepath.Join(to, slot))))
			s.command("cp", "-a", s.path(filepath.Join(from, slot)), s.path(to))
		}
		s.content[to], s.loose[to] = s.content[from].copy(), true
	}
}

// swapped exchanges two names.
func swapped(a, b string) step { return do(moved(a, "between"), moved(b, a), moved("between", b)) }

// emptied leaves a directory and nothing in it; undone by moving back what is in
// the other place.
func emptied(name, to string) step { return do(moved(name, to), made(name)) }

func made(name string) step { return func(s *site) { s.t.Helper(); s.mkdir(name) } }

// refilled undoes emptied.
func refilled(name, from string) step { return do(removed(name), moved(from, name)) }

// file puts a file there that has nothing to do with Trivet.
func file(name string) step {
	return func(s *site) {
		s.t.Helper()
		s.mkdir(filepath.Dir(name))
		s.must(os.WriteFile(s.path(name), []byte("dear diary\n"), 0o644))
	}
}

// truncated cuts every file that matches to a part of its size.
func truncated(pattern string, part float64) step {
	return func(s *site) {
		s.t.Helper()
		names, err := filepath.Glob(s.path(pattern))
		s.must(err)
		if len(names) == 0 {
			s.t.Fatalf("nothing to truncate in %s", pattern)
		}
		for _, name := range names {
			info, err := os.Stat(name)
			s.must(err)
			if info.Mode().IsRegular() {
				s.must(os.Truncate(name, int64(float64(info.Size())*part)))
			}
		}
	}
}

// unmounted and mounted take a slot's filesystem away and bring it back.
func unmounted(dirs ...string) step {
	return func(s *site) {
		s.t.Helper()
		for _, dir := range dirs {
			eventually(s.t, time.Minute, func() error { // a helper that was killed may still have files open
				_, err := attempt(s.t.Context(), "umount", "-d", s.path(dir))
				return err
			})
			delete(s.mounts, dir)
		}
	}
}

func mounted(dirs ...string) step {
	return func(s *site) {
		s.t.Helper()
		for _, dir := range dirs {
			s.mount(dir, s.path(dir+".img"))
		}
	}
}

// another makes a second volume in a directory, and stops it.
func another(dir string) step {
	return func(s *site) {
		s.t.Helper()
		shape := s.shape
		s.shape.slots = nil
		s.create(dir)
		s.stop(dir)
		s.shape = shape
	}
}

// replaced has the running server make a new slot, at a place or where the old
// one was, and waits until it counts.
func replaced(dir string, id int, at string) step {
	return func(s *site) {
		s.t.Helper()
		s.must(s.replace(dir, id, at))
		s.whole(dir)
	}
}

func (s *site) replace(dir string, id int, at string) error {
	args := []string{"slot", "replace", fmt.Sprint(id), "--control", filepath.Join(s.path(dir), "control.sock")}
	if at != "" {
		args = append(args, "--at", s.path(at))
	}
	_, err := attempt(s.t.Context(), program, args...)
	return err
}

// mended starts the volume and brings a slot back that the server will not
// believe any more, as an operator does who has read the status.
func mended(dir string, id int) step {
	return func(s *site) {
		s.t.Helper()
		s.start(dir)
		s.mend(dir, id)
		s.stop(dir)
	}
}

func (s *site) mend(dir string, id int) {
	s.t.Helper()
	ctx, given := s.t.Context(), false
	for n := 0; s.status(dir).Slots[id].State != control.Current && n < 600; n++ {
		if s.status(dir).Slots[id].State == control.Faulted && !given && n > 10 {
			s.must(s.replace(dir, id, ""))
			given = true
		}
		s.must(pause(ctx, 50*time.Millisecond))
	}
}

// killedAt starts a server and kills it when it has logged so many lines, or
// serves, whichever is first.
func killedAt(dir string, lines int, args ...string) step {
	return func(s *site) {
		s.t.Helper()
		srv := s.prepare(dir, args)
		_, err := srv.Launch()
		s.must(err)
		defer srv.Close()
		s.awaitLines(lines, srv.Exited())
		srv.Kill()
	}
}

// replaceKilledAt has a server make a new slot, and kills it so many lines of
// its log later.
func replaceKilledAt(dir string, id int, at string, lines int) step {
	return func(s *site) {
		s.t.Helper()
		text, err := os.ReadFile(s.lastLog)
		s.must(err)
		s.must(s.replace(dir, id, at))
		s.awaitLines(strings.Count(string(text), "\n")+lines, s.servers[dir].Exited())
		s.kill(dir)
	}
}

// awaitLines waits until the last server's log has so many lines, for three
// seconds at most: it may have no more to say.
func (s *site) awaitLines(lines int, ended <-chan struct{}) {
	s.t.Helper()
	for n := 0; n < 3000; n++ {
		text, err := os.ReadFile(s.lastLog)
		s.must(err)
		if strings.Count(string(text), "\n") >= lines {
			return
		}
		select {
		case <-ended:
			return
		default:
		}
		s.must(pause(s.t.Context(), time.Millisecond))
	}
}

// A want is what must come of a start.
type want func(s *site, dir string, args []string)

// goOn writes to a served volume, reads it and stops it: whoever serves right
// bytes must keep them.
func (s *site) goOn(dir string) {
	s.t.Helper()
	s.write(dir, s.some(), true)
	s.verify(dir)
	s.stop(dir)
}

// right: it serves, and every block is right; all slots count, in the end.
func right(s *site, dir string, args []string) {
	s.t.Helper()
	s.start(dir, args...)
	s.verify(dir)
	s.whole(dir)
	s.goOn(dir)
}

// rightBytes is right, whatever became of the slots.
func rightBytes(s *site, dir string, args []string) {
	s.t.Helper()
	s.start(dir, args...)
	s.verify(dir)
	s.goOn(dir)
}

// saying is right bytes, with an event that says something.
func saying(texts ...string) want {
	return func(s *site, dir string, args []string) {
		s.t.Helper()
		s.start(dir, args...)
		s.verify(dir)
		if !s.says(dir, texts...) {
			s.t.Errorf("no event says %q", texts)
		}
		s.goOn(dir)
	}
}

// without: it serves right bytes without a slot; an event and the status say so,
// and nothing is made or changed in the slot's directory.
func without(id int, where string) want {
	return func(s *site, dir string, args []string) {
		s.t.Helper()
		before := s.picture(true, where)
		s.start(dir, args...)
		s.verify(dir)
		for _, slot := range s.status(dir).Slots {
			if current := slot.State == control.Current; current == (slot.ID == id) {
				s.t.Errorf("slot %d is %s (%s), and slot %d should be the one that takes no part", slot.ID, slot.State, slot.Reason, id)
			}
		}
		if !s.says(dir, fmt.Sprintf("slot %d", id)) {
			s.t.Errorf("no event speaks of slot %d", id)
		}
		s.goOn(dir)
		s.unchanged(before, s.picture(true, where), "the slot takes no part")
	}
}

// refused: it ends with status 1 and one line, which says all of these; nothing
// on disk has changed.
func refused(texts ...string) want {
	return func(s *site, dir string, args []string) {
		s.t.Helper()
		before := s.picture(false, s.everything()...)
		r := s.try(dir, args...)
		if r == nil {
			_, err := s.read(dir)
			s.t.Fatalf("it serves, and should be refused with %q (reading it: %v); %s", texts, err, s.describe(dir))
		}
		s.holdRefusal(r, texts)
		s.unchanged(before, s.picture(false, s.everything()...), "it was refused")
	}
}

// describe says what a volume holds that should not be served.
func (s *site) describe(dir string) string {
	if s.content[dir] == nil {
		return "nobody knows what it should hold"
	}
	v, err := readAll(s.t.Context(), s.socket(dir), s.content[dir].copy(), s.lives)
	if err != nil {
		return err.Error()
	}
	if err := v.err(); err != nil {
		return err.Error()
	}
	return "its blocks are right"
}

func (s *site) holdRefusal(r *refusal, texts []string) {
	s.t.Helper()
	s.holdExit(r, 1, texts)
}

// misused: the flags contradict each other, which is told before anything is looked
// at.
func misused(texts ...string) want {
	return func(s *site, dir string, args []string) {
		s.t.Helper()
		before := s.picture(false, s.everything()...)
		r := s.try(dir, args...)
		if r == nil {
			s.t.Fatalf("it serves, and should be refused with %q", texts)
		}
		s.holdExit(r, 2, texts)
		s.unchanged(before, s.picture(false, s.everything()...), "it was refused")
	}
}

// holdExit holds that a refusal is one line with that exit status, and says texts.
func (s *site) holdExit(r *refusal, status int, texts []string) {
	s.t.Helper()
	if r.status != status || len(r.lines) != 1 {
		s.t.Errorf("refused with exit %d and %d lines: %q", r.status, len(r.lines), r.lines)
	}
	all := strings.Join(r.lines, "\n")
	for _, text := range texts {
		if text = strings.ReplaceAll(text, "W/", s.root+"/"); !strings.Contains(all, text) {
			s.t.Errorf("the refusal does not say %q: %s", text, all)
		}
	}
}

// rightOr: right bytes, or a refusal that says all of these.
func rightOr(texts ...string) want {
	return func(s *site, dir string, args []string) {
		s.t.Helper()
		before := s.picture(false, s.everything()...)
		r := s.try(dir, args...)
		if r == nil {
			s.verify(dir)
			s.goOn(dir)
			return
		}
		s.holdRefusal(r, texts)
		s.unchanged(before, s.picture(false, s.everything()...), "it was refused")
	}
}

// rightOrErrors: with nobody to help, a block is right or cannot be read, or the
// volume is refused. The server ends as it can.
func rightOrErrors(s *site, dir string, args []string) {
	s.t.Helper()
	if s.servers[dir] == nil {
		if r := s.try(dir, args...); r != nil {
			s.holdRefusal(r, nil)
			return
		}
	}
	v, err := s.read(dir)
	if err != nil && !errors.Is(err, errBroken) {
		s.t.Fatal(err)
	}
	if v != nil && v.err() != nil {
		s.t.Errorf("%s: %v", dir, v.err())
	}
	s.kill(dir)
}

// running judges a volume that is being served: right bytes now, after a write
// and after a restart.
func running(s *site, dir string, args []string) {
	s.t.Helper()
	s.verify(dir)
	s.write(dir, s.some(), true)
	s.verify(dir)
	s.stop(dir)
	right(s, dir, args)
}

// arenas returns the names in shared memory that were set aside.
func (s *site) aside() []string {
	names, err := filepath.Glob(filepath.Join(s.arena, "*.aside-*"))
	s.must(err)
	return names
}

// arenaBack gives the memory that was set aside back to its volume.
func arenaBack(s *site) {
	s.t.Helper()
	names := s.aside()
	if len(names) == 0 {
		return // nobody has touched it
	}
	slices.Sort(names)
	name, _, _ := strings.Cut(names[0], ".aside-")
	s.must(os.RemoveAll(name))
	s.must(os.Rename(names[0], name))
}
