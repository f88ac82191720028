package sim

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"trivet/journal"
)

// units are the parts of a block that a write covers or not, by their first
// byte: of uneven lengths, so that no part of a block is aligned.
var units = [...]int{0, 513, 1000, 2048, 3001, 4083, journal.BlockSize}

const unitCount = len(units) - 1

// value is what a block holds: the tag of each unit's content, 0 for zeros.
type value [unitCount]uint32

// version is one state of a block. Times are the model's event numbers.
type version struct {
	block   *block
	value   value
	content journal.Content
	invoked uint64
	end     uint64 // it took effect before, or never; never while it is under way
	acked   uint64 // when it was acknowledged; never if it was not
	sure    bool   // it has taken effect: acknowledged, or seen
	durable bool   // it, or what replaced it, outlives a power cut
	cut     bool   // one of those that a power cut may have left
}

const never = math.MaxUint64

// before tells whether v had taken effect, if ever, when u began.
func (v *version) before(u *version) bool { return v.end <= u.invoked }

// block is what the model knows of a block.
type block struct {
	lba     journal.LBA
	history []*version // those that a power cut may bring back
	alive   []*version // those that it may hold now
	readers []*snapshot
	writing int  // writes under way
	partial bool // and the one under way covers a part of it
}

// model is what the volume may hold. It follows the clients' view alone: when
// a request began, when and how it ended. Two requests of which neither ended
// before the other began may have taken effect in either order.
type model struct {
	events uint64
	blocks map[journal.LBA]*block // never ranged over
	order  []*block
	acked  [][]*version // by shard: acknowledged, not known to be durable
	tags   uint32
}

func newModel(shards int) *model {
	return &model{blocks: make(map[journal.LBA]*block), acked: make([][]*version, shards)}
}

// clone returns a model of a copy of the volume, which nobody uses.
func (m *model) clone() *model {
	next := newModel(len(m.acked))
	next.events, next.tags = m.events, m.tags
	versions := make(map[*version]*version)
	copied := func(old []*version) (list []*version) {
		for _, v := range old {
			if versions[v] == nil {
				twin := *v
				twin.block = next.blocks[v.block.lba]
				versions[v] = &twin
			}
			list = append(list, versions[v])
		}
		return list
	}
	for _, b := range m.order {
		twin := &block{lba: b.lba}
		next.blocks[b.lba] = twin
		next.order = append(next.order, twin)
		twin.history, twin.alive = copied(b.history), copied(b.alive)
	}
	for shard, list := range m.acked {
		next.acked[shard] = copied(list)
	}
	return next
}

func (m *model) event() uint64 {
	m.events++
	return m.events
}

func (m *model) at(lba journal.LBA) *block {
	b := m.blocks[lba]
	if b == nil {
		b = &block{lba: lba}
		hole := &version{block: b, acked: never, sure: true, durable: true}
		b.history, b.alive = []*version{hole}, []*version{hole}
		m.blocks[lba] = b
		m.order = append(m.order, b)
	}
	return b
}

func (m *model) shardOf(lba journal.LBA) int { return int(lba.Region()) % len(m.acked) }

// tag returns the tag of new content.
func (m *model) tag() uint32 {
	m.tags++
	return m.tags
}

// write begins a write that makes the block hold v.
func (m *model) write(b *block, v value, content journal.Content, now uint64) *version {
	n := &version{block: b, value: v, content: content, invoked: now, end: never, acked: never}
	b.history = append(b.history, n)
	b.alive = append(b.alive, n)
	b.writing++
	for _, s := range b.readers {
		s.allowed = append(s.allowed, n)
	}
	return n
}

// written ends a write: acknowledged, or failed, and then it has taken effect
// by now or never will.
func (m *model) written(v *version, ok, durable bool) {
	now := m.event()
	b := v.block
	b.writing--
	b.partial = false
	v.end = min(v.end, now)
	if !ok {
		return
	}
	v.acked = now
	m.takenEffect(v)
	if durable {
		v.durable = true
		b.forget()
		return
	}
	s := m.shardOf(b.lba)
	m.acked[s] = append(m.acked[s], v)
}

// takenEffect notes that v is what the block holds, or something newer.
func (m *model) takenEffect(v *version) {
	v.sure = true
	v.block.alive = slices.DeleteFunc(v.block.alive, func(u *version) bool { return u != v && u.before(v) })
}

// forget drops what no power cut can bring back.
func (b *block) forget() {
	b.history = slices.DeleteFunc(b.history, func(u *version) bool {
		return slices.ContainsFunc(b.history, func(d *version) bool { return d.durable && u != d && u.before(d) })
	})
}

// flushed ends a flush of the shard that succeeded: what was acknowledged
// before it began is durable.
func (m *model) flushed(shard int, began uint64) {
	m.acked[shard] = slices.DeleteFunc(m.acked[shard], func(v *version) bool {
		if v.acked > began {
			return false
		}
		v.durable = true
		v.block.forget()
		return true
	})
}

