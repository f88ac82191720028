package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"trivet/disk"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files of the formats anew")

// goldenDescriptor is one with every kind of record.
func goldenDescriptor() (*descriptor, []byte) {
	var e encoder
	block := disk.Alloc(BlockSize)
	e.begin(block)
	e.add(KindWrite, 0x10203, 3)
	for i := range uint32(3) {
		e.checksum(0xa0b0c0d0 + i)
	}
	e.add(KindTrim, 0x20000, RegionBlocks)
	e.add(KindZero, 0x30005, 2)
	e.add(KindNote, 0, 0)
	e.add(KindCopy, 0x40001, 1)
	e.checksum(0x11223344)
	d := &descriptor{
		position:   position{volume: testVolume, lane: LaneID{Slot: 2, Shard: 0x0102}, segment: 7, life: 0x1234, offset: 42},
		generation: 0x55, epoch: 0x66, firstLSN: 0x7788,
		durable: [MaxSlots]LSN{0x7700, 0x7701, 0x7702}, suspect: [MaxSlots]LSN{0, 0x7000, 0},
		previous: 0xdeadbeef,
	}
	e.finish(d)
	return d, block
}

func goldenHeader() (*header, []byte) {
	h := &header{
		position:   position{volume: testVolume, lane: LaneID{Slot: 1, Shard: 0x0304}, segment: 9, life: 0x2345},
		generation: 0x11, blocks: 1024, previous: 0x2340, firstLSN: 0x9999, tail: 0x9998,
	}
	block := disk.Alloc(BlockSize)
	h.encode(block)
	return h, block
}

// goldenSuperblock1 is what version 1 wrote of this superblock.
func goldenSuperblock1() *Superblock {
	s := &Superblock{
		Volume: testVolume, Signed: testVolume, Name: "golden", Slot: 2, Replicas: 3, Shards: 4, SizeBytes: 1 << 30, SegmentBlocks: 1024,
		Sequence: 17, Promised: GenerationID{Number: 6}, Checkpoint: StoreCommit{Sequence: 99}, Original: true, older: true,
		History: History{{GenerationID: GenerationID{Number: 5}, Started: true, LSNs: []LSN{1, 22, 333, 4444}}},
		Members: Members{Number: 1},
	}
	for i := range s.Members.Slots {
		s.Members.Slots[i] = unnamedIncarnation(testVolume, SlotID(i))
	}
	s.Incarnation = s.Members.Slots[2]
	return s
}

func goldenSuperblock() (*Superblock, []byte) {
	s := &Superblock{
		Volume: testVolume, Signed: Volume{9, 8, 7}, Name: "golden", Slot: 2, Replicas: 3, Shards: 4, SizeBytes: 1 << 30, SegmentBlocks: 1024,
		Sequence: 17, Incarnation: Incarnation{3, 3}, Members: Members{Number: 4, Slots: [MaxSlots]Incarnation{{1, 1}, {2, 2}, {3, 3}}},
		Original: true, Retired: true, Sole: 3, Filling: 7, Promised: GenerationID{6, 0x66},
		History: History{
			{GenerationID: GenerationID{4, 0}, Started: true, Slots: 7, LSNs: []LSN{1, 22, 333, 4444}},
			{GenerationID: GenerationID{5, 0x55}},
			{GenerationID: GenerationID{6, 0x66}, Started: true, Slots: 5, LSNs: []LSN{2, 23, 334, 4445}},
		},
		StoreOwner: [16]byte{0xaa}, Checkpoint: StoreCommit{99, 0x99}, Announced: StoreCommit{100, 0x100},
		Home: "/srv/golden", Places: [MaxSlots]string{"slot-0", "/mnt/b/golden", "slot-2"}, Renaming: Volume{0xee},
	}
	return s, s.encode()
}

