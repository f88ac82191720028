package sim

import (
	"fmt"
	"slices"
	"syscall"
	"time"

	"trivet/inject"
	"trivet/journal"
	"trivet/meta"
)

// action is something that happens to a slot at a step of a life.
type action struct {
	step int
	do   func()
}

// planFaults draws what happens to the disks in this life.
func (w *world) planFaults() {
	w.plan = w.plan[:0]
	if w.rng.IntN(4) == 0 {
		return
	}
	victim := w.victim()
	kinds := [...]func(int){w.planErrors, w.planErrors, w.planHang, w.planMeta, w.planBurst, w.planLies}
	kinds[w.rng.IntN(len(kinds))](victim)
	if w.rng.IntN(6) == 0 && w.suspect() < 0 { // two slots, for as long as it takes
		w.planErrors(w.rng.IntN(journal.MaxSlots))
	}
	slices.SortStableFunc(w.plan, func(a, b action) int { return a.step - b.step })
}

// victim draws the slot that gets into trouble: the one that is already.
func (w *world) victim() int {
	for i := range w.legs {
		if w.trouble[i] || w.legs[i].stale {
			return i
		}
	}
	return w.rng.IntN(journal.MaxSlots)
}

// suspect returns the slot whose disk may hold anything, or -1.
func (w *world) suspect() int {
	return slices.IndexFunc(w.legs, func(l *leg) bool { return l.suspicious })
}

// act carries out what is planned for the step.
func (w *world) act() {
	for len(w.plan) > 0 && w.plan[0].step <= w.step {
		do := w.plan[0].do
		w.plan = w.plan[1:]
		do()
	}
}

func (w *world) at(step int, do func()) { w.plan = append(w.plan, action{step, do}) }

func (w *world) planErrors(victim int) {
	texts := [...]string{
		"log.append slot=%d error=EIO count=%d", "log.sync slot=%d error=EIO count=%d", "segment.read slot=%d error=EIO count=%d",
		"segment.alloc slot=%d error=ENOSPC count=%d", "superblock slot=%d error=EIO count=%d", "log.append slot=%d torn count=%d",
		"log.append slot=%d p=0.1 error=EIO count=%d", "log.sync slot=%d p=0.2 error=EIO count=%d", "any slot=%d error=EIO count=%d",
		"log.sync slot=%d nth=3 error=EIO count=%d",
	}
	text := texts[w.rng.IntN(len(texts))]
	count := 1 + w.rng.IntN(3)
	if w.rng.IntN(3) == 0 {
		count = 1000000
	}
	from := w.rng.IntN(w.cfg.steps)
	w.at(from, func() { w.add(victim, fmt.Sprintf(text, victim, count)) })
	w.at(from+w.rng.IntN(w.cfg.steps), func() { w.quieten() })
}

// planBurst makes syncs or appends of all slots fail at about the same time.
func (w *world) planBurst(int) {
	if w.suspect() >= 0 {
		return
	}
	site := [...]string{"log.sync", "log.append"}[w.rng.IntN(2)]
	from, slots := w.rng.IntN(w.cfg.steps), 2+w.rng.IntN(2)
	for i := range slots {
		w.at(from+w.rng.IntN(4), func() { w.add(i, fmt.Sprintf("%s slot=%d error=EIO count=%d", site, i, 1+w.rng.IntN(3))) })
	}
	w.cover["bursts"]++
}

// planLies makes a disk report success for what it did not do.
func (w *world) planLies(victim int) {
	if s := w.suspect(); s >= 0 {
		victim = s
	} else if !w.mayDamage(victim) {
		return
	}
	text := [...]string{"log.append slot=%d lost", "log.append slot=%d misdirect", "log.append slot=%d flip", "segment.read slot=%d flip"}[w.rng.IntN(4)]
	w.at(w.rng.IntN(w.cfg.steps), func() {
		w.legs[victim].suspicious = true
		w.add(victim, fmt.Sprintf(text+" p=0.2 count=%d", victim, 1+w.rng.IntN(4)))
	})
}

// add puts a rule in force.
func (w *world) add(victim int, text string) {
	rule, err := inject.Parse(text)
	if err != nil {
		w.fail("%v", err)
	}
	id, err := w.faults.Add(rule)
	if err != nil {
		w.fail("%v", err)
	}
	w.trouble[victim] = true
	w.rules = append(w.rules, id)
	w.trace("fault: %s", text)
}

// planHang lets nothing return from a slot for a while.
func (w *world) planHang(victim int) {
	lasts := time.Duration(w.rng.IntN(40000)) * time.Millisecond
	w.at(w.rng.IntN(w.cfg.steps), func() {
		if s := w.srv.slots[victim]; s != nil {
			s.hung = w.now + lasts
			w.trouble[victim] = true
			w.trace("fault: slot %d hangs for %v", victim, lasts)
			w.cover["hang"]++
		}
	})
}

// planMeta makes calls of a metadata store fail.
func (w *world) planMeta(victim int) {
	p := 0.1 + 0.9*w.rng.Float64()
	from := w.rng.IntN(w.cfg.steps)
	w.at(from, func() {
		w.trouble[victim] = true
		w.failingMeta = true
		w.trace("fault: metadata of slot %d fails with probability %v", victim, p)
		w.legs[victim].store.Inject(func(meta.Op) error {
			if w.rng.Float64() < p {
				w.cover["metadata call fails"]++
				return syscall.EIO
			}
			return nil
		})
	})
	w.at(from+w.rng.IntN(w.cfg.steps), func() { w.legs[victim].store.Inject(nil); w.failingMeta = false })
}

