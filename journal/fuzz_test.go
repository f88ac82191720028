package journal

import (
	"bytes"
	"errors"
	"testing"

	"trivet/disk"
)

// The decoders read what rot, a torn write, a guest or an attacker left. They
// never panic, never read outside, and take no more memory than a block's worth
// of entries. The seeds are valid; unsealed ones are sealed by the target, so
// that the fuzzer reaches what lies behind the checksum.

// sealed returns a block of fuzzed data with a valid checksum at offset at.
func sealed(data []byte, at int) []byte {
	block := disk.Alloc(BlockSize)
	copy(block, data)
	sealBlock(block, at)
	return block
}

// known tells whether a decoder's error is one that its callers understand.
func known(err error) bool {
	return err == nil || errors.Is(err, ErrNotThis) != errors.Is(err, ErrVersion)
}

func FuzzDescriptor(f *testing.F) {
	_, block := goldenDescriptor()
	f.Add(block[:400])
	f.Add(bytes.Repeat([]byte{0xff}, BlockSize))
	f.Fuzz(func(t *testing.T, data []byte) {
		var raw, d descriptor
		if err := decodeDescriptor(data, position{}, &raw); !known(err) {
			t.Fatal(err)
		}
		block := sealed(data, 124)
		var claimed descriptor
		claimed.decodePlace(block)
		err := decodeDescriptor(block, claimed.position, &d)
		if !known(err) {
			t.Fatal(err)
		}
		if err == nil {
			checkDecoded(t, &d)
		}
		if _, _, err := DecodeHeader(append(make([]byte, BlockSize), block...), testVolume, 2, 7); err != nil {
			t.Fatal(err)
		}
	})
}

// checkDecoded holds a descriptor against what replay relies on.
func checkDecoded(t *testing.T, d *descriptor) {
	blocks := 0
	for _, r := range d.records {
		if !r.kind.valid() || r.lba.Index()+int(r.count) > RegionBlocks || len(r.crcs) > 0 && len(r.crcs) != int(r.count) {
			t.Fatalf("record %+v", r)
		}
		blocks += len(r.crcs)
	}
	if blocks != int(d.dataBlocks) || blocks > maxBatchBlocks || len(d.records) > (BlockSize-descriptorFixed)/recordFixed {
		t.Fatalf("%d records with %d blocks, the descriptor says %d", len(d.records), blocks, d.dataBlocks)
	}
}

func FuzzHeader(f *testing.F) {
	_, block := goldenHeader()
	f.Add(block[:100])
	f.Fuzz(func(t *testing.T, data []byte) {
		var h header
		if err := decodeHeader(data, &h); !known(err) {
			t.Fatal(err)
		}
		block := sealed(data, 72)
		if err := decodeHeader(block, &h); err == nil {
			again := disk.Alloc(BlockSize)
			var second header
			h.encode(again)
			if err := decodeHeader(again, &second); err != nil || second.position != h.position || second.tail != h.tail {
				t.Fatalf("%+v is read back as %+v, %v", h, second, err)
			}
		} else if !known(err) {
			t.Fatal(err)
		}
	})
}

func FuzzSuperblock(f *testing.F) {
	_, block := goldenSuperblock()
	f.Add(block[:600])
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := DecodeSuperblock(data); !known(err) {
			t.Fatal(err)
		}
		s, err := DecodeSuperblock(sealed(data, superblockCRC))
		if !known(err) {
			t.Fatal(err)
		}
		if err == nil && len(s.History.Last().LSNs) > MaxShards {
			t.Fatalf("superblock %+v", s)
		}
	})
}

func FuzzPage(f *testing.F) {
	p, encoded := goldenPage()
	f.Add(encoded[:len(encoded)-4], uint64(p.region), false)
	_, _, delta := goldenDelta()
	f.Add(delta[:len(delta)-4], uint64(p.region), true)
	f.Add((&page{}).encode(nil, nil), uint64(0), false)
	f.Fuzz(func(t *testing.T, data []byte, region uint64, isDelta bool) {
		var got, again page
		var changed, changedAgain *entrySet
		if isDelta {
			changed, changedAgain = new(entrySet), new(entrySet)
		}
		if err := decodePage(data, Region(region), &page{}, changed); !known(err) {
			t.Fatal(err)
		}
		err := decodePage(sealBytes(data), Region(region), &got, changed)
		if !known(err) {
			t.Fatal(err)
		}
		if err != nil {
			return
		}
		err = decodePage(got.encode(nil, changed), Region(region), &again, changedAgain)
		if err != nil || again.all() != got.all() || again.stamp != got.stamp || isDelta && *changedAgain != *changed {
			t.Fatalf("read back differs: %v", err)
		}
	})
}

// sealBytes appends the checksum of a stored page.
func sealBytes(data []byte) []byte {
	crc := Checksum(data)
	return append(bytes.Clone(data), byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24))
}

func FuzzSegment(f *testing.F) {
	_, encoded := goldenSegment()
	f.Add(encoded)
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := decodeSegment(3, data)
		if !known(err) {
			t.Fatal(err)
		}
		if err == nil && !bytes.Equal(s.encode(nil, s.live), data) {
			t.Fatalf("%x is read back as %x", data, s.encode(nil, s.live))
		}
	})
}

func FuzzLaneRecord(f *testing.F) {
	_, encoded := goldenLaneRecord()
	f.Add(encoded)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeLaneRecord(data)
		if !known(err) {
			t.Fatal(err)
		}
		if err == nil {
			if again, err := decodeLaneRecord(r.encode()); err != nil || again != r {
				t.Fatalf("%+v is read back as %+v, %v", r, again, err)
			}
		}
	})
}
