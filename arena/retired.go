package arena

import "fmt"

// retiredSeal makes a seal of an LSN and its shard, so that neither zeros nor the
// line of another shard pass.
const retiredSeal = 0x7472697665740000

func sealOf(shard int, lsn uint64) uint64 { return ^lsn ^ retiredSeal ^ uint64(shard) }

// Retired notes that every record of the shard with this LSN or a smaller one
// was freed. The value only grows; a smaller one is ignored. The shard's owner
// alone may call it. Of the two copies the older one is written: a kill in the
// middle leaves the other.
func (a *Arena) Retired(shard uint16, lsn uint64) {
	copies := &a.retired[shard].copies
	older := 0
	if whole := [2]bool{a.isWhole(shard, 0), a.isWhole(shard, 1)}; whole[0] && (!whole[1] || copies[1].lsn.Load() < copies[0].lsn.Load()) {
		older = 1 // or the one that a kill has torn
	}
	if lsn <= copies[1-older].lsn.Load() {
		return
	}
	copies[older].lsn.Store(lsn)
	a.changed()
	copies[older].seal.Store(sealOf(int(shard), lsn))
	a.changed()
}

// isWhole reports whether a copy of what a shard has released is as it was stored.
func (a *Arena) isWhole(shard uint16, i int) bool {
	c := &a.retired[shard].copies[i]
	v, seal := c.lsn.Load(), c.seal.Load()
	return seal == sealOf(int(shard), v) || v == 0 && seal == 0
}

// RetiredLSN returns what Retired noted last; 0 when it never did. The error wraps
// ErrDamaged: neither copy is whole.
func (a *Arena) RetiredLSN(shard uint16) (lsn uint64, err error) {
	copies := &a.retired[shard].copies
	if a.version() == firstVersion {
		return copies[0].lsn.Load(), nil
	}
	whole := 0
	for i := range copies {
		if a.isWhole(shard, i) {
			lsn, whole = max(lsn, copies[i].lsn.Load()), whole+1
		}
	}
	if whole == 0 {
		return 0, fmt.Errorf("arena: %s: what shard %d has released: %w", a.path, shard, ErrDamaged)
	}
	return lsn, nil
}

// sealRetired seals what version 1 has noted.
func (a *Arena) sealRetired() {
	for shard := range a.retired {
		c := &a.retired[shard].copies[0]
		c.seal.Store(sealOf(shard, c.lsn.Load()))
	}
}

// Reset forgets what was retired, for an arena without records that goes to another
// owner. Nothing else may use the arena meanwhile.
func (a *Arena) Reset() {
	for shard := range a.retired {
		for i := range a.retired[shard].copies {
			c := &a.retired[shard].copies[i]
			c.seal.Store(sealOf(shard, 0))
			c.lsn.Store(0)
		}
	}
}
