package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
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

// logSince returns what the server logged from a position on.
func (v *volume) logSince(t *testing.T, from int) string {
	t.Helper()
	text, err := os.ReadFile(v.dir + ".log")
	if err != nil {
		t.Fatal(err)
	}
	return string(text[from:])
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
// Each time the device opens, serves what it should, says that the slot was
// missing, and makes it whole, so that the next one can be lost.
func TestSlotDeleted(t *testing.T) {
	v, k := loaded(t)
	for slot := range 3 {
		if err := os.RemoveAll(filepath.Join(v.dir, fmt.Sprintf("slot-%d", slot))); err != nil {
			t.Fatal(err)
		}
		logged := len(v.logSince(t, 0))
		v.start(t)
		k.verify(t)
		v.current(t)
		if said := v.logSince(t, logged); !strings.Contains(said, "slot") {
			t.Errorf("slot %d was missing, and the log does not say so:\n%s", slot, said)
		}
		v.stop(t)
	}
}

// TestByteFlipped flips one byte in the data of each slot, each in another
// block, while the volume is stopped.
func TestByteFlipped(t *testing.T) {
	v, k := loaded(t)
	var flipped []int
	for slot := range 3 {
		flipped = append(flipped, flip(t, v, k.model, slot, flipped))
	}
	t.Logf("flipped a byte of the blocks %v", flipped)
	logged := len(v.logSince(t, 0))
	v.start(t)
	k.verify(t)
	v.stop(t)
	said := v.logSince(t, logged)
	if !strings.Contains(said, "checksum") && !strings.Contains(said, "rot") {
		t.Errorf("three blocks were rotten, and the log does not say so:\n%s", said)
	}
	v.start(t)
	k.verify(t)
	v.stop(t)
}

// flip damages one block's data in a slot's log and returns which block it
// was: none of those that were damaged in other slots.
func flip(t *testing.T, v *volume, m *model, slot int, not []int) int {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(v.dir, fmt.Sprintf("slot-%d", slot), "log", "*"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no segments in slot %d: %v", slot, err)
	}
	for _, path := range segments {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at+blockSize <= len(data); at += blockSize {
			index, ok := m.current(data[at:][:blockSize])
			if !ok || slices.Contains(not, index) {
				continue
			}
			writeByte(t, path, int64(at)+1000, data[at+1000]^0x10)
			return index
		}
	}
	t.Fatalf("no block of the volume is in the log of slot %d", slot)
	return 0
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
