package sim

import (
	"errors"
	"slices"
	"time"

	"trivet/arena"
	"trivet/journal"
	"trivet/shard"
)

// client submits requests, several at a time.
type client struct {
	w        *world
	depth    int
	inflight int
	next     time.Duration
}

func (c *client) offer(n *next) {
	if c.inflight < c.depth {
		n.offer(c.next, c.issue)
	}
}

// part is a part under way and what the model knows of it.
type part struct {
	shard.Part
	w        *world
	client   *client // nil for the simulator's own
	number   uint64
	shard    int
	began    uint64
	deadline time.Duration
	before   bool // it began before anybody was told that the device has stopped
	versions []*version
	seen     []*snapshot
	from, to int // units of the first and the last block that it covers
}

// issue submits one request, or thinks for a while.
func (c *client) issue() {
	w := c.w
	c.next = w.now + time.Duration(w.rng.IntN(600))*time.Microsecond
	if w.rng.IntN(30) == 0 {
		c.next += time.Duration(w.rng.IntN(300)) * time.Millisecond
	}
	lba, n := w.drawRange()
	switch k := w.rng.IntN(100); {
	case k < 40:
		c.write(lba, n, w.rng.IntN(6) == 0)
	case k < 48:
		c.flush()
	case k < 54:
		c.zero(lba, n, shard.Trim)
	case k < 58:
		c.zero(lba, n, shard.Zero)
	case k < 65:
		c.read(lba, n, shard.Status)
	case k < 67:
		c.read(lba, n, shard.Cache)
	default:
		c.read(lba, n, shard.Read)
	}
}

// drawRange draws blocks: mostly few, of those that others draw as well.
func (w *world) drawRange() (journal.LBA, int) {
	region := w.rng.IntN(w.cfg.regions)
	if w.rng.IntN(2) == 0 {
		region = min(region, w.rng.IntN(w.cfg.regions))
	}
	starts := [...]int{0, 58, 122, 240}
	index := starts[w.rng.IntN(len(starts))] + w.rng.IntN(12)
	n := 1 + w.rng.IntN(8)
	if w.rng.IntN(100) < w.cfg.large {
		n = 16 + w.rng.IntN(80)
	}
	lba := region*journal.RegionBlocks + index
	return journal.LBA(lba), min(n, w.cfg.regions*journal.RegionBlocks-lba)
}

// cut calls fn for the pieces of a range that do not cross a multiple of size.
func cut(lba journal.LBA, n, size int, fn func(lba journal.LBA, n int)) {
	for n > 0 {
		piece := min(n, size-int(lba)%size)
		fn(lba, piece)
		lba, n = lba+journal.LBA(piece), n-piece
	}
}

func (c *client) part(op shard.Op, lba journal.LBA, n int) *part {
	w := c.w
	p := &part{w: w, client: c, from: 0, to: unitCount, shard: w.model.shardOf(lba)}
	p.Op, p.LBA, p.Length = op, lba, n*journal.BlockSize
	p.Done = func(*shard.Part) { w.done(p) }
	return p
}

// submit hands a part over.
func (c *client) submit(p *part, began uint64) {
	w := c.w
	p.began, p.deadline, p.before, p.number = began, w.now+failAfter, !w.stopped, began
	c.inflight++
	w.inflight++
	w.cover[p.Op.String()]++
	if w.tracing() {
		w.trace("submit %d: %v of %d bytes at block %d + %d, FUA %v, slot %d", p.number, p.Op, p.Length, p.LBA, p.Skip, p.FUA, p.Prefer-1)
	}
	w.srv.shards[p.shard].Submit(&p.Part)
}

func (c *client) flush() {
	for i := range c.w.geometry.Shards {
		p := c.part(shard.Flush, 0, 0)
		p.shard = i
		c.submit(p, c.w.model.event())
	}
}

