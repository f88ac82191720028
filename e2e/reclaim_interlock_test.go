package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"trivet/control"
)

// interlockLimit is the longest that anything may take: the deadline of a
// request, at which it would have failed rather than waited.
const interlockLimit = 20 * time.Second

// TestReclaimInterlock is what locked up ZFS: the host evicts cached inodes as
// fast as it can, everything is synced again and again, the tree is searched,
// small files come and go, and a database makes every row durable, while the
// cleaner runs without pause. Nothing stands still, every row is there, and the
// filesystem is clean. Both filesystems run at once.
func TestReclaimInterlock(t *testing.T) {
	needTrivet(t)
	needRoot(t)
	needTools(t, "sqlite3")
	duration := choose(20*time.Second, 5*time.Minute)
	setKernel(t, "vm/vfs_cache_pressure", "10000")
	var locks []*interlock
	for _, f := range filesystems[:2] {
		f.need(t)
		v := newReclaimed(t, filesystemSize, "always")
		v.start(t)
		a := attach(t, v)
		f.format(t, a.loop)
		locks = append(locks, &interlock{filesystem: f, volume: v, attachment: a, dir: a.mount(t, f.name), done: make(chan struct{})})
	}
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	for _, l := range locks {
		l.start(ctx)
	}
	dropper := startDropper(ctx)
	for _, l := range locks {
		l.watch(t, duration+interlockLimit)
	}
	if err := <-dropper; err != nil {
		t.Errorf("drop caches: %v", err)
	}
	for _, l := range locks {
		l.finish(t)
	}
}

// setKernel changes a value of the kernel until the end of the test.
func setKernel(t *testing.T, name, value string) {
	t.Helper()
	path := filepath.Join("/proc/sys", name)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		t.Skipf("this kernel does not let %s be set: %v", name, err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(path, before, 0); err != nil {
			t.Errorf("%s is not what it was: %v", name, err)
		}
	})
}

// startDropper evicts the kernel's inodes and dentries again and again, in the
// long version its page cache as well.
func startDropper(ctx context.Context) <-chan error {
	failed := make(chan error, 1)
	go func() {
		var err error
		for err == nil && pause(ctx, 200*time.Millisecond) == nil {
			err = os.WriteFile("/proc/sys/vm/drop_caches", []byte(choose("2", "3")), 0)
		}
		failed <- err
	}()
	return failed
}

// An interlock is one filesystem on one volume, and what happens there.
type interlock struct {
	filesystem
	*volume
	*attachment
	dir  string
	rows int           // acknowledged by the database; read after done
	done chan struct{} // closed when all tasks have ended

	tasks []*task
}

// A task does one thing again and again.
type task struct {
	name string
	took timings

	mu    sync.Mutex // guards since and err
	since time.Time  // when the operation under way began; zero when none is
	err   error
}

// one does it once and keeps the time.
func (k *task) one(do func() error) bool {
	k.set(time.Now(), nil)
	start := time.Now()
	err := do()
	k.took.add(time.Since(start))
	k.set(time.Time{}, err)
	return err == nil
}

func (k *task) set(since time.Time, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.since, k.err = since, err
}

// overdue tells since when the task has been standing still, if for too long,
// and what ended it.
func (k *task) overdue() (time.Duration, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.since.IsZero() {
		return 0, k.err
	}
	return time.Since(k.since), k.err
}

// start begins all tasks; they end with the context.
func (l *interlock) start(ctx context.Context) {
	var all sync.WaitGroup
	begin := func(name string, do func() error) {
		k := &task{name: l.name + " " + name}
		l.tasks = append(l.tasks, k)
		all.Go(func() {
			for ctx.Err() == nil && k.one(do) {
			}
		})
	}
	begin("sync", l.sync)
	begin("find", l.find)
	for n := range 2 {
		round := 0
		begin("files", func() error {
			round++
			return l.files(fmt.Sprintf("files-%d-%d", n, round))
		})
	}
	k := &task{name: l.name + " row"}
	l.tasks = append(l.tasks, k)
	all.Go(func() { l.insert(ctx, k) })
	go func() {
		all.Wait()
		close(l.done)
	}()
}

// sync makes the filesystem durable; in the long version everything on the host.
func (l *interlock) sync() error {
	if long() {
		unix.Sync()
		return nil
	}
	dir, err := os.Open(l.dir)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// find asks for every file there is. Files vanish while it looks.
func (l *interlock) find() error {
	return filepath.WalkDir(l.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			_, err = d.Info()
		}
		if os.IsNotExist(err) {
			return nil
		}
		return err
	})
}

