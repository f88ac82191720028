package meta

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

// The redo file holds a commit that is too large for one Badger transaction,
// until all of its transactions are durable. It is written and synced before
// the first of them, so that a crash in between finds the whole commit there.
// It is a plain file, written by plain system calls: a full filesystem is an
// error here, and a large commit never has to fit in memory.
//
//	header, 84 bytes:
//	  0  magic "TRIVREDO"
//	  8  version   u32
//	 12  records   u32  how many follow
//	 16  sequence  u64  of the commit
//	 24  nonce     u64  of this attempt: no record of an earlier one fits
//	 32  length    u32  of the header, so that a later version may grow it
//	 36  zero      u32
//	 40  name      u64  of the commit
//	 48  owner     16   of the store
//	 64  before    u64, u64  sequence and name of the commit that this one follows:
//	                    it is never applied to a store that is anywhere else
//	 80  CRC32C of bytes 0 to 79
//	record:
//	  0  length    u32
//	  4  CRC32C of the nonce, the record's number (u32) and the payload
//	  8  payload: a run of pairs
//
// Version 1 had a header of 40 bytes, without what begins at 40, and its CRC32C at 36.
const (
	redoMagic        = "TRIVREDO"
	redoVersion      = 2
	redoHeaderBytes  = 84
	redoFirstBytes   = 40 // of the header of version 1, and what every version has
	redoRecordHeader = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// redoTitle is what the header says of the commit in the file.
type redoTitle struct {
	commit Commit
	owner  Owner
	before Commit
	older  bool // of version 1: it knows the commit's sequence alone
}

// errNoRedo is returned for a redo file without a whole commit: an empty one,
// or one torn before it became durable, so that its commit never counted.
var errNoRedo = errors.New("redo file holds no whole commit")

// redoFile is used by one commit, or by recovery, at a time.
type redoFile struct {
	file    *os.File
	nonce   uint64
	records uint32
	end     int64 // bytes written so far, from the file's start
}

func openRedo(path string) (*redoFile, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open redo file: %w", err)
	}
	return &redoFile{file: file}, nil
}

// begin empties the file for a new commit.
func (r *redoFile) begin() error {
	var nonce [8]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return fmt.Errorf("redo nonce: %w", err)
	}
	if err := r.file.Truncate(0); err != nil {
		return fmt.Errorf("empty redo file: %w", err)
	}
	r.nonce = binary.LittleEndian.Uint64(nonce[:])
	r.records, r.end = 0, redoHeaderBytes
	return nil
}

// append writes one run of pairs of at most chunkBytes.
func (r *redoFile) append(run []byte) error {
	head := make([]byte, redoRecordHeader)
	binary.LittleEndian.PutUint32(head, uint32(len(run)))
	binary.LittleEndian.PutUint32(head[4:], r.recordCRC(r.nonce, r.records, run))
	if _, err := r.file.WriteAt(head, r.end); err != nil {
		return fmt.Errorf("write redo record %d at %d: %w", r.records, r.end, err)
	}
	if _, err := r.file.WriteAt(run, r.end+redoRecordHeader); err != nil {
		return fmt.Errorf("write redo record %d at %d: %w", r.records, r.end, err)
	}
	r.end += redoRecordHeader + int64(len(run))
	r.records++
	return nil
}

// writeHeader completes the file; sync then makes the commit happen.
func (r *redoFile) writeHeader(title redoTitle) error {
	le := binary.LittleEndian
	head := make([]byte, redoHeaderBytes)
	copy(head, redoMagic)
	le.PutUint32(head[8:], redoVersion)
	le.PutUint32(head[12:], r.records)
	le.PutUint64(head[16:], title.commit.Sequence)
	le.PutUint64(head[24:], r.nonce)
	le.PutUint32(head[32:], redoHeaderBytes)
	le.PutUint64(head[40:], title.commit.Name)
	copy(head[48:], title.owner[:])
	le.PutUint64(head[64:], title.before.Sequence)
	le.PutUint64(head[72:], title.before.Name)
	le.PutUint32(head[80:], crc32.Checksum(head[:80], castagnoli))
	if _, err := r.file.WriteAt(head, 0); err != nil {
		return fmt.Errorf("write redo header: %w", err)
	}
	return nil
}

