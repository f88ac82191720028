package replica

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"trivet/journal"
)

// Options are how a group of slots is opened.
type Options struct {
	// CheckpointBytes and MapBytes are those of each lane.
	CheckpointBytes int64
	MapBytes        int
	// Policy decides what every lane's cleaner does; nil: nothing is cleaned.
	Policy journal.Policy
	// Survivor is the slot plus one that an operator wants opened although
	// too few slots are usable, or although records are missing; 0 for none.
	Survivor int
	// Arena tells what of a shard outlived the server in memory; nil: nothing. It
	// is asked for once the lanes are read, and before anything is changed.
	Arena func(*Group) (Outlived, error)
	// Announce names members that are about to take over, in the arena.
	Announce func(g *Group, next journal.Members)
	// MakeSlot makes a blank slot in its place, on an operator's word.
	MakeSlot func(*journal.Superblock) (*Slot, error)
	// AttachStore opens the metadata store of a slot that was found to be of the
	// volume, and attaches it; nil: every slot comes with its store. What is left
	// out is not touched by it.
	AttachStore func(*Slot) error
	// made are members that this start has made; number 0: none. Recover sets it.
	made *journal.Members
	// Known is what is known of the volume beside its slots.
	Known Known
	// Replace are the slots that an operator wants replaced: bit i for slot i.
	Replace uint8
	// Draw fills a slice with random bytes; nil: those of the system.
	Draw func([]byte)
	// Parallel recovers the slots at the same time.
	Parallel bool
	// Log is told what an operator should know; slot is -1 for the volume. It is
	// called by several goroutines at once when Parallel is set.
	Log func(slot int, what string, err error)
}

// Outlived tells which records a killed server has left in memory.
type Outlived interface {
	// Retired returns the LSN up to which the shard's records are not held,
	// because every slot that took part had written them.
	Retired(shard uint16) journal.LSN
	// Last returns the shard's highest LSN held, or 0.
	Last(shard uint16) journal.LSN
}

// Group is the slots of a volume, recovered and brought together.
type Group struct {
	Geometry
	Slots      []*Slot // by ID; nil for one that does not take part
	Absent     []error // by ID: why not
	Lanes      [][]*journal.Recovery
	Generation journal.Generation
	ID         journal.GenerationID // with its name
	Starts     []journal.LSN        // by shard: where the generation begins
	Members    journal.Members
	settled    journal.Members // that a generation was started with: what is in memory is theirs until another one was

	opt      Options
	outlived Outlived // what outlived the server in memory; nil: nothing
	usable   []bool   // has taken part, and is whole
	wentBack []bool   // is behind what it had started
	started  journal.Generation
	sole     uint64                   // see journal.Superblock
	unfit    map[journal.LaneID]error // lanes that their peers cannot be copied from, and why
}

// Recover reads the slots' logs, ranks the slots by shard, and makes them
// equal. slots has one entry for each replica, nil for one that is not to be
// had, with the reason in absent. After an error the caller closes the slots.
func Recover(slots []*Slot, absent []error, opt Options) (*Group, error) {
	if opt.Draw == nil {
		opt.Draw = drawSystem
	}
	opt.made = new(journal.Members)
	unfit := make(map[journal.LaneID]error)
	for {
		g, err := recoverWithout(unfit, slots, absent, opt)
		var lane *unfitError
		if !errors.As(err, &lane) {
			return g, err
		}
		opt.Log(int(lane.Slot), fmt.Sprintf("shard %d cannot be read in full, and its peers do: it is copied from them", lane.Shard), lane.err)
		unfit[lane.LaneID] = lane.err
		for _, s := range slots {
			if s != nil {
				s.abandonCopy()
			}
		}
	}
}

