package sim

import (
	"bytes"
	"errors"
	"testing"

	"trivet/journal"
	"trivet/shard"
)

// lose drops slot 1 and has it come back.
func (w *world) lose() {
	w.trouble[1] = true
	w.srv.faulted(1, true, errors.New("lost"))
	for w.srv.back == nil {
		w.srv.bringBack(1)
	}
}

// comesBack goes on, with something in between, until the return has ended.
func (w *world) comesBack(between func()) {
	for !w.srv.back.ended {
		between()
		if !w.proceed() {
			w.fail("the return stands still")
		}
	}
}

// prepare writes what a slot that was lost is to be given, some of it without the
// slot.
func (w *world) prepare() {
	c := w.clients[0]
	for range 30 {
		c.write(journal.LBA(w.rng.IntN(w.cfg.regions*journal.RegionBlocks-64)), 1+w.rng.IntN(60), false)
		w.drain()
	}
	c.flush()
	w.drain()
}

// TestReturnCostsPeersNothing: a slot that has lost everything comes back. Its peers
// append no more than what begins the generation.
func TestReturnCostsPeersNothing(t *testing.T) {
	told := 0
	scenario(t, 10, func(w *world) {
		w.prepare()
		w.srv.close()
		w.crash(false)
		w.blank(1)
		w.startLife()
		if err := w.open(1); err != nil {
			w.fail("%v", err)
		}
		w.opened()
		for w.srv.back == nil {
			w.srv.bringBack(1)
		}
		var before [journal.MaxSlots][]logBlock
		for _, peer := range []int{0, 2} {
			before[peer] = w.logBlocks(peer)
		}
		cleaned := w.cover["pieces cleaned"]
		w.draining = true // nobody writes anything else
		w.comesBack(func() {})
		w.draining = false
		if w.cover["slots returned"] == 0 || w.cover["pieces copied"] == 0 {
			w.fail("slot 1 did not come back by a copy")
		}
		if w.cover["pieces cleaned"] > cleaned {
			return // by the cleaners' own writes it cannot be told
		}
		told++
		for _, peer := range []int{0, 2} {
			changed := 0
			for i, b := range w.logBlocks(peer) {
				if (i >= len(before[peer]) || !bytes.Equal(b.content, before[peer][i].content)) && !bytes.Equal(b.content, make([]byte, journal.BlockSize)) {
					changed++
				}
			}
			if most := 16 * w.geometry.Shards; changed > most {
				w.fail("slot %d has written %d blocks for the return, more than %d", peer, changed, most)
			}
		}
	})
	if told == 0 {
		t.Error("the cleaners were at work in every seed")
	}
}

// TestReturnUnderFaults: a slot comes back under writes while its source hangs, its
// cleaner is at work, or the server is killed or loses power.
func TestReturnUnderFaults(t *testing.T) {
	returned, cut := 0, 0
	scenario(t, 40, func(w *world) {
		w.prepare()
		w.lose()
		c := w.clients[0]
		source := 2 * w.rng.IntN(2)
		steps := 0
		alive := w.survives(func() {
			w.comesBack(func() {
				if steps++; steps%50 == 0 {
					c.write(journal.LBA(w.rng.IntN(w.cfg.regions*journal.RegionBlocks-64)), 1+w.rng.IntN(20), w.rng.IntN(4) == 0)
				}
				switch {
				case steps == 200 && w.rng.IntN(2) == 0:
					w.trouble[source] = true
					w.srv.slots[source].hung = w.now + stallAfter/2
				case w.rng.IntN(2000) == 0:
					panic(killed{})
				}
			})
		})
		if !alive {
			cut++
			w.crash(w.rng.IntN(2) == 0)
			w.reopen()
			return
		}
		returned += w.cover["slots returned"]
		w.drain()
	})
	t.Logf("%d returned, %d killed", returned, cut)
	if returned == 0 || cut == 0 {
		t.Error("that proves nothing")
	}
}

