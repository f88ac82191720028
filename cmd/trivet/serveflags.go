package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"trivet/device/nbd"
	"trivet/journal"
	"trivet/replica"
)

// The limits of what serve accepts.
const (
	minDeadline     = 100 * time.Millisecond
	maxDeadline     = time.Hour
	defaultDeadline = 20 * time.Second // below the 30 s of nbd-client, hazard 24
	maxListeners    = 16
	maxConnections  = 4096

	defaultConnections = nbd.DefaultConns
)

// serveFlags are the flags of serve as they were written.
type serveFlags struct {
	size, memory sizeFlag
	deadline     durationFlag
	replicas     countFlag
	shards       countFlag
	connections  countFlag
	listen       []string
	slots        []string
	control      string
	arena        string
	name         string
	survivor     string
	replace      []string
	newIdentity  bool
	adoptArena   bool
	acceptLoss   bool
	reclaim      string
	logLevel     string
}

func (f *serveFlags) register(set *pflag.FlagSet) {
	set.SortFlags = false
	f.deadline = durationFlag(defaultDeadline)
	set.Var(&f.size, "size", "size of a new volume, in whole MiB, 16M or more")
	set.Var(&f.replicas, "replicas", "copies of a new volume: 1 or 3 (default 3)")
	set.Var(&f.shards, "shards", "shards of a new volume, a power of two (default: by the number of cores)")
	set.StringArrayVar(&f.listen, "listen", nil, "address to serve on, can be repeated:\n"+
		"unix:///PATH, nbd+unix:///?socket=PATH, nbd://HOST:PORT\nor tcp://HOST:PORT (default DIR/nbd.sock)")
	set.StringArrayVar(&f.slots, "slot", nil, "ID=DIR: where a slot lives (default DIR/slot-ID)")
	set.StringVar(&f.control, "control", "", "path of the control socket (default DIR/control.sock)")
	set.StringVar(&f.arena, "arena", "", "directory on tmpfs for what is not on disk yet, so that it outlives\n"+
		"the server (default: in /dev/shm)")
	set.Var(&f.memory, "memory", "memory for all the server does: payloads, block cache, map, connections.\nThe metadata helpers, one process of some 50M a slot, are apart\n(default: what the volume can use, up to an eighth of the machine's)")
	set.Var(&f.connections, "connections", fmt.Sprintf("clients that are served at a time; one more takes the place of an\nidle one, or is refused (default %d)", defaultConnections))
	set.Var(&f.deadline, "deadline", "time after which a request fails rather than waits")
	set.StringVar(&f.name, "name", "", "name of the export, besides the empty one (default: DIR's name)")
	set.StringVar(&f.survivor, "survivor", "", "what this slot holds counts, and the others are lost: new ones are made\n"+
		"in their places if these are empty; says how far the slot may lag")
	set.StringArrayVar(&f.replace, "replace", nil, "make a new slot in the place of this one, and fill it while the others\n"+
		"serve; what is there is set aside; can be repeated with --survivor")
	set.BoolVar(&f.newIdentity, "new-identity", false, "DIR is a copy of a volume: make it one of its own")
	set.BoolVar(&f.adoptArena, "adopt-arena", false, "log the acknowledged writes that shared memory holds for this volume here,\n"+
		"although it was served in another directory that is still there")
	set.BoolVar(&f.acceptLoss, "accept-loss", false, "open the volume although acknowledged writes in shared memory are damaged;\n"+
		"they are set aside")
	set.StringVar(&f.reclaim, "reclaim", reclaimAuto, "when segments are cleaned: auto (when space gets short) or always\n"+
		"(whatever there is, without a pause; for tests)")
	set.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	for flag, word := range map[string]string{
		"listen": "URI", "slot": "ID=DIR", "control": "PATH",
		"arena": "DIR", "name": "NAME", "survivor": "ID", "replace": "ID", "reclaim": "WHEN", "log-level": "LEVEL",
	} {
		nameValue(set, flag, word)
	}
}

// nameValue makes help texts call a flag's value by what it is, not by its Go
// type, and show no empty list as the default.
func nameValue(set *pflag.FlagSet, flag, word string) {
	f := set.Lookup(flag)
	f.Value = namedValue{f.Value, word}
	if f.DefValue == "[]" {
		f.DefValue = ""
	}
}

type namedValue struct {
	pflag.Value
	word string
}

// Type names the value in help texts.
func (v namedValue) Type() string { return v.word }

// servePlan is a command line that makes sense.
type servePlan struct {
	volume      VolumeOptions
	memory      memoryShares
	connections int
	listen      []endpoint
	control     endpoint
	logLevel    slog.Level
}

