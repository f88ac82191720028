package meta

import (
	"os"
	"path/filepath"
	"testing"
)

// TestUnbegunLog: a process that is killed while Badger makes a log, of either
// kind, leaves an empty file, beside the log before it. The store opens, with all that
// was committed.
func TestUnbegunLog(t *testing.T) {
	dir := t.TempDir()
	s := mustStart(t, testHelper(dir))
	if err := s.Commit(t.Context(), named(7), []Pair{{Key: []byte("key"), Value: []byte("value")}}); err != nil {
		t.Fatal(err)
	}
	kill(t, s)
	if err := s.Close(); err != nil {
		t.Log(err)
	}
	logs, err := filepath.Glob(filepath.Join(dir, "badger", "*.mem"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("the killed helper has left no log: %v", err)
	}
	for _, name := range []string{"00099.mem", "000099.vlog"} {
		if err := os.WriteFile(filepath.Join(dir, "badger", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err = OpenBadger(dir, testBadger) // in this process: a helper would be started again
	if err != nil {
		t.Fatal(err)
	}
	values, err := s.Load(t.Context(), [][]byte{[]byte("key")})
	if err != nil || len(values) != 1 || string(values[0]) != "value" || sequenceAfter(t, s) != 7 {
		t.Errorf("key holds %q, error %v", values, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