// read reads or describes whole blocks, or a read some units of them.
func (c *client) read(lba journal.LBA, n int, op shard.Op) {
	size := shard.MaxPartBlocks
	if op == shard.Status {
		size = journal.RegionBlocks
	}
	cut(lba, n, size, func(lba journal.LBA, n int) {
		p := c.part(op, lba, n)
		if op == shard.Read {
			c.trim(p, n)
			p.Data = make([]byte, p.Length)
			p.Status = c.w.rng.IntN(4) == 0
			if c.w.rng.IntN(6) == 0 {
				p.Prefer = 1 + c.w.rng.IntN(journal.MaxSlots)
			}
		}
		now := c.w.model.event()
		if op != shard.Cache {
			for i := range n {
				p.seen = append(p.seen, c.w.model.snapshot(c.w.model.at(lba+journal.LBA(i)), now))
			}
		}
		c.submit(p, now)
	})
}

// trim makes a part cover its first and last block in part, sometimes.
func (c *client) trim(p *part, n int) {
	if c.w.rng.IntN(4) == 0 {
		p.from = c.w.rng.IntN(unitCount)
	}
	if c.w.rng.IntN(4) == 0 {
		least := 1
		if n == 1 {
			least = p.from + 1
		}
		p.to = least + c.w.rng.IntN(unitCount-least+1)
	}
	p.Skip = units[p.from]
	p.Length -= p.Skip + journal.BlockSize - units[p.to]
}

// span returns which units of the i-th of n blocks the part covers.
func (p *part) span(i, n int) (from, to int) {
	from, to = 0, unitCount
	if i == 0 {
		from = p.from
	}
	if i == n-1 {
		to = p.to
	}
	return from, to
}

// write writes new content. What covers a block in part waits until nobody
// else writes the block and it is known what it holds, so that the model needs
// no more than whole values.
func (c *client) write(lba journal.LBA, n int, fua bool) {
	w := c.w
	cut(lba, n, shard.MaxPartBlocks, func(lba journal.LBA, n int) {
		p := c.part(shard.Write, lba, n)
		p.FUA = fua
		c.trim(p, n)
		var blocks []*block
		for i := range n {
			b := w.model.at(lba + journal.LBA(i))
			from, to := p.span(i, n)
			if b.partial || to-from < unitCount && (b.writing > 0 || len(b.alive) > 1) {
				w.cover["writes given up"]++
				return
			}
			blocks = append(blocks, b)
		}
		if !w.arena.Alloc(n, p.Pages[:n]) {
			w.cover["arena full"]++
			return
		}
		data := make([]byte, n*journal.BlockSize)
		now := w.model.event()
		for i, b := range blocks {
			from, to := p.span(i, n)
			v := value{}
			if to-from < unitCount {
				v = b.alive[0].value
				b.partial = true
				w.cover["blocks written in part"]++
			}
			for u := from; u < to; u++ {
				v[u] = w.model.tag()
				fill(data[i*journal.BlockSize+units[u]:i*journal.BlockSize+units[u+1]], v[u])
			}
			p.versions = append(p.versions, w.model.write(b, v, journal.Data, now))
		}
		p.Fill(w.arena, data[p.Skip:p.Skip+p.Length])
		c.submit(p, now)
	})
}

// zero trims or zeroes whole blocks.
func (c *client) zero(lba journal.LBA, n int, op shard.Op) {
	w := c.w
	if w.rng.IntN(8) == 0 {
		n = min(journal.RegionBlocks, w.cfg.regions*journal.RegionBlocks-int(lba))
	}
	content := journal.Hole
	if op == shard.Zero {
		content = journal.Zero
	}
	fua := w.rng.IntN(6) == 0
	cut(lba, n, journal.RegionBlocks, func(lba journal.LBA, n int) {
		p := c.part(op, lba, n)
		p.FUA = fua
		for i := range n {
			if w.model.at(lba + journal.LBA(i)).partial {
				return
			}
		}
		var page [1]arena.Page
		if !w.arena.Alloc(1, page[:]) {
			w.cover["arena full"]++
			return
		}
		p.Pages[0] = page[0]
		now := w.model.event()
		for i := range n {
			p.versions = append(p.versions, w.model.write(w.model.at(lba+journal.LBA(i)), value{}, content, now))
		}
		c.submit(p, now)
	})
}

// slack is how late a part may be because other things happen at its deadline,
// one a nanosecond.
const slack = 10 * time.Microsecond

