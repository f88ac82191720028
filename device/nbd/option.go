package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// errOption is wrapped by errors about the form of an option's data.
var errOption = errors.New("malformed option")

// infoSet is a set of information types below 64; others are unknown here.
type infoSet uint64

func (s infoSet) has(kind uint16) bool { return kind < 64 && s>>kind&1 == 1 }

// parseInfo reads the data of INFO and GO:
//
//	u32 length, name | u16 n | n * u16 information type
func parseInfo(data []byte) (name string, wanted infoSet, err error) {
	name, rest, err := cutString(data)
	if err != nil {
		return "", 0, fmt.Errorf("export name: %w", err)
	}
	if len(rest) < 2 {
		return "", 0, fmt.Errorf("%w: no count of information requests", errOption)
	}
	count := int(binary.BigEndian.Uint16(rest))
	rest = rest[2:]
	if len(rest) != 2*count {
		return "", 0, fmt.Errorf("%w: %d bytes for %d information requests", errOption, len(rest), count)
	}
	for ; len(rest) > 0; rest = rest[2:] {
		if kind := binary.BigEndian.Uint16(rest); kind < 64 {
			wanted |= 1 << kind
		}
	}
	return name, wanted, nil
}

// metaQuery is what a client asked about metadata contexts.
type metaQuery struct {
	export     string
	count      int  // queries, of any namespace
	allocation bool // base:allocation was named
	wildcard   bool // "base:", which counts in a list only
}

// parseMetaQuery reads the data of LIST_META_CONTEXT and SET_META_CONTEXT:
//
//	u32 length, export name | u32 n | n * (u32 length, query)
//
// Queries for contexts that are not served are skipped, as proto.md demands.
func parseMetaQuery(data []byte) (q metaQuery, err error) {
	q.export, data, err = cutString(data)
	if err != nil {
		return q, fmt.Errorf("export name: %w", err)
	}
	if len(data) < 4 {
		return q, fmt.Errorf("%w: no count of queries", errOption)
	}
	count := binary.BigEndian.Uint32(data)
	data = data[4:]
	for i := range count {
		var query string
		if query, data, err = cutString(data); err != nil {
			return q, fmt.Errorf("query %d of %d: %w", i, count, err)
		}
		q.count++
		q.allocation = q.allocation || query == allocationName
		q.wildcard = q.wildcard || query == "base:"
	}
	if len(data) != 0 {
		return q, fmt.Errorf("%w: %d bytes after the last query", errOption, len(data))
	}
	return q, nil
}

// cutString takes a string with its length in front off data.
func cutString(data []byte) (s string, rest []byte, err error) {
	if len(data) < 4 {
		return "", nil, fmt.Errorf("%w: %d bytes where a length was expected", errOption, len(data))
	}
	n := binary.BigEndian.Uint32(data)
	data = data[4:]
	if n > maxString {
		return "", nil, fmt.Errorf("%w: string of %d bytes, at most %d are allowed", errOption, n, maxString)
	}
	if uint64(n) > uint64(len(data)) {
		return "", nil, fmt.Errorf("%w: string of %d bytes in %d", errOption, n, len(data))
	}
	return string(data[:n]), data[n:], nil
}
