package device

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/bits"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"trivet/arena"
	"trivet/cache"
	"trivet/disk"
	"trivet/inject"
	"trivet/journal"
	"trivet/meta"
	"trivet/reclaim"
	"trivet/replica"
	"trivet/shard"
)

// ErrNoVolume: the directories hold no volume, and no size was given.
var ErrNoVolume = errors.New("no volume here")

// Options are how a volume is opened or made. Zero values are defaults.
type Options struct {
	Dir      string         // of the volume
	Slots    map[int]string // directories of slots that are not Dir/slot-ID
	Name     string
	Size     uint64 // bytes; makes the volume when there is none
	Replicas int    // 1 or 3; default 3 for a new volume
	Shards   int    // default: the number of cores, at least 2
	ArenaDir string
	Memory   uint64        // bytes for arena, map pages and block cache
	Deadline time.Duration // of a request; default 20 s
	Survivor int           // see replica.Options
	Faults   *inject.Set   // may be nil
	Log      *slog.Logger
	// HelperCommand starts the metadata helper; default: this program.
	HelperCommand []string
	// ReclaimAlways cleans segments whether or not space is short, for tests.
	ReclaimAlways bool
	// ReturnAfter is how long a slot that takes no part is left alone before it
	// is tried again; default 5 s.
	ReturnAfter time.Duration

	// pause waits between two tries to take a lock; tests need not.
	pause func(context.Context, time.Duration) error
}

// The defaults.
const (
	defaultDeadline = 20 * time.Second
	replayBytes     = 256 << 20
	stallAfter      = 4 * time.Second

	// A server that was killed holds its locks until the kernel has taken it
	// apart; one that is started right after it waits that long in all.
	lockPause = 50 * time.Millisecond
	lockTries = 40
)

// Open opens the volume, or makes it. It returns when everything that was
// acknowledged is served again.
func Open(ctx context.Context, opt Options) (*Device, error) {
	if opt.Deadline == 0 {
		opt.Deadline = defaultDeadline
	}
	if opt.ReturnAfter == 0 {
		opt.ReturnAfter = defaultReturn
	}
	if opt.pause == nil {
		opt.pause = pause
	}
	d := &Device{opt: opt, epoch: time.Now(), events: &events{log: opt.Log}, drained: make(chan struct{}, 1)}
	d.returns.wake = make(chan struct{}, 1)
	d.parts.New = func() any {
		p := new(part)
		p.Done = func(*shard.Part) { p.done() }
		return p
	}
	dirs, err := d.directories()
	if err != nil {
		return nil, err
	}
	d.dirs = dirs
	if err := d.openSlots(ctx, dirs); err != nil {
		return nil, errors.Join(err, d.abandon())
	}
	if err := d.activate(); err != nil {
		return nil, errors.Join(err, d.abandon())
	}
	d.pruneArenas()
	d.returns.start(d)
	return d, nil
}

// directories returns the slots' directories by ID. The number of replicas is
// that of the volume, or what was asked for.
func (d *Device) directories() ([]string, error) {
	o := &d.opt
	dir := func(i int) string {
		if o.Slots[i] != "" {
			return o.Slots[i]
		}
		return filepath.Join(o.Dir, fmt.Sprintf("slot-%d", i))
	}
	found := 0
	var unreadable error
	for i := range journal.MaxSlots {
		super, err := inspectSlot(dir(i))
		if super != nil {
			found = int(super.Replicas)
			break
		}
		if err != nil && unreadable == nil {
			unreadable = fmt.Errorf("slot %d in %s: %w", i, dir(i), err)
		}
	}
	switch {
	case found == 0 && unreadable != nil: // there may be a volume: none is made over it
		return nil, unreadable
	case found == 0 && o.Size == 0:
		return nil, ErrNoVolume
	case found == 0 && o.Replicas == 0:
		found = journal.MaxSlots
	case found == 0:
		found = o.Replicas
	case o.Replicas != 0 && o.Replicas != found:
		return nil, fmt.Errorf("the volume in %s has %d replicas, not %d", o.Dir, found, o.Replicas)
	}
	o.Replicas = found
	dirs := make([]string, found)
	for i := range dirs {
		dirs[i] = dir(i)
	}
	return dirs, nil
}