// done is every part's Done.
func (w *world) done(p *part) {
	w.inflight--
	p.client.inflight--
	if w.tracing() {
		w.trace("done %d: %v at block %d: %v", p.number, p.Op, p.LBA, p.Err)
	}
	if w.now > p.deadline+slack {
		w.fail("%v at block %d ended at %v, its deadline was %v", p.Op, p.LBA, w.now, p.deadline)
	}
	w.checkResult(p)
	for _, v := range p.versions {
		w.model.written(v, p.Err == nil, p.FUA)
	}
	if p.Err == nil && (p.Op == shard.Flush || p.FUA) {
		w.model.flushed(p.shard, p.began)
	}
	if p.Err == nil {
		w.checkRead(p)
	}
	for _, s := range p.seen {
		s.close()
	}
}

// checkResult judges whether the part may end as it did.
func (w *world) checkResult(p *part) {
	changes := p.Op == shard.Write || p.Op == shard.Trim || p.Op == shard.Zero || p.Op == shard.Flush
	switch {
	case p.Err == nil:
		if changes && w.stopped && !p.before {
			w.fail("%v at block %d succeeded although the device has stopped", p.Op, p.LBA)
		}
		return
	case !w.mayFail():
		w.fail("%v at block %d failed, but at most one slot is in trouble: %v", p.Op, p.LBA, p.Err)
	case errors.Is(p.Err, shard.ErrStopped):
		w.stopped = true
		w.cover["requests refused: stopped"]++
	case errors.Is(p.Err, shard.ErrDeadline):
		w.cover["requests failed: deadline"]++
	case errors.Is(p.Err, shard.ErrIO) && !changes:
		w.cover["reads failed"]++
	case !errors.Is(p.Err, shard.ErrIO):
		w.fail("%v at block %d failed with %v", p.Op, p.LBA, p.Err)
	}
}

// mayFail tells whether more is in trouble than is promised to be harmless.
func (w *world) mayFail() bool {
	n := 0
	for _, t := range w.trouble {
		if t {
			n++
		}
	}
	return n > 1
}

// checkRead compares what a part has found with the model.
func (w *world) checkRead(p *part) {
	var contents []journal.Content
	for _, e := range p.Extents {
		contents = append(contents, slices.Repeat([]journal.Content{e.Content}, e.Blocks)...)
	}
	if described := p.Op == shard.Status || p.Op == shard.Read && p.Status; described {
		if len(contents) != len(p.seen) {
			w.fail("%v of %d blocks describes %d", p.Op, len(p.seen), len(contents))
		}
		for i, s := range p.seen {
			if err := w.model.status(s, contents[i]); err != nil {
				w.fail("%v", err)
			}
		}
	}
	if p.Op != shard.Read {
		return
	}
	for i, s := range p.seen {
		from, to := p.span(i, len(p.seen))
		at := i*journal.BlockSize + units[from] - p.Skip
		if err := w.model.read(s, p.Data[at:at+units[to]-units[from]], from, to); err != nil {
			w.fail("slot %d: %v", p.Prefer-1, err)
		}
	}
}

// verify reads every block that was ever touched, from one slot if prefer is
// not 0.
func (w *world) verify(prefer int) {
	c := &client{w: w}
	slices.SortFunc(w.model.order, func(a, b *block) int { return int(int64(a.lba) - int64(b.lba)) })
	for i := 0; i < len(w.model.order); {
		n := 1
		first := w.model.order[i].lba
		for i+n < len(w.model.order) && w.model.order[i+n].lba == first+journal.LBA(n) && int(first)%shard.MaxPartBlocks+n < shard.MaxPartBlocks {
			n++
		}
		p := c.part(shard.Read, first, n)
		p.Data, p.Status, p.Prefer = make([]byte, p.Length), true, prefer
		now := w.model.event()
		for j := range n {
			p.seen = append(p.seen, w.model.snapshot(w.model.order[i+j], now))
		}
		c.submit(p, now)
		if w.inflight > 8 {
			w.drain()
		}
		i += n
	}
	w.drain()
}
