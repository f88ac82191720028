package sim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"trivet/arena"
	"trivet/cache"
	"trivet/disk"
	"trivet/inject"
	"trivet/journal"
	"trivet/replica"
	"trivet/shard"
)

// The times that the device uses.
const (
	failAfter  = 20 * time.Second
	stallAfter = 4 * time.Second
)

// server is one life of the volume: what is lost when it ends.
type server struct {
	w          *world
	group      *replica.Group
	membership *replica.Membership
	shards     []*shard.Shard
	hosts      []*host
	caches     []*cache.Cache
	slots      []*slot // nil for one that does not take part
	arena      *arena.Arena
	held       *replica.Held
	back       *comeback // nil: nobody comes back
}

// host is the world of a shard.
type host struct {
	w      *world
	shard  *shard.Shard
	wake   time.Duration // 0: none
	handed bool
}

func (h *host) Now() time.Duration      { return h.w.now }
func (h *host) WakeAt(at time.Duration) { h.wake = at }
func (h *host) HandOver()               { h.handed = true }
func (h *host) tick()                   { h.wake = 0; h.shard.Tick() }
func (h *host) run()                    { h.handed = false; h.shard.Run() }

func (h *host) offer(n *next) {
	if h.handed {
		n.offer(h.w.now, h.run)
	}
	if h.wake != 0 {
		n.offer(h.wake, h.tick)
	}
}

// open opens the volume as package device does, without the slots that are
// missing. On an error everything is released.
func (w *world) open(missing int) (err error) {
	s := &server{w: w}
	w.srv = s
	defer func() {
		if err != nil {
			w.srv = nil
		}
	}()
	if err := s.assemble(missing); err != nil {
		return err
	}
	if err := s.activate(); err != nil {
		return errors.Join(err, s.group.Close(), w.closeArena())
	}
	return nil
}

func (w *world) closeArena() error {
	a := w.arena
	w.arena = nil
	if a == nil {
		return nil
	}
	return a.Close()
}

// assemble opens the slots and the arena, and judges what is made of them.
func (s *server) assemble(missing int) (err error) {
	w := s.w
	var began [journal.MaxSlots]bool // slots that had taken part, or bear witness
	assembly := replica.Assembly{
		Replicas: journal.MaxSlots,
		Options: replica.Options{
			CheckpointBytes: w.cfg.checkpointBytes, MapBytes: w.cfg.mapBytes, Policy: w.cfg.policy, Log: w.note,
			Draw: w.draw, MakeSlot: s.makeSlot, Replace: w.drawReplace(missing) | w.replacing,
			Survivor: w.survivor, Known: replica.Known{Members: w.members},
		},
		OpenSlot: func(i int) (*replica.Slot, error) {
			if i == missing {
				return nil, errMissing
			}
			rep, err := s.openSlot(i)
			began[i] = err == nil && (rep.Started() > 0 || w.legs[i].mayBear)
			return rep, err
		},
		SetAside:  s.setAside,
		OpenArena: s.openArena,
		ArenaAside: func(_ replica.Geometry, why error) error {
			if w.line == nil {
				w.fail("the arena cannot be used: %v", why)
			}
			w.cover["arenas set aside"]++
			return os.Remove(w.dir + "/" + arena.FileName(w.geometry.Volume))
		},
	}
	if s.group, s.held, err = assembly.Open(context.Background()); err != nil {
		return errors.Join(err, w.closeArena())
	}
	s.checkGenerations()
	n := 0
	for _, b := range began {
		if b {
			n++
		}
	}
	if n > 0 && n < s.group.Quorum() && w.line == nil { // else an operator may have said so
		w.fail("opened with %d slots that ever took part", n)
	}
	for _, records := range s.held.Records {
		w.cover["records that outlived a kill"] += len(records)
	}
	return nil
}

// errMissing is why a slot is absent that is not there in this life.
var errMissing = errors.New("missing")

// setAside replaces the disks of slots that cannot be believed.
func (s *server) setAside(slots []int, why []error) error {
	w := s.w
	for _, i := range slots {
		if !w.legs[i].suspicious && !w.legs[i].making {
			w.fail("slot %d is set aside, but nothing was done to it: %v", i, why[i])
		}
		super, err := replica.Inspect(w.legs[i].disk)
		if err != nil || super == nil {
			w.fail("slot %d is set aside, and nothing says whose it is: %v", i, err)
		}
		w.blank(i)
		super.Filling, super.Checkpoint, super.Announced = max(super.Started(), 1), journal.StoreCommit{}, journal.StoreCommit{}
		rep, err := replica.MakeSlot(w.legs[i].disk, slotName(i), super)
		if err == nil {
			err = rep.Close()
		}
		if err != nil {
			w.fail("make slot %d anew: %v", i, err)
		}
		w.cover["slots set aside"]++
	}
	w.restartDisks(false) // a store in memory is opened once
	return nil
}

