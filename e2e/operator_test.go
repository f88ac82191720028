package e2e

import (
	"fmt"
	"os"
	"testing"
)

// sizeArg is the size of the volumes as on the command line.
var sizeArg = fmt.Sprint(sizeMiB(), "M")

// A mistake is one thing that operators do wrong: how it comes about, the start
// that is judged, and how it is undone. Afterwards the volume in v is whole
// again: served with every block right and every slot current, and 'trivet
// check' finds nothing.
type mistake struct {
	name  string
	shape shape // three replicas in the volume's directory when it is zero
	steps step
	serve []string // the directory of the start that is judged, default v, and further arguments
	want  want
	undo  step     // nil: nothing is to be undone
	again []string // arguments of the start that is the last
	long  bool     // in the long version alone
}

// TestOperator makes every mistake on a volume whose blocks say whose they are.
// What must never come of one: zeros where data was acknowledged, an older
// block, a block of another life of the volume.
func TestOperator(t *testing.T) {
	needTrivet(t)
	groups := [][]mistake{missingSlots, copies, snapshots, twoLives, stores(), retired(), survivors(), servers, arenas}
	for _, group := range groups {
		for _, m := range group {
			if m.long && !long() {
				continue
			}
			t.Run(m.name, func(t *testing.T) {
				t.Parallel()
				m.run(t)
			})
		}
	}
}

// run makes the mistake, judges what comes of it, and undoes it.
func (m *mistake) run(t *testing.T) {
	if len(m.shape.disks) > 0 {
		needRoot(t)
		needTools(t, "mkfs.ext4", "losetup")
	}
	if m.shape.replicas == 0 {
		m.shape.replicas = 3
	}
	if len(m.serve) == 0 {
		m.serve = []string{"v"}
	}
	s := newSite(t, m.shape)
	m.steps(s)
	m.want(s, m.serve[0], m.serve[1:])
	for _, dir := range s.served() {
		s.stop(dir)
	}
	if t.Failed() {
		return
	}
	if m.undo != nil {
		m.undo(s)
	}
	s.start("v", m.again...)
	s.verify("v")
	s.whole("v")
	places := map[int]string{}
	for _, slot := range s.status("v").Slots {
		places[slot.ID] = slot.Where
	}
	s.goOn("v")
	s.sound("v", places)
}

// onDisks is a volume whose slots 1 and 2, or all three, have disks of their own.
var (
	onTwoDisks = shape{slots: map[int]string{1: "d1/slot", 2: "d2/slot"}, disks: []string{"d1", "d2"}}
	onDisks    = shape{
		slots: map[int]string{0: "d0/slot", 1: "d1/slot", 2: "d2/slot"}, disks: []string{"d0", "d1", "d2"},
	}
	// elsewhere has a slot in a directory of its own.
	elsewhere = shape{slots: map[int]string{1: "disk/slot"}}
	alone     = shape{replicas: 1}
	// apart has no slot in the volume's directory.
	apart = shape{slots: map[int]string{0: "d0/slot", 1: "d1/slot", 2: "d2/slot"}}
)