// TestReturnOvertaken: what is copied is written, trimmed and zeroed meanwhile, all
// the time, and what was trimmed stays so, whatever the copy has read (hazard 45).
func TestReturnOvertaken(t *testing.T) {
	scenario(t, 40, func(w *world) {
		c := w.clients[0]
		const blocks = 4 * journal.RegionBlocks
		somewhere := func() (lba journal.LBA, n int) { return journal.LBA(w.rng.IntN(blocks - 40)), 1 + w.rng.IntN(40) }
		w.srv.close()
		w.crash(false)
		w.startLife()
		if err := w.open(1); err != nil {
			w.fail("%v", err)
		}
		w.opened()
		for range 60 {
			lba, n := somewhere()
			c.write(lba, n, false)
			w.drain()
		}
		for w.srv.back == nil {
			w.srv.bringBack(1)
		}
		w.srv.back.due = w.now
		w.draining = true // nobody else writes
		w.comesBack(func() {
			if w.inflight > 0 {
				return
			}
			switch lba, n := somewhere(); w.rng.IntN(3) {
			case 0:
				c.write(lba, n, false)
			case 1:
				c.zero(lba, n, shard.Trim)
			default:
				c.zero(lba, n, shard.Zero)
			}
		})
		w.draining = false
		w.drain()
		if w.cover["slots returned"] == 0 {
			w.fail("slot 1 did not come back")
		}
		for slot := range journal.MaxSlots {
			w.verify(slot + 1)
		}
	})
}

// TestReturnWithLostBlocks: a few blocks cannot be read on either peer while a slot
// comes back. It does; once they can be read again, nothing is lost, whichever slot
// is asked (hazard 46).
func TestReturnWithLostBlocks(t *testing.T) {
	all := 0
	scenario(t, 20, func(w *world) {
		w.prepare()
		w.srv.close()
		w.crash(false)
		w.blank(1)
		w.startLife()
		if err := w.open(1); err != nil {
			w.fail("%v", err)
		}
		w.opened()
		for w.srv.back == nil {
			w.srv.bringBack(1)
		}
		lost := 0
		w.heard = func(slot int, what string) {
			if slot == 1 && bytes.Contains([]byte(what), []byte("stored as lost")) {
				lost++
			}
		}
		w.add2("segment.read slot=0 error=EIO count=all")
		w.add2("segment.read slot=2 p=0.5 error=EIO count=all")
		w.draining = true
		w.comesBack(func() {})
		w.draining = false
		if w.cover["slots returned"] == 0 {
			w.fail("slot 1 did not come back")
		}
		all += lost
		w.quieten()
		w.heard = nil
		for slot := range journal.MaxSlots + 1 {
			w.verify(slot)
		}
	})
	if all == 0 {
		t.Error("no block was lost")
	}
}

// TestFilledBearsWitness: a slot that has lost everything has got it again, in one
// shard or in all, and takes no part yet when the power fails and one of its peers is
// lost. The other has everything, and the slot says so: the volume opens.
func TestFilledBearsWitness(t *testing.T) {
	scenario(t, 20, func(w *world) {
		w.prepare()
		w.srv.close()
		w.crash(false)
		w.blank(1)
		w.startLife()
		if err := w.open(1); err != nil {
			w.fail("%v", err)
		}
		w.opened()
		for w.srv.back == nil {
			w.srv.bringBack(1)
		}
		for w.lacking(1) && w.proceed() {
		}
		for range w.rng.IntN(60) { // some of its lanes are complete then, or it takes part
			if !w.srv.back.ended {
				w.proceed()
			}
		}
		w.crash(true)
		w.blank(2 * w.rng.IntN(2))
		w.reopen()
	})
}

// lacking reports whether the slot is still to be given something in some shard.
func (w *world) lacking(slot int) (lacking bool) {
	for _, sh := range w.srv.shards {
		sh.Inspect(func(v *shard.View) {
			l, ok := v.Lane(slot)
			lacking = lacking || !ok || !l.Fed || l.Missed > 0
		})
	}
	return lacking
}