// plan validates the flags. Errors are for the user, and name the flag.
func (f *serveFlags) plan(dir string) (p servePlan, err error) {
	if p.volume.Dir, err = volumeDir(dir); err != nil {
		return p, err
	}
	for _, step := range []func(*servePlan) error{
		f.planSize, f.planShape, f.planSlots, f.planSurvivor, f.planReplace, f.planListeners, f.planArena, f.planLimits, f.planReclaim, f.planName, f.planLog,
	} {
		if err := step(&p); err != nil {
			return p, err
		}
	}
	return p, nil
}

func volumeDir(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("DIR is empty; give the volume's directory")
	}
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		return "", fmt.Errorf("%s is a file; give a directory, which is made when it is not there", dir)
	}
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("directory %s: %w", dir, err)
	}
	return absolute, nil
}

func (f *serveFlags) planSize(p *servePlan) error {
	p.volume.SizeBytes = uint64(f.size)
	if f.size == 0 {
		return nil
	}
	if err := replica.CheckSize(p.volume.SizeBytes); err != nil {
		return fmt.Errorf("--size %s: %w", &f.size, err)
	}
	return nil
}

func (f *serveFlags) planShape(p *servePlan) error {
	p.volume.Replicas, p.volume.Shards = int(f.replicas), int(f.shards)
	if f.replicas != 0 && f.replicas != 1 && f.replicas != 3 {
		return fmt.Errorf("--replicas %d: a volume has 1 or 3", f.replicas)
	}
	if f.shards < 0 || f.shards > journal.MaxShards || bits.OnesCount(uint(f.shards)) > 1 {
		return fmt.Errorf("--shards %d: it is a power of two from 1 to %d", f.shards, journal.MaxShards)
	}
	return nil
}

func (f *serveFlags) planSlots(p *servePlan) error {
	count := 3
	if f.replicas != 0 {
		count = int(f.replicas)
	}
	p.volume.Slots = map[int]string{}
	for _, text := range f.slots {
		idText, where, found := strings.Cut(text, "=")
		id, err := strconv.Atoi(idText)
		if !found || err != nil || id < 0 || id >= count || where == "" {
			return fmt.Errorf("--slot %q: write ID=DIR; the volume's first slot is 0, its last %d", text, count-1)
		}
		if strings.Contains(where, "://") {
			return fmt.Errorf("--slot %q: remote slots are not in this build; give a directory", text)
		}
		if _, twice := p.volume.Slots[id]; twice {
			return fmt.Errorf("--slot %q: slot %d is given twice", text, id)
		}
		if p.volume.Slots[id], err = filepath.Abs(where); err != nil {
			return fmt.Errorf("--slot %q: %w", text, err)
		}
	}
	return distinctSlots(p.volume, count)
}

func (f *serveFlags) planSurvivor(p *servePlan) error {
	if f.survivor == "" {
		return nil
	}
	id, err := strconv.Atoi(f.survivor)
	if err != nil || id < 0 || id >= journal.MaxSlots {
		return fmt.Errorf("--survivor %q: write the ID of the slot that is left, 0 to %d", f.survivor, journal.MaxSlots-1)
	}
	p.volume.Survivor = id + 1
	return nil
}

func (f *serveFlags) planReplace(p *servePlan) error {
	p.volume.NewIdentity, p.volume.AdoptArena, p.volume.AcceptLoss = f.newIdentity, f.adoptArena, f.acceptLoss
	if f.newIdentity && f.adoptArena {
		return errors.New("--adopt-arena and --new-identity: what shared memory holds stays with the original; serve that one, or give the copy one of the two")
	}
	for _, text := range f.replace {
		id, err := strconv.Atoi(text)
		if err != nil || id < 0 || id >= journal.MaxSlots {
			return fmt.Errorf("--replace %q: write the ID of the slot to be made anew, 0 to %d", text, journal.MaxSlots-1)
		}
		if id == p.volume.Survivor-1 {
			return fmt.Errorf("--replace %d: the survivor is what the others are made from", id)
		}
		p.volume.Replace |= 1 << id
	}
	if p.volume.Survivor == 0 && bits.OnesCount8(p.volume.Replace) > 1 {
		return errors.New("--replace: one slot at a time, for the two others must be whole; with --survivor ID, both")
	}
	return nil
}

