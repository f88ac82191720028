package device

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"trivet/disk"
	"trivet/journal"
	"trivet/replica"
)

// recordFile is a volume's record in its directory. It says that there is a volume,
// though its slots may be elsewhere and not mounted, and where they are, and who
// its members are, though all that is left of them may be retired disks. The slots
// say the same; the record decides where they cannot.
const (
	recordFile   = "volume.json"
	recordFormat = 1
)

// record is what the file holds.
type record struct {
	Format   int      `json:"format"`
	Volume   hexID    `json:"volume"`
	Renaming hexID    `json:"renaming,omitzero"` // the ID that the volume is about to take
	Making   bool     `json:"making,omitempty"`  // not every slot was made yet
	Name     string   `json:"name"`
	Size     uint64   `json:"size_bytes"`
	Replicas int      `json:"replicas"`
	Shards   int      `json:"shards"`
	Members  uint64   `json:"members"` // their number
	Slots    []member `json:"slots"`
}

// member is a slot in the record.
type member struct {
	Incarnation hexID  `json:"incarnation"`
	Place       string `json:"place"` // relative to the record's directory when it is inside
}

// hexID is 16 bytes, in hexadecimal digits for people.
type hexID [16]byte

// MarshalText implements encoding.TextMarshaler.
func (h hexID) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h[:])), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *hexID) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err == nil && len(b) != len(h) {
		err = fmt.Errorf("%d bytes, expected %d", len(b), len(h))
	}
	copy(h[:], b)
	return err
}

// readRecord returns the record in a directory, nil when there is none.
func readRecord(dir string) (*record, error) {
	path := filepath.Join(dir, recordFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := new(record)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s is not the record of a volume: %w; without it the volume opens by what its slots say: move it away", path, err)
	}
	if r.Format != recordFormat {
		return nil, fmt.Errorf("%s is of format %d, expected %d: %w", path, r.Format, recordFormat, journal.ErrVersion)
	}
	if r.Replicas != len(r.Slots) || r.Replicas != 1 && r.Replicas != journal.MaxSlots {
		return nil, fmt.Errorf("%s names %d slots of %d", path, len(r.Slots), r.Replicas)
	}
	return r, nil
}

// write stores the record, durably. A crash leaves the one before or this one.
func (r *record) write(dir string) (err error) {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, recordFile)
	next, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	_, err = next.Write(append(text, '\n'))
	if err = errors.Join(err, next.Sync(), next.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return disk.SyncDir(dir)
}

// geometry is that of the volume.
func (r *record) geometry() replica.Geometry {
	return replica.Geometry{
		Volume: journal.Volume(r.Volume), Name: r.Name, SizeBytes: r.Size, Replicas: r.Replicas, Shards: r.Shards,
		SegmentBlocks: replica.SegmentBlocksFor(r.Size),
	}
}

// members are those that the record names.
func (r *record) members() journal.Members {
	m := journal.Members{Number: r.Members}
	for i, s := range r.Slots {
		m.Slots[i] = journal.Incarnation(s.Incarnation)
	}
	return m
}

// recordOf is the record of a volume with these members, at these places.
func recordOf(g replica.Geometry, m journal.Members, places [journal.MaxSlots]string) *record {
	r := &record{
		Format: recordFormat, Volume: hexID(g.Volume), Name: g.Name, Size: g.SizeBytes, Replicas: g.Replicas, Shards: g.Shards,
		Members: m.Number,
	}
	for i := range g.Replicas {
		r.Slots = append(r.Slots, member{hexID(m.Slots[i]), places[i]})
	}
	return r
}

// layout is what is known of a volume before its slots are opened.
type layout struct {
	record   *record // nil when there is none yet
	geometry replica.Geometry
	dirs     []string                 // by slot, absolute
	places   [journal.MaxSlots]string // the same, as they are stored
	recorded [journal.MaxSlots]string // what was said of places before
	given    [journal.MaxSlots]bool   // an option says where the slot is
}

// whole reports whether the volume's directory holds all slots.
func (l *layout) whole() bool {
	return !slices.ContainsFunc(l.places[:len(l.dirs)], filepath.IsAbs)
}

// locate finds out where the slots are, and which volume this is: by the options,
// by the record, by what any slot says of the others, and where slots are by
// default. It returns ErrNoVolume when there is none, and nothing that may be one.
func (d *Device) locate() (*layout, error) {
	o := &d.opt
	l := new(layout)
	var err error
	if l.record, err = readRecord(o.Dir); err != nil {
		return nil, err
	}
	if len(o.Dir) > journal.MaxPlace {
		return nil, fmt.Errorf("the volume's directory has a path of %d bytes; at most %d are supported", len(o.Dir), journal.MaxPlace)
	}
	l.place(o, d.recordedPlaces(l.record))
	super, unreadable := firstSuperblock(l)
	switch {
	case l.record != nil:
		l.geometry = l.record.geometry()
		if super != nil && super.Volume == l.geometry.Volume && super.Members.Number > l.record.Members {
			l.place(o, super.Places) // a slot was replaced, and the server was killed before it was recorded
		}
	case super != nil:
		l.place(o, super.Places)
		l.geometry = replica.GeometryOf(super)
	case unreadable != nil: // there may be a volume: none is made over it
		return nil, unreadable
	default:
		return nil, ErrNoVolume
	}
	if err := d.agrees(l.geometry); err != nil {
		return nil, err
	}
	l.dirs = l.dirs[:l.geometry.Replicas]
	return l, nil
}

