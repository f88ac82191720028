package device

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"trivet/inject"
	"trivet/meta"
)

// TestMain also is the metadata helper of the slots under test.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "meta-helper" {
		os.Exit(meta.HelperMain(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

// volume is a volume on real files, opened again and again.
type volume struct {
	*Device
	t      *testing.T
	opt    Options
	faults *inject.Set
}

// newVolume makes and opens a volume of 64 MiB with little memory.
func newVolume(t *testing.T, change func(*Options)) *volume {
	t.Helper()
	t.Parallel() // they wait for budgets and deadlines more than they compute
	shm, err := os.MkdirTemp("/dev/shm", "trivet-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(shm) })
	faults := inject.NewSet(1, time.Now)
	v := &volume{t: t, faults: faults, opt: Options{
		Dir: t.TempDir(), Name: "test", Size: 64 << 20, Shards: 2, ArenaDir: shm, Memory: 16 << 20,
		Faults: faults, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}}
	if change != nil {
		change(&v.opt)
	}
	v.open()
	t.Cleanup(func() {
		v.faults.Clear()
		if v.Device != nil {
			v.close()
		}
	})
	return v
}

func (v *volume) open() {
	v.t.Helper()
	d, err := Open(context.Background(), v.opt)
	if err != nil {
		v.t.Fatal(err)
	}
	v.Device = d
}

// close closes the volume; nothing may be left in flight or in the arena
// unless the device has stopped.
func (v *volume) close() {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	d := v.Device
	v.Device = nil
	if err := d.Close(ctx); err != nil {
		if d.stopped.Load() == nil {
			v.t.Errorf("close: %v", err)
		}
		return
	}
	if n := d.Inflight(); len(n) > 0 {
		v.t.Errorf("%d parts are in flight after close", len(n))
	}
	if leaked := int(d.arenaPages) - d.arena.FreePages(); leaked != 0 {
		v.t.Errorf("%d pages of the arena were not given back", leaked)
	}
}

func (v *volume) reopen() {
	v.t.Helper()
	v.close()
	v.open()
}

// rule puts a fault in force.
func (v *volume) rule(text string) inject.ID {
	v.t.Helper()
	rule, err := inject.Parse(text)
	if err != nil {
		v.t.Fatal(err)
	}
	id, err := v.faults.Add(rule)
	if err != nil {
		v.t.Fatal(err)
	}
	return id
}

// do submits a request and waits for it.
func (v *volume) do(r *Request) error {
	done := make(chan struct{})
	r.Done = func(*Request) { close(done) }
	v.Submit(r)
	<-done
	return r.Err
}

func (v *volume) write(at uint64, data []byte, flags Flags) error {
	return v.do(&Request{Op: Write, Offset: at, Length: uint32(len(data)), Data: data, Flags: flags})
}

func (v *volume) flush() error { return v.do(&Request{Op: Flush}) }

func (v *volume) read(at uint64, n int) ([]byte, error) {
	b := make([]byte, n)
	err := v.do(&Request{Op: Read, Offset: at, Length: uint32(n), Data: b})
	return b, err
}

// must fails the test on an error.
func (v *volume) must(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
}

// expect reads and compares.
func (v *volume) expect(at uint64, want []byte) {
	v.t.Helper()
	got, err := v.read(at, len(want))
	if err != nil {
		v.t.Fatalf("read %d bytes at %d: %v", len(want), at, err)
	}
	if !bytes.Equal(got, want) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		v.t.Fatalf("read %d bytes at %d: byte %d is %#x, expected %#x", len(want), at, i, got[i], want[i])
	}
}

// live returns which slots take part.
func (v *volume) live() (live []bool) { return v.membership.Live() }

// replace makes a slot anew on an operator's word, and waits until it has everything.
func (v *volume) replace(slot int) {
	v.t.Helper()
	v.must(v.ReplaceSlot(context.Background(), slot, ""))
	v.back(slot)
}

// back waits until a slot takes part.
func (v *volume) back(slot int) {
	v.t.Helper()
	for deadline := time.Now().Add(time.Minute); !v.live()[slot]; v.Snapshot() {
		if time.Now().After(deadline) {
			v.t.Fatalf("slot %d did not come back: %+v", slot, v.Events())
		}
	}
}

// pattern is n bytes that differ by seed and place.
func pattern(seed, n int) []byte {
	var block [4096]byte
	for i := range block {
		block[i] = byte(seed*31 + i/7)
	}
	b := make([]byte, n)
	for at := 0; at < n; at += len(block) {
		block[0], block[100] = byte(at>>12), byte(at>>20)
		copy(b[at:], block[:])
	}
	return b
}
