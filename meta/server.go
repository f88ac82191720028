package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// request is one question to a store's server, in this process or in a helper.
// Each gets one reply. The operations, with their payloads and replies:
//
//	load      runs of pairs without values → as many of their values as fit,
//	          as pairs without keys, at least one
//	scan      cursor u64, prefix    → done u8, pairs; the rest is asked for with
//	scanNext  cursor u64            → done u8, pairs
//	scanClose cursor u64            → nothing
//	commit    flags u8, sequence u64, name u64, pairs; the first part of a
//	          commit begins it, the last one makes it happen
//	identity  nothing               → identity
//	close     nothing               → nothing, once the store is closed
type request struct {
	op      operation
	payload []byte
}

type operation uint8

const (
	opLoad operation = iota + 1
	opScan
	opScanNext
	opScanClose
	opCommit
	opIdentity
	opClose
)

const (
	commitFirst = 1 << iota
	commitLast
)

const (
	commitHeaderBytes = 17
	// pageBytes is what a reply aims at: it holds at most one pair more.
	pageBytes = 256 << 10
	// maxCursors bounds the snapshots that scans hold; beyond, the oldest scan
	// fails. That also ends one whose caller went away without a word.
	maxCursors = 16
)

var errBadRequest = errors.New("malformed request")

// server answers requests from an engine. Any number may be under way, but only
// one of a commit, and one of each cursor.
type server struct {
	e *engine

	awake sync.RWMutex // held for reading by requests, for writing by rest and wake

	committing sync.Mutex // held by a commit request; nobody ever waits for it
	batch      *batch     // of the commit under way

	mu      sync.Mutex // guards cursors, opened and the field closed of each
	cursors map[uint64]*cursor
	opened  uint64 // how many cursors there ever were
}

type cursor struct {
	age     uint64
	scanner *scanner // nil until the first page is asked for; owned by the request under way
	busy    bool     // a request is under way
	closed  bool     // whoever ends the request closes the scanner
}

func newServer(e *engine) *server {
	return &server{e: e, cursors: make(map[uint64]*cursor)}
}

// handle answers one request. The reply does not alias the payload, of which
// nothing is kept.
func (s *server) handle(r request, progress func()) (reply []byte, err error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.awake.RUnlock()
	err = guarded(func() error {
		reply, err = s.dispatch(r, progress)
		return err
	})
	return reply, err
}

// enter holds awake for a request, with the engine awake.
func (s *server) enter() error {
	for {
		s.awake.RLock()
		if s.e.db != nil {
			return nil
		}
		s.awake.RUnlock()
		if err := s.wake(); err != nil {
			return err
		}
	}
}

func (s *server) wake() error {
	s.awake.Lock()
	defer s.awake.Unlock()
	if s.e.db != nil {
		return nil
	}
	return s.e.wake()
}

// rest lets the engine rest unless something is under way; false means that it
// should be asked again.
func (s *server) rest() bool {
	if !s.awake.TryLock() {
		return false
	}
	defer s.awake.Unlock()
	s.mu.Lock()
	scans := len(s.cursors)
	s.mu.Unlock()
	return scans == 0 && s.batch == nil && s.e.rest()
}

func (s *server) dispatch(r request, progress func()) ([]byte, error) {
	switch r.op {
	case opLoad:
		return s.load(r.payload)
	case opScan, opScanNext:
		return s.scan(r)
	case opScanClose:
		return nil, s.closeCursor(r.payload)
	case opCommit:
		return nil, s.commit(r.payload, progress)
	case opIdentity:
		id, err := s.e.identity()
		return id.encode(nil), err
	}
	return nil, fmt.Errorf("operation %d: %w", r.op, errBadRequest)
}

