package sim

import (
	"fmt"
	"io"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"trivet/arena"
	"trivet/disk"
	"trivet/inject"
	"trivet/journal"
	"trivet/meta"
	"trivet/replica"
)

// Options modify Run.
type Options struct {
	Dir   string    // on tmpfs, for the arena; nobody else uses it
	Trace io.Writer // what happened, line by line; nil for none
}

// Coverage counts what has happened, by name.
type Coverage map[string]int

// Add adds another run's counts.
func (c Coverage) Add(o Coverage) {
	for name, n := range o {
		c[name] += n
	}
}

// world is one run.
type world struct {
	opt      Options
	cfg      config
	rng      *rand.Rand
	names    *rand.Rand // of commits: how many there are changes nothing else
	now      time.Duration
	geometry replica.Geometry
	dir      string
	legs     []*leg
	faults   *inject.Set
	model    *model
	clients  []*client
	cover    Coverage

	srv         *server
	arena       *arena.Arena
	inflight    int // parts that have not completed
	draining    bool
	started     bool // the volume was opened once
	calm        bool // nothing happens while the volume is opened
	survivor    int  // see replica.Options
	replacing   uint8
	members     journal.Members // as the volume's record has them
	line        *line           // the life of the volume; for mistakes
	stopped     bool            // somebody was told that the device has stopped, in this life
	fuse        int             // crossings until the process is killed; 0: none
	trouble     [journal.MaxSlots]bool
	failingMeta bool               // calls of a metadata store may fail
	generation  journal.Generation // the highest that a slot has come back with
	plan        []action           // faults of this life, by step
	step        int
	rules       []inject.ID
	heard       func(slot int, what string) // what an operator is told; nil: nobody listens
}

// config is what differs between runs.
type config struct {
	regions         int
	arenaPages      int
	cacheBytes      int
	checkpointBytes int64
	mapBytes        int
	lives           int
	steps           int // of a life, at most
	large           int // of 100 writes, how many are long
	slow            int // of 100 operations, how many are slow
	policy          policy
}

// leg is what survives of a slot.
type leg struct {
	disk       *disk.MemoryFS
	store      *meta.Memory
	suspicious bool // its disk has lied, or its bytes were flipped, or it is being made
	making     bool // it was blank, and has not been opened since
	fed        bool // it has begun to come back: what it had made durable is in both others
	mayBear    bool // it may have stored that, in some shards
	stale      bool // it has not been brought together with its peers since it was missing
}

// killed is the panic that ends the process under test.
type killed struct{}

// failure is the panic that ends a run.
type failure struct{ text string }

func (w *world) fail(format string, args ...any) {
	panic(failure{fmt.Sprintf(format, args...)})
}

// Run runs one seed and returns what went wrong, if anything.
func Run(seed uint64, opt Options) (cover Coverage, err error) {
	w := newWorld(seed, opt)
	if err := w.attempt(w.run); err != nil {
		return nil, fmt.Errorf("seed %d %w", seed, err)
	}
	return w.cover, nil
}

// attempt calls run and returns what went wrong in it.
func (w *world) attempt(run func()) (err error) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if f, ok := p.(failure); ok {
			err = fmt.Errorf("at %v: %s", w.now, f.text)
		} else {
			err = fmt.Errorf("at %v: panic: %v\n%s", w.now, p, debug.Stack())
		}
		w.trace("failed: %v", err)
		w.arena = nil // the dead server may be in the middle of anything: its memory stays mapped
	}()
	run()
	return nil
}

func newWorld(seed uint64, opt Options) *world {
	w := &world{opt: opt, rng: rand.New(rand.NewPCG(seed, 0x73696d)), names: rand.New(rand.NewPCG(seed, 0x6e616d65)), now: time.Second, dir: opt.Dir, cover: make(Coverage)}
	w.cfg = config{
		regions: 2 + w.rng.IntN(60), arenaPages: 192 + 64*w.rng.IntN(4), cacheBytes: (136 + w.rng.IntN(100)) * 4200,
		checkpointBytes: int64(40+w.rng.IntN(600)) * journal.BlockSize, mapBytes: w.rng.IntN(32 << 10), policy: policy{always: w.rng.IntN(3) == 0},
		lives: 3 + w.rng.IntN(3), steps: 100 + w.rng.IntN(500), large: w.rng.IntN(30), slow: w.rng.IntN(8),
	}
	if w.rng.IntN(4) == 0 {
		w.cfg.regions += 300 // most records are the first of their region
	}
	w.geometry = replica.Geometry{
		Name: "sim", SizeBytes: uint64(w.cfg.regions) << 20, Replicas: journal.MaxSlots, Shards: 1 << w.rng.IntN(2),
		SegmentBlocks: journal.RegionBlocks + 8 + uint32(w.rng.IntN(200)),
	}
	for i := range w.geometry.Volume {
		w.geometry.Volume[i] = byte(seed >> (8 * (i % 8)))
	}
	w.model = newModel(w.geometry.Shards)
	w.faults = inject.NewSet(seed, func() time.Time { return time.Unix(0, 0).Add(w.now) })
	for i := range journal.MaxSlots {
		w.legs = append(w.legs, &leg{})
		w.blank(i)
	}
	for range 1 + w.rng.IntN(4) {
		w.clients = append(w.clients, &client{w: w, depth: 1 + w.rng.IntN(6)})
	}
	return w
}

// blank replaces a slot's disk by an empty one.
func (w *world) blank(i int) {
	w.legs[i].disk = disk.Memory(w.rng.Uint64(), disk.MemoryOptions{})
	w.legs[i].store = new(meta.Memory)
	w.legs[i].suspicious, w.legs[i].making, w.legs[i].fed, w.legs[i].mayBear = false, true, false, false
}

