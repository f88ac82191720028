package e2e

import (
	"context"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"trivet/control"
	"trivet/e2e/server"
)

// A site is the machine of one operator: a directory with volumes, copies and
// disks, all named by their path in it, and shared memory. Its methods fail the
// test when something goes wrong that no operator can do anything about.
type site struct {
	t       *testing.T
	root    string
	arena   string
	shape   shape
	servers map[string]*server.Server // by the volume's directory
	clients map[string]*control.Client
	content map[string]content // by directory: what a volume there holds
	loose   map[string]bool    // what was not flushed may be missing there: it is in the memory of another
	lives   []string           // names of lives, by number
	life    map[string]uint32  // of the server that runs, by directory
	version uint32
	logs    int
	lastLog string
	mounts  map[string]string // image by where it is mounted
}

// A shape is how the volume of a row is made.
type shape struct {
	replicas int
	slots    map[int]string // where slots are that are not in the volume's directory
	disks    []string       // directories that are filesystems of their own
}

// sizeMiB is the size of the volumes.
func sizeMiB() int { return choose(16, 64) }

func newSite(t *testing.T, o shape) *site {
	t.Helper()
	root, err := os.MkdirTemp("", "trivet-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{
		t: t, root: root, arena: newArenaDir(t, root), shape: o,
		servers: map[string]*server.Server{}, clients: map[string]*control.Client{}, content: map[string]content{}, loose: map[string]bool{},
		life: map[string]uint32{}, lives: []string{"nobody"}, mounts: map[string]string{},
	}
	t.Cleanup(s.clear)
	for _, disk := range o.disks {
		image := s.path(disk + ".img")
		s.command("truncate", "-s", "600M", image)
		s.command("mkfs.ext4", "-q", "-F", "-m", "0", image)
		s.mkdir(disk)
		s.mount(disk, image)
	}
	return s
}

// clear ends what runs, unmounts and removes everything.
func (s *site) clear() {
	for _, srv := range s.servers {
		srv.Close()
	}
	if s.t.Failed() && s.lastLog != "" {
		text, _ := os.ReadFile(s.lastLog) // it may not have come so far
		lines := strings.Split(string(text), "\n")
		first := max(0, len(lines)-25)
		if at := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "panic: ") }); at >= 0 {
			first = at
		}
		s.t.Logf("the last server's last words:\n%s", strings.Join(lines[first:min(len(lines), first+25)], "\n"))
	}
	for dir := range s.mounts {
		if _, err := attempt(context.WithoutCancel(s.t.Context()), "umount", "-d", s.path(dir)); err != nil {
			s.t.Errorf("left mounted: %v", err)
		}
	}
	os.RemoveAll(s.root)
}

// path returns where a name of the site is; an absolute one stays as it is.
func (s *site) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(s.root, name)
}

func (s *site) command(name string, args ...string) string {
	s.t.Helper()
	return command(s.t, name, args...)
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) mkdir(name string) {
	s.t.Helper()
	s.must(os.MkdirAll(s.path(name), 0o755))
}

func (s *site) mount(dir, image string) {
	s.t.Helper()
	s.command("mount", "-o", "loop", image, s.path(dir))
	s.mounts[dir] = image
}

// create makes the volume and stamps all of it.
func (s *site) create(dir string) {
	s.t.Helper()
	args := []string{"--size", fmt.Sprint(sizeMiB(), "M"), "--replicas", fmt.Sprint(s.shape.replicas)}
	for _, id := range slices.Sorted(maps.Keys(s.shape.slots)) {
		args = append(args, "--slot", fmt.Sprintf("%d=%s", id, s.path(s.shape.slots[id])))
	}
	s.content[dir] = newContent(sizeMiB() << 20 / blockSize)
	s.start(dir, args...)
	s.write(dir, func(int) bool { return true }, true)
}

