package sim

import (
	"errors"
	"fmt"

	"trivet/disk"
	"trivet/journal"
	"trivet/meta"
	"trivet/replica"
)

// image is a copy of the volume's slots, and what it may hold.
type image struct {
	disks   [journal.MaxSlots]*disk.MemoryFS
	stores  [journal.MaxSlots]meta.Contents
	model   *model
	line    *line
	members journal.Members // of the volume's record
	whole   bool            // every slot was current
}

// line is the life of a volume between two starts. Two lines of which neither
// comes before the other are two lives.
type line struct{ before *line }

// isBefore reports whether the line comes before another one, or is it.
func (l *line) isBefore(other *line) bool {
	for ; other != nil; other = other.before {
		if other == l {
			return true
		}
	}
	return false
}

// image copies the slots as they are.
func (w *world) image() *image {
	m := &image{model: w.model.clone(), line: w.line, members: w.members, whole: true}
	for i, leg := range w.legs {
		m.disks[i], m.stores[i] = leg.disk.Copy(w.rng.Uint64()), leg.store.Look()
	}
	return m
}

// plug puts a copy of an image's slot into the place of slot i.
func (w *world) plug(i int, m *image, slot int) {
	w.legs[i].disk, w.legs[i].store = m.disks[slot].Copy(w.rng.Uint64()), new(meta.Memory)
	w.legs[i].store.Replace(m.stores[slot])
	w.legs[i].stale, w.legs[i].suspicious = true, true // it may be set aside
}

// undo takes what an operator has done back.
func (w *world) undo(m *image) {
	for i := range w.legs {
		w.plug(i, m, i)
		w.legs[i].stale, w.legs[i].suspicious = false, false
	}
	tags := w.model.tags
	w.model, w.line, w.members = m.model.clone(), m.line, m.members
	w.model.tags = max(w.model.tags, tags)
	w.model.cut() // what was in the arena may have been set aside
}

// verdict is what a start may come to after a mistake.
type verdict struct {
	refuse, serve bool
	undo          bool   // nothing else helps
	newer         bool   // what is served may be anything since
	model         *model // what it serves; nil: the volume as it was
	line          *line
	missing       int
}

// mistake draws something that an operator does to a volume at rest. m is the
// volume as it is, past are copies of earlier.
func (w *world) mistake(m *image, past []*image) verdict {
	i, old := w.rng.IntN(journal.MaxSlots), past[w.rng.IntN(len(past))]
	j, k := (i+1)%journal.MaxSlots, (i+2)%journal.MaxSlots
	same := old.line.isBefore(m.line) && old.members == m.members
	backup := func(v verdict) verdict {
		v.model, v.line = old.model.clone(), old.line
		v.model.cut()
		return v
	}
	switch draw := w.rng.IntN(9); draw {
	case 7:
		w.cover["stores put back from a copy"]++
		w.legs[i].store.Replace(old.stores[i])
		w.legs[i].suspicious = true
		return verdict{serve: true, missing: -1}
	case 8:
		w.cover["stores that are another slot's, or empty"]++
		w.legs[i].store.Replace([]meta.Contents{m.stores[j], {}}[w.rng.IntN(2)])
		w.legs[i].suspicious = true
		return verdict{serve: true, missing: -1}
	case 0:
		w.cover["slots put back from a copy"]++
		w.plug(i, old, i)
		return verdict{serve: true, refuse: !same, undo: !same, missing: -1}
	case 1:
		w.cover["volumes put back from a copy"]++
		for slot := range journal.MaxSlots {
			w.plug(slot, old, slot)
		}
		w.members = old.members
		return backup(verdict{serve: true, refuse: !old.whole, undo: !old.whole, missing: -1})
	case 2:
		w.cover["two slots put back, the third there"]++
		w.plug(i, old, i)
		w.plug(j, old, j)
		if old.line == m.line { // of the same generation: what the third lacked is gone with them
			return backup(verdict{serve: true, refuse: true, undo: true, newer: true, missing: -1})
		}
		if !old.line.isBefore(m.line) { // two lives that went as far: a quorum of one is there
			return backup(verdict{serve: true, refuse: true, undo: true, missing: -1})
		}
		return verdict{refuse: true, undo: true, missing: -1}
	case 3:
		w.cover["two slots put back, the third away"]++
		w.plug(i, old, i)
		w.plug(j, old, j)
		return backup(verdict{serve: true, refuse: true, undo: true, missing: k})
	case 4:
		w.cover["two slots swapped"]++
		w.plug(i, m, j)
		w.plug(j, m, i)
		return verdict{refuse: true, undo: true, missing: -1}
	case 5:
		w.cover["one slot away"]++
		return verdict{serve: true, missing: i}
	}
	w.cover["one slot emptied"]++
	w.blank(i)
	w.legs[i].stale = true
	return verdict{serve: true, missing: -1}
}