func slotName(i int) string { return fmt.Sprintf("slot-%d", i) }

// files are the slot's disk, under the rules that are in force.
func (s *server) files(i int) disk.FS {
	return disk.Faulty(s.w.legs[i].disk, s.w.faults, i, disk.FaultyOptions{
		Pause: func(a inject.Action) error { return nil },
		Crash: func() { panic(killed{}) },
	})
}

func (s *server) openSlot(i int) (*replica.Slot, error) {
	rep, err := replica.ReadSlot(s.files(i), journal.SlotID(i), slotName(i))
	if err != nil {
		return nil, err
	}
	rep.Draw = s.w.drawNames
	if err := s.w.legs[i].store.Open(rep.Expect()); err != nil {
		return nil, errors.Join(err, rep.Close())
	}
	rep.Attach(s.w.legs[i].store)
	return rep, nil
}

// openArena opens the arena. Nothing in it may be damaged.
func (s *server) openArena(g replica.Geometry) (_ *arena.Arena, err error) {
	w := s.w
	opt := arena.Options{Volume: g.Volume, Dir: w.dir, SizeBytes: int64(w.cfg.arenaPages) * arena.PageSize, Shards: w.geometry.Shards}
	if w.arena, err = arena.Open(opt); err != nil {
		return nil, err
	}
	s.arena = w.arena
	if w.line != nil {
		s.watchArena()
	}
	records, err := s.arena.Recover()
	for _, r := range records {
		if r.Err != nil {
			w.fail("a record in the arena is damaged: %v", r.Err)
		}
	}
	return s.arena, err
}

// activate makes the shards and begins the generation.
func (s *server) activate() error {
	w, g := s.w, s.group
	s.arena.SetOwner(g.Owner(g.ID))
	if err := g.Start(); err != nil {
		return err
	}
	g.Settle()
	s.arena.SetOwner(g.Owner(g.ID))
	w.members = g.Members
	live := make([]bool, g.Replicas)
	s.slots = make([]*slot, g.Replicas)
	slots := make([]shard.Slot, g.Replicas)
	for i, rep := range g.Slots {
		if rep == nil {
			continue
		}
		s.slots[i] = &slot{w: w, id: i, rep: rep, lanes: make([][]operation, g.Shards)}
		slots[i], live[i] = s.slots[i], true
	}
	s.checkRecovery()
	s.membership = replica.NewMembership(live, g.Quorum())
	for i := range g.Shards {
		h := &host{w: w}
		c := cache.New(disk.Alloc(w.cfg.cacheBytes))
		h.shard = shard.New(shard.Config{
			Index: uint16(i), Generation: g.Generation, Arena: s.arena, Cache: c,
			Window: journal.NewWindow(g.Starts[i], 2*s.arena.Pages()+1024, s.arena.Pages()),
			Slots:  slots, Quorum: g.Quorum(), StallAfter: stallAfter, FailAfter: failAfter,
			Faulted: s.faulted, Event: w.note,
			Rotten: func(slot int, lba journal.LBA) { s.readRotten(s.shards[i], slot, lba) },
		}, g.Lanes[i], h)
		s.hosts, s.shards, s.caches = append(s.hosts, h), append(s.shards, h.shard), append(s.caches, c)
	}
	for i, records := range s.held.Records {
		s.adopt(i, records)
	}
	for _, h := range s.shards {
		h.Tick()
	}
	g.EachRotten(func(i, slot int, lba journal.LBA) { s.readRotten(s.shards[i], slot, lba) }) // so that it is repaired
	return nil
}

// adopt gives a shard what outlived the last server. Sometimes the process is
// killed in the middle of it: one record more has a page that does not exist.
func (s *server) adopt(shard int, records []arena.Recovered) {
	w := s.w
	if len(records) < 2 || w.calm || w.rng.IntN(10) > 0 {
		s.shards[shard].Adopt(records)
		return
	}
	defer func() {
		if recover() == nil {
			w.fail("a page that does not exist was adopted")
		}
		w.cover["killed while adopting"]++
		panic(killed{})
	}()
	s.shards[shard].Adopt(slices.Insert(slices.Clone(records), w.rng.IntN(len(records)), arena.Recovered{Page: ^arena.Page(0), Record: arena.Record{LBA: 1 << 50, Count: 1}}))
}

// checkRecovery fails when recovery has found fault with a healthy slot. That a
// sync of it has failed, and was made good or not, makes no difference.
func (s *server) checkRecovery() {
	for shard, lanes := range s.group.Lanes {
		for i, r := range lanes {
			if r == nil || s.w.legs[i].suspicious {
				continue
			}
			if r.Damage != nil || len(r.Rotten) > 0 {
				s.w.fail("slot %d shard %d: %d blocks rotten, damage %v, but nothing was done to it", i, shard, len(r.Rotten), r.Damage)
			}
		}
	}
}