// recoverWithout is Recover without copying from the lanes that are unfit for
// it. It returns an unfitError when it finds another one; the slots' logs are
// then as a crash in the middle of a copy leaves them.
func recoverWithout(unfit map[journal.LaneID]error, slots []*Slot, absent []error, opt Options) (*Group, error) {
	g := &Group{Slots: slots, Absent: absent, opt: opt, unfit: unfit, wentBack: make([]bool, len(slots))}
	if err := g.identify(); err != nil {
		return nil, err
	}
	if err := g.checkSight(); err != nil {
		return nil, err
	}
	g.apart(func(_ int, s *Slot) error { return g.attach(s) })
	if err := g.recoverSlots(); err != nil {
		return nil, err
	}
	g.chooseGeneration()
	if err := g.replaceSlots(); err != nil {
		return nil, err
	}
	if err := g.onQuorum("promise the generation", func(s *Slot) error { return s.promise(g.ID) }); err != nil {
		return nil, err
	}
	for shard := range g.Shards {
		if err := g.bringTogether(uint16(shard)); err != nil {
			return nil, err
		}
	}
	return g, g.recount()
}

// makeLanes makes room for the lanes of every slot.
func (g *Group) makeLanes() {
	g.Lanes = make([][]*journal.Recovery, g.Shards)
	for shard := range g.Lanes {
		g.Lanes[shard] = make([]*journal.Recovery, len(g.Slots))
	}
}

// identify leaves out the slots that are not of this volume, or not of its life.
func (g *Group) identify() error {
	if err := g.agree(); err != nil {
		return err
	}
	g.checkMembers()
	return g.checkLives()
}

// attach opens the slot's metadata store, unless it has it.
func (g *Group) attach(s *Slot) error {
	if s.store != nil || g.opt.AttachStore == nil {
		return nil
	}
	return g.opt.AttachStore(s)
}

// Start stores that the generation begins. Nothing may be served before.
func (g *Group) Start() error {
	begin := journal.Begin{GenerationID: g.ID, LSNs: g.Starts}
	o := g.outlook()
	if err := g.onQuorum("start the generation", func(s *Slot) error { return s.start(begin, o) }); err != nil {
		return err
	}
	slots, passed := g.participants(), g.passed()
	return g.onQuorum("confirm the generation", func(s *Slot) error { return s.confirm(g.ID, slots, passed) })
}

// outlook is what a start stores of the volume.
func (g *Group) outlook() outlook {
	o := outlook{members: g.Members, sole: g.sole, home: g.opt.Known.Home, places: g.Places()}
	g.each(func(_ int, s *Slot) { o.history = o.history.Join(s.super.History) })
	return o
}

// exclude goes on without a slot. Its files are left as they are.
func (g *Group) exclude(slot int, err error) {
	g.opt.Log(slot, "slot does not take part", err)
	g.Absent[slot] = err
	s := g.Slots[slot]
	g.Slots[slot] = nil
	for _, lanes := range g.Lanes {
		lanes[slot] = nil
	}
	if err := s.Close(); err != nil {
		g.opt.Log(slot, "close", err)
	}
}

// each calls fn for every slot that still takes part.
func (g *Group) each(fn func(i int, s *Slot)) {
	for i, s := range g.Slots {
		if s != nil {
			fn(i, s)
		}
	}
}

// onQuorum does something on every slot; those that fail are excluded.
func (g *Group) onQuorum(what string, fn func(*Slot) error) error {
	g.each(func(i int, s *Slot) {
		if err := fn(s); err != nil {
			g.exclude(i, fmt.Errorf("%s: %w", what, err))
		}
	})
	return g.recount()
}

// recount checks that the slots that take part are still a quorum.
func (g *Group) recount() error {
	n := 0
	g.each(func(int, *Slot) { n++ })
	if n < g.Quorum() {
		return g.because(fmt.Errorf("%w: %d of %d take part", ErrQuorum, n, g.Replicas))
	}
	return nil
}

// because adds to a refusal, in one line, why slots do not take part.
func (g *Group) because(err error) error {
	for _, absent := range g.Absent {
		if absent != nil {
			err = fmt.Errorf("%w; %w", err, absent)
		}
	}
	return err
}

