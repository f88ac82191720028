package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"trivet/inject"
)

// ErrCrashed is wrapped by the errors of a disk whose machine has lost power or
// whose process was killed, in a simulation.
var ErrCrashed = errors.New("the machine has crashed")

// FaultyOptions modify Faulty.
type FaultyOptions struct {
	// Pause carries out a Delay or Hang; an error fails the operation. nil
	// waits in real time, a hang until its rule is removed.
	Pause func(inject.Action) error
	// Crash carries out a crash, before the operation that met it; if it
	// returns, the operation fails with ErrCrashed. nil kills the process.
	Crash func()
}

// FaultyFS is another FS with the faults of a Set. Files under log/ have the
// sites
//
//	log.append     Write               op=write
//	log.sync       Sync                op=sync
//	               a durable Write     op=sync, after log.append
//	segment.read   Read                op=read
//	segment.alloc  Create, Zero,       op=create, op=zero
//	               Allocate            op=allocate
//	reclaim        Reclaim             op=clean
//	checkpoint     Checkpoint          op=commit
//
// Files whose name begins with superblock have the site superblock for all of
// these. Everything else (open, remove, list, mkdir, usage, lock, size, and all
// other files) is met only by rules for the site any, so that a slot can be dead
// altogether. Close never fails. Block filters are in blocks of the file.
//
// What the effects do: an error leaves the disk as it was, except at a sync,
// where everything of the file that is not durable is as good as lost (Memory
// keeps account of that) and a durable Write has still written its bytes. torn
// lets a part of the sectors land, at Create an empty file, and fails with EIO.
// lost, misdirect (by a block: to the next, at the file's end to the one before,
// in a file without another to nowhere) and flip report success. A lost sync
// made nothing durable. An effect that an operation cannot have, such as lost at
// a read of the superblock, does not meet it.
type FaultyFS struct {
	inner FS
	set   *inject.Set
	slot  int
	opt   FaultyOptions
}

// Faulty wraps inner, the directory of a slot, with the faults of set. While
// the set is empty an operation costs an atomic load or two more.
func Faulty(inner FS, set *inject.Set, slot int, opt FaultyOptions) *FaultyFS {
	if opt.Pause == nil {
		opt.Pause = func(a inject.Action) error { return a.Wait(context.Background()) }
	}
	if opt.Crash == nil {
		opt.Crash = killSelf
	}
	return &FaultyFS{inner: inner, set: set, slot: slot, opt: opt}
}

// FailNth wraps inner so that its n-th fallible operation, counted from 0, fails
// with errno, once. Tests run their scenario with n = 0, 1, 2, … until reached
// returns false: then nothing failed, and every place where it could has been
// tried. A durable Write counts as two, its write and its sync.
func FailNth(inner FS, n uint64, errno syscall.Errno) (faulty *FaultyFS, reached func() bool) {
	set := inject.NewSet(n, func() time.Time { return time.Time{} }) // no rule here asks for the time
	id, err := set.Add(inject.Rule{Site: inject.Any, Nth: n + 1, Effect: inject.Error, Errno: errno})
	if err != nil {
		panic(fmt.Sprintf("disk: FailNth: %v", err))
	}
	return Faulty(inner, set, 0, FaultyOptions{}), func() bool { return set.Hits(id) > 0 }
}

// killSelf ends the process the way a crash does: nothing deferred runs.
func killSelf() {
	unix.Kill(os.Getpid(), unix.SIGKILL)
	select {} // the signal is under way
}

// sites are the sites of one file's operations.
type sites struct{ append, sync, read, alloc inject.Site }

func sitesOf(name string) sites {
	switch {
	case strings.HasPrefix(name, "log/"):
		return sites{inject.LogAppend, inject.LogSync, inject.SegmentRead, inject.SegmentAlloc}
	case strings.HasPrefix(name, "superblock"):
		return sites{inject.Superblock, inject.Superblock, inject.Superblock, inject.Superblock}
	}
	return sites{}
}

// operation is something that rules can meet.
type operation struct {
	op          string
	site        inject.Site
	name        string // of the file
	off, length int64  // bytes, multiples of BlockSize
}

// able is what an operation can carry out beside what all can. Without it a
// rule for the superblock would be hit, and do nothing, at an operation that has
// no such effect.
var able = map[string]inject.Effects{
	"write":  inject.EffectsOf(inject.Torn, inject.Lost, inject.Misdirect, inject.Flip),
	"sync":   inject.EffectsOf(inject.Lost),
	"read":   inject.EffectsOf(inject.Misdirect, inject.Flip),
	"create": inject.EffectsOf(inject.Torn),
	"zero":   inject.EffectsOf(inject.Torn),
}