// distinctSlots refuses two slots in one place, which would be no replicas.
func distinctSlots(o VolumeOptions, count int) error {
	owner := map[string]int{}
	for id := range count {
		where, given := o.Slots[id]
		if !given {
			where = filepath.Join(o.Dir, "slot-"+strconv.Itoa(id))
		}
		if other, taken := owner[where]; taken {
			return fmt.Errorf("--slot: slots %d and %d are both in %s; give each its own directory", other, id, where)
		}
		owner[where] = id
	}
	return nil
}

func (f *serveFlags) planListeners(p *servePlan) (err error) {
	if len(f.listen) > maxListeners {
		return fmt.Errorf("--listen is given %d times; at most %d are served", len(f.listen), maxListeners)
	}
	for _, uri := range f.listen {
		e, err := parseEndpoint(uri)
		if err != nil {
			return fmt.Errorf("--listen %w", err)
		}
		p.listen = append(p.listen, e)
	}
	if len(p.listen) == 0 {
		e, err := unixEndpoint(filepath.Join(p.volume.Dir, "nbd.sock"))
		if err != nil {
			return fmt.Errorf("--listen is not given: %w", err)
		}
		p.listen = append(p.listen, e)
	}
	path := f.control
	if path == "" {
		path = filepath.Join(p.volume.Dir, controlSocketName)
	}
	if p.control, err = unixEndpoint(path); err != nil {
		return fmt.Errorf("--control: %w", err)
	}
	return distinctEndpoints(append([]endpoint{p.control}, p.listen...))
}

// distinctEndpoints finds by itself what the kernel would refuse later, or what
// would remove our own socket as stale. Port 0 is a new port each time.
func distinctEndpoints(list []endpoint) error {
	seen := map[endpoint]bool{}
	for _, e := range list {
		if _, port, err := net.SplitHostPort(e.address); e.network == "tcp" && err == nil && port == "0" {
			continue
		}
		if seen[e] {
			return fmt.Errorf("--listen: %s is given twice (the control socket counts); each address serves once", e.address)
		}
		seen[e] = true
	}
	return nil
}

func (f *serveFlags) planArena(p *servePlan) error {
	if f.arena == "" {
		return nil
	}
	if info, err := os.Stat(f.arena); err != nil || !info.IsDir() {
		return fmt.Errorf("--arena %s is not a directory; give one on tmpfs, such as /dev/shm", f.arena)
	}
	absolute, err := filepath.Abs(f.arena)
	p.volume.ArenaDir = absolute
	return err
}

func (f *serveFlags) planLimits(p *servePlan) error {
	if p.connections = int(f.connections); p.connections == 0 {
		p.connections = defaultConnections
	}
	if p.connections < 1 || p.connections > maxConnections {
		return fmt.Errorf("--connections %d: it is from 1 to %d", p.connections, maxConnections)
	}
	if least := sizeFlag(minMemoryBytes); f.memory != 0 && f.memory < least {
		return fmt.Errorf("--memory %s is too little; give at least %s", &f.memory, &least)
	}
	if least := sizeFlag(leastMemory(p.connections)); f.memory != 0 && f.memory < least {
		return fmt.Errorf("--memory %s is too little for %d connections; give at least %s, or fewer --connections",
			&f.memory, p.connections, &least)
	}
	p.memory = divideMemory(uint64(f.memory), p.connections)
	p.volume.MemoryBytes = p.memory.volume
	p.volume.Deadline = time.Duration(f.deadline)
	if p.volume.Deadline < minDeadline || p.volume.Deadline > maxDeadline {
		return fmt.Errorf("--deadline %s: it is from %s to %s", p.volume.Deadline, minDeadline, maxDeadline)
	}
	return nil
}

// The values of --reclaim.
const (
	reclaimAuto   = "auto"
	reclaimAlways = "always"
)

func (f *serveFlags) planReclaim(p *servePlan) error {
	switch f.reclaim {
	case "", reclaimAuto:
	case reclaimAlways:
		p.volume.ReclaimAlways = true
	default:
		return fmt.Errorf("--reclaim %q: it is %s or %s", f.reclaim, reclaimAuto, reclaimAlways)
	}
	return nil
}

func (f *serveFlags) planName(p *servePlan) error {
	p.volume.Name = f.name
	if f.name == "" {
		p.volume.Name = replica.NameFor(filepath.Base(p.volume.Dir))
	}
	if err := replica.CheckName(p.volume.Name); err != nil {
		return fmt.Errorf("--name: %w", err)
	}
	return nil
}

func (f *serveFlags) planLog(p *servePlan) error {
	if err := p.logLevel.UnmarshalText([]byte(f.logLevel)); err != nil {
		return fmt.Errorf("--log-level %q: it is debug, info, warn or error", f.logLevel)
	}
	return nil
}
