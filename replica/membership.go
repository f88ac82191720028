package replica

import "sync"

// Membership decides which slots take part. Every shard asks it, so that two
// shards never drop two different slots at the same time. Its mutex is held
// for no I/O.
type Membership struct {
	quorum int

	mu        sync.Mutex
	live      []bool
	returning []bool
}

// NewMembership makes one in which the given slots take part.
func NewMembership(live []bool, quorum int) *Membership {
	return &Membership{live: append([]bool(nil), live...), returning: make([]bool, len(live)), quorum: quorum}
}

// Report tells that a slot's lane was lost, or that it stands still. The
// answer is whether the slot is to be dropped now: always when it is lost, or only
// about to return; for slowness only as long as the others are a quorum.
func (m *Membership) Report(slot int, lost bool) (drop bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.returning[slot] {
		m.returning[slot] = false
		return true
	}
	if !m.live[slot] {
		return false
	}
	others := 0
	for i, live := range m.live {
		if live && i != slot {
			others++
		}
	}
	if !lost && others < m.quorum {
		return false
	}
	m.live[slot] = false
	return true
}

// Return tells that a slot is about to return: it does not take part yet.
func (m *Membership) Return(slot int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.returning[slot] = !m.live[slot]
}

// Admit lets a slot take part that has returned. It returns false when it was
// dropped again before.
func (m *Membership) Admit(slot int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.returning[slot] {
		m.returning[slot], m.live[slot] = false, true
	}
	return m.live[slot]
}

// Count returns how many slots take part.
func (m *Membership) Count() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, live := range m.live {
		if live {
			n++
		}
	}
	return n
}

// Live returns which slots take part.
func (m *Membership) Live() []bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]bool(nil), m.live...)
}