func goldenPage() (*page, []byte) {
	p := &page{region: 0x0405, stamp: Stamp{3, 0x1111}}
	for i := range 3 {
		p.put(i, Entry{Segment: 7, Life: 8, Block: uint16(20 + i), Content: Data, CRC: 0xc0ffee00 + uint32(i)})
	}
	p.put(3, Entry{Segment: 7, Life: 9, Block: 23, Content: Data, CRC: 0xc0ffee03})
	p.put(4, Entry{Content: Zero})
	p.put(5, Entry{Content: Zero})
	p.put(255, Entry{Segment: 1, Life: 2, Block: 0xffff, Content: Data, CRC: 5})
	return p, p.encode(nil, nil)
}

// goldenDelta is over goldenPage: an entry with a place, a trimmed one, and zeros.
func goldenDelta() (changed entrySet, p *page, encoded []byte) {
	p, _ = goldenPage()
	p.stamp = Stamp{3, 0x1112}
	p.put(1, Entry{Segment: 9, Life: 10, Block: 77, Content: Data, CRC: 0xc0ffee10})
	p.put(2, Entry{Content: Hole})
	p.put(254, Entry{Content: Zero})
	for _, i := range []int{1, 2, 254} {
		changed.add(i)
	}
	return changed, p, p.encode(nil, &changed)
}

// goldenPatchy is a page that lacks records, with blocks that are lost.
func goldenPatchy() (*page, []byte) {
	p, _ := goldenPage()
	p.patchy, p.whole = true, Stamp{Generation: 3, LSN: 0x2222}
	for i := range 3 {
		p.put(200+i, Entry{Content: Lost, CRC: 0xfeed0000 + uint32(i)})
	}
	return p, p.encode(nil, nil)
}

func goldenSegment() (*segmentInfo, []byte) {
	s := &segmentInfo{index: 4, life: 5, previous: 3, firstLSN: 100, lastLSN: 200, used: 1000, live: 77, state: segmentCondemned}
	return s, s.encode(nil, s.live)
}

func goldenLaneRecord() (laneRecord, []byte) {
	r := laneRecord{stamp: Stamp{2, 0x3333}, position: replayPosition{segment: 4, life: 5, offset: 6, chain: 0xabcdef01}, incomplete: true, segments: 7, chunks: 8, counted: true}
	return r, r.encode()
}