func (s *server) load(payload []byte) ([]byte, error) {
	var keys [][]byte
	err := eachPair(payload, func(pair Pair) error {
		keys = append(keys, userKey(pair.Key))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.e.load(nil, keys, pageBytes)
}

func (s *server) commit(payload []byte, progress func()) error {
	if len(payload) < commitHeaderBytes {
		return fmt.Errorf("commit of %d bytes: %w", len(payload), errBadRequest)
	}
	s.committing.Lock()
	defer s.committing.Unlock()
	flags := payload[0]
	name := Commit{binary.LittleEndian.Uint64(payload[1:]), binary.LittleEndian.Uint64(payload[9:])}
	if flags&commitFirst != 0 {
		batch, err := s.e.begin(name)
		if err != nil {
			return err
		}
		s.batch = batch
	}
	if s.batch == nil || s.batch.name != name {
		return fmt.Errorf("commit %v is not under way here: %w", name, ErrUnavailable)
	}
	err := s.batch.append(payload[commitHeaderBytes:])
	if err == nil && flags&commitLast == 0 {
		return nil
	}
	if err == nil {
		err = s.batch.commit(progress)
	}
	s.batch = nil
	return err
}

// scan answers with the next page of a cursor, the first one opening it.
func (s *server) scan(r request) ([]byte, error) {
	if len(r.payload) < 8 {
		return nil, fmt.Errorf("scan of %d bytes: %w", len(r.payload), errBadRequest)
	}
	id := binary.LittleEndian.Uint64(r.payload)
	c, err := s.enterCursor(id, r.op == opScan)
	if err != nil {
		return nil, err
	}
	reply, done, err := s.page(c, r.payload[8:])
	s.leaveCursor(id, c, done || err != nil)
	return reply, err
}

func (s *server) page(c *cursor, prefix []byte) (reply []byte, done bool, err error) {
	if c.scanner == nil {
		if c.scanner, err = s.e.newScanner(userKey(prefix)); err != nil {
			return nil, false, err
		}
	}
	reply, done, err = c.scanner.page([]byte{0}, pageBytes)
	if done {
		reply[0] = 1
	}
	return reply, done, err
}

func (s *server) enterCursor(id uint64, open bool) (*cursor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cursors[id]
	if open == (c != nil) || (c != nil && c.busy) {
		return nil, fmt.Errorf("scan %d is not under way here: %w", id, ErrUnavailable)
	}
	if open {
		s.evictCursor()
		s.opened++
		c = &cursor{age: s.opened}
		s.cursors[id] = c
	}
	c.busy = true
	return c, nil
}

func (s *server) leaveCursor(id uint64, c *cursor, done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.busy = false
	if done || c.closed {
		s.removeCursor(id, c)
	}
}

func (s *server) closeCursor(payload []byte) error {
	if len(payload) != 8 {
		return fmt.Errorf("scan of %d bytes: %w", len(payload), errBadRequest)
	}
	id := binary.LittleEndian.Uint64(payload)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.cursors[id]; c != nil {
		s.removeCursor(id, c)
	}
	return nil
}

// removeCursor forgets a cursor and closes its scanner, or leaves that to the
// request that uses it. The caller holds mu.
func (s *server) removeCursor(id uint64, c *cursor) {
	c.closed = true
	if s.cursors[id] == c {
		delete(s.cursors, id)
	}
	if !c.busy && c.scanner != nil {
		c.scanner.close()
		c.scanner = nil
	}
}

// evictCursor makes room for one more. The caller holds mu.
func (s *server) evictCursor() {
	if len(s.cursors) < maxCursors {
		return
	}
	oldest := uint64(0)
	for id, c := range s.cursors {
		if o := s.cursors[oldest]; o == nil || c.age < o.age {
			oldest = id
		}
	}
	s.removeCursor(oldest, s.cursors[oldest])
}

// close closes the engine. No request may be under way.
func (s *server) close() error {
	s.awake.Lock()
	defer s.awake.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, c := range s.cursors {
		s.removeCursor(id, c)
	}
	return s.e.close()
}
