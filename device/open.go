package device

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
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
	Replace  uint8         // the same
	// NewIdentity makes the volume, which is a copy, one of its own.
	NewIdentity bool
	// AdoptArena and AcceptLoss are those of replica.Assembly.
	AdoptArena, AcceptLoss bool
	Faults                 *inject.Set // may be nil
	Log                    *slog.Logger
	// HelperCommand starts the metadata helper; default: this program.
	HelperCommand []string
	// ReclaimAlways cleans segments whether or not space is short, for tests.
	ReclaimAlways bool
	// ReturnAfter is how long a slot that takes no part is left alone before it
	// is tried again; default 5 s.
	ReturnAfter time.Duration

	// pause waits between two tries to take a lock; tests need not.
	pause func(context.Context, time.Duration) error
	// moved: the volume is not where its slots say, and nothing is there any more.
	// Tests set it for what a crash would have left.
	moved bool
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
	d.returns.wake, d.returns.orders = make(chan struct{}, 1), make(chan order)
	d.parts.New = func() any {
		p := new(part)
		p.Done = func(*shard.Part) { p.done() }
		return p
	}
	if err := d.openSlots(ctx); err != nil {
		return nil, errors.Join(err, d.abandon())
	}
	if err := d.activate(); err != nil {
		return nil, errors.Join(err, d.abandon())
	}
	if err := d.keepRecord(); err != nil {
		return nil, errors.Join(err, d.abandon())
	}
	d.pruneArenas()
	d.returns.start(d)
	return d, nil
}

// agrees refuses options that contradict the volume.
func (d *Device) agrees(g replica.Geometry) error {
	o := &d.opt
	switch {
	case o.Replicas != 0 && o.Replicas != g.Replicas:
		return fmt.Errorf("the volume in %s has %d replicas, not %d; their number is fixed", o.Dir, g.Replicas, o.Replicas)
	case o.Size != 0 && o.Size != g.SizeBytes:
		return fmt.Errorf("the volume in %s has %d bytes, not %d; its size is fixed", o.Dir, g.SizeBytes, o.Size)
	case o.Shards != 0 && o.Shards != g.Shards:
		return fmt.Errorf("the volume in %s has %d shards, not %d; their number is fixed", o.Dir, g.Shards, o.Shards)
	}
	return nil
}

// openSlots finds the volume, or makes it, opens its slots and brings them
// together.
func (d *Device) openSlots(ctx context.Context) (err error) {
	l, err := d.locate()
	if errors.Is(err, ErrNoVolume) {
		l, err = d.create()
	}
	if err == nil && l.record != nil && l.record.Making {
		err = d.makeSlots(l)
	}
	if err == nil && d.opt.NewIdentity {
		err = d.beginRenaming(l)
	}
	if err != nil {
		return err
	}
	g := l.geometry
	d.layout, d.info = l, Info{Name: g.Name, SizeBytes: g.SizeBytes, Deadline: d.opt.Deadline}
	locks := &patience{ctx: ctx, pause: d.opt.pause, tries: lockTries}
	assembly := replica.Assembly{
		Replicas: g.Replicas,
		Options: replica.Options{
			CheckpointBytes: int64(replayBytes / g.Shards), MapBytes: int(d.opt.mapBytes()) / (g.Shards * g.Replicas),
			Policy:   reclaim.Policy{Constantly: d.opt.ReclaimAlways},
			Survivor: d.opt.Survivor, Replace: d.opt.Replace, Parallel: true, Log: d.events.note,
			Known: d.known(l), Draw: draw, AttachStore: d.attachStore,
			MakeSlot: func(super *journal.Superblock) (*replica.Slot, error) {
				return d.replaceSlot(l.dirs[super.Slot], super)
			},
		},
		OpenSlot: func(id int) (s *replica.Slot, err error) {
			err = locks.take(func() error { s, err = d.openSlot(id, l); return err })
			return s, err
		},
		SetAside: func(ids []int, _ []error) error {
			for _, id := range ids {
				if err := d.blank(id); err != nil {
					return err
				}
			}
			return nil
		},
		OpenArena: func(g replica.Geometry) (a *arena.Arena, err error) {
			err = locks.take(func() error { a, err = arena.Open(d.arenaOptions(g)); return err })
			return a, err
		},
		ArenaAside: func(g replica.Geometry, why error) error { return d.setArenaAside(d.arenaOptions(g), why) },
		AdoptArena: d.opt.AdoptArena, AcceptLoss: d.opt.AcceptLoss,
	}
	if l.record != nil {
		assembly.NewID, assembly.OldID = journal.Volume(l.record.Renaming), journal.Volume(l.record.Volume)
	}
	if d.group, d.held, err = assembly.Open(ctx); err != nil {
		return err
	}
	d.arena = d.held.Arena
	return nil
}