// meet asks the set about an operation and carries out what is the same
// everywhere. What is left for the caller is in the Action; an error ends the
// operation.
func (f *FaultyFS) meet(o operation) (inject.Action, error) {
	if f.set.Empty() {
		return inject.Action{}, nil
	}
	a := f.set.Check(inject.Point{
		Site: o.site, Op: o.op, Slot: f.slot, Shard: inject.Unknown,
		Block: uint64(o.off / BlockSize), Blocks: uint64(o.length / BlockSize), Able: able[o.op],
	})
	var err error
	switch a.Effect {
	case inject.Delay, inject.Hang:
		err = f.opt.Pause(a)
	case inject.Error:
		err = a.Errno
	case inject.Crash:
		f.opt.Crash()
		err = ErrCrashed
	default:
		return a, nil
	}
	if err != nil {
		return inject.Action{}, o.injected(a, err)
	}
	return inject.Action{}, nil
}

// injected is the error with which a rule fails an operation.
func (o operation) injected(a inject.Action, err error) error {
	return fmt.Errorf("%s %s at %d: %v of rule %d: %w", o.op, o.name, o.off, a.Effect, a.Rule, err)
}

// Reclaim meets the rules for a step of reclaim, which does more than one
// operation on files. An error fails the step.
func (f *FaultyFS) Reclaim() error {
	_, err := f.meet(operation{op: "clean", site: inject.Reclaim, name: "segments"})
	return err
}

// Checkpoint meets the rules for a commit to the slot's metadata store, which is no
// file of this FS. An error fails the commit before it begins.
func (f *FaultyFS) Checkpoint() error {
	_, err := f.meet(operation{op: "commit", site: inject.Checkpoint, name: "metadata"})
	return err
}

// other meets the rules at an operation that has no site of its own.
func (f *FaultyFS) other(op, name string) error {
	_, err := f.meet(operation{op: op, name: name})
	return err
}

// Create implements FS.
func (f *FaultyFS) Create(name string, sizeBytes int64) (File, error) {
	o := operation{op: "create", site: sitesOf(name).alloc, name: name}
	a, err := f.meet(o)
	if err != nil {
		return nil, err
	}
	if a.Effect == inject.Torn {
		return nil, f.createTorn(o, a)
	}
	file, err := f.inner.Create(name, sizeBytes)
	if err != nil {
		return nil, err
	}
	return f.wrap(name, file), nil
}

// createTorn leaves what a crash in the middle of Create can leave.
func (f *FaultyFS) createTorn(o operation, a inject.Action) error {
	file, err := f.inner.Create(o.name, 0)
	if err != nil {
		return err
	}
	return errors.Join(o.injected(a, unix.EIO), file.Close())
}

// Open implements FS.
func (f *FaultyFS) Open(name string) (File, error) {
	if err := f.other("open", name); err != nil {
		return nil, err
	}
	file, err := f.inner.Open(name)
	if err != nil {
		return nil, err
	}
	return f.wrap(name, file), nil
}

func (f *FaultyFS) wrap(name string, file File) File {
	return &faultyFile{fs: f, name: name, sites: sitesOf(name), inner: file}
}

// Remove implements FS.
func (f *FaultyFS) Remove(name string) error {
	if err := f.other("remove", name); err != nil {
		return err
	}
	return f.inner.Remove(name)
}

// Rename implements FS.
func (f *FaultyFS) Rename(from, to string) error {
	if err := f.other("rename", from); err != nil {
		return err
	}
	return f.inner.Rename(from, to)
}

// List implements FS.
func (f *FaultyFS) List(dir string) ([]string, error) {
	if err := f.other("list", dir); err != nil {
		return nil, err
	}
	return f.inner.List(dir)
}

// MkdirAll implements FS.
func (f *FaultyFS) MkdirAll(dir string) error {
	if err := f.other("mkdir", dir); err != nil {
		return err
	}
	return f.inner.MkdirAll(dir)
}

// Usage implements FS.
func (f *FaultyFS) Usage() (freeBytes, totalBytes int64, err error) {
	if err := f.other("usage", "."); err != nil {
		return 0, 0, err
	}
	return f.inner.Usage()
}

// Lock implements FS.
func (f *FaultyFS) Lock(name string) (io.Closer, error) {
	if err := f.other("lock", name); err != nil {
		return nil, err
	}
	return f.inner.Lock(name)
}
