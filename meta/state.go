package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// state is written with every transaction. Its record, little-endian:
//
//	 0  version      u32, 2
//	 4  zero         u32
//	 8  last         sequence u64, name u64 of the last whole commit
//	24  transaction  u64
//	32  applying     sequence u64, name u64
//	48  owner        16 bytes
//
// Version 1 was sequence, transaction and the sequence of applying (u64 each),
// without names or an owner.
type state struct {
	Identity           // the last whole commit, and the owner
	transaction uint64 // number of the last transaction, from 1
	applying    Commit // half applied from the redo file; zero when none is
}

const (
	stateVersion    = 2
	stateBytes      = 64
	stateBytesFirst = 24 // of version 1
)

// errVersion: a later version of this program has written it.
var errVersion = errors.New("of a version that this program does not know")

func (s state) encode() []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(make([]byte, 0, stateBytes), stateVersion)
	for _, v := range []uint64{s.Last.Sequence, s.Last.Name, s.transaction, s.applying.Sequence, s.applying.Name} {
		b = le.AppendUint64(b, v)
	}
	return append(b, s.Owner[:]...)
}

func decodeState(b []byte) (s state, err error) {
	le := binary.LittleEndian
	if len(b) == stateBytesFirst {
		s.Last.Sequence, s.transaction, s.applying.Sequence = le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:])
		return s, nil
	}
	if len(b) >= 4 {
		if v := le.Uint32(b); v != stateVersion {
			return s, fmt.Errorf("state record: version %d, expected %d: %w", v, stateVersion, errVersion)
		}
	}
	if len(b) != stateBytes {
		return s, fmt.Errorf("state record of %d bytes, expected %d: %w", len(b), stateBytes, ErrCorrupt)
	}
	s.Last = Commit{le.Uint64(b[8:]), le.Uint64(b[16:])}
	s.transaction = le.Uint64(b[24:])
	s.applying = Commit{le.Uint64(b[32:]), le.Uint64(b[40:])}
	s.Owner = Owner(b[48:])
	return s, nil
}