// files makes small files and removes them. Some 50,000 have come and gone
// after a hundred rounds.
func (l *interlock) files(name string) error {
	dir := filepath.Join(l.dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	for i := range 500 {
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, bytes.Repeat([]byte{byte(i)}, 100+i*8), 0o644); err != nil {
			return fmt.Errorf("files: %w", err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	return nil
}

// insert puts rows into a database, each a transaction of its own that is
// durable when the database says its number.
func (l *interlock) insert(ctx context.Context, k *task) {
	db := exec.Command("sqlite3", filepath.Join(l.dir, "rows.db"))
	var said bytes.Buffer
	db.Stderr = &said
	in, err := db.StdinPipe()
	if err == nil {
		var out io.ReadCloser
		if out, err = db.StdoutPipe(); err == nil {
			if err = db.Start(); err == nil {
				l.converse(ctx, k, in, bufio.NewScanner(out))
				in.Close()
				err = db.Wait()
			}
		}
	}
	if _, before := k.overdue(); err != nil || said.Len() > 0 {
		k.set(time.Time{}, fmt.Errorf("sqlite3: %v: %w\n%s", before, err, said.String()))
	}
}

// converse inserts one row after another.
func (l *interlock) converse(ctx context.Context, k *task, in io.Writer, out *bufio.Scanner) {
	fmt.Fprintln(in, "PRAGMA synchronous=FULL; CREATE TABLE rows(n INTEGER PRIMARY KEY, text TEXT);")
	for ctx.Err() == nil && k.one(func() error {
		want := fmt.Sprint(l.rows + 1)
		fmt.Fprintf(in, "INSERT INTO rows VALUES(%s, '%s'); SELECT %s;\n", want, strings.Repeat(want, 100), want)
		if !out.Scan() || out.Text() != want {
			return fmt.Errorf("row %s: the database answered %q", want, out.Text())
		}
		return nil
	}) {
		l.rows++
	}
}

// watch waits for the end, and fails the test as soon as anything stands still,
// after it has let everything go that does.
func (l *interlock) watch(t *testing.T, limit time.Duration) {
	t.Helper()
	end := time.Now().Add(limit)
	var oldest float64
	for {
		select {
		case <-l.done:
			t.Logf("%s: the oldest request that was seen in flight was %.2f s old", l.name, oldest)
			return
		default:
		}
		var inflight []control.Inflight
		if err := l.ask(t.Context(), &inflight, "inflight"); err != nil {
			t.Error(err)
		}
		for _, r := range inflight {
			oldest = max(oldest, r.AgeSeconds)
		}
		stuck := l.stuck()
		if len(stuck) > 0 || time.Now().After(end) {
			l.lockedUp(t, stuck, inflight)
		}
		if err := pause(t.Context(), 250*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}

// stuck names the tasks that have been standing still for too long.
func (l *interlock) stuck() (names []string) {
	for _, k := range l.tasks {
		if d, _ := k.overdue(); d > interlockLimit {
			names = append(names, fmt.Sprintf("%s for %v", k.name, d.Round(time.Second)))
		}
	}
	return names
}

// lockedUp fails the test with all that can be known, and kills the server so
// that whatever waits for it gets an error.
func (l *interlock) lockedUp(t *testing.T, stuck []string, inflight []control.Inflight) {
	t.Helper()
	var events []control.Event
	if err := l.ask(t.Context(), &events, "events"); err != nil {
		t.Error(err)
	}
	l.Kill()
	t.Fatalf("%s stands still: %q\nin flight: %+v\nevents: %+v", l.name, stuck, inflight, events)
}

// finish checks what is left: every row, every task content, a clean
// filesystem, the same rows after it was mounted again, and a log that was
// cleaned all the while.
func (l *interlock) finish(t *testing.T) {
	t.Helper()
	for _, k := range l.tasks {
		t.Logf("%-10s %v", k.name, &k.took)
		if _, err := k.overdue(); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
		if longest := k.took.at(1); longest > interlockLimit {
			t.Errorf("%s: one took %v", k.name, longest)
		}
	}
	l.checkRows(t)
	l.unmount(t)
	l.clean(t, l.loop)
	l.dir = l.mount(t, l.name)
	l.checkRows(t)
	l.unmount(t)
	l.detach(t)
	l.givesBack(t, 512<<20)
	l.healthy(t)
	l.volume.stop(t)
	command(t, program, "check", l.volume.dir)
}

// checkRows asks the database whether it is whole and has every row.
func (l *interlock) checkRows(t *testing.T) {
	t.Helper()
	got := command(t, "sqlite3", filepath.Join(l.dir, "rows.db"),
		"PRAGMA integrity_check; SELECT count(*), max(n), total(length(text)=length(n)*100) FROM rows;")
	want := fmt.Sprintf("ok\n%d|%d|%d.0\n", l.rows, l.rows, l.rows)
	if got != want || l.rows < 20 {
		t.Errorf("%s: the database answered %q, expected %q and 20 rows at least", l.name, got, want)
	}
}