// TestGolden holds every format to its bytes: what an older Trivet
// has written must be read for ever.
func TestGolden(t *testing.T) {
	d, descriptorBlock := goldenDescriptor()
	h, headerBlock := goldenHeader()
	s, superblockBlock := goldenSuperblock()
	p, pageBytes := goldenPage()
	g, segmentBytes := goldenSegment()
	r, laneBytes := goldenLaneRecord()
	golden(t, "descriptor.v1", descriptorBlock)
	golden(t, "header.v1", headerBlock)
	golden(t, "superblock.v2", superblockBlock)
	golden(t, "page.v2", pageBytes)
	changed, patched, deltaBytes := goldenDelta()
	golden(t, "delta.v3", deltaBytes)
	golden(t, "segment.v1", segmentBytes)
	golden(t, "lane.v5", laneBytes)
	patchyPage, patchyBytes := goldenPatchy()
	golden(t, "page.v5", patchyBytes)

	var gotD descriptor
	if err := decodeDescriptor(descriptorBlock, d.position, &gotD); err != nil || gotD.epoch != d.epoch || gotD.generation != d.generation ||
		gotD.firstLSN != d.firstLSN || gotD.durable != d.durable || gotD.suspect != d.suspect || gotD.previous != d.previous ||
		gotD.dataBlocks != 4 || len(gotD.records) != 5 || gotD.lastLSN() != 0x778b || gotD.records[0].crcs[2] != 0xa0b0c0d2 {
		t.Errorf("descriptor decodes to %+v, %v", gotD, err)
	}
	var gotH header
	if err := decodeHeader(headerBlock, &gotH); err != nil || gotH != *h {
		t.Errorf("header decodes to %+v, %v, expected %+v", gotH, err, *h)
	}
	if gotS, err := DecodeSuperblock(superblockBlock); err != nil || !reflect.DeepEqual(gotS, s) {
		t.Errorf("superblock decodes to %+v, %v", gotS, err)
	}
	if gotS, err := DecodeSuperblock(stored(t, "superblock.v1")); err != nil || !reflect.DeepEqual(gotS, goldenSuperblock1()) {
		t.Errorf("superblock of version 1 decodes to %+v, %v", gotS, err)
	}
	var gotP page
	if err := decodePage(pageBytes, p.region, &gotP, nil); err != nil || gotP.all() != p.all() || gotP.stamp != p.stamp {
		t.Errorf("page decodes to %+v, %v", gotP, err)
	}
	gotP = page{}
	if err := (storedPage{pageBytes, deltaBytes}).decode(p.region, &gotP); err != nil || gotP.all() != patched.all() || gotP.stamp != patched.stamp || gotP.changed != changed {
		t.Errorf("page and delta decode to %+v, %v", gotP, err)
	}
	g.dirty = false
	if gotG, err := decodeSegment(4, segmentBytes); err != nil || *gotG != *g {
		t.Errorf("segment decodes to %+v, %v", gotG, err)
	}
	if gotR, err := decodeLaneRecord(laneBytes); err != nil || gotR != r {
		t.Errorf("lane record decodes to %+v, %v", gotR, err)
	}
	gotP = page{}
	if err := decodePage(patchyBytes, patchyPage.region, &gotP, nil); err != nil || gotP.all() != patchyPage.all() || gotP.stamp != patchyPage.stamp || !gotP.patchy || gotP.whole != patchyPage.whole {
		t.Errorf("patchy page decodes to %+v, %v", gotP, err)
	}
	r.unsure = true                           // older ones do not say which pages are patchy
	for _, version := range []byte{4, 3, 2} { // 3 had no counts; of 2, that there were no deltas is all that was different
		if laneBytes[0] = version; version < laneRecordCounted {
			laneBytes = laneBytes[:laneRecordShort]
			r.segments, r.chunks, r.counted = 0, 0, false
		}
		if version > 2 {
			golden(t, fmt.Sprintf("lane.v%d", version), laneBytes)
		}
		if gotR, err := decodeLaneRecord(laneBytes); err != nil || gotR != r {
			t.Errorf("lane record of version %d decodes to %+v, %v", version, gotR, err)
		}
	}
}

// golden compares b with a file of hex, 32 bytes a line; zeros at the end are
// left out.
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	var text strings.Builder
	fmt.Fprintf(&text, "%d bytes\n", len(b))
	for at := 0; at < len(b); at += 32 {
		line := b[at:min(at+32, len(b))]
		if len(bytes.Trim(line, "\x00")) > 0 {
			fmt.Fprintf(&text, "%4d  %s\n", at, hex.EncodeToString(line))
		}
	}
	file := filepath.Join("testdata", name+".hex")
	if *rewrite {
		if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if text.String() != string(want) {
		t.Errorf("%s differs from %s:\n%s", name, file, text.String())
	}
}

