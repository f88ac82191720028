package meta

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// writeRedo writes a redo file of a fixed nonce and returns its bytes.
func writeRedo(t testing.TB, sequence uint64, runs ...[]byte) (path string, data []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "redo")
	r, err := openRedo(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.file.Close()
	if err := r.begin(); err != nil {
		t.Fatal(err)
	}
	r.nonce = 0x0807060504030201
	for _, run := range runs {
		if err := r.append(run); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.writeHeader(redoTitle{commit: named(sequence), owner: ours, before: named(sequence - 1)}); err != nil {
		t.Fatal(err)
	}
	if data, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return path, data
}

func verifyRedo(t testing.TB, data []byte) (redoTitle, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "redo")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := openRedo(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.file.Close()
	return r.verify()
}

// The format of version 2, byte by byte.
func TestRedoGolden(t *testing.T) {
	_, data := writeRedo(t, 0x1122, appendPair(nil, Pair{Key: []byte("k"), Value: []byte("v")}))
	const want = "545249565245444f" + "02000000" + "01000000" + "2211000000000000" + "0102030405060708" + "54000000" + "00000000" +
		"NAME" + "01020300000000000000000000000004" + "2111000000000000" + "BEFORE" + "HEADSUM" +
		"08000000" + "BODYSUM" + "0100" + "01000000" + "6b76"
	hex8 := func(v uint64) string { return hex.EncodeToString(binary.LittleEndian.AppendUint64(nil, v)) }
	sums := strings.NewReplacer(
		"NAME", hex8(named(0x1122).Name), "BEFORE", hex8(named(0x1121).Name),
		"HEADSUM", hexSum(data[:80]),
		"BODYSUM", hexSum(append(bytes.Clone(data[24:32]), append(make([]byte, 4), data[92:]...)...)),
	)
	if got := hex.EncodeToString(data); got != sums.Replace(want) {
		t.Fatalf("redo file\n%s, expected\n%s", got, sums.Replace(want))
	}
}

// olderRedo makes a file of version 1 of one of version 2.
func olderRedo(data []byte) []byte {
	older := append(bytes.Clone(data[:redoFirstBytes]), data[redoHeaderBytes:]...)
	older[8], older[32] = 1, redoFirstBytes
	binary.LittleEndian.PutUint32(older[36:], crc32.Checksum(older[:36], castagnoli))
	return older
}

// Version 1 is read: it knows the sequence alone.
func TestRedoOlder(t *testing.T) {
	_, data := writeRedo(t, 7, appendPair(nil, Pair{Key: []byte("k"), Value: []byte("v")}))
	title, err := verifyRedo(t, olderRedo(data))
	if want := (redoTitle{commit: Commit{Sequence: 7}, older: true}); err != nil || title != want {
		t.Fatalf("%+v, %v", title, err)
	}
}

func hexSum(data []byte) string {
	return hex.EncodeToString(binary.LittleEndian.AppendUint32(nil, crc32.Checksum(data, castagnoli)))
}

// A file cut anywhere, or with any bit flipped, holds no commit; one of another
// attempt's records neither.
func TestRedoTorn(t *testing.T) {
	run := appendPair(nil, Pair{Key: []byte("key"), Value: []byte("value")})
	_, whole := writeRedo(t, 7, run, run)
	if title, err := verifyRedo(t, whole); title.commit != named(7) || title.owner != ours || err != nil {
		t.Fatalf("whole file: %+v, %v", title, err)
	}
	for cut := range len(whole) {
		if _, err := verifyRedo(t, whole[:cut]); !errors.Is(err, errNoRedo) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
	for bit := range 8 * len(whole) {
		flipped := bytes.Clone(whole)
		flipped[bit/8] ^= 1 << (bit % 8)
		if _, err := verifyRedo(t, flipped); err == nil {
			t.Fatalf("bit %d flipped: no error", bit)
		}
	}
	other := bytes.Clone(whole)
	other[24]++ // the nonce, with a header that fits
	binary.LittleEndian.PutUint32(other[80:], crc32.Checksum(other[:80], castagnoli))
	if _, err := verifyRedo(t, other); !errors.Is(err, errNoRedo) {
		t.Fatalf("records of another attempt: %v", err)
	}
}

// A file of a later version stops opening; it must not be taken for torn.
func TestRedoVersion(t *testing.T) {
	_, data := writeRedo(t, 7)
	data[8]++
	if _, err := verifyRedo(t, data); !errors.Is(err, errVersion) {
		t.Fatalf("version %d: %v", data[8], err)
	}
}

func FuzzCutPair(f *testing.F) {
	f.Add(appendPair(nil, Pair{Key: []byte("k"), Value: []byte("v")}))
	f.Add(appendPair(nil, Pair{Key: []byte("k")}))
	f.Add([]byte{1, 0, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, run []byte) {
		var again []byte
		err := eachPair(run, func(pair Pair) error {
			again = appendPair(again, pair)
			return nil
		})
		if err == nil && !bytes.Equal(again, run) {
			t.Fatalf("%x became %x", run, again)
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	var good bytes.Buffer
	if err := writeFrame(&good, frame{id: 3, kind: 4, payload: []byte("payload")}); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := readFrame(bytes.NewReader(data))
		if err != nil {
			return
		}
		_ = replyError(got)
		var again bytes.Buffer
		if err := writeFrame(&again, got); err != nil || !bytes.HasPrefix(data, again.Bytes()) {
			t.Fatalf("%x became %x: %v", data, again.Bytes(), err)
		}
	})
}

// FuzzServe sends the server of an empty store anything at all.
func FuzzServe(f *testing.F) {
	e, err := openEngine(f.TempDir(), testBadger)
	if err != nil {
		f.Fatal(err)
	}
	s := newServer(e)
	f.Cleanup(func() {
		if err := s.close(); err != nil {
			f.Error(err)
		}
	})
	f.Add(uint8(opCommit), append([]byte{3, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0}, appendPair(nil, Pair{Key: []byte("k")})...))
	f.Add(uint8(opScan), []byte{1, 0, 0, 0, 0, 0, 0, 0})
	f.Add(uint8(opLoad), []byte{1, 0, 255, 255, 255, 255, 'k'})
	f.Fuzz(func(t *testing.T, op uint8, payload []byte) {
		reply, err := s.handle(request{operation(op), payload}, func() {})
		if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrFailed) {
			t.Fatalf("operation %d: %v", op, err) // a panic is reported as corruption
		}
		if len(reply) > maxPayloadBytes {
			t.Fatalf("operation %d: reply of %d bytes", op, len(reply))
		}
	})
}
