package device

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"trivet/replica"
)

// killed returns what a kill at this moment would leave of the volume, its memory
// included, in another directory.
func (v *volume) killed() (i *volume, arenaFile string) {
	v.t.Helper()
	i = v.image(0, 1, 2)
	arenaFile = filepath.Join(i.opt.ArenaDir, filepath.Base(v.arena.Path()))
	memory, err := os.ReadFile(v.arena.Path())
	v.must(err)
	v.must(os.WriteFile(arenaFile, memory, 0o600))
	return i, arenaFile
}

// inMemory writes what is acknowledged and in memory alone, over what was flushed.
func inMemory(v *volume) {
	v.must(v.write(0, pattern(1, 64<<10), FUA))
	v.durable()
	v.rule("log.append hang")
	v.must(v.write(4096, pattern(2, 8192), 0))
}

// TestArenaElsewhere: the memory of a volume that is still there is not taken by
// another directory, but on an operator's word.
func TestArenaElsewhere(t *testing.T) {
	v := newVolume(t, nil)
	inMemory(v)
	i, file := v.killed()
	before, err := os.ReadFile(file)
	v.must(err)
	if d, err := Open(t.Context(), i.opt); !errors.Is(err, replica.ErrArenaElsewhere) {
		i.Device = d
		t.Fatalf("the memory of %s is taken: %v", v.opt.Dir, err)
	}
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the memory was changed: %v", err)
	}
	i.opt.AdoptArena = true
	i.open()
	i.expect(0, pattern(1, 64<<10)[:4096])
	i.expect(4096, pattern(2, 8192))
}

// TestArenaDamaged: nobody knows what a damaged record had overwritten, so the
// volume does not open with the others either, until an operator accepts the loss;
// then all of them are set aside.
func TestArenaDamaged(t *testing.T) {
	v := newVolume(t, nil)
	inMemory(v)
	i, file := v.killed()
	i.opt.AdoptArena = true
	memory, err := os.ReadFile(file)
	v.must(err)
	at := bytes.Index(memory, pattern(2, 8192)[:512])
	if at < 0 {
		t.Fatal("what was written is not in memory")
	}
	memory[at+99] ^= 1
	v.must(os.WriteFile(file, memory, 0o600))
	if d, err := Open(t.Context(), i.opt); !errors.Is(err, replica.ErrArenaDamaged) {
		i.Device = d
		t.Fatalf("memory that is damaged is taken: %v", err)
	}
	i.opt.AcceptLoss = true
	i.open()
	i.expect(0, pattern(1, 64<<10))
	if !i.said(-1, "is kept as") {
		t.Errorf("nobody said that memory was set aside: %v", i.Events())
	}
	if _, err := os.Stat(file + ".aside-1"); err != nil {
		t.Errorf("memory that is damaged is gone: %v", err)
	}
}
