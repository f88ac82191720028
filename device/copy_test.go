package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"trivet/journal"
	"trivet/shard"
)

// logBytes returns what the slot's log holds.
func (v *volume) logBytes(slot int) uint64 { return v.Snapshot().Slots[slot].LogBytes }

// flipIn flips a bit of a block wherever a slot's log holds it.
func (v *volume) flipIn(slot int, block []byte) {
	v.t.Helper()
	paths, err := filepath.Glob(filepath.Join(v.opt.Dir, fmt.Sprintf("slot-%d", slot), "log", "*"))
	v.must(err)
	found := 0
	for _, path := range paths {
		data, err := os.ReadFile(path)
		v.must(err)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		v.must(err)
		for at := 0; at < len(data); at += blockBytes {
			if bytes.Equal(data[at:at+blockBytes], block) {
				_, err := f.WriteAt([]byte{data[at+100] ^ 1}, int64(at+100))
				v.must(err)
				found++
			}
		}
		v.must(errors.Join(f.Sync(), f.Close()))
	}
	if found == 0 {
		v.t.Fatalf("slot %d does not hold the block", slot)
	}
}

// loseSlot closes the volume and opens it again without slot 1. What it returns has
// the slot come back, as it was or replaced by a blank one.
func (v *volume) loseSlot(blank bool) (release func()) {
	v.t.Helper()
	v.close()
	if blank {
		v.must(os.RemoveAll(filepath.Join(v.opt.Dir, "slot-1")))
		v.open()
		return func() { v.must(v.ReplaceSlot(context.Background(), 1, "")) }
	}
	hidden := v.rule("superblock slot=1 error=EIO")
	v.open()
	return func() { v.faults.Remove(hidden) }
}

// TestPeersWriteNothing: a slot returns that lacks everything. Its peers append
// nothing for it but what begins the generation.
func TestPeersWriteNothing(t *testing.T) {
	v := newVolume(t, func(o *Options) { o.ReturnAfter = 20 * time.Millisecond })
	v.must(v.write(0, pattern(1, 24<<20), 0))
	release := v.loseSlot(true)
	v.must(v.write(0, pattern(2, 8192), FUA))
	v.durable()
	before := [...]uint64{v.logBytes(0), 0, v.logBytes(2)}
	release()
	v.back(1)
	if n := v.logBytes(1); n < 24<<20 {
		t.Errorf("the slot that is back holds %d bytes", n)
	}
	for _, peer := range []int{0, 2} {
		if grown := int64(v.logBytes(peer)) - int64(before[peer]); grown > 1<<20 {
			t.Errorf("slot %d appended %d bytes for it", peer, grown)
		}
	}
	want := append(pattern(2, 8192), pattern(1, 24<<20)[8192:]...)
	v.expect(0, want)
	v.close()
	v.must(os.RemoveAll(filepath.Join(v.opt.Dir, "slot-0")))
	v.must(os.RemoveAll(filepath.Join(v.opt.Dir, "slot-2")))
	v.opt.Survivor = 2
	v.open()
	v.expect(0, want)
}

// TestLostBlock: a block is rotten on both slots that are left. The third comes back
// all the same, blank or with an older block; the block is lost, whoever is asked,
// until it is written (hazard 46).
func TestLostBlock(t *testing.T) {
	for name, blank := range map[string]bool{"blank": true, "older": false} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, func(o *Options) { o.ReturnAfter = 20 * time.Millisecond })
			v.must(v.write(0, pattern(1, 4<<20), FUA))
			release := v.loseSlot(blank)
			v.must(v.write(1<<20, pattern(2, 64<<10), FUA))
			v.close()
			rotten := pattern(2, 64<<10)[8192:][:blockBytes]
			v.flipIn(0, rotten)
			v.flipIn(2, rotten)
			v.open()
			release()
			v.back(1)
			for range 3 {
				r := &Request{Op: Read, Offset: 1<<20 + 8192, Length: blockBytes, Data: make([]byte, blockBytes)}
				if err := v.do(r); !errors.Is(err, ErrIO) {
					t.Fatalf("a block that no slot has is read: %v", err)
				}
				r = &Request{Op: Write, Offset: 1<<20 + 8192, Length: 512, Data: make([]byte, 512)}
				if err := v.do(r); !errors.Is(err, ErrIO) {
					t.Fatalf("a part of a block that no slot has is written: %v", err)
				}
			}
			v.expect(1<<20, pattern(2, 8192))
			v.expect(1<<20+12288, pattern(2, 64<<10)[12288:])
			v.reopen() // what is lost is stored
			if err := v.do(&Request{Op: Read, Offset: 1<<20 + 8192, Length: blockBytes, Data: make([]byte, blockBytes)}); !errors.Is(err, ErrIO) {
				t.Errorf("a block that no slot has is read after a start: %v", err)
			}
			v.must(v.write(1<<20+8192, pattern(3, blockBytes), FUA))
			v.reopen()
			v.expect(1<<20+8192, pattern(3, blockBytes))
		})
	}
}

