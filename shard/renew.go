package shard

import (
	"fmt"

	"trivet/journal"
)

// Renew begins a generation while the shard serves, with the slots that are live:
// their members are about to change. It answers with the generation's first
// record once all of them have it.
func (s *Shard) Renew(g journal.Generation, answer func(start journal.LSN, err error)) {
	var start journal.LSN
	s.call(func(err error) {
		if err != nil {
			answer(0, err)
			return
		}
		s.Submit(&Part{Op: Flush, Done: func(p *Part) { answer(start, p.Err) }})
	}, func(c *core) error {
		if c.stopped != nil {
			return c.stopped
		}
		for i, fed := range c.fed {
			if fed && !c.live[i] {
				return fmt.Errorf("slot %d is coming back: %w", i, ErrAbsent)
			}
		}
		start = c.window.Add(journal.KindNote, 0, 0).LSN
		c.marks.Generation, c.marks.Began = g, start
		c.wantAll(start)
		return nil
	})
}
