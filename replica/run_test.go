package replica

import (
	"context"
	"errors"
	"syscall"
	"testing"

	"trivet/disk"
	"trivet/journal"
	"trivet/meta"
)

// scripted is a file whose reads do what is written, one after another.
type scripted struct {
	disk.File
	reads []func(bufs [][]byte) error
}

func (f *scripted) Read(bufs [][]byte, _ int64) error {
	read := f.reads[0]
	f.reads = f.reads[1:]
	return read(bufs)
}

func (*scripted) Close() error { return nil }

// TestRotBehindError: two blocks cannot be read in one go; by themselves, one
// is rotten and cannot be read again, the other can be read. The first must not
// pass for read.
func TestRotBehindError(t *testing.T) {
	s, _ := testSlot(t)
	fails := func([][]byte) error { return syscall.EIO }
	holds := func(b byte) func([][]byte) error {
		return func(bufs [][]byte) error { bufs[0][0] = b; return nil }
	}
	s.handles[0] = &scripted{reads: []func([][]byte) error{fails, holds(9), fails, holds(2)}}
	blocks := make([]journal.ReadBlock, 2)
	for i := range blocks {
		b := disk.Alloc(journal.BlockSize)
		b[0] = byte(i + 1)
		blocks[i].Entry = journal.Entry{Block: uint16(2 + i), Content: journal.Data, CRC: journal.Checksum(b)}
		blocks[i].Buf = disk.Alloc(journal.BlockSize)
	}
	s.readBlocks(blocks)
	if !errors.Is(blocks[0].Err, syscall.EIO) {
		t.Errorf("a rotten block that cannot be read again: %v", blocks[0].Err)
	}
	if blocks[1].Err != nil || blocks[1].Buf[0] != 2 {
		t.Errorf("its neighbour: %v, %d", blocks[1].Err, blocks[1].Buf[0])
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// hungStore is a metadata store whose commits hang until it is released.
type hungStore struct {
	meta.Store
	entered, release chan struct{}
}

func (s hungStore) Commit(ctx context.Context, name meta.Commit, pairs []meta.Pair) error {
	close(s.entered)
	<-s.release
	return s.Store.Commit(ctx, name, pairs)
}

// TestStatusOfHungStore: who asks for the status does not wait for a commit that
// hangs.
func TestStatusOfHungStore(t *testing.T) {
	s, _ := testSlot(t)
	before := s.CheckpointSequence()
	hung := hungStore{s.store, make(chan struct{}), make(chan struct{})}
	s.store = hung
	done := make(chan error)
	go func() { done <- s.commit(nil) }()
	<-hung.entered
	if got := s.CheckpointSequence(); got != before {
		t.Errorf("checkpoint %d while it is being made, %d before", got, before)
	}
	close(hung.release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := s.CheckpointSequence(); got != before+1 {
		t.Errorf("checkpoint %d after %d", got, before)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