// TestOnlyGoodCopy: a block is rotten on both peers, and whole on the slot that comes
// back. It is kept, and they are repaired from it.
func TestOnlyGoodCopy(t *testing.T) {
	v := newVolume(t, func(o *Options) { o.ReturnAfter = 20 * time.Millisecond })
	v.must(v.write(0, pattern(1, 4<<20), FUA))
	release := v.loseSlot(false)
	v.must(v.write(8192, pattern(2, 4096), FUA)) // another block of the region
	v.close()
	block := pattern(1, 4<<20)[16384:][:blockBytes]
	v.flipIn(0, block)
	v.flipIn(2, block)
	v.open()
	release()
	v.back(1)
	v.expect(16384, block)
	v.must(v.flush())
	if v.Snapshot().Counters.Repairs == 0 {
		t.Error("nothing was repaired")
	}
}

// TestLostIsFoundAgain: neither peer can read while a slot comes back. It does, with
// blocks that are lost; when the peers can read again, nothing is.
func TestLostIsFoundAgain(t *testing.T) {
	v := newVolume(t, func(o *Options) { o.ReturnAfter = 20 * time.Millisecond })
	v.must(v.write(0, pattern(1, 2<<20), FUA))
	release := v.loseSlot(true)
	one, other := v.rule("segment.read slot=0 error=EIO"), v.rule("segment.read slot=2 error=EIO")
	release()
	v.back(1)
	if v.faults.Hits(one) == 0 || v.faults.Hits(other) == 0 {
		t.Error("no read has failed")
	}
	v.faults.Remove(one)
	v.faults.Remove(other)
	v.expect(0, pattern(1, 2<<20))
	for lba := range uint64(2<<20) / blockBytes { // whoever reads a block from there repairs it
		v.readRotten(v.shards[v.shardOf(lba*blockBytes)], 1, journal.LBA(lba))
	}
	v.until("every block is repaired", func() bool { return v.Snapshot().Counters.Repairs >= (2<<20)/blockBytes })
	v.must(v.flush())
	v.close()
	v.must(os.RemoveAll(filepath.Join(v.opt.Dir, "slot-0")))
	v.must(os.RemoveAll(filepath.Join(v.opt.Dir, "slot-2")))
	v.opt.Survivor = 2
	v.open()
	v.expect(0, pattern(1, 2<<20))
}

// TestHungSource: the peer that is copied from stands still, and the other takes
// over.
func TestHungSource(t *testing.T) {
	v := newVolume(t, func(o *Options) { o.ReturnAfter = 20 * time.Millisecond })
	v.must(v.write(0, pattern(1, 8<<20), FUA))
	release := v.loseSlot(true)
	hang := v.rule("segment.read slot=0 hang")
	release()
	v.back(1)
	if v.faults.Hits(hang) == 0 {
		t.Error("nobody was hung")
	}
	v.faults.Clear()
	v.expect(0, pattern(1, 8<<20))
}

// TestReturnGoesOn: a return is cut short in the middle. The next one has less to do.
func TestReturnGoesOn(t *testing.T) {
	v := newVolume(t, func(o *Options) { o.ReturnAfter = 20 * time.Millisecond })
	v.must(v.write(0, pattern(1, 48<<20), FUA))
	release := v.loseSlot(true)
	reads := v.rule("segment.read slot=0 delay=3ms")
	release()
	var most int
	v.until("the copy is under way", func() bool { most = max(most, v.missing()); return most > 0 && v.missing() < most-8 })
	v.storedOnce(t)
	left := v.missing()
	v.rule("log.append slot=1 count=20 error=EIO") // once more
	v.must(v.write(0, pattern(1, 8192), FUA))
	v.until("slot 1 is dropped", func() bool { return v.said(1, "cannot come back yet") || v.live()[1] })
	v.faults.Remove(reads)
	v.faults.Clear()
	v.back(1)
	copied := v.logBytes(1)
	t.Logf("%d regions of %d were left; the slot's log holds %d bytes", left, most, copied)
	v.expect(0, pattern(1, 48<<20))
}

func (v *volume) missing() int { return v.Snapshot().Slots[1].Missing }

// storedOnce waits until slot 1 has stored a checkpoint.
func (v *volume) storedOnce(t *testing.T) {
	t.Helper()
	before := v.Snapshot().Slots[1].Checkpoint
	v.until("a checkpoint", func() bool { return v.Snapshot().Slots[1].Checkpoint > before || v.live()[1] })
}

// TestRottenFrame: a bit flips in the cache. A write of a part of that block does not
// seal it as good.
func TestRottenFrame(t *testing.T) {
	v := newVolume(t, nil)
	v.must(v.write(0, pattern(1, 64<<10), FUA))
	v.durable()
	v.until("nothing is pending", func() bool { return v.arena.FreePages() == int(v.arenaPages) })
	flipped := 0
	v.inspect(func(*shard.View) { // in a turn of the shard: nobody uses its cache
		flipped += v.flipCached(pattern(1, 64<<10)[3*blockBytes:][:blockBytes])
	})
	if flipped == 0 {
		t.Fatal("the block is not cached")
	}
	v.must(v.write(3*blockBytes, []byte{9, 9, 9}, FUA))
	want := pattern(1, 64<<10)
	copy(want[3*blockBytes:], []byte{9, 9, 9})
	v.reopen()
	v.expect(0, want)
}

// flipCached flips a bit of a block wherever the caches hold it.
func (v *volume) flipCached(block []byte) (found int) {
	for _, frames := range v.memory.Carve(len(v.shards)) {
		for at := 0; at+blockBytes <= len(frames); at += blockBytes {
			if bytes.Equal(frames[at:at+blockBytes], block) {
				frames[at+100] ^= 1
				found++
			}
		}
	}
	return found
}