// stored reads what golden has written.
func stored(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	var size int
	if _, err := fmt.Sscanf(lines[0], "%d bytes", &size); err != nil {
		t.Fatal(err)
	}
	b := disk.Alloc(size)
	for _, line := range lines[1:] {
		var at int
		var digits string
		if _, err := fmt.Sscanf(line, "%d %s", &at, &digits); err != nil {
			t.Fatal(err)
		}
		if _, err := hex.Decode(b[at:], []byte(digits)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// TestNewerVersion refuses what a newer Trivet wrote, as such; and takes a
// version field that rotted for rot.
func TestNewerVersion(t *testing.T) {
	d, descriptorBlock := goldenDescriptor()
	_, headerBlock := goldenHeader()
	_, superblockBlock := goldenSuperblock()
	_, laneBytes := goldenLaneRecord()
	decoders := map[string]struct {
		block   []byte
		version uint16
		seal    int
		decode  func([]byte) error
	}{
		"descriptor":              {descriptorBlock, 1, 124, func(b []byte) error { return decodeDescriptor(b, d.position, new(descriptor)) }},
		"header":                  {headerBlock, 1, 72, func(b []byte) error { return decodeHeader(b, new(header)) }},
		"superblock":              {superblockBlock, superblockVersion, superblockCRC, func(b []byte) error { _, err := DecodeSuperblock(b); return err }},
		"superblock of version 1": {stored(t, "superblock.v1"), 2, superblock1CRC, func(b []byte) error { _, err := DecodeSuperblock(b); return err }},
	}
	for name, c := range decoders {
		binary.LittleEndian.PutUint16(c.block[8:], c.version+1)
		if err := c.decode(c.block); !errors.Is(err, ErrNotThis) || errors.Is(err, ErrVersion) {
			t.Errorf("%s with a rotten version: %v", name, err)
		}
		sealBlock(c.block, c.seal)
		if err := c.decode(c.block); !errors.Is(err, ErrVersion) {
			t.Errorf("%s of a newer version: %v", name, err)
		}
	}
	binary.LittleEndian.PutUint16(laneBytes, laneRecordVersion+1)
	if _, err := decodeLaneRecord(append(laneBytes, 1, 2, 3)); !errors.Is(err, ErrVersion) {
		t.Errorf("lane record of a newer version: %v", err)
	}
}

// TestRecoverNewerVersion refuses a log that a newer Trivet has continued.
func TestRecoverNewerVersion(t *testing.T) {
	w := startWorld(t, smallWorld(1, 1))
	w.add(KindWrite, 0, 1)
	w.settle()
	w.add(KindWrite, 1, 1)
	w.settle()
	w.crash(false)
	l := w.lanes[0]
	f, err := l.files.Open(segmentFile(0))
	if err != nil {
		t.Fatal(err)
	}
	block := disk.Alloc(BlockSize)
	if err := f.Read([][]byte{block}, 3*BlockSize); err != nil {
		t.Fatal(err)
	}
	if binary.LittleEndian.Uint64(block) != descriptorMagic {
		t.Fatal("block 3 is not the second descriptor")
	}
	binary.LittleEndian.PutUint16(block[8:], 2)
	sealBlock(block, 124)
	if err := f.Write([][]byte{block}, 3*BlockSize, true); err != nil {
		t.Fatal(err)
	}
	if _, err := l.recover(); !errors.Is(err, ErrVersion) {
		t.Fatalf("recovered with %v", err)
	}
}

// TestSuperblockWriteFails fails every operation of a series of writes, each
// followed by a retry and by a power cut: a copy that was whole is never lost
// to one that failed.
func TestSuperblockWriteFails(t *testing.T) {
	for n := uint64(0); n < 40; n++ {
		inner := disk.Memory(n, disk.MemoryOptions{})
		f, err := inner.Create(SuperblockFile, SuperblockSize)
		if err != nil {
			t.Fatal(err)
		}
		s, _ := goldenSuperblock()
		for range 2 {
			if err := s.Write(f); err != nil {
				t.Fatal(err)
			}
		}
		torn := &tornFile{File: f, fail: int(n % 7)}
		stored := s.Checkpoint.Sequence
		for range 5 {
			s.Checkpoint.Sequence++
			if err := s.Write(torn); err == nil {
				stored = s.Checkpoint.Sequence
			}
			clone := inner.CrashClone(n)
			g, err := clone.Open(SuperblockFile)
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := ReadSuperblock(g)
			if err != nil || got.Checkpoint.Sequence < stored || got.Checkpoint.Sequence > s.Checkpoint.Sequence {
				t.Fatalf("write %d fails: %d was stored, found %+v, %v", torn.fail, stored, got, err)
			}
		}
	}
}

// tornFile fails operations from a number on, every write after half of it.
type tornFile struct {
	disk.File
	fail, count int
}

func (f *tornFile) Write(bufs [][]byte, off int64, durable bool) error {
	if f.count++; f.count > f.fail && f.count < f.fail+4 {
		half := disk.Alloc(BlockSize)
		copy(half, bufs[0][:BlockSize/2])
		if err := f.File.Write([][]byte{half}, off, true); err != nil {
			return err
		}
		return errInjected
	}
	return f.File.Write(bufs, off, durable)
}

func (f *tornFile) Sync() error {
	if f.count++; f.count > f.fail && f.count < f.fail+4 {
		return errInjected
	}
	return f.File.Sync()
}