// inspectSlot returns the superblock in a directory, nil when there is none and
// never was.
func inspectSlot(dir string) (*journal.Superblock, error) {
	files, err := disk.Real(dir, disk.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return replica.Inspect(files)
}

// geometry is that of the volume that exists, or of the one to be made.
func (d *Device) geometry(dirs []string) (g replica.Geometry, err error) {
	for _, dir := range dirs {
		if super, err := inspectSlot(dir); err == nil && super != nil {
			g = replica.Geometry{
				Volume: super.Volume, Name: super.Name, SizeBytes: super.SizeBytes, Replicas: int(super.Replicas),
				Shards: int(super.Shards), SegmentBlocks: super.SegmentBlocks,
			}
			return g, d.agrees(g)
		}
	}
	o := &d.opt
	g = replica.Geometry{
		Name: o.Name, SizeBytes: o.Size, Replicas: o.Replicas, Shards: o.Shards,
		SegmentBlocks: replica.SegmentBlocksFor(o.Size),
	}
	if g.Shards == 0 {
		g.Shards = max(2, 1<<bits.Len(uint(runtime.NumCPU()-1)))
	}
	if _, err := rand.Read(g.Volume[:]); err != nil {
		return g, fmt.Errorf("make a volume ID: %w", err)
	}
	return g, g.Validate()
}

// agrees refuses options that contradict the volume.
func (d *Device) agrees(g replica.Geometry) error {
	o := &d.opt
	switch {
	case o.Size != 0 && o.Size != g.SizeBytes:
		return fmt.Errorf("the volume in %s has %d bytes, not %d; its size is fixed", o.Dir, g.SizeBytes, o.Size)
	case o.Shards != 0 && o.Shards != g.Shards:
		return fmt.Errorf("the volume in %s has %d shards, not %d; their number is fixed", o.Dir, g.Shards, o.Shards)
	}
	return nil
}

// openSlots opens or makes every slot and brings them together.
func (d *Device) openSlots(ctx context.Context, dirs []string) (err error) {
	g, err := d.geometry(dirs)
	if err != nil {
		return err
	}
	d.info = Info{Name: g.Name, SizeBytes: g.SizeBytes}
	locks := &patience{ctx: ctx, pause: d.opt.pause, tries: lockTries}
	arenas := d.arenaOptions(g)
	assembly := replica.Assembly{
		Replicas: len(dirs),
		Options: replica.Options{
			CheckpointBytes: int64(replayBytes / g.Shards), MapBytes: int(d.opt.mapBytes()) / (g.Shards * g.Replicas),
			Policy:   reclaim.Policy{Constantly: d.opt.ReclaimAlways},
			Survivor: d.opt.Survivor, Parallel: true, Log: d.events.note,
		},
		OpenSlot: func(id int) (s *replica.Slot, err error) {
			err = locks.take(func() error { s, err = d.openSlot(id, dirs[id], g); return err })
			return s, err
		},
		SetAside: func(ids []int, _ []error) error {
			for _, id := range ids {
				if err := setAside(dirs[id]); err != nil {
					return err
				}
			}
			return nil
		},
		OpenArena: func() (a *arena.Arena, err error) {
			err = locks.take(func() error { a, err = arena.Open(arenas); return err })
			return a, err
		},
		ArenaAside: func(why error) error { return d.setArenaAside(arenas, why) },
	}
	if d.group, d.held, err = assembly.Open(ctx); err != nil {
		return err
	}
	d.arena = d.held.Arena
	return nil
}

// setAside moves what a slot's directory holds into a directory of its own
// there, so that nothing is lost and the slot is blank. The superblock goes
// first: when the rest is cut short, the next start finds it lost.
func setAside(dir string) error {
	aside := filepath.Join(dir, replica.AsidePrefix+time.Now().UTC().Format("20060102T150405.000000000"))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	names := []string{journal.SuperblockFile}
	for _, e := range entries {
		if name := e.Name(); name != journal.SuperblockFile && name != "lost+found" && !strings.HasPrefix(name, replica.AsidePrefix) {
			names = append(names, name)
		}
	}
	if err := os.Mkdir(aside, 0o700); err != nil {
		return err
	}
	for _, name := range names {
		err := os.Rename(filepath.Join(dir, name), filepath.Join(aside, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// patience waits for locks, up to a number of tries over all of them.
type patience struct {
	ctx   context.Context
	pause func(context.Context, time.Duration) error
	tries int
}

// take calls open again as long as what it opens is locked.
func (p *patience) take(open func() error) error {
	err := open()
	for ; p.tries > 0 && (errors.Is(err, replica.ErrInUse) || errors.Is(err, arena.ErrLocked)); p.tries-- {
		if err := p.pause(p.ctx, lockPause); err != nil {
			return err
		}
		err = open()
	}
	return err
}

// pause waits, or returns the context's error when that ends first.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *Device) openSlot(id int, dir string, g replica.Geometry) (*replica.Slot, error) {
	real, err := disk.Real(dir, disk.Options{Create: true})
	if err != nil {
		return nil, err
	}
	var files disk.FS = real
	if d.opt.Faults != nil {
		files = disk.Faulty(real, d.opt.Faults, id, disk.FaultyOptions{})
	}
	s, made, err := replica.OpenSlot(files, slotID(id), dir, g)
	if err != nil {
		return nil, err
	}
	if made {
		d.events.note(id, "a blank slot was made in "+dir, nil)
	}
	store, err := meta.StartHelper(meta.HelperOptions{Dir: filepath.Join(dir, "meta"), Command: d.opt.HelperCommand})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("slot %d: metadata: %w", id, err), s.Close())
	}
	s.Attach(store)
	return s, nil
}

func slotID(i int) journal.SlotID { return journal.SlotID(i) }

// activate makes the shards, gives them what outlived the server, and begins
// the generation.
func (d *Device) activate() error {
	g := d.group
	d.arenaKind, d.arenaNote, d.arenaPages = d.arena.Kind().String(), d.arena.Note(), uint64(d.arena.Pages())
	if d.arena.Kind() != arena.TmpFS {
		d.events.note(-1, d.arenaNote, nil)
	}
	if err := d.reserve(); err != nil {
		return err
	}
	// The arena first: what it holds is believed only if no later generation
	// was started. A slot that cannot store the start is closed, so nobody may
	// use it yet.
	d.arena.SetGeneration(uint64(g.Generation))
	if err := g.Start(); err != nil {
		return err
	}
	frames := d.memory.Carve(g.Shards)
	live := make([]bool, g.Replicas)
	d.engines = make([]*replica.Engine, g.Replicas)
	slots := make([]shard.Slot, g.Replicas)
	for i, s := range g.Slots {
		if s != nil {
			d.engines[i] = replica.StartEngine(s)
			slots[i], live[i] = d.engines[i], true
		}
	}
	d.membership = replica.NewMembership(live, g.Quorum())
	d.door = door{device: d}
	d.door.start()
	for i := range g.Shards {
		host := shard.NewSystemHost(d.epoch)
		s := shard.New(shard.Config{
			Index: uint16(i), Generation: g.Generation, Arena: d.arena, Cache: cache.New(frames[i]),
			Window: journal.NewWindow(g.Starts[i], 2*d.arena.Pages()+1024, d.arena.Pages()),
			Slots:  slots, Quorum: g.Quorum(), StallAfter: stallAfter, FailAfter: d.opt.Deadline,
			Faulted: func(slot journal.SlotID, lost bool, err error) { d.slotFaulted(int(slot), lost, err) },
			Rotten:  d.repair,
			Event:   d.events.note,
		}, g.Lanes[i], host)
		host.Start(s)
		d.hosts, d.shards = append(d.hosts, host), append(d.shards, s)
	}
	d.adoptRecords()
	for _, s := range d.shards {
		s.Tick()
	}
	g.EachRotten(func(i, slot int, lba journal.LBA) { d.readRotten(d.shards[i], slot, lba) })
	return nil
}

// reserve maps the block cache: nothing of it is touched before it is used.
func (d *Device) reserve() error {
	d.cacheBytes = d.opt.cacheShare(uint64(d.arena.Pages())*arena.PageSize, d.info.SizeBytes)
	memory, err := cache.Reserve(int64(d.cacheBytes))
	d.memory = memory
	return err
}

func physicalMemory() uint64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 1 << 30
	}
	return info.Totalram * uint64(info.Unit)
}