// missingSlots: a slot's directory is not what it was.
var missingSlots = []mistake{
	{
		name: "slot removed", steps: do(stopped, moved("v/slot-1", "held")),
		want: without(1, "v/slot-1"), undo: moved("held", "v/slot-1"),
	},
	{
		name: "slot removed after a kill", steps: do(killed, moved("v/slot-1", "held")),
		want: without(1, "v/slot-1"), undo: moved("held", "v/slot-1"), long: true,
	},
	{
		name: "slot lost and replaced at a start", steps: do(stopped, removed("v/slot-1")),
		serve: []string{"v", "--replace", "1"}, want: right,
	},
	{
		name: "slot emptied", steps: do(stopped, emptied("v/slot-1", "held")),
		want: without(1, "v/slot-1"), undo: refilled("v/slot-1", "held"),
	},
	{
		name: "slot's directory holds other files", steps: do(stopped, moved("v/slot-1", "held"), file("v/slot-1/diary")),
		want: without(1, "v/slot-1"), undo: refilled("v/slot-1", "held"),
	},
	{
		name: "slot of another volume", steps: do(stopped, another("o"), moved("v/slot-1", "held"), copied("o/slot-1", "v/slot-1")),
		want: without(1, "v/slot-1"), undo: refilled("v/slot-1", "held"),
	},
	{
		name: "slot 2 in the place of slot 1", steps: do(stopped, moved("v/slot-1", "held"), copied("v/slot-2", "v/slot-1")),
		want: without(1, "v/slot-1"), undo: refilled("v/slot-1", "held"),
	},
	{
		name: "slots swapped, and back", steps: do(stopped, swapped("v/slot-1", "v/slot-2")),
		want: rightOr("slot"), undo: swapped("v/slot-1", "v/slot-2"),
	},
	{
		name: "slot's superblock cut short", steps: do(stopped, copied("v/slot-1", "held"), truncated("v/slot-1/superblock", 0)),
		want: without(1, "v/slot-1"), undo: refilled("v/slot-1", "held"),
	},
	{
		name: "slot's log cut short", steps: do(stopped, truncated("v/slot-1/log/*", 0.3)),
		want: rightBytes, undo: mended("v", 1),
	},
	{
		name: "slot's log removed", long: true, steps: do(stopped, removed("v/slot-1/log")),
		want: rightBytes, undo: mended("v", 1),
	},
	{
		name: "all files of a slot cut short", steps: do(stopped, truncated("v/slot-1/superblock", 0.5), truncated("v/slot-1/log/*", 0), truncated("v/slot-1/meta/badger/*", 0)),
		want: rightBytes, undo: mended("v", 1), long: true,
	},
	{
		name: "two slots emptied", long: true, steps: do(stopped, emptied("v/slot-1", "held1"), emptied("v/slot-2", "held2")),
		want: refused("slot-1", "slot-2", "--survivor"), undo: do(refilled("v/slot-1", "held1"), refilled("v/slot-2", "held2")),
	},
	{
		name: "two slots emptied, then the third", steps: do(stopped, emptied("v/slot-1", "held1"), emptied("v/slot-2", "held2"),
			refusedStart("v", "slot-1"), moved("v/slot-0", "held0")),
		want: refused("slot-0"), undo: do(moved("held0", "v/slot-0"), refilled("v/slot-1", "held1"), refilled("v/slot-2", "held2")),
	},
	{
		name: "all slots removed", steps: do(stopped, moved("v/slot-0", "held0"), moved("v/slot-1", "held1"), moved("v/slot-2", "held2")),
		serve: []string{"v", "--size", sizeArg}, want: refused("slot-0"),
		undo: do(moved("held0", "v/slot-0"), moved("held1", "v/slot-1"), moved("held2", "v/slot-2")),
	},
	{
		name: "slot not mounted", long: true, shape: onTwoDisks, steps: do(stopped, unmounted("d1")),
		want: without(1, "d1"), undo: mounted("d1"),
	},
	{
		name: "slot not mounted, and named", shape: onTwoDisks, steps: do(killed, unmounted("d1")),
		serve: []string{"v", "--slot", "1=W/d1/slot", "--slot", "2=W/d2/slot"}, want: without(1, "d1"), undo: mounted("d1"),
	},
	{
		name: "two slots not mounted", long: true, shape: onTwoDisks, steps: do(stopped, unmounted("d1", "d2")),
		want: refused("W/d1/slot", "W/d2/slot"), undo: mounted("d1", "d2"),
	},
	{
		name: "no slot mounted", long: true, shape: onDisks, steps: do(stopped, unmounted("d0", "d1", "d2")),
		want: refused("W/d0/slot"), undo: mounted("d0", "d1", "d2"),
	},
	{
		name: "no slot mounted, the line of its creation", shape: onDisks, steps: do(stopped, unmounted("d0", "d1", "d2")),
		serve: []string{"v", "--size", sizeArg, "--slot", "0=W/d0/slot", "--slot", "1=W/d1/slot", "--slot", "2=W/d2/slot"},
		want:  refused("W/d0/slot"), undo: mounted("d0", "d1", "d2"),
	},
	{
		name: "slots elsewhere, and not named", shape: elsewhere, steps: stopped, want: right,
	},
	{
		name: "slot's place mistyped", shape: elsewhere, steps: stopped,
		serve: []string{"v", "--slot", "1=W/disc/slot"}, want: without(1, "disc"),
	},
	{
		name: "slot's place is that of another slot", steps: stopped,
		serve: []string{"v", "--slot", "1=W/v/slot-2", "--slot", "2=W/v/slot-1"}, want: rightOr("slot"), long: true,
	},
	{
		name: "slot moved, and named", steps: do(killed, moved("v/slot-1", "new1")),
		serve: []string{"v", "--slot", "1=W/new1"}, want: right,
	},
	{
		name: "directory lost, slots elsewhere", shape: apart, steps: do(killed, removedVolume("v")),
		serve: []string{"v", "--slot", "0=W/d0/slot", "--slot", "1=W/d1/slot", "--slot", "2=W/d2/slot"}, want: right,
	},
	{
		name: "volume moved", steps: do(killed, moved("v", "w")), serve: []string{"w"}, want: right, undo: moved("w", "v"),
	},
	{
		name: "directory mistyped", steps: stopped, serve: []string{"vv"}, want: refused("W/vv"),
	},
	{
		name: "made where other files are", steps: do(stopped, file("w/diary")), serve: []string{"w", "--size", sizeArg}, want: refused("W/w"),
	},
	{
		name: "the only slot removed", shape: alone, steps: do(killed, moved("v/slot-0", "held")),
		serve: []string{"v", "--size", sizeArg}, want: refused("slot-0"), undo: moved("held", "v/slot-0"),
	},
	{
		name: "the only slot emptied", shape: alone, steps: do(killed, emptied("v/slot-0", "held")),
		want: refused("slot-0"), undo: refilled("v/slot-0", "held"),
	},
	{
		name: "the only slot not mounted", long: true, shape: shape{replicas: 1, slots: map[int]string{0: "d0/slot"}, disks: []string{"d0"}},
		steps: do(killed, unmounted("d0")), want: refused("W/d0/slot"), undo: mounted("d0"),
	},
}

// removedVolume is 'rm -rf' of a directory whose slots are elsewhere.
func removedVolume(dir string) step {
	return func(s *site) {
		s.t.Helper()
		s.must(os.RemoveAll(s.path(dir)))
	}
}

// refusedStart is a start that is refused on the way.
func refusedStart(dir string, texts ...string) step {
	return func(s *site) {
		s.t.Helper()
		refused(texts...)(s, dir, nil)
	}
}