// Locate returns where the slots of a volume at rest are, and what is known of it
// besides, for those who look at it and do not serve it. The error wraps
// ErrNoVolume when there is none.
func Locate(opt Options) (dirs []string, known replica.Known, err error) {
	if opt.Dir, err = filepath.Abs(opt.Dir); err != nil {
		return nil, known, err
	}
	d := &Device{opt: opt}
	l, err := d.locate()
	if err != nil {
		return nil, known, err
	}
	known = d.known(l)
	known.Elsewhere = nil // a copy may be looked at
	return l.dirs, known, nil
}

// recordedPlaces returns what the record says of places, nothing without one.
func (d *Device) recordedPlaces(r *record) (places [journal.MaxSlots]string) {
	if r != nil {
		for i, s := range r.Slots {
			places[i] = s.Place
		}
	}
	return places
}

// place sets where each slot is: what an option says, what is recorded, or the
// default.
func (l *layout) place(o *Options, recorded [journal.MaxSlots]string) {
	l.recorded = recorded
	l.dirs = make([]string, journal.MaxSlots)
	for i := range l.dirs {
		dir := o.Slots[i]
		l.given[i] = dir != ""
		if dir == "" {
			dir = recorded[i]
		}
		if dir == "" {
			dir = fmt.Sprintf("slot-%d", i)
		}
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(o.Dir, dir)
		}
		l.dirs[i], l.places[i] = dir, placeIn(o.Dir, dir)
	}
}

// placeIn returns a slot's place as it is stored: relative when it is inside of the
// volume's directory, so that it moves with that.
func placeIn(home, dir string) string {
	if rel, err := filepath.Rel(home, dir); err == nil && filepath.IsLocal(rel) {
		return rel
	}
	return dir
}

// firstSuperblock returns the superblock that names the latest members, of those
// that can be read, and the first reason why a directory could not be.
func firstSuperblock(l *layout) (best *journal.Superblock, unreadable error) {
	for i, dir := range l.dirs {
		super, err := inspectSlot(dir)
		if err != nil && unreadable == nil {
			unreadable = fmt.Errorf("slot %d in %s: %w", i, dir, err)
		}
		if super != nil && (best == nil || super.Members.Number > best.Members.Number) {
			best = super
		}
	}
	return best, unreadable
}

// inspectSlot returns the superblock in a directory, nil when there is none and
// never was.
func inspectSlot(dir string) (*journal.Superblock, error) {
	files, err := disk.Real(dir, disk.Options{})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return replica.Inspect(files)
}

// elsewhere reports whether a directory is another one than the volume's own, and
// still holds the volume.
func (d *Device) elsewhere(home string, v journal.Volume) bool {
	here, errHere := os.Stat(d.opt.Dir)
	there, err := os.Stat(home)
	if err != nil || errHere != nil || os.SameFile(here, there) {
		return false
	}
	if r, err := readRecord(home); err == nil && r != nil {
		return journal.Volume(r.Volume) == v
	}
	for i := range journal.MaxSlots {
		if super, err := inspectSlot(filepath.Join(home, fmt.Sprintf("slot-%d", i))); err == nil && super != nil && super.Volume == v {
			return true
		}
	}
	return false
}

// isOriginals reports whether a slot outside of the volume's directory is one of the
// volume that this one is a copy of, and not a copy itself.
func (d *Device) isOriginals(super *journal.Superblock, dir string) bool {
	if !d.elsewhere(super.Home, super.Volume) {
		return false
	}
	place := super.Places[super.Slot]
	if !filepath.IsAbs(place) {
		place = filepath.Join(super.Home, place)
	}
	here, errHere := os.Stat(dir)
	there, err := os.Stat(place)
	return err == nil && errHere == nil && os.SameFile(here, there)
}

// checkEmpty refuses to make a volume in a directory that holds anything else than
// sockets of a server that is gone, and empty directories for the slots.
func checkEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch {
		case e.Type()&fs.ModeSocket != 0, e.Name() == "lost+found", e.Name() == recordFile+".new":
		case e.IsDir() && strings.HasPrefix(e.Name(), "slot-"): // MakeSlot looks into it
		default:
			return fmt.Errorf("%s holds %s and no volume; a new one is made in an empty directory, or in one that is not there", dir, e.Name())
		}
	}
	return nil
}