// repair repairs a block that the cleaner could not read in a slot, unless the
// device is closing: whoever reads it next does.
func (d *Device) repair(slot int, lba journal.LBA) {
	if d.enter() {
		d.readRotten(d.shards[d.shardOf(uint64(lba)*blockBytes)], slot, lba)
		d.exit()
	}
}

// readRotten reads a block from the slot in which it is rotten, which writes it
// anew with what another slot has.
func (d *Device) readRotten(s *shard.Shard, slot int, lba journal.LBA) {
	s.Submit(&shard.Part{
		Op: shard.Cache, LBA: lba, Length: blockBytes, Prefer: slot + 1,
		Done: func(p *shard.Part) {
			if p.Err != nil {
				d.events.note(slot, fmt.Sprintf("block %d is rotten and no slot has it", p.LBA), p.Err)
			}
		},
	})
}

// abandon releases what a failed Open had got hold of.
func (d *Device) abandon() error {
	var errs []error
	for _, h := range d.hosts {
		h.Close()
	}
	if d.door.wake != nil {
		d.door.close()
	}
	for _, e := range d.engines {
		if e != nil {
			e.Close(closeWait)
		}
	}
	if d.group != nil {
		errs = append(errs, d.group.Close())
	}
	if d.arena != nil {
		errs = append(errs, d.arena.Close())
	}
	if d.memory != nil {
		errs = append(errs, d.memory.Close())
	}
	return errors.Join(errs...)
}
