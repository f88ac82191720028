package disk_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"trivet/disk"
	"trivet/inject"
)

// reaper is an asynchronous queue and what came back from it.
type reaper struct {
	*disk.Async
	mu   sync.Mutex // guards got
	got  map[any]error
	came sync.Cond
	done sync.WaitGroup
}

// newReaper makes a queue on which a goroutine reaps until the test ends.
func newReaper(t *testing.T, depth int) *reaper {
	t.Helper()
	async, err := disk.NewAsync(depth)
	if err != nil {
		t.Skipf("the kernel has no asynchronous I/O for us: %v", err)
	}
	r := &reaper{Async: async, got: make(map[any]error)}
	r.came.L = &r.mu
	r.startReap(t)
	t.Cleanup(func() {
		must(t, r.Close())
		r.done.Wait()
	})
	return r
}

func (r *reaper) startReap(t *testing.T) {
	r.done.Go(func() {
		wantErr(t, "the end of Reap", r.Reap(func(user any, err error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if _, twice := r.got[user]; twice {
				t.Errorf("%v came back twice", user)
			}
			r.got[user] = err
			r.came.Broadcast()
		}), os.ErrClosed)
	})
}

// await waits until the operation came back, and forgets it.
func (r *reaper) await(user any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if err, ok := r.got[user]; ok {
			delete(r.got, user)
			return err
		}
		r.came.Wait()
	}
}

// write writes durably, as lanes do: what the kernel refuses, or would have had
// to wait for, is written in the usual way. It tells which it was.
func (r *reaper) write(f disk.File, bufs [][]byte, off int64, user any) (async bool, err error) {
	if r.Write(f, bufs, off, user) {
		err := r.await(user)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return true, err
		}
	}
	return false, f.Write(bufs, off, true)
}

func directFS(t *testing.T) (*disk.RealFS, string) {
	t.Helper()
	dir := t.TempDir()
	fs := realFS(t, dir)
	if !fs.Direct() {
		t.Skip("no direct I/O in", dir)
	}
	return fs, dir
}