// quieten ends every fault.
func (w *world) quieten() {
	w.countHits()
	w.faults.Clear()
	w.failingMeta = false
	for i, leg := range w.legs {
		leg.store.Inject(nil)
		if s := w.srv.slots[i]; s != nil {
			s.hung = 0
		}
	}
}

// countHits notes which kinds of rules have fired.
func (w *world) countHits() {
	for _, s := range w.faults.List() {
		w.cover[fmt.Sprintf("%v %v", s.Rule.Site, s.Rule.Effect)] += int(s.Hits)
	}
	w.rules = nil
}

// mayDamage tells whether the slot may be damaged, or missing, while all that
// is promised holds: the others are whole.
func (w *world) mayDamage(i int) bool {
	for j, leg := range w.legs {
		if j != i && (leg.stale && !leg.fed || leg.suspicious) {
			return false
		}
	}
	return true
}

// damage does to a slot what may happen while the server is down.
func (w *world) damage() {
	i := w.rng.IntN(journal.MaxSlots)
	if s := w.suspect(); s >= 0 {
		i = s
	}
	if !w.mayDamage(i) || w.rng.IntN(3) > 0 {
		return
	}
	if w.rng.IntN(2) == 0 {
		w.blank(i)
		w.legs[i].stale = true
		w.trace("slot %d is blank", i)
		w.cover["slots blanked"]++
		return
	}
	w.legs[i].suspicious = true
	if w.rng.IntN(8) == 0 {
		for copy := range int64(2) {
			// A slot of which no more than the directory was made has none.
			_ = w.legs[i].disk.Corrupt(journal.SuperblockFile, copy*journal.SuperblockSize/2+100)
		}
		w.trace("slot %d has no superblock", i)
		return
	}
	for range 1 + w.rng.IntN(20) {
		segment, block := w.rng.IntN(8), w.rng.IntN(int(w.geometry.SegmentBlocks))
		perFile := int((32 << 20) / (w.geometry.SegmentBlocks * journal.BlockSize))
		at := int64(segment%perFile*int(w.geometry.SegmentBlocks)+block)*journal.BlockSize + int64(w.rng.IntN(journal.BlockSize))
		if w.legs[i].disk.Corrupt(fmt.Sprintf("log/%06d", segment/perFile), at) == nil {
			w.cover["bytes flipped"]++
		}
	}
	w.trace("slot %d has flipped bytes", i)
}

// boot opens the volume, which may be killed and may meet faults, until it is
// open.
func (w *world) boot() {
	for attempt := 0; ; attempt++ {
		w.now += time.Second
		w.startLife()
		missing := -1
		last := attempt == 4
		w.calm = last
		if !last {
			missing = w.planBoot()
		}
		var err error
		alive := w.survives(func() { err = w.open(missing) })
		w.fuse = 0
		w.countHits()
		switch {
		case !alive:
			w.cover["killed while opening"]++
			w.crash(w.rng.IntN(2) == 0)
		case err == nil:
			w.faults.Clear()
			w.opened()
			if missing >= 0 {
				w.cover["opened with two slots"]++
			}
			if w.rng.IntN(3) == 0 {
				w.verifyLive()
			}
			return
		case last:
			w.fail("open with all slots and without faults: %v", err)
		default:
			w.trace("open failed: %v", err)
			w.cover["open failed"]++
			w.crash(false)
		}
	}
}

// verifyLive reads everything right after the volume was opened.
func (w *world) verifyLive() {
	w.draining = true
	w.verify(0)
	w.draining = false
}

// planBoot draws what happens while the volume is opened.
func (w *world) planBoot() (missing int) {
	missing = -1
	switch w.rng.IntN(8) {
	case 0, 1:
		w.add2(fmt.Sprintf("any nth=%d crash", 1+w.rng.IntN(300)))
	case 2:
		w.fuse = 1 + w.rng.IntN(40)
	case 3:
		i := w.rng.IntN(journal.MaxSlots)
		if w.mayDamage(i) || w.legs[(i+1)%journal.MaxSlots].making || w.legs[(i+2)%journal.MaxSlots].making {
			missing = i // beside a blank slot: the volume must not open
		}
	case 4:
		if i := w.victim(); w.mayDamage(i) {
			w.add(i, fmt.Sprintf("any slot=%d nth=%d error=EIO", i, 1+w.rng.IntN(200)))
		}
	}
	return missing
}

// drawReplace draws whether an operator has a lost slot replaced by a start that is
// without one.
func (w *world) drawReplace(missing int) uint8 {
	i := w.lost()
	if i < 0 || i == missing || w.calm || w.rng.IntN(2) == 0 {
		return 0
	}
	return 1 << i
}

// add2 puts a rule in force that is no slot's trouble.
func (w *world) add2(text string) {
	rule, err := inject.Parse(text)
	if err == nil {
		_, err = w.faults.Add(rule)
	}
	if err != nil {
		w.fail("%v", err)
	}
}