// checkGenerations fails when what a slot holds from the start of its generation
// on says that it is of an earlier one: nobody would heed what it notes.
func (s *server) checkGenerations() {
	for i, rep := range s.group.Slots {
		if rep == nil || s.w.legs[i].suspicious {
			continue
		}
		super, err := replica.Inspect(s.w.legs[i].disk)
		if err != nil || super == nil {
			s.w.fail("superblock of slot %d: %v", i, err)
		}
		for shard, lanes := range s.group.Lanes {
			begin := super.History.Last()
			if begin.Number == 0 {
				continue
			}
			if stamp := lanes[i].Stamp; stamp.LSN >= begin.LSNs[shard] && stamp.Generation < begin.Number {
				s.w.fail("slot %d shard %d is at LSN %d of generation %d; generation %d began at %d", i, shard, stamp.LSN, stamp.Generation, begin.Number, begin.LSNs[shard])
			}
		}
	}
}

func (s *server) readRotten(sh *shard.Shard, slot int, lba journal.LBA) {
	sh.Submit(&shard.Part{Op: shard.Cache, LBA: lba, Length: journal.BlockSize, Prefer: slot + 1, Done: func(*shard.Part) {}})
}

// faulted is what a shard calls when a slot's lane was lost or stands still.
func (s *server) faulted(id journal.SlotID, lost bool, err error) {
	w := s.w
	if !w.trouble[id] {
		w.fail("slot %d is reported (lost %v), but nothing was done to it: %v", id, lost, err)
	}
	if !s.membership.Report(int(id), lost) {
		return
	}
	w.trace("slot %d is dropped (lost %v): %v", id, lost, err)
	w.cover["slots dropped"]++
	w.legs[id].stale = true
	for _, sh := range s.shards {
		sh.Drop(id, err)
	}
	s.bringBack(int(id))
}

// close ends a life as the device does. The clients are quiet.
func (s *server) close() {
	w := s.w
	if s.back != nil {
		s.back.cancel()
	}
	failed := 0
	for _, sh := range s.shards {
		sh.Submit(&shard.Part{Op: shard.Flush, Done: func(p *shard.Part) {
			if p.Err != nil {
				failed++
			}
		}})
	}
	w.drain()
	if failed > 0 && !w.mayFail() {
		w.fail("the last flush failed")
	}
	quiet := 0
	for _, sh := range s.shards {
		sh.Checkpoint(func() { quiet++ })
	}
	w.drainUntil(func() bool { return quiet == len(s.shards) }, "the shards are not quiet after a checkpoint")
	for i, c := range s.caches {
		if n := c.Detached(); n > 0 {
			w.fail("shard %d: %d frames are out after the last request", i, n)
		}
	}
	if failed == 0 {
		if n := s.arena.Live(); n > 0 {
			w.fail("%d pages are left in the arena after flush and checkpoint", n)
		}
		if err := s.arena.Discard(); err != nil {
			w.fail("discard: %v", err)
		}
		w.arena = nil
		w.model.closed()
	}
	for i, sh := range s.shards {
		sh.Inspect(func(v *shard.View) { w.checkPins(i, v) })
	}
	if err := errors.Join(s.group.Close(), w.closeArena()); err != nil {
		w.fail("close: %v", err)
	}
	w.restartDisks(false)
	w.srv = nil
	w.cover["clean closes"]++
}

func (w *world) checkPins(i int, v *shard.View) {
	for slot := range journal.MaxSlots {
		if l, ok := v.Lane(slot); ok && l.Pins > 0 {
			w.fail("shard %d slot %d: %d segments are pinned after the last request", i, slot, l.Pins)
		}
	}
}

// crash ends a life: a kill, or a power cut.
func (w *world) crash(power bool) {
	w.trace("crash, power cut %v", power)
	w.faults.Clear()
	if s := w.srv; s != nil {
		if s.back != nil {
			s.back.kill()
		}
		for _, slot := range s.slots {
			if slot != nil {
				slot.halt()
			}
		}
	}
	w.srv = nil
	if err := w.closeArena(); err != nil {
		w.fail("%v", err)
	}
	for _, c := range w.clients {
		c.inflight = 0
	}
	if power {
		if err := os.Remove(w.dir + "/" + arena.FileName(w.geometry.Volume)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.fail("%v", err)
		}
		w.model.cut()
		w.cover["power cuts"]++
	} else {
		w.model.kill()
		w.cover["kills"]++
	}
	w.restartDisks(power)
}

// restartDisks gives the next server what the last has left.
func (w *world) restartDisks(power bool) {
	for _, leg := range w.legs {
		if power {
			leg.disk = leg.disk.Crash()
		} else {
			leg.disk = leg.disk.Kill()
		}
		leg.store = leg.store.Crash(w.rng.Uint64())
	}
	w.inflight = 0
}
