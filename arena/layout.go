package arena

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"os"
	"strings"
	"sync/atomic"
	"unsafe"
)

const (
	magic        = "TRIVETar"
	version      = 2
	firstVersion = 1 // is read, and becomes the present one in place: see SetOwner

	// Where version 1 had its generation and, behind a checksum, its home.
	firstGenerationAt = 64
	firstHomeAt       = 128

	headerSize  = 4096
	maxPages    = 1 << 24 // 64 GiB
	maxShards   = 1 << 12
	retiredSize = 64
)

// retiredLSN has a cache line of its own. It is kept twice, each with its seal; see
// Arena.Retired.
type retiredLSN struct {
	copies [2]struct{ lsn, seal atomic.Uint64 }
	_      [retiredSize - 32]byte
}

// identity is what a file is created with: whose it is, and its layout.
type identity struct {
	volume [16]byte
	pages  uint32
	shards uint32
	boot   [16]byte
}

// encode returns the header, magic included.
func (id *identity) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	copy(b[16:], id.volume[:])
	binary.NativeEndian.PutUint32(b[32:], id.pages)
	binary.NativeEndian.PutUint32(b[36:], id.shards)
	copy(b[40:], id.boot[:])
	binary.NativeEndian.PutUint32(b[8:], version)
	binary.NativeEndian.PutUint32(b[12:], crc32.Checksum(b[16:56], castagnoli))
	return b
}

// decodeIdentity reads a header. It believes nothing before the magic number
// and the version are known, and the layout only after the checksum.
func decodeIdentity(b []byte) (identity, error) {
	var id identity
	if string(b[:8]) != magic {
		return id, fmt.Errorf("%w: magic %q, want %q", ErrForeign, b[:8], magic)
	}
	if v := binary.NativeEndian.Uint32(b[8:]); v < firstVersion || v > version {
		return id, fmt.Errorf("%w: version %d, want %d to %d", ErrVersion, v, firstVersion, version)
	}
	found, want := binary.NativeEndian.Uint32(b[12:]), crc32.Checksum(b[16:56], castagnoli)
	if found != want {
		return id, fmt.Errorf("%w: header CRC %#x, want %#x", ErrCorrupt, found, want)
	}
	copy(id.volume[:], b[16:])
	id.pages = binary.NativeEndian.Uint32(b[32:])
	id.shards = binary.NativeEndian.Uint32(b[36:])
	copy(id.boot[:], b[40:])
	if id.pages < 1 || id.pages > maxPages || id.shards < 1 || id.shards > maxShards {
		return id, fmt.Errorf("%w: %d pages and %d shards, want 1 to %d and 1 to %d",
			ErrCorrupt, id.pages, id.shards, maxPages, maxShards)
	}
	return id, nil
}

// check compares a file's identity with the one that is expected. The number
// of pages may differ: what is in the file decides. A file in memory is of this
// boot; one on a disk is only if the kernel says so.
func (id *identity) check(want *identity, kind Kind) error {
	switch {
	case id.volume != want.volume:
		return fmt.Errorf("%w: volume %x, want %x", ErrForeign, id.volume, want.volume)
	case id.shards != want.shards:
		return fmt.Errorf("%w: %d shards, want %d", ErrForeign, id.shards, want.shards)
	case id.boot == want.boot && id.boot != [16]byte{}:
		return nil
	case kind == TmpFS && (id.boot == [16]byte{} || want.boot == [16]byte{}):
		return nil
	case want.boot == [16]byte{}:
		return fmt.Errorf("%w: the kernel does not say which boot this is: what it holds may be older than the log", ErrStale)
	default:
		return fmt.Errorf("%w: boot %x, now %x: what it holds may be older than the log", ErrStale, id.boot, want.boot)
	}
}

// layout says where the parts of a file begin, in bytes.
type layout struct {
	retiredAt, tableAt, payloadAt, sizeBytes int64
}

func (id *identity) layout() layout {
	l := layout{retiredAt: headerSize}
	l.tableAt = l.retiredAt + roundUp(int64(id.shards)*retiredSize)
	l.payloadAt = l.tableAt + roundUp(int64(id.pages)*recordSize)
	l.sizeBytes = l.payloadAt + int64(id.pages)*PageSize
	return l
}

func roundUp(n int64) int64 { return (n + PageSize - 1) / PageSize * PageSize }

// attach lays the arena's parts over mapped memory and takes the pages that
// hold records out of the free ones.
func (a *Arena) attach(mapped []byte, id *identity) {
	l := id.layout()
	a.mapped = mapped
	a.retired = unsafe.Slice((*retiredLSN)(unsafe.Pointer(&mapped[l.retiredAt])), id.shards)
	a.table = unsafe.Slice((*pageRecord)(unsafe.Pointer(&mapped[l.tableAt])), id.pages)
	a.payload = mapped[l.payloadAt:l.sizeBytes:l.sizeBytes]
	a.free = newBitmap(int(id.pages))
	for p := range Page(id.pages) {
		if a.table[p].commit.Load() != 0 {
			a.free.reserve(p)
		}
	}
}

// version returns the version of the mapped header.
func (a *Arena) version() uint32 { return binary.NativeEndian.Uint32(a.mapped[8:]) }

// setVersion makes the header one of the present version, with one store.
func (a *Arena) setVersion() { storeWord(a.mapped[8:], version) }

// storeWord stores four bytes of mapped memory at once, behind all stores before.
func storeWord(b []byte, v uint32) { (*atomic.Uint32)(unsafe.Pointer(&b[0])).Store(v) }

// bootID returns the kernel's identity of this boot; zeros where it has none.
func bootID() (id [16]byte) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err == nil && len(raw) == len(id) {
		copy(id[:], raw)
	}
	return id
}