// prepare returns a server of a directory that was not started. "W/" in its
// arguments is the site.
func (s *site) prepare(dir string, args []string) *server.Server {
	s.logs++
	s.lastLog = s.path(fmt.Sprintf("log-%02d-%s", s.logs, strings.ReplaceAll(dir, "/", "-")))
	full := []string{program, "serve", s.path(dir), "--arena", s.arena, "--memory", "128M"}
	for _, a := range args {
		full = append(full, strings.ReplaceAll(a, "W/", s.root+"/"))
	}
	return server.New(server.Config{Name: "trivet " + dir, Args: full, LogPath: s.lastLog})
}

// try starts a server and returns why it refused, or nil.
func (s *site) try(dir string, args ...string) *refusal {
	s.t.Helper()
	srv := s.prepare(dir, args)
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	err := srv.Start(ctx)
	if err == nil {
		s.servers[dir] = srv
		s.life[dir] = uint32(len(s.lives))
		s.lives = append(s.lives, fmt.Sprintf("life %d of %s", len(s.lives), dir))
		return nil
	}
	if ctx.Err() != nil {
		s.t.Fatalf("neither served nor refused: %v", err)
	}
	r := &refusal{status: srv.ExitCode(), err: err}
	text, err := os.ReadFile(s.lastLog)
	s.must(err)
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "time=") {
			r.lines = append(r.lines, strings.TrimSpace(line))
		}
	}
	return r
}

// A refusal is how a server ended that did not serve.
type refusal struct {
	status int
	lines  []string // on standard error that are no log
	err    error
}

// start starts a server that must serve.
func (s *site) start(dir string, args ...string) {
	s.t.Helper()
	if r := s.try(dir, args...); r != nil {
		s.t.Fatalf("%s is refused: exit %d: %s", dir, r.status, strings.Join(r.lines, "\n"))
	}
}

// stop ends a server in order.
func (s *site) stop(dir string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), time.Minute)
	defer cancel()
	s.must(s.servers[dir].Stop(ctx))
	delete(s.servers, dir)
}

// kill ends a server and its helpers with SIGKILL.
func (s *site) kill(dir string) {
	s.servers[dir].Close()
	delete(s.servers, dir)
}

// served names the volumes that are served.
func (s *site) served() []string { return slices.Sorted(maps.Keys(s.servers)) }

func (s *site) socket(dir string) string { return filepath.Join(s.path(dir), "nbd.sock") }

// write stamps the blocks that which picks with a new version.
func (s *site) write(dir string, which func(lba int) bool, flush bool) {
	s.t.Helper()
	s.version++
	s.must(s.content[dir].write(s.t.Context(), s.socket(dir), stamp{s.life[dir], s.version}, which, flush))
}

// some picks a sixth of the blocks, in runs of four, all over the volume; each
// call picks others, and half of them again.
func (s *site) some() func(lba int) bool {
	round := int(s.version)
	return func(lba int) bool { return (lba/4+round/2)%6 == 0 }
}

// verify reads every block of a served volume.
func (s *site) verify(dir string) {
	s.t.Helper()
	v, err := s.read(dir)
	s.must(err)
	if err := v.err(); err != nil {
		s.t.Fatalf("%s: %v", dir, err)
	}
	if v.failed > 0 {
		s.t.Fatalf("%s: %d blocks cannot be read", dir, v.failed)
	}
}

func (s *site) read(dir string) (*verdict, error) {
	c := s.content[dir]
	if !s.loose[dir] {
		c.settle()
	}
	delete(s.loose, dir)
	return readAll(s.t.Context(), s.socket(dir), c, s.lives)
}

// client asks the server of a directory.
func (s *site) client(dir string) *control.Client {
	c := s.clients[dir]
	if c == nil {
		c = control.NewClient(filepath.Join(s.path(dir), "control.sock"))
		s.clients[dir] = c
		s.t.Cleanup(c.Close)
	}
	return c
}

func (s *site) status(dir string) control.Status {
	s.t.Helper()
	st, err := s.client(dir).Status(context.WithoutCancel(s.t.Context()))
	s.must(err)
	return st
}

// whole waits until all slots count.
func (s *site) whole(dir string) {
	s.t.Helper()
	eventually(s.t, time.Minute, func() error {
		st := s.status(dir)
		if len(st.Slots) != s.shape.replicas {
			return fmt.Errorf("%d slots", len(st.Slots))
		}
		for _, slot := range st.Slots {
			if slot.State != control.Current {
				return fmt.Errorf("slot %d is %s: %s", slot.ID, slot.State, slot.Reason)
			}
		}
		return nil
	})
}

