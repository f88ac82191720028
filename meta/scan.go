package meta

import (
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// scanner walks the pairs with a prefix, kind byte included, in one snapshot.
// One call at a time.
type scanner struct {
	e      *engine
	v      *view
	it     *badger.Iterator
	prefix []byte
}

func (e *engine) newScanner(prefix []byte) (*scanner, error) {
	v, err := e.reading()
	if err != nil {
		return nil, err
	}
	if err := e.audit.prefix(v.txn, prefix); err != nil {
		e.drop(v)
		return nil, fmt.Errorf("scan %x: %w", prefix[1:], err)
	}
	opt := badger.DefaultIteratorOptions
	opt.Prefix = prefix
	opt.PrefetchValues = false // they lie beside the keys
	it := v.txn.NewIterator(opt)
	it.Rewind()
	return &scanner{e: e, v: v, it: it, prefix: prefix}, nil
}

// page appends pairs to dst until it holds limit bytes; done tells that there
// are no more.
func (s *scanner) page(dst []byte, limit int) (page []byte, done bool, err error) {
	for ; s.it.Valid(); s.it.Next() {
		if len(dst) >= limit {
			return dst, false, nil
		}
		item := s.it.Item()
		err := item.Value(func(stored []byte) error {
			value, err := unseal(item.Key(), stored)
			if err != nil {
				return fmt.Errorf("scan %x, at %x: %w", s.prefix[1:], item.Key()[1:], err)
			}
			dst = appendPair(dst, Pair{Key: item.Key()[1:], Value: value})
			return nil
		})
		if err != nil {
			return dst, false, err
		}
	}
	return dst, true, nil
}

func (s *scanner) close() {
	s.it.Close()
	s.e.drop(s.v)
}
