package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// loaded returns a stopped volume of three replicas with known content.
func loaded(t *testing.T) (*volume, *killer) {
	t.Helper()
	needTrivet(t)
	v := newVolume(t, volumeOptions{size: killSize, replicas: 3})
	k := &killer{volume: v, random: newRand(t), model: newModel(killSizeBytes)}
	v.start(t)
	l := startLoad(t.Context(), k.model, v.socket(t), k.random)
	k.wait(t, 400, 600)
	if _, err := l.stop(); err != nil {
		t.Fatal(err)
	}
	v.stop(t)
	return v, k
}

// events returns what the running server tells of, one line each.
func (v *volume) events(t *testing.T) []string {
	t.Helper()
	out := command(t, program, "events", "--json", "--control", filepath.Join(v.dir, "control.sock"))
	var list []struct{ What string }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("events: %v\n%s", err, out)
	}
	var lines []string
	for _, e := range list {
		lines = append(lines, e.What)
	}
	return lines
}

// says holds that the server tells of something in one event.
func (v *volume) says(t *testing.T, what string) {
	t.Helper()
	events := v.events(t)
	if !slices.ContainsFunc(events, func(e string) bool { return strings.Contains(e, what) }) {
		t.Errorf("no event says %q:\n%s", what, strings.Join(events, "\n"))
	}
}

// findings returns what 'trivet check' finds wrong in the stopped volume, one
// line each. It exits with 1 when there is anything, and with 0 otherwise.
func (v *volume) findings(t *testing.T) (found []string) {
	t.Helper()
	out, err := attempt(t.Context(), program, "check", v.dir)
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "slot ") && !strings.Contains(line, " of data verified") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	var exit *exec.ExitError
	status := 0
	if errors.As(err, &exit) {
		status = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if status != min(1, len(found)) || !strings.Contains(out, plural(len(found), "finding")) {
		t.Errorf("check exits with %d after %d findings:\n%s", status, len(found), out)
	}
	return found
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what + ","
	}
	return fmt.Sprintf("%d %ss,", n, what)
}

// sound holds that nothing is wrong in the stopped volume: no checksum, no map
// entry, and no difference between slots that are at the same record.
func (v *volume) sound(t *testing.T) {
	t.Helper()
	if v.standin {
		return
	}
	if found := v.findings(t); len(found) > 0 {
		t.Errorf("'trivet check' finds:\n%s", strings.Join(found, "\n"))
	}
}

// current waits until all slots count again.
func (v *volume) current(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		out, err := attempt(t.Context(), program, "status", "--json", "--control", filepath.Join(v.dir, "control.sock"))
		if err != nil {
			return err
		}
		if n := strings.Count(out, `"state": "current"`) + strings.Count(out, `"state":"current"`); n != 3 {
			return fmt.Errorf("%d of 3 slots are current:\n%s", n, out)
		}
		return nil
	})
}

// TestSlotDeleted deletes one slot after another while the volume is stopped.
// Each time the device opens without it, serves what it should and makes nothing;
// an operator has the slot replaced, and it becomes whole while it is served, so
// that the next one can be lost.
func TestSlotDeleted(t *testing.T) {
	v, k := loaded(t)
	v.sound(t)
	for slot := range 3 {
		dir := filepath.Join(v.dir, fmt.Sprintf("slot-%d", slot))
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		found := v.findings(t)
		if len(found) != 1 || !strings.HasPrefix(found[0], fmt.Sprintf("slot %d: %s", slot, dir)) {
			t.Errorf("slot %d is missing, and check finds %q", slot, found)
		}
		v.start(t)
		k.verify(t)
		v.says(t, fmt.Sprintf("slot %d: slot does not take part", slot))
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("slot %d was made without an operator's word: %v", slot, err)
		}
		command(t, program, "slot", "replace", fmt.Sprint(slot), "--control", v.dir)
		v.current(t)
		v.says(t, fmt.Sprintf("slot %d: a new slot was made in %s", slot, dir))
		k.verify(t)
		v.stop(t)
		v.sound(t)
	}
}

// flipsBySlot is how many blocks are damaged in each slot: so many that some of
// them are in slots that they are read from.
const flipsBySlot = 4