// says reports whether an event, or the log, says all of these.
func (s *site) says(dir string, texts ...string) bool {
	s.t.Helper()
	list, err := s.client(dir).Events(s.t.Context())
	s.must(err)
	return slices.ContainsFunc(list, func(e control.Event) bool {
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(e.What, text) })
	})
}

// sound holds that 'trivet check' finds nothing in a volume at rest.
func (s *site) sound(dir string, places map[int]string) {
	s.t.Helper()
	args := []string{"check", s.path(dir)}
	for _, id := range slices.Sorted(maps.Keys(places)) {
		args = append(args, "--slot", fmt.Sprintf("%d=%s", id, s.path(places[id])))
	}
	if out, err := attempt(s.t.Context(), program, args...); err != nil {
		s.t.Errorf("check: %v\n%s", err, out)
	}
}

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// picture returns what is on disk below some names: kinds, sizes and contents.
// Sockets and, unless all is set, what opening a metadata store may change are
// left out.
func (s *site) picture(all bool, names ...string) map[string]string {
	s.t.Helper()
	out := map[string]string{}
	for _, name := range names {
		err := filepath.WalkDir(s.path(name), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Type()&fs.ModeSocket != 0 || path == s.path(name) && strings.HasPrefix(d.Name(), "log-") {
				return err
			}
			rel, _ := filepath.Rel(s.root, path)
			if d.Name() == "meta" && !all {
				out[rel] = "metadata"
				return fs.SkipDir
			}
			what := d.Type().String()
			if d.Type().IsRegular() {
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				what = fmt.Sprintf("%d bytes %x", len(data), crc32.Checksum(data, crcTable))
			}
			out[rel] = what
			return nil
		})
		if err != nil && !os.IsNotExist(err) {
			s.t.Fatal(err)
		}
	}
	return out
}

// compare names what differs between two pictures.
func compare(before, after map[string]string) (diff []string) {
	for path, what := range before {
		if now, there := after[path]; !there {
			diff = append(diff, path+" is gone")
		} else if now != what {
			diff = append(diff, fmt.Sprintf("%s was %s, is %s", path, what, now))
		}
	}
	for path := range after {
		if _, there := before[path]; !there {
			diff = append(diff, path+" is new")
		}
	}
	slices.Sort(diff)
	return diff
}

// unchanged holds that nothing on disk has changed since a picture.
func (s *site) unchanged(before, after map[string]string, why string) {
	s.t.Helper()
	if diff := compare(before, after); len(diff) > 0 {
		s.t.Errorf("%s, and these have changed:\n\t%s", why, strings.Join(diff[:min(len(diff), 8)], "\n\t"))
	}
}

// everything names what is at the site, the logs left out.
func (s *site) everything() (names []string) {
	entries, err := os.ReadDir(s.root)
	s.must(err)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "log-") && !strings.HasSuffix(e.Name(), ".img") {
			names = append(names, e.Name())
		}
	}
	return append(names, s.arena)
}

// helper returns the process that holds a slot's metadata.
func (s *site) helper(dir string, slot int) int {
	s.t.Helper()
	where := s.status(dir).Slots[slot].Where
	parent := fmt.Sprint(s.servers[dir].Pid())
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	s.must(err)
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if err != nil || len(fields) < 2 || fields[1] != parent {
			continue
		}
		line, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err == nil && strings.Contains(string(line), where+"/meta\x00") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			s.must(err)
			return pid
		}
	}
	s.t.Fatalf("no helper of slot %d in %s among the children of %s", slot, where, parent)
	return 0
}

// withoutHelper does something to a slot's metadata store under a server that
// is at rest: its helper stands still meanwhile, and is killed then.
func (s *site) withoutHelper(dir string, slot int, do func()) {
	s.t.Helper()
	pid := s.helper(dir, slot)
	s.must(syscall.Kill(pid, syscall.SIGSTOP))
	do()
	s.must(syscall.Kill(pid, syscall.SIGKILL))
}
