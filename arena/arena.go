// Package arena holds the payload of writes that are not durable yet, and for
// each a record of what it is, in memory that outlives the process: a file on
// tmpfs, preallocated and mapped shared. An acknowledged write is in the arena
// until a quorum has it on disk; a server that is killed finds it there when it
// starts again.
//
// # What survives
//
// A kill at any instruction leaves every record either absent or complete,
// with the payload it vouches for, and a restamped record with its old stamp
// or its new one. That holds on tmpfs and in a file on a disk, not in
// anonymous memory; Kind and Note tell which of them Open could have. A power
// cut loses the arena, as far as anybody may rely on it: what was flushed is
// in the log.
//
// Why a kill leaves no half record: the bytes are in pages that belong to the
// kernel, and a killed thread has executed its instructions up to one and none
// after it. So another process sees all stores of each thread that precede,
// in program order, any store it sees. Put therefore writes the payload's
// description first and its commit word last, and Free clears the commit word
// first; the commit word is stored atomically, which also keeps the compiler
// from moving other stores across it. Nothing here relies on that alone: a
// record and a payload carry checksums, and Recover reports what does not
// match as damaged.
//
// # Ownership
//
// A page belongs to whoever Alloc gave it to, until that one's Free. Bytes,
// Put and Restamp of a page are its owner's alone and take no lock; different
// pages may be used from different goroutines. Alloc, Free, FreePages and Live
// may be called from any goroutine. Recover is for the time before the first
// Alloc, Close and Discard for the time after the last use of any page.
//
// # The file
//
// Integers are in the machine's own byte order: the file cannot leave the
// machine. All parts begin on a multiple of 4096 bytes.
//
//	┌────────┬──────────────────┬───────────────────┬─────────────────────────┐
//	│ header │ retired LSNs     │ records           │ payload                 │
//	│ 4096   │ 64 × shards      │ 64 × pages        │ 4096 × pages            │
//	└────────┴──────────────────┴───────────────────┴─────────────────────────┘
//
// The header. Magic is written last, so a creation that was cut short is told
// from damage; version is checked before anything behind it is believed.
//
//	 0        8        12       16               32       36       40               56
//	┌────────┬────────┬────────┬────────────────┬────────┬────────┬────────────────┐
//	│ magic  │version │  CRC   │ volume         │ pages  │ shards │ boot           │
//	└────────┴────────┴────────┴────────────────┴────────┴────────┴────────────────┘
//	                            └──────────────── covered by CRC ─────────────────┘
//	 256, 2176: two copies of the owner (1920 each), see owner.go
//
// Volume keeps one volume's server from replaying another's writes. Boot is
// the kernel's boot id at creation: a disk file outlives a power cut, but with
// its pages as old as their last write-back, so it is refused afterwards. The
// owner says which slots, in which generation and which directory, the records
// belong to: a volume and its copy have one ID. Its directory is kept as a file
// handle and a path, so that the arena of a volume that was removed can be told
// from one whose volume was moved or is not mounted; see Prune and Elsewhere.
//
// Each retired LSN has a cache line of its own, because shards store theirs
// independently: two copies, each an LSN (8) and its seal (8), stored atomically.
// They say which records are not here because the slots have them: a slot that
// lacks those is not the one from whose server the others are.
//
// Version 1 had neither owner nor seals: its generation (8) at 64, and its home
// behind a checksum at 128. It is read, and becomes version 2 in place when its
// owner is set.
//
// A record, one cache line, record i for page i:
//
//	 0         8         16       20       24       28      30   31  32
//	┌─────────┬─────────┬────────┬────────┬────────┬───────┬────┬───┐
//	│ commit  │ lba     │ count  │payload │ page   │ shard │kind│ 0 │
//	│ word    │         │        │ CRC    │        │       │    │   │
//	├─────────┴─────────┼────────┴────────┴────────┴───────┴────┴───┤
//	  32: stamp 0         generation (8), LSN (8)
//	  48: stamp 1         generation (8), LSN (8)
//
//	commit word, bits 63..40: 'TRV' when the page holds a record; 0 when not
//	             bits 39..32: which stamp counts, 0 or 1
//	             bits 31..0:  CRC of bytes 8 to 31 and of that stamp
//
// Page is the record's own number, so that a record that was copied to another
// place does not pass. All CRCs are CRC32C.
package arena

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// PageSize is the size of a page and of a block in bytes.
const PageSize = 4096

// MaxAlloc is the most pages that one Alloc can ask for: a region of 1 MiB.
const MaxAlloc = 256

// Page names one page of an arena.
type Page uint32

// Kind tells what memory an arena has.
type Kind uint8

// The kinds of memory, from the best to the last resort.
const (
	TmpFS     Kind = iota // shared memory; outlives a kill
	DiskFile              // a file's page cache; outlives a kill, is written back
	Anonymous             // the process's own; dies with it
)

// String names the kind as status and logs print it.
func (k Kind) String() string {
	return [...]string{"tmpfs", "disk file", "anonymous"}[k]
}

