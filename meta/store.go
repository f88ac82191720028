package meta

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"sync/atomic"
)

// transport takes requests to a server.
type transport interface {
	// roundTrip returns the reply, or the context's error as soon as it ends.
	// In that case the request may go on: released is called, exactly once and
	// whatever happens, when the server is through with it. The payload belongs
	// to the transport.
	roundTrip(ctx context.Context, r request, released func()) ([]byte, error)
	// post sends a request whose reply nobody waits for, if that can be done at
	// once.
	post(r request)
	close() error
}

// store is a Store whose engine is behind a transport: in this process for
// OpenBadger, in another for StartHelper.
type store struct {
	t         transport
	committer chan struct{} // holds a token while a commit is under way at the server
	cursors   atomic.Uint64 // the last cursor given
}

func newStore(t transport) *store {
	return &store{t: t, committer: make(chan struct{}, 1)}
}

// Load implements Store. Values of up to 256 KiB in all are of one commit;
// beyond that they may be of several.
func (s *store) Load(ctx context.Context, keys [][]byte) ([][]byte, error) {
	if err := checkKeys(keys); err != nil {
		return nil, err
	}
	values := make([][]byte, 0, len(keys))
	for len(values) < len(keys) {
		reply, err := s.t.roundTrip(ctx, request{opLoad, encodeKeys(keys[len(values):])}, func() {})
		if err != nil {
			return nil, fmt.Errorf("load %d keys: %w", len(keys), err)
		}
		before := len(values)
		err = eachPair(reply, func(pair Pair) error {
			values = append(values, pair.Value)
			return nil
		})
		if err != nil || len(values) == before || len(values) > len(keys) {
			return nil, fmt.Errorf("load %d keys: reply with %d values: %w", len(keys), len(values), errBadPairs)
		}
	}
	return values, nil
}

// encodeKeys encodes as many keys as make a request, which is no more than a
// reply is likely to answer.
func encodeKeys(keys [][]byte) []byte {
	var run []byte
	for _, key := range keys {
		if len(run) >= pageBytes/16 {
			break
		}
		run = appendPair(run, Pair{Key: key})
	}
	return run
}

// Scan implements Store. It sees the store as it was when the call began.
func (s *store) Scan(ctx context.Context, prefix []byte, fn func(key, value []byte) error) error {
	cursor := binary.LittleEndian.AppendUint64(nil, s.cursors.Add(1))
	next := request{opScan, append(bytes.Clone(cursor), prefix...)}
	for {
		reply, err := s.t.roundTrip(ctx, next, func() {})
		if err == nil && len(reply) == 0 {
			err = errBadPairs
		}
		if err != nil {
			s.t.post(request{opScanClose, cursor})
			return fmt.Errorf("scan %x: %w", prefix, err)
		}
		err = eachPair(reply[1:], func(pair Pair) error { return fn(pair.Key, pair.Value) })
		if err != nil {
			s.t.post(request{opScanClose, cursor})
			return err
		}
		if reply[0] != 0 {
			return nil
		}
		next = request{opScanNext, bytes.Clone(cursor)}
	}
}

// Commit implements Store.
func (s *store) Commit(ctx context.Context, name Commit, pairs []Pair) error {
	if err := checkPairs(pairs); err != nil {
		return err
	}
	flags := byte(commitFirst)
	for {
		run, rest := encodeRun(commitHeader(name), pairs)
		if pairs = rest; len(pairs) == 0 {
			flags |= commitLast
		}
		run[0] = flags
		if err := s.commitPart(ctx, run); err != nil {
			return fmt.Errorf("commit %v: %w", name, err)
		}
		if len(pairs) == 0 {
			return nil
		}
		flags = 0
	}
}

// commitPart sends one part of a commit. Parts never overlap at the server,
// even when the caller of the one before went away.
func (s *store) commitPart(ctx context.Context, run []byte) error {
	select {
	case s.committer <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	_, err := s.t.roundTrip(ctx, request{opCommit, run}, s.leaveCommit)
	return err
}

func (s *store) leaveCommit() { <-s.committer }

func commitHeader(name Commit) []byte {
	b := binary.LittleEndian.AppendUint64([]byte{0}, name.Sequence)
	return binary.LittleEndian.AppendUint64(b, name.Name)
}

// encodeRun appends pairs to dst until the next one would not fit in a chunk.
func encodeRun(dst []byte, pairs []Pair) (run []byte, rest []Pair) {
	size, count := 0, 0
	for _, pair := range pairs {
		if size+pairBytes(pair) > chunkBytes {
			break
		}
		size += pairBytes(pair)
		count++
	}
	run = append(make([]byte, 0, len(dst)+size), dst...)
	for _, pair := range pairs[:count] {
		run = appendPair(run, pair)
	}
	return run, pairs[count:]
}

// Identity implements Store. It waits for a commit that its caller gave up but
// the server is still at: only then does it tell what became of it.
func (s *store) Identity(ctx context.Context) (Identity, error) {
	select {
	case s.committer <- struct{}{}:
	case <-ctx.Done():
		return Identity{}, fmt.Errorf("identity: %w", ctx.Err())
	}
	reply, err := s.t.roundTrip(ctx, request{op: opIdentity}, s.leaveCommit)
	if err != nil {
		return Identity{}, fmt.Errorf("identity: %w", err)
	}
	return decodeIdentity(reply)
}

// Close implements Store.
func (s *store) Close() error { return s.t.close() }