func (w *world) run() {
	w.create()
	if err := w.open(-1); err != nil {
		w.fail("open a new volume: %v", err)
	}
	w.started = true
	w.opened()
	for range w.cfg.lives {
		w.live()
		w.damage()
		w.boot()
	}
	w.finish()
}

// live lets the clients work until the life ends.
func (w *world) live() {
	w.planFaults()
	end, steps := w.drawEnd(), w.cfg.steps
	if w.srv.held.Records != nil && w.rng.IntN(4) == 0 { // while that is logged again
		end, steps = endCut, 1+w.rng.IntN(60)
	}
	if !w.survives(func() {
		patient := w.rng.IntN(3) > 0
		for w.step = 0; w.step < steps; w.step++ {
			w.act()
			w.proceed()
			if back := w.srv.back; patient && w.step == steps-1 && back != nil && back.worthWaiting() {
				steps += 200
			}
		}
		if end == endClose {
			w.quieten()
			w.drain()
			w.srv.close()
		}
	}) {
		end = max(end, endKill)
	}
	w.fuse = 0
	w.countHits()
	if end != endClose {
		w.crash(end == endCut)
	}
}

// The ways in which a life ends.
const (
	endClose = iota
	endKill
	endCut
)

func (w *world) drawEnd() int {
	if w.rng.IntN(2) == 0 {
		w.fuse = 1 + w.rng.IntN(4*w.cfg.steps)
	}
	return w.rng.IntN(3)
}

// survives runs fn and tells whether the process was not killed in it.
func (w *world) survives(fn func()) (survived bool) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(killed); !ok {
				panic(p)
			}
			w.cover["killed inside a step"]++
		}
	}()
	fn()
	return true
}

// crossing is a moment at which the process may be killed.
func (w *world) crossing() {
	if w.fuse > 0 {
		if w.fuse--; w.fuse == 0 {
			panic(killed{})
		}
	}
}

// next is the event that happens next.
type next struct {
	at  time.Duration
	run func()
}

func (n *next) offer(at time.Duration, run func()) {
	if n.run == nil || at < n.at {
		n.at, n.run = at, run
	}
}

// proceed lets the next thing happen; false when there is none.
func (w *world) proceed() bool {
	w.crossing()
	var n next
	for _, s := range w.srv.slots {
		if s != nil {
			s.offer(&n)
		}
	}
	for _, h := range w.srv.hosts {
		h.offer(&n)
	}
	if w.srv.back != nil {
		w.srv.back.offer(&n)
	}
	if !w.draining {
		for _, c := range w.clients {
			c.offer(&n)
		}
	}
	if n.run == nil {
		return false
	}
	w.now = max(w.now+1, n.at)
	n.run()
	return true
}

// drain lets everything under way complete.
func (w *world) drain() {
	w.drainUntil(func() bool { return w.inflight == 0 }, "requests never complete")
}

func (w *world) drainUntil(done func() bool, otherwise string) {
	w.draining = true
	defer func() { w.draining = false }()
	for range 1000000 {
		if done() && w.idle() {
			return
		}
		if !w.proceed() {
			if done() {
				return
			}
			break
		}
	}
	w.fail("%s: %d are under way", otherwise, w.inflight)
}

// idle tells whether no operation of a slot is under way.
func (w *world) idle() bool {
	for _, s := range w.srv.slots {
		if s == nil {
			continue
		}
		if len(s.other) > 0 {
			return false
		}
		for _, lane := range s.lanes {
			if len(lane) > 0 {
				return false
			}
		}
	}
	return true
}

// latency draws how long an operation takes.
func (w *world) latency() time.Duration {
	d := time.Duration(10+w.rng.IntN(400)) * time.Microsecond
	if w.rng.IntN(100) < w.cfg.slow {
		d *= time.Duration(1 + w.rng.IntN(500))
	}
	return d
}

// finish closes the volume, cuts the power, and reads every slot by itself.
func (w *world) finish() {
	w.quieten()
	w.drain()
	w.verify(0)
	if w.stopped {
		w.crash(false)
		w.reopen()
	}
	w.srv.close()
	w.crash(true)
	w.reopen()
	for slot := range journal.MaxSlots {
		w.verify(slot + 1)
	}
	w.srv.close()
}

// reopen opens the volume when nothing stands in the way.
func (w *world) reopen() {
	w.startLife()
	w.calm = true
	if err := w.open(-1); err != nil {
		w.fail("open with all slots and without faults: %v", err)
	}
	w.opened()
	w.heal()
}

func (w *world) startLife() {
	w.stopped = false
	for i, leg := range w.legs {
		w.trouble[i] = leg.suspicious
	}
}

// opened notes which slots take part.
func (w *world) opened() {
	for i, s := range w.srv.slots {
		leg := w.legs[i]
		leg.stale, leg.fed, leg.mayBear = s == nil, s == nil && leg.fed, s == nil && leg.mayBear // what an absent one says stays
		if s == nil {
			w.trouble[i] = true
			if !w.calm {
				w.srv.bringBack(i)
			}
			continue
		}
		w.legs[i].making = false
	}
}

func (w *world) tracing() bool { return w.opt.Trace != nil }

func (w *world) trace(format string, args ...any) {
	if w.opt.Trace != nil {
		fmt.Fprintf(w.opt.Trace, "%12v %s\n", w.now, fmt.Sprintf(format, args...))
	}
}

// note is what the code under test tells an operator.
func (w *world) note(slot int, what string, err error) {
	if w.heard != nil {
		w.heard(slot, what)
	}
	if w.opt.Trace != nil {
		w.trace("note of slot %d: %s: %v", slot, what, err)
	}
}