// The errors of Open, SetAside and Discard, to be matched with errors.Is. The
// errors that wrap them name the file, what was found and what was expected.
var (
	ErrLocked  = errors.New("arena is in use by another process")
	ErrForeign = errors.New("not this volume's arena")
	ErrVersion = errors.New("arena has an unknown version")
	ErrCorrupt = errors.New("arena is corrupt")
	ErrStale   = errors.New("arena predates the last boot")
	ErrTwo     = errors.New("arena exists in two places")
	ErrLive    = errors.New("arena holds live records")
)

// Arena is a fixed set of pages and their records. See the package comment for
// who may call what.
type Arena struct {
	watch
	retired []retiredLSN
	table   []pageRecord
	payload []byte

	mapped  []byte
	file    *os.File // nil when anonymous; carries the lock
	path    string
	kind    Kind
	note    string
	created bool
	notify  func()

	mu     sync.Mutex // guards free and wanted; held for a few dozen ns
	free   bitmap
	wanted bool // an Alloc has failed since notify was last called
}

// Kind returns what memory the arena has.
func (a *Arena) Kind() Kind { return a.kind }

// Note says in one line what memory Open could have, and what that costs.
func (a *Arena) Note() string { return a.note }

// Path returns the file's name; empty when the arena is anonymous.
func (a *Arena) Path() string { return a.path }

// Created reports whether Open made the arena; otherwise it found it, with
// whatever Recover returns.
func (a *Arena) Created() bool { return a.created }

// Pages returns how many pages the arena has, free or not.
func (a *Arena) Pages() int { return len(a.table) }

// Bytes returns a page's 4096 bytes. A fresh page holds anything.
func (a *Arena) Bytes(p Page) []byte {
	at := int(p) * PageSize
	return a.payload[at : at+PageSize : at+PageSize]
}

// Spans appends the bytes of pages to dst, in their order, with neighbours
// merged into one slice, as readv and pwritev like them.
func (a *Arena) Spans(dst [][]byte, pages []Page) [][]byte {
	for i := 0; i < len(pages); {
		n := 1
		for i+n < len(pages) && pages[i+n] == pages[i]+Page(n) {
			n++
		}
		at, end := int(pages[i])*PageSize, (int(pages[i])+n)*PageSize
		dst = append(dst, a.payload[at:end:end])
		i += n
	}
	return dst
}

// Alloc puts n free pages into dst[:n] and reports whether it could: all of
// them or none. They are ascending, and in one run unless the arena is too
// fragmented. It panics when n is not in 1 to MaxAlloc or dst is too short.
//
// After a failure the next Free calls Options.Notify. A caller that means to
// wait enters its queue first and calls Alloc then, so that no Free can fall
// in between.
func (a *Arena) Alloc(n int, dst []Page) bool { return a.AllocSparing(0, n, dst) }

// AllocSparing is Alloc, but fails rather than leave fewer than spare pages
// free.
func (a *Arena) AllocSparing(spare, n int, dst []Page) bool {
	if n < 1 || n > MaxAlloc {
		panic(fmt.Sprintf("arena: %d pages asked for, want 1 to %d", n, MaxAlloc))
	}
	dst = dst[:n]
	a.mu.Lock()
	ok := a.free.count >= spare+n && a.free.take(dst)
	a.wanted = a.wanted || !ok
	a.mu.Unlock()
	return ok
}

// Free withdraws the records of pages, then gives the pages back. A page that
// is free already has two owners, and one of them is about to see the other's
// bytes acknowledged as its own: Free panics.
func (a *Arena) Free(pages ...Page) {
	a.Withdraw(pages...)
	a.mu.Lock()
	a.free.put(pages)
	wake := a.wanted && len(pages) > 0
	a.wanted = a.wanted && !wake
	a.mu.Unlock()
	if wake && a.notify != nil {
		a.notify()
	}
}

// FreePages returns how many pages are free.
func (a *Arena) FreePages() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.free.count
}

// Live returns how many pages are not free; 0 when nothing leaked.
func (a *Arena) Live() int { return len(a.table) - a.FreePages() }

// Close unmaps the arena and unlocks its file, which stays, with its records.
// Every slice of a page becomes invalid: nothing may be reading or writing
// one, in the kernel or here.
func (a *Arena) Close() error {
	if a.mapped == nil {
		return nil
	}
	err := unix.Munmap(a.mapped)
	if a.file != nil {
		err = errors.Join(err, a.file.Close())
	}
	a.retired, a.table, a.payload, a.mapped, a.file = nil, nil, nil, nil, nil
	if err != nil {
		return fmt.Errorf("arena: close %s: %w", a.path, err)
	}
	return nil
}

// Discard removes the file and closes the arena, for a clean stop: everything
// is durable, and the next start makes a new one. It refuses, and changes
// nothing, with ErrLive while a record, damaged or not, is in it.
func (a *Arena) Discard() error {
	if a.mapped == nil {
		return fmt.Errorf("arena: discard %s: %w", a.path, os.ErrClosed)
	}
	if n := a.records(); n > 0 {
		return fmt.Errorf("arena: discard %s: %d records: %w", a.path, n, ErrLive)
	}
	var err error
	if a.path != "" {
		err = os.Remove(a.path)
	}
	if err = errors.Join(err, a.Close()); err != nil {
		return fmt.Errorf("arena: discard: %w", err)
	}
	return nil
}