// recoverSlots recovers every lane of every slot, decides whether they are
// enough, and only then makes durable what was adopted: it may have been read from
// a cache.
func (g *Group) recoverSlots() (err error) {
	g.makeLanes()
	g.apart(g.recoverSlot)
	g.vouch(func(l journal.LaneID, err error) { g.exclude(int(l.Slot), fmt.Errorf("shard %d: %w", l.Shard, err)) })
	if err := g.checkQuorum(); err != nil {
		return err
	}
	if g.opt.Arena != nil {
		if g.outlived, err = g.opt.Arena(g); err != nil {
			return err
		}
	}
	before := g.participants()
	if g.apart(g.adopt); g.participants() != before {
		return g.checkQuorum()
	}
	return nil
}

// apart does something on every slot, at the same time if that was asked for;
// those that fail are excluded.
func (g *Group) apart(fn func(i int, s *Slot) error) {
	failed := make([]error, len(g.Slots))
	var tasks errgroup.Group
	g.each(func(i int, s *Slot) {
		do := func() error {
			failed[i] = fn(i, s)
			return nil
		}
		if g.opt.Parallel {
			tasks.Go(do)
			return
		}
		_ = do()
	})
	_ = tasks.Wait() // each slot's error is its own
	g.each(func(i int, s *Slot) {
		if failed[i] != nil {
			g.exclude(i, failed[i])
		}
	})
}

func (g *Group) recoverSlot(i int, s *Slot) error {
	if err := s.checkStore(); err != nil {
		return err
	}
	headers, err := s.scan()
	if err != nil {
		return err
	}
	for shard := range g.Shards {
		cfg := journal.Config{
			ID: journal.LaneID{Slot: s.ID, Shard: uint16(shard)}, Volume: s.super.Signed, SegmentBlocks: g.SegmentBlocks,
			CheckpointBytes: g.opt.CheckpointBytes, MapBytes: g.opt.MapBytes,
			Policy: g.opt.Policy, ShareBlocks: int64(g.SizeBytes/journal.BlockSize) / int64(g.Shards),
			Regions: g.SizeBytes / (journal.RegionBlocks * journal.BlockSize),
		}
		if g.Lanes[shard][i], err = journal.Recover(cfg, s, headers); err != nil {
			return err
		}
		// A slot that is being filled has not been served since, whatever is done to it.
		r := g.Lanes[shard][i]
		r.Fed = r.Fed || r.Filled && s.blank()
	}
	s.headers = headers
	return nil
}

// vouch tells every lane what any lane of its shard knows to be durable there,
// and calls failed for each that could not be replayed up to there. failed takes
// that lane out of g.Lanes.
func (g *Group) vouch(failed func(journal.LaneID, error)) {
	for shard, lanes := range g.Lanes {
		for range lanes { // what a lane learns may vouch for another
			for i, r := range lanes {
				if r == nil {
					continue
				}
				if err := r.Vouch(g.known(shard, i)); err != nil {
					failed(journal.LaneID{Slot: journal.SlotID(i), Shard: uint16(shard)}, err)
				}
			}
		}
	}
}

// known returns the LSN up to which any of a shard's lanes knows slot i to be
// durable. What they know of a slot that is blank is true of the one before it.
func (g *Group) known(shard, i int) (lsn journal.LSN) {
	if g.Slots[i].blank() {
		return 0
	}
	for _, r := range g.Lanes[shard] {
		if r != nil {
			lsn = max(lsn, r.Known[i].Since(g.Lanes[shard][i].Began))
		}
	}
	return lsn
}

// adopt makes durable what the slot's lanes have replayed, and gives its other
// segments to the pool. Those of a damaged lane are left alone.
func (g *Group) adopt(i int, s *Slot) error {
	var adopted, inUse, written []uint32
	for _, h := range s.headers {
		written = append(written, h.Segment())
	}
	var life uint32
	for shard := range g.Shards {
		r := g.Lanes[shard][i]
		adopted = append(adopted, r.Adopted...)
		inUse = append(inUse, r.Lane.SegmentsInUse()...)
		for _, h := range s.headers {
			life = max(life, h.Life())
			if r.Damage != nil && h.Lane().Shard == uint16(shard) {
				inUse = append(inUse, h.Segment())
			}
		}
		if r.Damage != nil {
			g.opt.Log(i, fmt.Sprintf("shard %d is damaged; its log is kept, the slot is repaired from a peer", shard), r.Damage)
		}
		for _, rot := range r.Rotten {
			g.opt.Log(i, fmt.Sprintf("block %d is rotten", rot.LBA), journal.ErrChecksum)
		}
	}
	s.headers = nil
	if err := s.pool.seed(inUse, written, life+lifeMargin); err != nil {
		return err
	}
	// Also what is vouched for: that may have been durable in another place, which
	// was just written anew to this one when the last server was killed.
	if err := s.syncLog(adopted); err != nil {
		return err
	}
	return g.rewriteTails(i, s)
}