// TestAsyncWrites writes from many goroutines at once, each to its own handle,
// as lanes do, reads everything back through the queue, and compares it with
// what the files hold when they are opened again.
func TestAsyncWrites(t *testing.T) {
	const writers, rounds, span = 16, 40, 8
	fs, _ := directFS(t)
	must(t, create(t, fs, "log", writers*span*bs).Zero(0, writers*span*bs))
	r := newReaper(t, 8) // fewer than writers: some find no slot
	var all sync.WaitGroup
	var mu sync.Mutex
	var inKernel int
	for w := range writers {
		f := reopen(t, fs, "log")
		all.Go(func() {
			for round := range rounds {
				bufs := [][]byte{blocks(span/2, byte(w)), blocks(span/4, byte(round)), blocks(span/4, byte(w+round))}
				async, err := r.write(f, bufs, int64(w*span*bs), [2]int{w, round})
				if err != nil {
					t.Errorf("writer %d: %v", w, err)
				}
				mu.Lock()
				if async {
					inKernel++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	t.Logf("%d of %d writes were the kernel's", inKernel, writers*rounds)
	if inKernel == 0 {
		t.Error("no write was: this proves nothing")
	}
	again := reopen(t, fs, "log")
	for w := range writers {
		want := append(append(blocks(span/2, byte(w)), blocks(span/4, rounds-1)...), blocks(span/4, byte(w+rounds-1))...)
		for i := range span { // each block for itself, for they differ
			wantBytes(t, "a file that was opened again", read(t, again, int64((w*span+i)*bs), bs), want[i*bs:(i+1)*bs])
		}
	}
}

// TestAsyncReads reads from many goroutines, more than the queue is deep, in
// batches: what was added comes back exactly once, what was refused had no effect.
func TestAsyncReads(t *testing.T) {
	const readers, rounds, size = 8, 50, 64
	fs, _ := directFS(t)
	f := create(t, fs, "log", size*bs)
	for i := range size {
		write(t, f, int64(i*bs), false, block(byte(i)))
	}
	r := newReaper(t, 16)
	var all sync.WaitGroup
	for g := range readers {
		all.Go(func() {
			batch := r.Batch()
			for round := range rounds {
				var added []int
				bufs := blocks(5, 0xee)
				for i := range 5 {
					at := (g*7 + round*3 + i) % size
					if batch.Add(f, [][]byte{bufs[i*bs : (i+1)*bs]}, int64(at*bs), [3]int{g, round, i}) {
						added = append(added, i)
					}
				}
				batch.Submit(func(user any) { t.Errorf("%v was refused", user) })
				for _, i := range added {
					must(t, r.await([3]int{g, round, i}))
					wantBytes(t, "a read", bufs[i*bs:(i+1)*bs], block(byte((g*7+round*3+i)%size)))
				}
			}
		})
	}
	all.Wait()
	var taken int
	batch := r.Batch()
	for batch.Add(f, [][]byte{block(0)}, 0, taken) {
		taken++
	}
	if taken != 16 {
		t.Errorf("%d operations fit into a queue of 16: slots have leaked", taken)
	}
	batch.Submit(nil)
	for i := range taken {
		must(t, r.await(i))
	}
}

// TestAsyncRefuses: what cannot be done without waiting, or not at all, is
// refused before anything has happened, and keeps nothing.
func TestAsyncRefuses(t *testing.T) {
	fs, dir := directFS(t)
	r := newReaper(t, 4)
	must(t, fs.MkdirAll("log"))
	f := create(t, fs, "log/0", 16*bs)
	batch := r.Batch()
	refused := func(what string, f disk.File, bufs [][]byte, off int64) {
		t.Helper()
		if r.Write(f, bufs, off, what) {
			t.Errorf("write: %s is not refused", what)
			_ = r.await(what)
		}
		if batch.Add(f, bufs, off, what) {
			t.Errorf("read: %s is not refused", what)
			batch.Submit(nil)
			_ = r.await(what)
		}
	}
	refused("a range past the end", f, [][]byte{blocks(2, 1)}, 15*bs)
	refused("an odd offset", f, [][]byte{block(1)}, 512)
	refused("odd memory", f, [][]byte{blocks(2, 1)[1 : bs+1]}, 0)
	refused("too many buffers", f, make([][]byte, disk.MaxAsyncBuffers+1), 0)
	refused("a file in memory", create(t, disk.Memory(1, disk.MemoryOptions{}), "log", bs), [][]byte{block(1)}, 0)

	faults := inject.NewSet(1, time.Now)
	faulty := reopen(t, disk.Faulty(fs, faults, 0, disk.FaultyOptions{}), "log/0")
	if _, err := r.write(faulty, [][]byte{block(7)}, 0, "no rule"); err != nil {
		t.Error(err)
	}
	id, err := faults.Add(inject.Rule{Site: inject.LogAppend, Effect: inject.Error, Errno: unix.EIO})
	must(t, err)
	refused("a file with a rule in force", faulty, [][]byte{block(1)}, 0)
	faults.Remove(id)

	must(t, faulty.Close())
	refused("a closed file", faulty, [][]byte{block(1)}, 0)
	data, err := os.ReadFile(filepath.Join(dir, "log/0"))
	must(t, err)
	wantBytes(t, "the first block", data[:bs], block(7))
	for i := range 4 { // every slot is free
		if !batch.Add(f, [][]byte{block(0)}, 0, i) {
			t.Errorf("slot %d was not given back", i)
		}
	}
	batch.Submit(nil)
	for i := range 4 {
		must(t, r.await(i))
	}
}

// TestAsyncShort: a transfer that comes up short is not taken for a whole one.
func TestAsyncShort(t *testing.T) {
	fs, dir := directFS(t)
	f := create(t, fs, "log", 4*bs)
	write(t, f, 0, true, blocks(4, 5))
	must(t, os.Truncate(filepath.Join(dir, "log"), bs)) // behind the handle's back
	r := newReaper(t, 2)
	batch := r.Batch()
	if !batch.Add(f, [][]byte{blocks(2, 0)}, 0, "short") {
		t.Fatal("refused")
	}
	batch.Submit(func(user any) { t.Errorf("%v was refused", user) })
	wantErr(t, "a read across the end", r.await("short"), io.ErrUnexpectedEOF)
}

// TestAsyncNoWait: a write that needs new blocks of the filesystem fails with
// EAGAIN or is done, and done in the usual way it succeeds.
func TestAsyncNoWait(t *testing.T) {
	fs, dir := directFS(t)
	must(t, os.WriteFile(filepath.Join(dir, "sparse"), nil, 0o600))
	must(t, os.Truncate(filepath.Join(dir, "sparse"), 1<<20))
	f := reopen(t, fs, "sparse")
	r := newReaper(t, 2)
	waits := 0
	for i := range 16 {
		off := int64(i * 16 * bs)
		async, err := r.write(f, [][]byte{block(byte(i + 1))}, off, i)
		must(t, err)
		if !async {
			waits++
		}
		wantBytes(t, "what was written", read(t, f, off, bs), block(byte(i+1)))
	}
	t.Logf("%d of 16 writes into a hole would have had to wait", waits)
}

// TestAsyncClosesFiles: a file that is closed while the kernel has an operation
// of it is closed when that has come back, not before and not never.
func TestAsyncClosesFiles(t *testing.T) {
	fs, _ := directFS(t)
	must(t, create(t, fs, "log", 16*bs).Zero(0, 16*bs))
	r := newReaper(t, 8)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries)
	}
	before := count()
	for i := range 50 {
		f, err := fs.Open("log")
		must(t, err)
		batch := r.Batch()
		buf := blocks(16, 0xee)
		if !batch.Add(f, [][]byte{buf}, 0, i) {
			t.Fatal("refused")
		}
		must(t, f.Close())
		batch.Submit(func(user any) { t.Errorf("%v was refused", user) })
		must(t, r.await(i))
		wantBytes(t, "a read of a file that is being closed", buf, blocks(16, 0))
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// TestAsyncClosed: what is submitted to a queue that is closed is given back.
func TestAsyncClosed(t *testing.T) {
	fs, _ := directFS(t)
	f := create(t, fs, "log", bs)
	async, err := disk.NewAsync(4)
	if err != nil {
		t.Skip(err)
	}
	batch := async.Batch()
	for i := range 3 {
		if !batch.Add(f, [][]byte{block(0)}, 0, i) {
			t.Fatal("refused")
		}
	}
	must(t, async.Close())
	wantErr(t, "Reap of a closed queue", async.Reap(func(user any, err error) { t.Errorf("%v came back: %v", user, err) }), os.ErrClosed)
	var refused []any
	batch.Submit(func(user any) { refused = append(refused, user) })
	if len(refused) != 3 || refused[0] != 0 || refused[2] != 2 {
		t.Errorf("given back: %v, expected 0 to 2", refused)
	}
	if async.Write(f, [][]byte{block(1)}, 0, "late") {
		t.Error("a closed queue takes a write")
	}
	wantBytes(t, "the file", read(t, f, 0, bs), block(0))
}