// closed ends a clean close: everything acknowledged is durable.
func (m *model) closed() {
	for i := range m.acked {
		m.flushed(i, m.events)
	}
}

// snapshot is what a read under way may return of a block.
type snapshot struct {
	block   *block
	began   uint64
	allowed []*version
}

func (m *model) snapshot(b *block, now uint64) *snapshot {
	s := &snapshot{block: b, began: now, allowed: slices.Clone(b.alive)}
	b.readers = append(b.readers, s)
	return s
}

func (s *snapshot) close() {
	r := s.block.readers
	i := slices.Index(r, s)
	s.block.readers = slices.Delete(r, i, i+1)
}

// read ends a read that has found content in units from … to-1 of the block.
func (m *model) read(s *snapshot, content []byte, from, to int) error {
	now := m.event()
	var found []*version
	for _, v := range s.allowed {
		if v.value.matches(content, from, to) {
			found = append(found, v)
		}
	}
	if len(found) == 0 {
		return fmt.Errorf("block %d holds %s, allowed is %s", s.block.lba, describe(content, from, to), s.list())
	}
	if from == 0 && to == unitCount {
		m.narrow(s, found, now)
	}
	return nil
}

// narrow notes that the block held one of found at some time of the read.
func (m *model) narrow(s *snapshot, found []*version, now uint64) {
	b := s.block
	if len(found) == 1 {
		v := found[0]
		v.end = min(v.end, now)
		b.history = slices.DeleteFunc(b.history, func(u *version) bool {
			// It never took effect and never may, or the power cut has undone it.
			return u != v && (!u.sure && u.end <= s.began && v.before(u) || v.cut && u.cut)
		})
		if v.cut {
			v.durable = true
			b.forget()
		}
		if slices.Contains(b.alive, v) {
			m.takenEffect(v)
		}
		v.sure = true
	}
	b.alive = slices.DeleteFunc(b.alive, func(u *version) bool {
		return u.end <= s.began && !slices.Contains(found, u)
	})
}

// status ends a status request that has found the content.
func (m *model) status(s *snapshot, c journal.Content) error {
	for _, v := range s.allowed {
		if v.content == c {
			return nil
		}
	}
	return fmt.Errorf("block %d is described as %v, allowed is %s", s.block.lba, contentNames[c], s.list())
}

var contentNames = [...]string{"hole", "data", "zero"}

// kill ends what is under way: it has taken effect, or never will.
func (m *model) kill() {
	now := m.event()
	for _, b := range m.order {
		b.writing, b.partial, b.readers = 0, false, nil
		for _, v := range b.history {
			v.end = min(v.end, now)
		}
	}
}

// cut makes of every block one of the versions that are not older than what
// is durable. Which one is recovered is durable itself, before it is seen.
func (m *model) cut() {
	m.kill()
	for _, b := range m.order {
		b.forget()
		for _, v := range b.history {
			v.sure, v.acked, v.cut = v.durable, never, true
		}
		if len(b.history) == 1 {
			b.history[0].sure, b.history[0].durable = true, true
		}
		b.alive = slices.Clone(b.history)
	}
	for i := range m.acked {
		m.acked[i] = nil
	}
}

func (s *snapshot) list() (text string) {
	for _, v := range s.allowed {
		text += fmt.Sprintf(" %s%v(%d-%d sure %v durable %v)", contentNames[v.content], v.value, v.invoked, int64(v.end), v.sure, v.durable)
	}
	return text
}

// pattern is what units are filled with behind their tag.
var pattern = func() []byte {
	b := make([]byte, 1<<16)
	x := uint64(88172645463325252)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}()

var zeros [journal.BlockSize]byte

// fill writes unit u of a block with the tag's content.
func fill(unit []byte, tag uint32) {
	if tag == 0 {
		clear(unit)
		return
	}
	binary.LittleEndian.PutUint32(unit, tag)
	copy(unit[4:], pattern[int(tag*29)%(len(pattern)-journal.BlockSize):])
}

// matches tells whether content is units from … to-1 of the value.
func (v *value) matches(content []byte, from, to int) bool {
	for u := from; u < to; u++ {
		unit := content[units[u]-units[from] : units[u+1]-units[from]]
		if tagOf(unit) != int64(v[u]) {
			return false
		}
	}
	return true
}

// tagOf returns the tag of a unit's content, -1 when it is no content.
func tagOf(unit []byte) int64 {
	tag := binary.LittleEndian.Uint32(unit)
	if tag == 0 {
		if !bytes.Equal(unit, zeros[:len(unit)]) {
			return -1
		}
		return 0
	}
	if !bytes.Equal(unit[4:], pattern[int(tag*29)%(len(pattern)-journal.BlockSize):][:len(unit)-4]) {
		return -1
	}
	return int64(tag)
}

func describe(content []byte, from, to int) (text string) {
	for u := from; u < to; u++ {
		text += fmt.Sprintf(" %d", tagOf(content[units[u]-units[from]:units[u+1]-units[from]]))
	}
	return text
}