// rewriteTails writes anew what the slot's lanes hold behind what is known to be
// durable. Without a segment, on a full disk for instance, it stays where it is,
// synced.
func (g *Group) rewriteTails(i int, s *Slot) error {
	w := journal.Rewriter{Prepare: func() (*journal.Open, error) { return s.prepare(appender) }, Closed: s.forget}
	for shard := range g.Shards {
		batches, err := w.Rewrite(g.Lanes[shard][i])
		switch {
		case errors.Is(err, journal.ErrNoSegment):
			g.opt.Log(i, fmt.Sprintf("shard %d: the end of the log is not written anew", shard), err)
		case err != nil:
			return fmt.Errorf("shard %d: write the end of the log anew: %w", shard, err)
		case batches > 0:
			g.opt.Log(i, fmt.Sprintf("shard %d: %d batches at the end of the log were not known durable and are written anew", shard, batches), nil)
		}
	}
	return nil
}

// lifeMargin keeps lives apart from those of segments whose header was torn.
const lifeMargin = 64

// checkQuorum counts the slots that may be believed. Two originals that never
// took part in a generation prove that nothing was ever served: a generation is
// served once two have started it.
func (g *Group) checkQuorum() error {
	g.heedOlder()
	g.usable = make([]bool, len(g.Slots))
	var t tally
	g.each(func(i int, s *Slot) {
		if g.usable[i] = g.isWhole(i, s); g.usable[i] {
			g.started = max(g.started, s.Started())
		}
		t.count(g, i, g.usable[i])
	})
	g.each(func(i int, _ *Slot) {
		if g.isFed(i) {
			t.witnesses++
		}
	})
	if g.isEnoughOf(t) {
		if t.usable == 1 && t.sole {
			g.sole = g.Members.Number
		}
		return nil
	}
	if g.opt.Survivor > 0 && g.usable[g.opt.Survivor-1] {
		g.reportLag(g.opt.Survivor - 1)
		return nil
	}
	return g.tooFew(t.usable)
}

// checkSight refuses when the slots in sight cannot be enough, whatever is in their
// logs: their metadata stores are not opened then, and nothing is made.
func (g *Group) checkSight() error {
	var t tally
	g.each(func(i int, s *Slot) {
		t.count(g, i, !s.blank() && !g.wentBack[i])
		if s.blank() && (s.super.Checkpoint != journal.StoreCommit{} || s.super.Announced != journal.StoreCommit{}) {
			t.witnesses++ // it may be one
		}
	})
	if survivor := g.survivor(); g.isEnoughOf(t) || survivor != nil && !survivor.blank() {
		return nil
	}
	return g.tooFew(t.usable)
}

// tally counts slots that may be believed.
type tally struct {
	usable, fresh, witnesses int
	sole                     bool // one is that on which an operator has built the members
}

func (t *tally) count(g *Group, i int, usable bool) {
	s := g.Slots[i]
	if usable {
		t.usable++
		t.sole = t.sole || s.super.Sole != 0 && s.super.Sole == g.Members.Number
	}
	if s.fresh() && !g.wentBack[i] {
		t.fresh++
	}
}

// isEnoughOf reports whether so many slots do for a volume: a quorum of usable ones;
// or of originals that never took part; or one and those that bear witness that it
// lacks nothing; or the one on which an operator has built the members, of which no
// other was ever whole.
func (g *Group) isEnoughOf(t tally) bool {
	q := g.Quorum()
	return t.usable >= q || t.fresh >= q || t.usable > 0 && t.usable+t.witnesses >= q || t.usable == 1 && t.sole
}

