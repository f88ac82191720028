package arena

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func ownerOf(t testing.TB, a *Arena) Owner {
	t.Helper()
	o, err := a.Owner()
	if err != nil {
		t.Fatal(err)
	}
	o.home = nil
	return o
}

// someOwner differs from those of other numbers in every field.
func someOwner(n byte) Owner {
	o := Owner{
		Members: Members{Number: uint64(n)}, Next: Members{Number: uint64(n) + 1},
		Generation: 100 + uint64(n), Name: 1000 + uint64(n), Whole: n%2 == 0,
	}
	for i := range Slots {
		o.Members.Slots[i][0], o.Next.Slots[i][0] = n, n+100
	}
	return o
}

// torn returns what a kill can leave of a change of b: any part of it, from the
// front.
func torn(before, after []byte, n int) []byte {
	b := append([]byte(nil), before...)
	copy(b[:n], after[:n])
	return b
}

// TestOwnerTorn kills the server anywhere in the storing of an owner: it is the
// one before or the new one, as a whole.
func TestOwnerTorn(t *testing.T) {
	o := options(t, 4)
	a := open(t, o)
	for n := byte(1); n < 4; n++ {
		before := append([]byte(nil), a.mapped[:headerSize]...)
		a.SetOwner(someOwner(n))
		after := append([]byte(nil), a.mapped[:headerSize]...)
		for at := range headerSize + 1 {
			got, _, err := readOwner(torn(before, after, at))
			if got.home = nil; err != nil {
				t.Fatalf("killed behind %d bytes: %v", at, err)
			}
			if was := someOwner(n - 1); !reflect.DeepEqual(got.Owner, someOwner(n)) && !reflect.DeepEqual(got.Owner, was) && (n > 1 || got.Generation != 0) {
				t.Fatalf("killed behind %d bytes: %+v", at, got.Owner)
			}
		}
	}
	if got := ownerOf(t, a); !reflect.DeepEqual(got, someOwner(3)) {
		t.Errorf("owner is %+v", got)
	}
	names := someOwner(3)
	for _, incarnation := range [][16]byte{names.Members.Slots[1], names.Next.Slots[2]} {
		if !names.Names(incarnation) {
			t.Errorf("%x is not named", incarnation)
		}
	}
	if names.Names([16]byte{77}) {
		t.Error("a stranger is named")
	}
}

// TestOwnerRots: one rotten copy leaves what was before it; two are damage.
func TestOwnerRots(t *testing.T) {
	o := options(t, 4)
	a := open(t, o)
	a.SetOwner(someOwner(1))
	a.SetOwner(someOwner(2))
	_, newest, err := readOwner(a.mapped[:headerSize])
	if err != nil {
		t.Fatal(err)
	}
	a.mapped[ownerAt+newest*ownerSize+20] ^= 1
	if got := ownerOf(t, a); got.Generation != 101 {
		t.Errorf("generation %d after one copy rots, want 101", got.Generation)
	}
	a.mapped[ownerAt+(1-newest)*ownerSize+20] ^= 1
	if _, err := a.Owner(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("both copies are rotten: %v", err)
	}
}

// TestRetiredTorn kills the server between the two stores of Retired, and lets a
// copy rot: what was noted before stays known, and both rotten are damage.
func TestRetiredTorn(t *testing.T) {
	a := open(t, options(t, 4))
	a.Retired(1, 10)
	a.Retired(1, 20)
	copies := &a.retired[1].copies
	older := 0
	if copies[1].lsn.Load() < copies[0].lsn.Load() {
		older = 1
	}
	copies[older].lsn.Store(30) // and killed
	if got := retired(t, a, 1); got != 20 {
		t.Errorf("killed in the middle: %d, want 20", got)
	}
	a.Retired(1, 25) // the next server, which is killed there as well
	for i := range copies {
		if v := copies[i].lsn.Load(); v != 20 && v != 25 {
			t.Errorf("copy %d is left as %d, which a kill has torn", i, v)
		}
	}
	copies[0].lsn.Add(1)
	copies[1].lsn.Add(1)
	if _, err := a.RetiredLSN(1); !errors.Is(err, ErrDamaged) {
		t.Errorf("no copy is whole: %v", err)
	}
	a.Reset()
	if got := retired(t, a, 1); got != 0 {
		t.Errorf("after Reset: %d", got)
	}
}

// firstFile makes what version 1 has left: a record, a generation, a home, and what
// a shard has released.
func firstFile(t *testing.T, o Options, dir string) (path string) {
	path = newFile(t, o)
	b := read(t, path)
	ne := binary.NativeEndian
	ne.PutUint32(b[8:], firstVersion)
	ne.PutUint64(b[firstGenerationAt:], 9)
	findHome(dir).encode(b[firstHomeAt+4 : headerSize])
	ne.PutUint32(b[firstHomeAt:], crc32.Checksum(b[firstHomeAt+4:headerSize], castagnoli))
	clear(b[headerSize : headerSize+int(roundUp(int64(o.Shards)*retiredSize))])
	ne.PutUint64(b[headerSize+retiredSize:], 33) // shard 1
	write(t, path, b)
	return path
}