// TestByteFlipped flips one byte in each of a few blocks of each slot, each
// time another block, while the volume is stopped. Right data is served
// throughout. What was found rotten is said, and repaired; what nobody read,
// because another slot is read first, check still finds, and nothing else.
func TestByteFlipped(t *testing.T) {
	v, k := loaded(t)
	flipped := make(map[int]int) // slot by block
	for slot := range 3 {
		for range flipsBySlot {
			flip(t, v, k, slot, flipped)
		}
	}
	t.Logf("flipped a byte of the blocks %v", flipped)
	rotten := func(block int) string { return fmt.Sprintf(" block %d: ", block) }
	found := v.findings(t)
	for block, slot := range flipped {
		if !slices.ContainsFunc(found, func(line string) bool {
			return strings.HasPrefix(line, fmt.Sprintf("slot %d: ", slot)) && strings.Contains(line, rotten(block)) && strings.Contains(line, "checksum")
		}) {
			t.Errorf("block %d of slot %d is rotten, and check does not say so:\n%s", block, slot, strings.Join(found, "\n"))
		}
	}
	if len(found) != len(flipped) {
		t.Errorf("%d blocks are rotten, and check finds:\n%s", len(flipped), strings.Join(found, "\n"))
	}
	v.start(t)
	k.verify(t)
	var repaired int
	events := v.events(t)
	for block, slot := range flipped {
		if slices.Contains(events, fmt.Sprintf("slot %d: block %d repaired from a peer", slot, block)) {
			repaired++
			delete(flipped, block)
		}
	}
	if repaired == 0 {
		t.Errorf("no event tells of a repair:\n%s", strings.Join(events, "\n"))
	}
	v.says(t, "checksum")
	v.stop(t)
	found = v.findings(t)
	if len(found) != len(flipped) {
		t.Errorf("%d blocks were repaired, %d nobody has read, and check finds:\n%s", repaired, len(flipped), strings.Join(found, "\n"))
	}
	for block := range flipped {
		if !slices.ContainsFunc(found, func(line string) bool { return strings.Contains(line, rotten(block)) }) {
			t.Errorf("block %d is rotten still, and check does not find it", block)
		}
	}
	t.Logf("%d blocks were repaired, %d were never read", repaired, len(flipped))
	v.start(t)
	k.verify(t)
	v.stop(t)
}

// flip damages one block's data in a slot's log, one that was not damaged in
// any slot, and notes it.
func flip(t *testing.T, v *volume, k *killer, slot int, flipped map[int]int) {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(v.dir, fmt.Sprintf("slot-%d", slot), "log", "*"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no segments in slot %d: %v", slot, err)
	}
	for range 20 {
		path := segments[k.random.IntN(len(segments))]
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := k.random.IntN(len(data)/blockSize) * blockSize; at+blockSize <= len(data); at += blockSize {
			index, ok := k.model.current(data[at:][:blockSize])
			if _, done := flipped[index]; !ok || done {
				continue
			}
			flipCopies(t, segments, data[at:][:blockSize])
			flipped[index] = slot
			return
		}
	}
	t.Fatalf("no block of the volume is in the log of slot %d", slot)
}

// flipCopies flips a byte of every copy of a block in the log: the cleaner, and
// what is logged again after a kill, leave dead ones behind.
func flipCopies(t *testing.T, segments []string, block []byte) {
	t.Helper()
	for _, path := range segments {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at+blockSize <= len(data); at += blockSize {
			if bytes.Equal(data[at:][:blockSize], block) {
				writeByte(t, path, int64(at)+1000, data[at+1000]^0x10)
			}
		}
	}
}

// current tells which block has exactly this content now, if one has.
func (m *model) current(data []byte) (int, bool) {
	if bytes.Equal(data[:sectorSize], zeroSector[:]) {
		return 0, false
	}
	sector := int(uint32(binary.LittleEndian.Uint64(data)))
	index := sector / sectorsPerBlock
	if sector%sectorsPerBlock != 0 || index >= len(m.blocks) {
		return 0, false
	}
	found, err := decode(index, data)
	history := m.blocks[index].history
	return index, err == nil && found == history[len(history)-1].state
}

// writeByte overwrites one byte of a file.
func writeByte(t *testing.T, path string, at int64, b byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{b}, at); err != nil {
		t.Fatal(err)
	}
}
