package cache

// maxScan bounds how many referenced blocks one eviction spares. Past it the
// next indexed frame is taken, used or not: a step of the shard must stay
// short even when everything in the cache is hot. 64 entries are 1 KiB.
const maxScan = 64

// bucket returns the head of lba's chain. Multiplying by 2^64 divided by the
// golden ratio spreads runs of addresses, which is what block I/O consists of,
// evenly over the top bits.
func (c *Cache) bucket(lba uint64) *link {
	return &c.buckets[lba*0x9E3779B97F4A7C15>>(c.shift&63)]
}

// find returns the frame that holds lba.
func (c *Cache) find(lba uint64) (Frame, bool) {
	if c.length == 0 {
		return 0, false // also keeps a cache without frames from its absent buckets
	}
	for l := *c.bucket(lba); l != 0; {
		e := &c.entries[l-1]
		if e.lba == lba {
			return Frame(l - 1), true
		}
		l = e.next
	}
	return 0, false
}

// index puts f, which is in no list, at the head of lba's chain. It starts out
// unreferenced: a block that is never looked up goes before one that was, so a
// long scan does not sweep the cache empty.
func (c *Cache) index(lba uint64, f Frame) {
	head := c.bucket(lba)
	c.entries[f] = entry{lba: lba, next: *head, state: resident}
	*head = link(f + 1)
	c.length++
}

// unindex takes f out of its chain and leaves it in no list.
func (c *Cache) unindex(f Frame) {
	e := &c.entries[f]
	at := c.bucket(e.lba)
	for *at != link(f+1) {
		at = &c.entries[*at-1].next
	}
	*at = e.next
	c.length--
}

// giveBack puts f, which is in no list, into the vacant list.
func (c *Cache) giveBack(f Frame) {
	c.entries[f] = entry{next: c.vacant, state: vacant}
	c.vacant = link(f + 1)
}

// take returns a frame that is in no list: one that was used and given back,
// else one never used, else the victim of an eviction. The order keeps memory
// that is resident already in use before more is touched.
func (c *Cache) take() (Frame, bool) {
	if l := c.vacant; l != 0 {
		c.vacant = c.entries[l-1].next
		return Frame(l - 1), true
	}
	if c.fresh < len(c.entries) {
		c.fresh++
		return Frame(c.fresh - 1), true
	}
	return c.evict()
}

// evict takes the first block that was not used since the hand last came by,
// or, after maxScan frames, the next block of any kind. Beyond that it only
// passes over detached frames, whose number the caller bounds.
func (c *Cache) evict() (Frame, bool) {
	if c.length == 0 {
		return 0, false
	}
	for scanned := 0; ; scanned++ {
		f := c.advance()
		e := &c.entries[f]
		if e.state == resident || e.state == referenced && scanned >= maxScan {
			c.unindex(f)
			return f, true
		}
		if e.state == referenced {
			e.state = resident
		}
	}
}

// advance moves the hand and returns where it stood.
func (c *Cache) advance() Frame {
	f := c.hand
	c.hand++
	if int(c.hand) == len(c.entries) {
		c.hand = 0
	}
	return f
}
