package shard

import (
	"slices"

	"trivet/arena"
	"trivet/journal"
)

// Adopt logs again what a killed server has left in the arena: of the shard's
// records what none of them replaced since. It is called before the shard is
// used. They get new LSNs, in the old order, behind everything that any lane
// has seen; the last one first, so that a kill in the middle leaves the order
// intact: what has the new generation already was newer than what has not.
//
// What was replaced is left out because some of it was flushed: a power cut in
// the middle of logging it again would leave blocks older than they were.
//
// What was adopted is not durable until the lanes have logged it, like any
// other record, and is never acknowledged as flushed before.
func (s *Shard) Adopt(records []arena.Recovered) {
	c := &s.core
	kept, replaced := lastOf(records)
	lsn := c.window.Last()
	for _, k := range kept {
		lsn += journal.LSN(len(k.runs))
	}
	for i := len(kept) - 1; i >= 0; i-- {
		c.cfg.Arena.Restamp(kept[i].Page, arena.Stamp{Generation: uint64(c.cfg.Generation), LSN: uint64(lsn)})
		lsn -= journal.LSN(len(kept[i].runs))
	}
	c.cfg.Arena.Free(replaced...)
	for _, k := range kept {
		c.adopt(k)
	}
	c.wantAll(c.window.Last())
}

// adoption is a record that outlived the server, and the runs of its blocks
// that no later one has replaced.
type adoption struct {
	arena.Recovered
	runs []run
}

type run struct {
	lba    journal.LBA
	blocks int
}

// lastOf returns what is left of the records when every block is in one alone,
// the last, and the pages of those of which nothing is.
func lastOf(records []arena.Recovered) (kept []adoption, replaced []arena.Page) {
	covered := make(map[journal.LBA]bool) // never ranged over
	for _, rec := range slices.Backward(records) {
		k := adoption{Recovered: rec}
		for i := range int(rec.Record.Count) {
			lba := journal.LBA(rec.Record.LBA) + journal.LBA(i)
			if covered[lba] {
				continue
			}
			covered[lba] = true
			if n := len(k.runs) - 1; n >= 0 && k.runs[n].lba+journal.LBA(k.runs[n].blocks) == lba {
				k.runs[n].blocks++
			} else {
				k.runs = append(k.runs, run{lba, 1})
			}
		}
		if len(k.runs) == 0 {
			replaced = append(replaced, rec.Page)
			continue
		}
		kept = append(kept, k)
	}
	slices.Reverse(kept)
	return kept, replaced
}

// adopt adds a record for every run. The page, which holds one record for all
// of them, stays until the last of them is safe.
func (c *core) adopt(k adoption) {
	for i, run := range k.runs {
		r := c.window.Add(journal.Kind(k.Record.Kind), run.lba, run.blocks)
		if i == len(k.runs)-1 {
			c.window.AddItem(r, journal.Item{Page: uint32(k.Page), CRC: k.Record.CRC})
		}
		c.enter(r)
	}
}
