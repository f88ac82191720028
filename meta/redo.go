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
//	header, 40 bytes:
//	  0  magic "TRIVREDO"
//	  8  version   u32
//	 12  records   u32  how many follow
//	 16  sequence  u64  of the commit
//	 24  nonce     u64  of this attempt: no record of an earlier one fits
//	 32  length    u32  of the header, so that version 2 may grow it
//	 36  CRC32C of bytes 0 to 35
//	record:
//	  0  length    u32
//	  4  CRC32C of the nonce, the record's number (u32) and the payload
//	  8  payload: a run of pairs
const (
	redoMagic        = "TRIVREDO"
	redoVersion      = 1
	redoHeaderBytes  = 40
	redoRecordHeader = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

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
func (r *redoFile) writeHeader(sequence uint64) error {
	head := make([]byte, redoHeaderBytes)
	copy(head, redoMagic)
	binary.LittleEndian.PutUint32(head[8:], redoVersion)
	binary.LittleEndian.PutUint32(head[12:], r.records)
	binary.LittleEndian.PutUint64(head[16:], sequence)
	binary.LittleEndian.PutUint64(head[24:], r.nonce)
	binary.LittleEndian.PutUint32(head[32:], redoHeaderBytes)
	binary.LittleEndian.PutUint32(head[36:], crc32.Checksum(head[:36], castagnoli))
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

// verify reads the whole file and returns the commit's sequence; errNoRedo when
// there is no whole commit in it. A read error is returned as it is.
func (r *redoFile) verify() (sequence uint64, err error) {
	return r.replay(func([]byte) error { return nil })
}

// replay calls fn with every run of pairs in order; the slice is fn's to keep.
// Only verify tells whether the later ones are whole.
func (r *redoFile) replay(fn func(run []byte) error) (sequence uint64, err error) {
	in := bufio.NewReaderSize(io.NewSectionReader(r.file, 0, MaxCommitBytes*2), 256<<10)
	head := make([]byte, redoHeaderBytes)
	if err := readRedo(in, head); err != nil {
		return 0, err
	}
	if string(head[:8]) != redoMagic {
		return 0, fmt.Errorf("magic %q: %w", head[:8], errNoRedo)
	}
	if version := binary.LittleEndian.Uint32(head[8:]); version != redoVersion {
		return 0, fmt.Errorf("redo file of version %d, this program knows %d", version, redoVersion)
	}
	if sum := crc32.Checksum(head[:36], castagnoli); sum != binary.LittleEndian.Uint32(head[36:]) {
		return 0, fmt.Errorf("header checksum %08x: %w", sum, errNoRedo)
	}
	nonce := binary.LittleEndian.Uint64(head[24:])
	for i := range binary.LittleEndian.Uint32(head[12:]) {
		run, err := r.readRecord(in, nonce, i)
		if err != nil {
			return 0, err
		}
		if err := fn(run); err != nil {
			return 0, err
		}
	}
	return binary.LittleEndian.Uint64(head[16:]), nil
}

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