// known is what is known of the volume beside its slots.
func (d *Device) known(l *layout) replica.Known {
	k := replica.Known{Home: d.opt.Dir, Whole: l.whole(), Places: l.places, Recorded: l.recorded, Elsewhere: d.elsewhere}
	switch {
	case d.opt.moved:
		k.Elsewhere = nil
	case l.record == nil:
	case l.record.Renaming != hexID{}: // they are what they were called before, or what they are to be called
		k.Elsewhere = nil
	default:
		k.Volume, k.Members = l.geometry.Volume, l.record.members()
	}
	return k
}

// beginRenaming draws another identity and records it: whatever interrupts its
// taking, the next start goes on with that.
func (d *Device) beginRenaming(l *layout) error {
	if l.record == nil {
		l.record = recordOf(l.geometry, journal.Members{}, l.places)
	}
	if l.record.Renaming != (hexID{}) {
		return nil
	}
	if d.isInMemory(l.geometry.Volume) {
		d.events.note(-1, "what shared memory holds of the original stays with it, and is not in this copy", nil)
	}
	draw(l.record.Renaming[:])
	return l.record.write(d.opt.Dir)
}

// keepRecord makes the record say what the volume has become.
func (d *Device) keepRecord() error {
	d.slotsMu.Lock()
	r := recordOf(d.group.Geometry, d.group.Members, d.group.Places())
	d.slotsMu.Unlock()
	if d.layout.record != nil && reflect.DeepEqual(r, d.layout.record) {
		return nil
	}
	err := os.MkdirAll(d.opt.Dir, 0o755) // its slots may all be elsewhere
	if err == nil {
		err = r.write(d.opt.Dir)
	}
	if err != nil {
		return fmt.Errorf("record the volume: %w", err)
	}
	d.layout.record = r
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

// openSlot opens the slot in its place. Nothing is made there.
func (d *Device) openSlot(id int, l *layout) (*replica.Slot, error) {
	dir := l.dirs[id]
	super, err := inspectSlot(dir)
	if err == nil && super == nil {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("slot %d: there is none in %s: %w", id, dir, err)
	}
	if l.record != nil && l.record.Renaming != (hexID{}) && filepath.IsAbs(l.places[id]) && d.isOriginals(super, dir) {
		return nil, fmt.Errorf("slot %d in %s belongs to the volume in %s, of which this one is a copy: %w", id, dir, super.Home, replica.ErrForeign)
	}
	files, err := disk.Real(dir, disk.Options{})
	if err != nil {
		return nil, err
	}
	return replica.ReadSlot(d.faulty(files, id), slotID(id), dir)
}

// faulty puts a slot's files under the rules that are in force.
func (d *Device) faulty(files disk.FS, id int) disk.FS {
	if d.opt.Faults == nil {
		return files
	}
	return disk.Faulty(files, d.opt.Faults, id, disk.FaultyOptions{})
}

// attachStore gives a slot that belongs to the volume its metadata store.
func (d *Device) attachStore(s *replica.Slot) error {
	store, err := meta.StartHelper(meta.HelperOptions{
		Dir: filepath.Join(s.Where, "meta"), Command: d.opt.HelperCommand, Badger: meta.BadgerOptions{Expect: s.Expect()},
	})
	if err != nil {
		return fmt.Errorf("slot %d: metadata: %w", s.ID, err)
	}
	s.Attach(store)
	return nil
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
	d.arena.SetOwner(g.Owner(g.ID))
	if err := g.Start(); err != nil {
		return err
	}
	g.Settle()
	d.arena.SetOwner(g.Owner(g.ID))
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
