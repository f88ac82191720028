package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Pairs travel to the helper, back from it, and through the redo file in one
// encoding:
//
//	key length  u16 | value length  u32 | key | value
//
// in little-endian order. A value length of all ones marks a deleted key in a
// commit and an absent one in a reply to Load.
const (
	pairHeaderBytes = 6
	absentLength    = 1<<32 - 1
	// chunkBytes bounds a run of encoded pairs, and so every frame and every
	// record of the redo file. One pair of the largest size fits many times.
	chunkBytes = 1 << 20
)

var errBadPairs = errors.New("malformed run of pairs")

func pairBytes(pair Pair) int {
	return pairHeaderBytes + len(pair.Key) + len(pair.Value)
}

func appendPair(dst []byte, pair Pair) []byte {
	length := uint32(len(pair.Value))
	if pair.Value == nil {
		length = absentLength
	}
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(pair.Key)))
	dst = binary.LittleEndian.AppendUint32(dst, length)
	dst = append(dst, pair.Key...)
	return append(dst, pair.Value...)
}

// cutPair takes the first pair from a run of them. The pair aliases src; the
// value of a present pair is never nil.
func cutPair(src []byte) (pair Pair, rest []byte, err error) {
	if len(src) < pairHeaderBytes {
		return Pair{}, nil, fmt.Errorf("%d bytes left, a pair has %d: %w", len(src), pairHeaderBytes, errBadPairs)
	}
	keyLength := int(binary.LittleEndian.Uint16(src))
	valueLength := binary.LittleEndian.Uint32(src[2:])
	src = src[pairHeaderBytes:]
	if valueLength == absentLength {
		if keyLength > MaxKeyBytes || keyLength > len(src) {
			return Pair{}, nil, fmt.Errorf("key of %d bytes, %d left: %w", keyLength, len(src), errBadPairs)
		}
		return Pair{Key: src[:keyLength:keyLength]}, src[keyLength:], nil
	}
	end := keyLength + int(valueLength)
	if keyLength > MaxKeyBytes || valueLength > MaxValueBytes || end > len(src) {
		return Pair{}, nil, fmt.Errorf("pair of %d and %d bytes, %d left: %w", keyLength, valueLength, len(src), errBadPairs)
	}
	return Pair{Key: src[:keyLength:keyLength], Value: src[keyLength:end:end]}, src[end:], nil
}

// eachPair calls fn for every pair of a run.
func eachPair(run []byte, fn func(Pair) error) error {
	for len(run) > 0 {
		pair, rest, err := cutPair(run)
		if err != nil {
			return err
		}
		if err := fn(pair); err != nil {
			return err
		}
		run = rest
	}
	return nil
}

// checkPairs holds a commit against the limits that every store shares.
func checkPairs(pairs []Pair) error {
	total := 0
	for _, pair := range pairs {
		if len(pair.Key) > MaxKeyBytes || len(pair.Value) > MaxValueBytes {
			return fmt.Errorf("key of %d bytes (at most %d), value of %d (at most %d): %w",
				len(pair.Key), MaxKeyBytes, len(pair.Value), MaxValueBytes, ErrTooLarge)
		}
		total += pairBytes(pair)
	}
	if total > MaxCommitBytes {
		return fmt.Errorf("commit of %d bytes (at most %d): %w", total, MaxCommitBytes, ErrTooLarge)
	}
	return nil
}

func checkKeys(keys [][]byte) error {
	for _, key := range keys {
		if len(key) > MaxKeyBytes {
			return fmt.Errorf("key of %d bytes (at most %d): %w", len(key), MaxKeyBytes, ErrTooLarge)
		}
	}
	return nil
}
