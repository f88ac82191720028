package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"trivet/e2e/server"
)

// A volume is a Trivet volume, and the server that serves it when it runs.
type volume struct {
	*server.Server
	dir     string // the volume's directory
	arena   string // where the arena lives
	workDir string // everything of this test; removed at its end
	listen  string // the URI it was told to listen on, if any
	standin bool
}

// volumeOptions say how a volume is made.
type volumeOptions struct {
	size     string // as on the command line
	replicas int
	listen   string
	extra    []string // further arguments of 'trivet serve'
}

// program is the path of the program under test, built once by TestMain.
var program string

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
	}
	os.Exit(code)
}

// runTests builds the program unless the environment names one.
func runTests(m *testing.M) (int, error) {
	// TestOperator's rows wait for disks and for processes more than for a core.
	if err := flag.Set("test.parallel", "6"); err != nil {
		return 1, err
	}
	if program = os.Getenv("TRIVET_BIN"); program != "" || standin() {
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "trivet-e2e-bin-")
	if err != nil {
		return 1, fmt.Errorf("directory for the program: %w", err)
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "trivet")
	build := exec.Command("go", "build", "-tags", "invariants", "-o", program, "trivet/cmd/trivet")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build trivet: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// standin tells whether nbdkit plays Trivet's part.
func standin() bool { return os.Getenv("TRIVET_STANDIN") != "" }

// long tells whether the long versions are wanted.
func long() bool { return os.Getenv("TRIVET_LONG") != "" }

// needTrivet skips what a stand-in cannot do.
func needTrivet(t *testing.T) {
	t.Helper()
	if standin() {
		t.Skip("needs Trivet itself; nbdkit stands in for it")
	}
}

// needTools skips a test when a program is missing.
func needTools(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("there is no %s; scripts/install brings it", tool)
		}
	}
}

// needRoot skips a test that mounts.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes loop devices and mounts")
	}
}

// newVolume makes the directories of a volume that is not served yet. They,
// and whatever serves it, go at the end of the test.
func newVolume(t *testing.T, o volumeOptions) *volume {
	t.Helper()
	work, err := os.MkdirTemp("", "trivet-e2e-") // t.TempDir makes names too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(work) })
	v := &volume{dir: filepath.Join(work, "volume"), workDir: work, listen: o.listen, standin: standin()}
	v.arena = newArenaDir(t, work)
	if v.standin {
		v.Server = newStandin(t, work, o.size)
	} else {
		v.Server = server.Trivet(v.dir, server.TrivetOptions{
			Binary: program, Size: o.size, Replicas: o.replicas, ArenaDir: v.arena, Listen: o.listen, Extra: o.extra,
		})
	}
	t.Cleanup(func() {
		v.Close()
		if t.Failed() {
			t.Logf("the server's last words:\n%s", v.LogTail(40))
		}
	})
	return v
}

// newArenaDir makes a directory in shared memory, or beside the volume when
// the machine has none.
func newArenaDir(t *testing.T, work string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "trivet-e2e-")
	if err != nil {
		dir = filepath.Join(work, "arena")
		err = os.Mkdir(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// newStandin serves a sparse file with nbdkit.
func newStandin(t *testing.T, work, size string) *server.Server {
	t.Helper()
	image := filepath.Join(work, "image")
	command(t, "truncate", "-s", size, image)
	return server.NBDKit(work, "file", image)
}

// start starts the server and fails the test when it does not serve in time.
func (v *volume) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := v.Start(ctx); err != nil {
		t.Fatal(err)
	}
}

// stop ends the server in order and fails the test when it does not exit with 0.
func (v *volume) stop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := v.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}

// losePower removes what would have lived in the memory of a host that lost
// power: the arena. The server is dead already.
func (v *volume) losePower(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(v.arena)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) == 0 && !v.standin {
		t.Fatalf("there is no arena in %s to delete", v.arena)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(v.arena, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

// socket is the path of the unix socket in the server's URI.
func (v *volume) socket(t *testing.T) string {
	t.Helper()
	_, path, ok := strings.Cut(v.URI(), "socket=")
	if !ok {
		t.Fatalf("no socket in the server's address %q", v.URI())
	}
	return path
}

// command runs a program and returns what it printed; the test fails with
// that when the program does.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := attempt(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// attempt runs a program whose failure is the caller's to judge.
func attempt(ctx context.Context, name string, args ...string) (string, error) {
	return attemptFor(ctx, 5*time.Minute, name, args...)
}

// attemptFor is attempt with a limit of one's own.
func attemptFor(ctx context.Context, limit time.Duration, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out.String())
	}
	return out.String(), nil
}

// newRand returns the random numbers of a test; it logs how to repeat them.
func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("TRIVET_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("TRIVET_SEED: %v", err)
		}
	}
	t.Logf("TRIVET_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// eventually asks until the answer is yes, or fails the test with the reason
// that the last no gave.
func eventually(t *testing.T, limit time.Duration, ask func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit)
	defer cancel()
	for {
		err := ask()
		if err == nil {
			return
		}
		if pause(ctx, 10*time.Millisecond) != nil {
			t.Fatalf("not within %v: %v", limit, err)
		}
	}
}

// pause waits for that long or for the end of the context, which it reports.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return errors.Join(ctx.Err())
	}
}
