package shard

import (
	"trivet/arena"
	"trivet/journal"
)

// Adopt logs again what a killed server has left in the arena: the shard's
// records in their old order. It is called before the shard is used. They get
// new LSNs, in the same order, behind everything that any lane has seen; the
// last one first, so that a kill in the middle leaves the order intact: what
// has the new generation already was newer than what has not.
//
// What was adopted is not durable until the lanes have logged it, like any
// other record, and is never acknowledged as flushed before.
func (s *Shard) Adopt(records []arena.Recovered) {
	c := &s.core
	first := c.window.Next()
	for i := len(records) - 1; i >= 0; i-- {
		c.cfg.Arena.Restamp(records[i].Page, arena.Stamp{Generation: uint64(c.cfg.Generation), LSN: uint64(first) + uint64(i)})
	}
	for _, rec := range records {
		c.adopt(rec)
	}
	c.wantAll(c.window.Last())
}

func (c *core) adopt(rec arena.Recovered) {
	lba := journal.LBA(rec.Record.LBA)
	r := c.window.Add(journal.Kind(rec.Record.Kind), lba, int(rec.Record.Count))
	c.window.AddItem(r, journal.Item{Page: uint32(rec.Page), CRC: rec.Record.CRC})
	c.pending.add(r)
}