func (g *Group) tooFew(usable int) error {
	return g.because(fmt.Errorf("%w: %d of %d, %d are needed; if the others are lost for good, --survivor ID opens the volume with one",
		ErrQuorum, usable, g.Replicas, g.Quorum()))
}

// isWhole reports whether a slot has taken part and lacks nothing that it had.
func (g *Group) isWhole(i int, s *Slot) bool {
	for shard := range g.Shards {
		if g.Lanes[shard][i].Incomplete {
			return false
		}
	}
	return !s.blank() && !g.wentBack[i]
}

// heedOlder decides which slots of an older version that never took part are
// originals: those of a volume of which nothing was ever stored. Such a slot may
// as well have been put into a volume that had lost one.
func (g *Group) heedOlder() {
	untouched := 0
	g.each(func(i int, s *Slot) {
		if s.fresh() && (!s.super.Older() || s.super.Promised.Number <= 1 && g.isEmpty(i)) { // or it was migrated as one
			untouched++
		}
	})
	g.each(func(_ int, s *Slot) {
		if s.super.Older() && s.fresh() && untouched < g.Replicas {
			s.super.Original = false
		}
	})
}

// isEmpty reports whether no lane of the slot has a record.
func (g *Group) isEmpty(slot int) bool {
	for _, lanes := range g.Lanes {
		if lanes[slot].Stamp.LSN != 0 {
			return false
		}
	}
	return true
}

// isFed tells whether the slot had begun to come back: then all that it had made
// durable was in both others, and so is all that was made durable since. It bears
// witness that the other one lacks nothing, though it cannot be copied from.
func (g *Group) isFed(slot int) bool {
	s := g.Slots[slot]
	if s == nil || g.usable[slot] || g.wentBack[slot] || s.Started() > g.started {
		return false
	}
	for _, lanes := range g.Lanes {
		if r := lanes[slot]; !r.Fed && (r.Incomplete || s.blank()) {
			return false
		}
	}
	return true
}

// reportLag says how far the only slot left may be behind what was flushed.
func (g *Group) reportLag(slot int) {
	for shard, lanes := range g.Lanes {
		r := lanes[slot]
		known := highest(r.Known)
		lag := int64(known) - int64(r.Stamp.LSN)
		g.opt.Log(slot, fmt.Sprintf("opened as the only survivor: shard %d is at generation %d LSN %d; its peers were known durable up to LSN %d (%d records ahead), and may have been further",
			shard, r.Stamp.Generation, r.Stamp.LSN, known, max(lag, 0)), nil)
	}
}

// highest returns the highest LSN that a lane knows durable in any slot.
func highest(known [journal.MaxSlots]journal.Known) (lsn journal.LSN) {
	for _, k := range known {
		lsn = max(lsn, k.Since(0))
	}
	return lsn
}

// chooseGeneration takes one higher than any that was promised or used, and
// begins it behind every LSN ever seen: an LSN is never given twice.
func (g *Group) chooseGeneration() {
	g.each(func(_ int, s *Slot) { g.Generation = max(g.Generation, s.super.Promised.Number, s.Started()) })
	g.Starts = make([]journal.LSN, g.Shards)
	for shard, lanes := range g.Lanes {
		var last journal.LSN
		for _, r := range lanes {
			if r != nil {
				g.Generation = max(g.Generation, r.Stamp.Generation)
				last = max(last, r.Stamp.LSN, highest(r.Known))
			}
		}
		if g.outlived != nil {
			last = max(last, g.outlived.Last(uint16(shard)), g.outlived.Retired(uint16(shard)))
		}
		g.Starts[shard] = last + 1
	}
	g.Generation++
	g.ID = journal.GenerationID{Number: g.Generation, Name: drawName(g.opt.Draw)}
}

// drawSystem draws from the system, which never fails.
func drawSystem(b []byte) { _, _ = rand.Read(b) }

// drawName draws a name, which is never 0.
func drawName(draw func([]byte)) uint64 {
	var b [8]byte
	draw(b[:])
	return binary.LittleEndian.Uint64(b[:]) | 1
}
