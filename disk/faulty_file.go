package disk

import (
	"golang.org/x/sys/unix"

	"trivet/inject"
)

// loser is implemented by files that can model a failed sync: what was not
// durable reads as written, and no later sync makes it durable.
type loser interface{ loseUnsynced() }

// faultyFile is a file of a FaultyFS. Its owner's and readers' rules are those
// of the inner file.
type faultyFile struct {
	fs    *FaultyFS
	name  string
	sites sites
	inner File
}

// loseUnsynced implements loser for a Faulty around a Faulty. Files that
// cannot model it (those of the host) go without.
func (f *faultyFile) loseUnsynced() {
	if l, ok := f.inner.(loser); ok {
		l.loseUnsynced()
	}
}

// Write implements File.
func (f *faultyFile) Write(bufs [][]byte, off int64, durable bool) error {
	if f.fs.set.Empty() || CheckAligned(bufs, off) != nil {
		return f.inner.Write(bufs, off, durable)
	}
	o := operation{op: "write", site: f.sites.append, name: f.name, off: off, length: total(bufs)}
	appended, err := f.fs.meet(o)
	if err != nil {
		return err
	}
	if durable {
		synced, err := f.fs.meet(operation{op: "sync", site: f.sites.sync, name: f.name, off: off, length: o.length})
		if err != nil {
			return f.writeUnsynced(o, appended, bufs, err)
		}
		durable = synced.Effect != inject.Lost
	}
	return f.write(o, appended, bufs, durable)
}

// writeUnsynced is a durable write whose sync fails: the bytes are in the cache
// and will not leave it.
func (f *faultyFile) writeUnsynced(o operation, a inject.Action, bufs [][]byte, failure error) error {
	if err := f.write(o, a, bufs, false); err != nil {
		return err
	}
	f.loseUnsynced()
	return failure
}

// write carries out the effect of an append.
func (f *faultyFile) write(o operation, a inject.Action, bufs [][]byte, durable bool) error {
	switch a.Effect {
	case inject.Lost:
		return nil
	case inject.Torn:
		sectors := a.Draw % (uint64(o.length)/sectorSize + 1)
		if err := f.writePrefix(bufs, o.off, int64(sectors)*sectorSize); err != nil {
			return err
		}
		return o.injected(a, unix.EIO)
	case inject.Misdirect:
		elsewhere, exists := f.astray(o)
		if !exists {
			return nil
		}
		return f.inner.Write(bufs, elsewhere, durable)
	case inject.Flip:
		bufs = [][]byte{flatten(bufs)}
		flip(a, bufs, o.off)
	}
	return f.inner.Write(bufs, o.off, durable)
}

// writePrefix writes the first length bytes, whole sectors: the blocks that
// are complete, then one that is part new and part what was there.
func (f *faultyFile) writePrefix(bufs [][]byte, off, length int64) error {
	flat := flatten(bufs)
	whole := length &^ (BlockSize - 1)
	if length > whole {
		last := Alloc(BlockSize)
		if err := f.inner.Read([][]byte{last}, off+whole); err != nil {
			return err
		}
		copy(flat[length:whole+BlockSize], last[length-whole:])
		whole += BlockSize
	}
	return f.inner.Write([][]byte{flat[:whole]}, off, false)
}

// astray returns where an operation ends up that misses by a block; exists is
// false when the file has no such place.
func (f *faultyFile) astray(o operation) (off int64, exists bool) {
	size, err := f.inner.Size()
	if err == nil && o.length <= size-(o.off+BlockSize) {
		return o.off + BlockSize, true
	}
	return o.off - BlockSize, o.off >= BlockSize
}

// Read implements File.
func (f *faultyFile) Read(bufs [][]byte, off int64) error {
	if f.fs.set.Empty() || CheckAligned(bufs, off) != nil {
		return f.inner.Read(bufs, off)
	}
	o := operation{op: "read", site: f.sites.read, name: f.name, off: off, length: total(bufs)}
	a, err := f.fs.meet(o)
	if err != nil {
		return err
	}
	if a.Effect == inject.Misdirect {
		return f.readAstray(o, bufs)
	}
	err = f.inner.Read(bufs, off)
	if err == nil && a.Effect == inject.Flip {
		flip(a, bufs, off)
	}
	return err
}

func (f *faultyFile) readAstray(o operation, bufs [][]byte) error {
	elsewhere, exists := f.astray(o)
	if exists {
		return f.inner.Read(bufs, elsewhere)
	}
	for _, b := range bufs {
		clear(b)
	}
	return nil
}

// Sync implements File.
func (f *faultyFile) Sync() error {
	a, err := f.fs.meet(operation{op: "sync", site: f.sites.sync, name: f.name})
	if err != nil {
		f.loseUnsynced()
		return err
	}
	if a.Effect == inject.Lost {
		return nil
	}
	return f.inner.Sync()
}

// Deallocate implements File.
func (f *faultyFile) Deallocate(off, length int64) error {
	if err := f.fs.other("deallocate", f.name); err != nil {
		return err
	}
	return f.inner.Deallocate(off, length)
}

// Allocate implements File.
func (f *faultyFile) Allocate(off, length int64) error {
	o := operation{op: "allocate", site: f.sites.alloc, name: f.name, off: off, length: length}
	if _, err := f.fs.meet(o); err != nil {
		return err
	}
	return f.inner.Allocate(off, length)
}

// Zero implements File.
func (f *faultyFile) Zero(off, length int64) error {
	if f.fs.set.Empty() || off%BlockSize != 0 || length%BlockSize != 0 {
		return f.inner.Zero(off, length)
	}
	o := operation{op: "zero", site: f.sites.alloc, name: f.name, off: off, length: length}
	a, err := f.fs.meet(o)
	if err != nil {
		return err
	}
	if a.Effect != inject.Torn {
		return f.inner.Zero(off, length)
	}
	blocks := a.Draw % (uint64(length)/BlockSize + 1)
	if err := f.inner.Zero(off, int64(blocks)*BlockSize); err != nil {
		return err
	}
	return o.injected(a, unix.EIO)
}

// Size implements File.
func (f *faultyFile) Size() (int64, error) {
	if err := f.fs.other("size", f.name); err != nil {
		return 0, err
	}
	return f.inner.Size()
}

// Close implements File.
func (f *faultyFile) Close() error { return f.inner.Close() }

// flip inverts the bit that the action draws, in the blocks that it names.
func flip(a inject.Action, bufs [][]byte, off int64) {
	if a.Blocks == 0 {
		return
	}
	bit := int64(a.Draw % (a.Blocks * BlockSize * 8))
	at := int64(a.Block)*BlockSize - off + bit/8
	for _, b := range bufs {
		if at < int64(len(b)) {
			b[at] ^= 1 << (bit % 8)
			return
		}
		at -= int64(len(b))
	}
}

// flatten copies the buffers into one. The caller's are shared with other
// slots and are not to be touched.
func flatten(bufs [][]byte) []byte {
	flat := Alloc(int(total(bufs)))
	at := 0
	for _, b := range bufs {
		at += copy(flat[at:], b)
	}
	return flat
}
