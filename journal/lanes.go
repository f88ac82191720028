package journal

import (
	"encoding/binary"
	"fmt"
)

// Lanes are those of a slot that have a lane record in its metadata, by shard. The
// slot stores them beside the records: a record that is gone is missed, and its
// lane is not taken for one that never had a checkpoint.
//
// Under the key 'n': version (2), then a bit for each of MaxShards shards.
type Lanes struct {
	shards [MaxShards / 64]uint64
	stored bool // the store says so
}

const (
	keyLanes     = 'n'
	lanesVersion = 1
	lanesSize    = 2 + MaxShards/8
)

// LoadLanes reads which lanes have a record. stored says that the store must say
// so itself: one that was last written by an older version does not. The error
// wraps ErrNotThis when a record is gone.
func LoadLanes(source Source, stored bool) (l Lanes, err error) {
	err = source.Scan([]byte{keyLane}, func(key, _ []byte) error {
		shard, ok := laneOf(key)
		if !ok {
			return fmt.Errorf("key %x among the lane records: %w", key, ErrNotThis)
		}
		l.add(shard)
		return nil
	})
	if err != nil {
		return l, fmt.Errorf("lane records: %w", err)
	}
	values, err := source.Load([][]byte{{keyLanes}})
	switch {
	case err != nil:
		return l, fmt.Errorf("lane records: %w", err)
	case values[0] == nil && !stored:
		return l, nil
	case values[0] == nil:
		return l, fmt.Errorf("the store does not say which lanes have a record: %w", ErrNotThis)
	}
	l.stored = true
	return l, l.miss(values[0])
}

// miss returns an error when the store says of a lane that it has a record, and it
// has not.
func (l *Lanes) miss(stored []byte) error {
	le := binary.LittleEndian
	if len(stored) >= 2 {
		if v := le.Uint16(stored); v != lanesVersion {
			return fmt.Errorf("lane records: version %d, expected %d: %w", v, lanesVersion, ErrVersion)
		}
	}
	if len(stored) != lanesSize {
		return fmt.Errorf("lane records: %d bytes, expected %d: %w", len(stored), lanesSize, ErrNotThis)
	}
	for i, found := range l.shards {
		if missing := le.Uint64(stored[2+8*i:]) &^ found; missing != 0 {
			return fmt.Errorf("lane records: shards %d to %d, those of %064b are gone: %w", 64*i, 64*i+63, missing, ErrNotThis)
		}
	}
	return nil
}

// With returns the lanes as they are once a commit of these pairs was made, and the
// pairs with what has to be stored for that.
func (l Lanes) With(pairs []Pair) (Lanes, []Pair) {
	next := l
	for _, p := range pairs {
		if shard, ok := laneOf(p.Key); ok {
			next.add(shard)
		}
	}
	if next.shards == l.shards && l.stored {
		return l, pairs
	}
	next.stored = true
	value := binary.LittleEndian.AppendUint16(make([]byte, 0, lanesSize), lanesVersion)
	for _, word := range next.shards {
		value = binary.LittleEndian.AppendUint64(value, word)
	}
	return next, append(pairs[:len(pairs):len(pairs)], Pair{[]byte{keyLanes}, value})
}

func (l *Lanes) add(shard uint16) { l.shards[shard/64] |= 1 << (shard % 64) }

// laneOf returns the shard of a lane record's key.
func laneOf(key []byte) (shard uint16, ok bool) {
	if len(key) != 3 || key[0] != keyLane {
		return 0, false
	}
	shard = binary.BigEndian.Uint16(key[1:])
	return shard, shard < MaxShards
}
