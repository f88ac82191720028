package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"go.uber.org/goleak"
)

// childRole makes the test's own binary play another process: the command
// itself, or a test's child. The role is in the environment, because the
// command may execute itself again.
const childRole = "TRIVET_TEST_ROLE"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == metaHelperCommand {
		os.Exit(runMetaHelper())
	}
	switch os.Getenv(childRole) {
	case "":
		goleak.VerifyTestMain(m)
	case "command":
		main()
	case "locked":
		mannersChild(false)
	case "unprivileged":
		mannersChild(true)
	}
}

// tempDir is t.TempDir with a name that leaves room for sockets.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "trivet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestCommandLine runs the command lines of testdata/cli, most of which are
// refused: no server is started here. $DIR stands for an empty directory.
func TestCommandLine(t *testing.T) {
	datadriven.Walk(t, filepath.Join("testdata", "cli"), func(t *testing.T, path string) {
		dir := tempDir(t)
		t.Chdir(dir)
		t.Setenv(controlVariable, "")
		if err := os.WriteFile("file", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		datadriven.RunTest(t, originalPath(t, path), func(t *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			for line := range strings.Lines(d.Input) {
				out.WriteString(runLine(dir, strings.TrimSpace(line)))
			}
			return out.String()
		})
	})
}

// testDir is where go test started us.
var testDir, _ = os.Getwd()

// originalPath finds testdata after the test has changed its directory.
func originalPath(t *testing.T, path string) string {
	t.Helper()
	return filepath.Join(testDir, path)
}

// runLine executes one command line, split at spaces, and prints all that came
// of it.
func runLine(dir, line string) string {
	var stdout, stderr bytes.Buffer
	args := strings.Fields(strings.ReplaceAll(line, "$DIR", dir))
	for i, arg := range args {
		args[i] = strings.ReplaceAll(arg, "EMPTY", "")
	}
	status := run(context.Background(), args, &stdout, &stderr)
	text := stdout.String() + stderr.String() + "exit " + string(rune('0'+status)) + "\n"
	return strings.ReplaceAll(text, dir, "$DIR")
}
