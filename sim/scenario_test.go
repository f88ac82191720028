package sim

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"trivet/disk"
	"trivet/journal"
)

// scenario runs a sequence of events that a seed rarely draws, for several
// seeds; what seeds draw otherwise does not happen.
func scenario(t *testing.T, seeds uint64, run func(w *world)) {
	t.Helper()
	dir := arenaDir(t)
	for seed := range seeds {
		w := newWorld(seed, Options{Dir: dir})
		err := w.attempt(func() {
			w.calm = true
			w.create()
			if err := w.open(-1); err != nil {
				w.fail("open a new volume: %v", err)
			}
			w.started = true
			w.opened()
			run(w)
			w.finish()
		})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// logBlocks returns the blocks of a slot's log files.
func (w *world) logBlocks(slot int) (blocks []logBlock) {
	names, err := w.legs[slot].disk.List("log")
	if err != nil {
		w.fail("%v", err)
	}
	for _, name := range names {
		f, err := w.legs[slot].disk.Open("log/" + name)
		if err != nil {
			w.fail("%v", err)
		}
		size, _ := f.Size()
		for at := int64(0); at < size; at += journal.BlockSize {
			b := logBlock{"log/" + name, at, disk.Alloc(journal.BlockSize)}
			if err := f.Read([][]byte{b.content}, at); err != nil {
				w.fail("%v", err)
			}
			blocks = append(blocks, b)
		}
		if err := f.Close(); err != nil {
			w.fail("%v", err)
		}
	}
	return blocks
}

// logBlock is a block of a log file.
type logBlock struct {
	name    string
	at      int64 // bytes
	content []byte
}

// TestRottenBest: the slot that has the most holds a rotten block that no peer
// has, because it was never flushed. The peers do: whatever was flushed is in
// one of them, so the volume opens, and makes the slot what they are.
func TestRottenBest(t *testing.T) {
	scenario(t, 20, func(w *world) {
		c := w.clients[0]
		c.write(0, 6, true)
		c.flush()
		w.drain()
		before := w.logBlocks(0)
		for i := 1; i < journal.MaxSlots; i++ { // only slot 0 gets what follows
			w.srv.slots[i].hung = w.now + time.Hour
			w.trouble[i] = true
		}
		c.write(2, 3, false)
		c.flush()
		w.draining = true
		for until := w.now + stallAfter/2; w.now < until && w.proceed(); {
		}
		w.draining = false
		for _, s := range w.srv.slots {
			s.other, s.lanes = nil, make([][]operation, w.geometry.Shards)
		}
		w.crash(true)
		rotten := 0
		for i, b := range w.logBlocks(0) {
			fresh := i >= len(before) || !bytes.Equal(b.content, before[i].content)
			if fresh && !bytes.HasPrefix(b.content, []byte("Trivet")) && !bytes.Equal(b.content, make([]byte, journal.BlockSize)) {
				if err := w.legs[0].disk.Corrupt(b.name, b.at+77); err != nil {
					w.fail("%v", err)
				}
				rotten++
			}
		}
		if rotten == 0 {
			w.fail("slot 0 has no block to itself")
		}
		w.legs[0].suspicious = true
		w.startLife()
		if err := w.open(-1); err != nil {
			w.fail("the peers of a slot with a rotten block do for the volume: %v", err)
		}
		w.opened()
		w.verify(0)
		w.srv.close()
		w.reopen()
		if n := w.cover["slots set aside"]; n > 0 {
			w.fail("%d slots were set aside", n)
		}
		w.legs[0].suspicious = false // what it had is replaced
	})
}

// TestReplacedIsNotDamaged: a slot that was replaced is blank, not damaged,
// also when the server is killed or the power is cut while it is copied: what
// its peers know durable there is true of the slot before it.
func TestReplacedIsNotDamaged(t *testing.T) {
	scenario(t, 20, func(w *world) {
		c := w.clients[0]
		for range 8 {
			c.write(0, 6, false)
			c.flush()
			w.drain()
		}
		w.srv.close()
		w.crash(true)
		w.blank(1)
		w.heard = func(slot int, what string) {
			if strings.Contains(what, "damaged") {
				w.fail("slot %d was replaced: %s", slot, what)
			}
		}
		for nth := 1; nth < 100; nth += 1 + w.rng.IntN(12) { // killed in the middle of opening
			w.startLife()
			w.fuse = 0
			w.add2(fmt.Sprintf("any slot=1 nth=%d crash", nth))
			if w.survives(func() {
				if err := w.open(-1); err != nil {
					w.fail("%v", err)
				}
			}) {
				w.opened()
			}
			w.crash(w.rng.IntN(2) == 0)
		}
		w.reopen()
	})
}