// start opens the volume after a mistake and holds the verdict against what comes
// of it. It reports whether the volume is served.
func (w *world) start(v verdict) bool {
	w.startLife()
	w.calm = true
	for i := range w.trouble {
		w.trouble[i] = true // who takes part is not judged here
	}
	before := w.superblocks()
	err := w.open(v.missing)
	if err != nil {
		w.cover["refused"]++
		if !v.refuse {
			w.fail("a volume that could be served is refused: %v", err)
		}
		if after := w.superblocks(); after != before {
			w.fail("the volume is refused (%v), and was changed:\n%s\n%s", err, before, after)
		}
		w.crash(false)
		return false
	}
	w.cover["served"]++
	if !v.serve {
		w.fail("a volume is served that should be refused")
	}
	adopted := w.srv.held.Records != nil
	if v.model != nil && !adopted { // else the arena holds all that the copy lacks
		v.model.tags = w.model.tags
		w.model = v.model
		w.line = v.line
	}
	w.line = &line{before: w.line}
	w.opened()
	if !v.newer {
		w.verify(0)
	}
	return true
}

// superblocks describes what the slots' superblocks promise.
func (w *world) superblocks() (text string) {
	for i, leg := range w.legs {
		super, err := replica.Inspect(leg.disk)
		if super == nil {
			text += fmt.Sprintf("slot %d: %v\n", i, err)
			continue
		}
		text += fmt.Sprintf("slot %d: %v promised %v, last %v, members %d\n", i, super.Incarnation, super.Promised, super.History.Last().GenerationID, super.Members.Number)
	}
	return text
}

// survive loses two slots, and has the volume opened with the third on an
// operator's word: killed at any store of a superblock or of the arena's header,
// without the survivor at some starts. Nothing but what the survivor holds is ever
// served.
func (w *world) survive() {
	s := w.rng.IntN(journal.MaxSlots)
	for i := range w.legs {
		if i != s {
			w.blank(i)
			w.legs[i].stale = true
		}
	}
	w.cover["two slots lost"]++
	gone := false // the two others were filled, and went on without the survivor
	for attempt := 0; ; attempt++ {
		last := attempt == 12
		missing := -1
		if w.survivor = s + 1; gone {
			w.survivor = 0
		}
		switch draw := w.rng.IntN(6); {
		case last:
		case draw == 0:
			missing = s
		case draw == 1:
			w.survivor = 0
		}
		w.startLife()
		for i := range w.trouble {
			w.trouble[i] = true
		}
		w.calm = true
		if !last && w.rng.IntN(4) > 0 {
			w.drawKill()
		}
		var err error
		alive := w.survives(func() { err = w.open(missing) })
		w.fuse = 0
		w.survivor = 0
		w.faults.Clear()
		switch {
		case !alive:
			w.cover["killed while a survivor was opened"]++
			w.crash(w.rng.IntN(2) == 0)
			continue
		case err == nil && missing >= 0: // the two others were filled
			w.cover["served without the survivor"]++
			gone = true
			w.opened()
			w.verify(0)
			w.crash(false)
			continue
		case err == nil:
			w.line = &line{before: w.line}
			w.opened()
			w.verify(0)
			w.heal()
			w.srv.close()
			return
		case last:
			w.fail("a survivor does not open: %v", err)
		}
		w.cover["refused"]++
		w.crash(false)
	}
}

// drawKill has the server killed at a store of a superblock, at any operation on a
// disk, or at a store of the arena's header.
func (w *world) drawKill() {
	switch w.rng.IntN(3) {
	case 0:
		w.add2(fmt.Sprintf("superblock nth=%d crash", 1+w.rng.IntN(40)))
	case 1:
		w.add2(fmt.Sprintf("any nth=%d crash", 1+w.rng.IntN(300)))
	default:
		w.fuse = 1 + w.rng.IntN(12)
	}
}

// replaceKilled replaces a slot by a start that is killed, and by others that are
// not told of it: the members in sight that were named last count.
func (w *world) replaceKilled() {
	i := w.rng.IntN(journal.MaxSlots)
	old := w.image()
	w.replacing = 1 << i
	w.startLife()
	for j := range w.trouble {
		w.trouble[j] = true
	}
	w.calm = true
	w.drawKill()
	var err error
	alive := w.survives(func() { err = w.open(-1) })
	w.fuse, w.replacing = 0, 0
	w.faults.Clear()
	if !alive {
		w.cover["killed while a slot was replaced"]++
		w.crash(w.rng.IntN(2) == 0)
		if super, errInspect := replica.Inspect(w.legs[i].disk); errInspect == nil && super == nil || errors.Is(errInspect, journal.ErrNoSuperblock) {
			return // it is replaced by the next start that is whole
		}
		if w.rng.IntN(2) == 0 { // the old disk turns up again, and the new one is gone
			w.plug(i, old, i)
		}
		return
	}
	if err != nil {
		w.fail("a slot cannot be replaced: %v", err)
	}
	w.line = &line{before: w.line}
	w.opened()
	w.verify(0)
	w.heal()
	w.srv.close()
}