// TestFirstVersion opens an arena of version 1, and makes it one of the present
// version in place, killed after any byte of that.
func TestFirstVersion(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volume")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	o := options(t, 8)
	path := firstFile(t, o, dir)
	a := open(t, o)
	if got := ownerOf(t, a); got.Generation != 9 || got.Home != dir || !got.Whole || !got.Unnamed() {
		t.Errorf("owner is %+v", got)
	}
	if len(recoverAll(t, a)) != 1 || retired(t, a, 1) != 33 || retired(t, a, 0) != 0 {
		t.Errorf("%d records, retired %d", len(recoverAll(t, a)), retired(t, a, 1))
	}
	before := append([]byte(nil), a.mapped[:headerSize]...)
	a.SetOwner(someOwner(2))
	after := append([]byte(nil), a.mapped[:headerSize]...)
	closeArena(t, a)
	a = open(t, o)
	if got := ownerOf(t, a); !reflect.DeepEqual(got, someOwner(2)) || len(recoverAll(t, a)) != 1 || retired(t, a, 1) != 33 {
		t.Errorf("owner is %+v, retired %d", got, retired(t, a, 1))
	}
	closeArena(t, a)
	// Copy 1 is stored first, then the version, then copy 0.
	split := ownerAt + ownerSize
	for name, header := range map[string][]byte{
		"before the version": append(append([]byte(nil), before[:split]...), after[split:]...),
		"behind it":          append(append(append(append([]byte(nil), before[:8]...), after[8:12]...), before[12:split]...), after[split:]...),
	} {
		b := read(t, path)
		copy(b, header)
		write(t, path, b)
		a = open(t, o)
		got, err := a.Owner()
		if err != nil || got.Generation != 9 && got.Generation != someOwner(2).Generation || retired(t, a, 1) != 33 {
			t.Errorf("killed %s: %+v, %v, retired %d", name, got, err, retired(t, a, 1))
		}
		closeArena(t, a)
	}
}

// TestElsewhere: a home is elsewhere when it is another directory and still there,
// whatever it is called by now.
func TestElsewhere(t *testing.T) {
	base := t.TempDir()
	home, other := filepath.Join(base, "home"), filepath.Join(base, "other")
	for _, dir := range []string{home, other} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	o := options(t, 4)
	a := open(t, o)
	a.SetOwner(Owner{Generation: 1, Home: home})
	owner, err := a.Owner()
	if err != nil {
		t.Fatal(err)
	}
	expect := func(when, dir, want string) {
		t.Helper()
		if got := owner.Elsewhere(dir); got != want {
			t.Errorf("%s, seen from %s: %q, want %q", when, dir, got, want)
		}
	}
	expect("where it was", home, "")
	expect("where it was", other, home)
	moved := filepath.Join(base, "moved")
	if err := os.Rename(home, moved); err != nil {
		t.Fatal(err)
	}
	expect("moved", moved, "")
	if len(owner.home.handle) > 0 {
		if got := owner.Elsewhere(other); got != "" && got != moved {
			t.Errorf("moved, seen from another directory: %q", got)
		}
	}
	if err := os.RemoveAll(moved); err != nil {
		t.Fatal(err)
	}
	expect("removed", other, "")
}

// TestUnknownBoot: memory does not outlive a boot, so a file in it is of this one
// whatever the kernel says; a file on a disk is believed only if the kernel says
// that it is.
func TestUnknownBoot(t *testing.T) {
	unknown, one, two := [16]byte{}, [16]byte{1}, [16]byte{2}
	for _, c := range []struct {
		kind      Kind
		made, now [16]byte
		believed  bool
	}{
		{TmpFS, one, one, true},
		{TmpFS, one, two, false},
		{TmpFS, unknown, unknown, true},
		{TmpFS, unknown, one, true},
		{DiskFile, one, one, true},
		{DiskFile, one, two, false},
		{DiskFile, unknown, unknown, false},
		{DiskFile, unknown, one, false},
		{DiskFile, one, unknown, false},
	} {
		err := (&identity{boot: c.made}).check(&identity{boot: c.now}, c.kind)
		if c.believed != (err == nil) || err != nil && !errors.Is(err, ErrStale) {
			t.Errorf("%v of boot %x, now %x: %v, expected to be believed: %v", c.kind, c.made[0], c.now[0], err, c.believed)
		}
	}
}
