package meta

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"
)

func benchPairs(count int) []Pair {
	pairs := make([]Pair, count)
	for i := range pairs {
		key := binary.BigEndian.AppendUint64([]byte("page/one"), uint64(i))
		pairs[i] = Pair{Key: key, Value: make([]byte, 1024)}
	}
	return pairs
}

func BenchmarkCommit(b *testing.B) {
	for _, count := range []int{1, 1000, 20_000} {
		pairs := benchPairs(count)
		for _, kind := range stores {
			b.Run(fmt.Sprintf("%s/%d", kind.name, count), func(b *testing.B) {
				s := mustOpen(b, kind.make(b))
				defer closeStore(b, s)
				b.SetBytes(int64(count * 1024))
				for sequence := uint64(1); b.Loop(); sequence++ {
					if err := s.Commit(context.Background(), named(sequence), pairs); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkLoad64(b *testing.B) {
	pairs := benchPairs(20_000)
	for _, kind := range stores {
		b.Run(kind.name, func(b *testing.B) {
			s := mustOpen(b, kind.make(b))
			defer closeStore(b, s)
			if err := s.Commit(context.Background(), named(1), pairs); err != nil {
				b.Fatal(err)
			}
			keys := make([][]byte, 64)
			for n := 0; b.Loop(); n++ {
				for i := range keys {
					keys[i] = pairs[(n*64+i*311)%len(pairs)].Key
				}
				if _, err := s.Load(context.Background(), keys); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