func (r *redoFile) sync() error {
	if err := r.file.Sync(); err != nil {
		return fmt.Errorf("sync redo file: %w", err)
	}
	return nil
}

// clear forgets the commit. It need not be durable: a commit that Badger
// already holds is recognised by its sequence.
func (r *redoFile) clear() error {
	if err := r.file.Truncate(0); err != nil {
		return fmt.Errorf("empty redo file: %w", err)
	}
	return nil
}

// verify reads the whole file and returns which commit it holds; errNoRedo when
// there is no whole one in it. A read error is returned as it is.
func (r *redoFile) verify() (redoTitle, error) {
	return r.replay(func([]byte) error { return nil })
}

// replay calls fn with every run of pairs in order; the slice is fn's to keep.
// Only verify tells whether the later ones are whole.
func (r *redoFile) replay(fn func(run []byte) error) (title redoTitle, err error) {
	in := bufio.NewReaderSize(io.NewSectionReader(r.file, 0, MaxCommitBytes*2), 256<<10)
	head, err := readRedoHeader(in)
	if err != nil {
		return title, err
	}
	nonce := binary.LittleEndian.Uint64(head[24:])
	for i := range binary.LittleEndian.Uint32(head[12:]) {
		run, err := r.readRecord(in, nonce, i)
		if err != nil {
			return title, err
		}
		if err := fn(run); err != nil {
			return title, err
		}
	}
	return decodeRedoTitle(head), nil
}

// readRedoHeader reads and checks the header of a version that is known.
func readRedoHeader(in io.Reader) ([]byte, error) {
	le := binary.LittleEndian
	head := make([]byte, redoHeaderBytes)
	if err := readRedo(in, head[:redoFirstBytes]); err != nil {
		return nil, err
	}
	if string(head[:8]) != redoMagic {
		return nil, fmt.Errorf("magic %q: %w", head[:8], errNoRedo)
	}
	switch version := le.Uint32(head[8:]); version {
	case 1:
		head = head[:redoFirstBytes]
	case redoVersion:
		if err := readRedo(in, head[redoFirstBytes:]); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("redo file: version %d, expected %d: %w", version, redoVersion, errVersion)
	}
	at := len(head) - 4
	if sum := crc32.Checksum(head[:at], castagnoli); sum != le.Uint32(head[at:]) {
		return nil, fmt.Errorf("header checksum %08x: %w", sum, errNoRedo)
	}
	return head, nil
}

func decodeRedoTitle(head []byte) redoTitle {
	le := binary.LittleEndian
	if len(head) == redoFirstBytes {
		return redoTitle{commit: Commit{Sequence: le.Uint64(head[16:])}, older: true}
	}
	return redoTitle{
		commit: Commit{le.Uint64(head[16:]), le.Uint64(head[40:])}, owner: Owner(head[48:64]),
		before: Commit{le.Uint64(head[64:]), le.Uint64(head[72:])},
	}
}

// readRecord reads the record of that number, and checks that it is of this
// attempt.
func (r *redoFile) readRecord(in io.Reader, nonce uint64, number uint32) ([]byte, error) {
	head := make([]byte, redoRecordHeader)
	if err := readRedo(in, head); err != nil {
		return nil, err
	}
	length := binary.LittleEndian.Uint32(head)
	if length > chunkBytes {
		return nil, fmt.Errorf("redo record %d of %d bytes: %w", number, length, errNoRedo)
	}
	run := make([]byte, length)
	if err := readRedo(in, run); err != nil {
		return nil, err
	}
	if sum := r.recordCRC(nonce, number, run); sum != binary.LittleEndian.Uint32(head[4:]) {
		return nil, fmt.Errorf("redo record %d, checksum %08x: %w", number, sum, errNoRedo)
	}
	return run, nil
}

func (r *redoFile) recordCRC(nonce uint64, number uint32, run []byte) uint32 {
	var head [12]byte
	binary.LittleEndian.PutUint64(head[:], nonce)
	binary.LittleEndian.PutUint32(head[8:], number)
	return crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, run)
}

func readRedo(in io.Reader, dst []byte) error {
	_, err := io.ReadFull(in, dst)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errNoRedo
	}
	if err != nil {
		return fmt.Errorf("read redo file: %w", err)
	}
	return nil
}
