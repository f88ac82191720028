package arena

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kill test runs this binary again as a server that does nothing but use
// its arena, from one goroutine a shard, and kills it with SIGKILL at random.
// Both sides know what a write (shard, sequence) looks like, so every byte
// that is found can be checked. What must be found, they agree on in a ledger,
// shared memory beside the arena.

const (
	childEnv   = "TRIVET_ARENA_TEST_CHILD" // hammer or create: what the child does
	dirEnv     = "TRIVET_ARENA_TEST_DIR"
	seedEnv    = "TRIVET_ARENA_TEST_SEED"
	kills      = 100
	killShards = 4
	killPages  = 96 // few, so that pages are reused at once and Alloc fails often
)

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "hammer":
		fmt.Fprintln(os.Stderr, hammer())
		os.Exit(1)
	case "create":
		fmt.Fprintln(os.Stderr, createAndDiscard())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func killOptions(dir string) Options {
	return Options{Volume: testVolume, Dir: dir, SizeBytes: killPages * PageSize, Shards: killShards}
}

// ledger is what the child says of a shard before it does it (freeing) and
// after it did (acked).
type ledger struct {
	acked   atomic.Uint64 // all writes up to this sequence were published
	freeing atomic.Uint64 // all before this one were freed; this one may be, in part
	_       [48]byte
}

func mapLedger(dir string) (*[killShards]ledger, error) {
	file, err := os.OpenFile(filepath.Join(dir, "ledger"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := file.Truncate(PageSize); err != nil {
		return nil, err
	}
	mapped, err := unix.Mmap(int(file.Fd()), 0, PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*[killShards]ledger)(unsafe.Pointer(&mapped[0])), nil
}

// A write's shape follows from its shard and sequence alone.

func pagesOf(seq uint64) int { return 1 + int(seq*2654435761>>7%5) }

func lbaOf(shard uint16, seq uint64, i int) uint64 { return uint64(shard)<<48 | seq<<8 | uint64(i) }

// stampOf has the generation in the LSN once more, so that a stamp made of
// halves of two shows.
func stampOf(generation, seq uint64) Stamp { return Stamp{generation, generation<<32 | seq} }

func recordOf(a *Arena, p Page, shard uint16, seq uint64, i int) Record {
	lba := lbaOf(shard, seq, i)
	if seq%3 != 0 { // mostly trims: without a payload, more of the time goes to publishing
		return Record{Shard: shard, Kind: Trim, LBA: lba, Count: uint32(seq), Stamp: stampOf(1, seq)}
	}
	rec := fillWrite(a, p, lba, lba*0x9E3779B97F4A7C15, stampOf(1, seq))
	rec.Shard = shard
	return rec
}

// hammerer is the child's state of one shard.
type hammerer struct {
	arena  *Arena
	ledger *ledger
	shard  uint16
	rng    *rand.Rand
	seq    uint64
	live   [][]Page // by sequence, the oldest first; the newest is seq
}

// hammer is the child: it takes over what it finds, then works until killed.
func hammer() error {
	dir := os.Getenv(dirEnv)
	seed, err := strconv.ParseUint(os.Getenv(seedEnv), 10, 64)
	if err != nil {
		return err
	}
	ledgers, err := mapLedger(dir)
	if err != nil {
		return err
	}
	a, err := Open(killOptions(dir))
	if err != nil {
		return err
	}
	found, err := a.Recover()
	if err != nil {
		return err
	}
	failed := make(chan error)
	for shard := range uint16(killShards) {
		h := &hammerer{arena: a, ledger: &ledgers[shard], shard: shard, rng: rand.New(rand.NewPCG(seed, uint64(shard)))}
		h.adopt(found)
		h.start(failed)
	}
	return <-failed
}

// start runs the shard until the process is killed, or nobody listens.
func (h *hammerer) start(failed chan<- error) {
	go func() {
		for i := 1; ; i++ {
			h.step()
			if i%64 == 0 {
				if _, err := os.Stdout.Write([]byte{'.'}); err != nil {
					failed <- err
				}
			}
		}
	}()
}

// adopt continues a shard: it finishes the free that was under way, undoes the
// write that was, and restamps all others.
func (h *hammerer) adopt(found []Recovered) {
	acked, freeing := h.ledger.acked.Load(), h.ledger.freeing.Load()
	h.seq = acked
	h.live = make([][]Page, acked-freeing)
	for _, r := range found {
		if r.Record.Shard != h.shard {
			continue
		}
		seq := r.Record.LSN & (1<<32 - 1)
		if seq <= freeing || seq > acked {
			h.arena.Free(r.Page)
			continue
		}
		h.arena.Restamp(r.Page, stampOf(r.Record.Generation+1, seq))
		h.live[seq-freeing-1] = append(h.live[seq-freeing-1], r.Page)
	}
	h.arena.Retired(h.shard, freeing)
}

func (h *hammerer) step() {
	switch draw := h.rng.IntN(8); {
	case draw < 3:
		h.write()
	case draw < 5 && len(h.live) > 0:
		h.restamp(h.rng.IntN(len(h.live)))
	case draw < 6 || len(h.live) > 12:
		h.freeOldest()
	}
}

func (h *hammerer) write() {
	pages := make([]Page, pagesOf(h.seq+1))
	if !h.arena.Alloc(len(pages), pages) {
		h.freeOldest()
		return
	}
	h.seq++
	for i, p := range pages {
		h.arena.Put(p, recordOf(h.arena, p, h.shard, h.seq, i))
	}
	h.live = append(h.live, pages)
	h.ledger.acked.Store(h.seq)
}

func (h *hammerer) restamp(at int) {
	seq, generation := h.seq-uint64(len(h.live)-1-at), h.rng.Uint64N(1<<31)
	for i := range 8 * len(h.live[at]) {
		h.arena.Restamp(h.live[at][i/8], stampOf(generation+uint64(i), seq))
	}
}

func (h *hammerer) freeOldest() {
	if len(h.live) == 0 {
		return
	}
	seq := h.seq - uint64(len(h.live)-1)
	h.ledger.freeing.Store(seq)
	h.arena.Free(h.live[0]...)
	h.arena.Retired(h.shard, seq)
	h.live = h.live[1:]
}

// createAndDiscard is the other child: it makes and removes its arena.
func createAndDiscard() error {
	for {
		a, err := Open(killOptions(os.Getenv(dirEnv)))
		if err != nil {
			return err
		}
		if err := a.Discard(); err != nil {
			return err
		}
		if _, err := os.Stdout.Write([]byte{'.'}); err != nil {
			return err
		}
	}
}

// runAndKill starts a child and kills it once it has made progress often
// enough.
func runAndKill(t *testing.T, mode, dir string, seed uint64, progress int) {
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(executable)
	cmd.Env = append(os.Environ(), childEnv+"="+mode, dirEnv+"="+dir, seedEnv+"="+strconv.FormatUint(seed, 10))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, short := bufio.NewReader(out).Discard(progress)
	if err := cmd.Process.Kill(); err != nil && short == nil {
		t.Error(err)
	}
	_ = cmd.Wait() // 'signal: killed', unless the child failed, which short tells
	if short != nil {
		t.Fatalf("the child ended by itself: %v", short)
	}
}

// TestKill is the promise of the package: whatever instruction the kill met,
// every acknowledged write that was not being freed is found, complete.
func TestKill(t *testing.T) {
	dir := tmpfsDir(t)
	ledgers, err := mapLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	var recovered, torn int
	for range kills {
		runAndKill(t, "hammer", dir, rng.Uint64(), rng.IntN(200))
		n, partly := checkKilled(t, dir, ledgers)
		recovered, torn = recovered+n, torn+partly
	}
	t.Logf("%d kills, %d records recovered, %d writes caught half way", kills, recovered, torn)
	if recovered == 0 {
		t.Error("no kill found anything in the arena: nothing was tested")
	}
}

// checkKilled opens what a killed child left. It returns how many records are
// there, and how many writes were being published or freed.
func checkKilled(t *testing.T, dir string, ledgers *[killShards]ledger) (records, torn int) {
	a, err := Open(killOptions(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer closeArena(t, a)
	found := recoverAll(t, a)
	if a.Live() != len(found) {
		t.Errorf("%d pages live for %d records", a.Live(), len(found))
	}
	var seen [killShards]map[uint64]int // pages found, by sequence
	for shard := range seen {
		seen[shard] = map[uint64]int{}
	}
	for i, r := range found {
		seq := r.Record.LSN & (1<<32 - 1)
		checkRecord(t, a, r, seq)
		if i > 0 && found[i-1].Record == r.Record {
			t.Errorf("%+v is there twice", r.Record)
		}
		seen[r.Record.Shard][seq]++
	}
	for shard := range uint16(killShards) {
		torn += checkShard(t, a, shard, &ledgers[shard], seen[shard])
	}
	return len(found), torn
}

// checkRecord compares a record and its payload with what the write must be.
func checkRecord(t *testing.T, a *Arena, r Recovered, seq uint64) {
	i := int(r.Record.LBA & 0xff)
	if r.Err != nil || i >= pagesOf(seq) || r.Record.Stamp != stampOf(r.Record.Generation, seq) {
		t.Fatalf("%+v: not a whole record: %v", r.Record, r.Err)
	}
	scratch := Arena{payload: make([]byte, PageSize)}
	want := recordOf(&scratch, 0, r.Record.Shard, seq, i)
	want.Stamp = r.Record.Stamp
	if r.Record != want || want.Kind == Write && string(a.Bytes(r.Page)) != string(scratch.payload) {
		t.Fatalf("recovered %+v, want %+v and its payload", r.Record, want)
	}
}

// checkShard holds what was found against the ledger.
func checkShard(t *testing.T, a *Arena, shard uint16, l *ledger, seen map[uint64]int) (torn int) {
	acked, freeing, retired := l.acked.Load(), l.freeing.Load(), retired(t, a, shard)
	if retired > freeing || retired+1 < freeing {
		t.Errorf("shard %d: retired %d while %d is being freed", shard, retired, freeing)
	}
	for seq, n := range seen {
		if seq <= retired || seq < freeing || seq > acked+1 {
			t.Errorf("shard %d: %d pages of write %d, with %d retired, %d acknowledged", shard, n, seq, retired, acked)
		}
		if n < pagesOf(seq) {
			torn++
		}
	}
	for seq := freeing + 1; seq <= acked; seq++ {
		if seen[seq] != pagesOf(seq) {
			t.Errorf("shard %d: %d pages of acknowledged write %d, want %d", shard, seen[seq], seq, pagesOf(seq))
		}
	}
	return torn
}

// TestKillDuringCreation kills a child that makes and discards its arena: what
// is left must never stand in the way of the next start.
func TestKillDuringCreation(t *testing.T) {
	dir := tmpfsDir(t)
	for range 10 {
		runAndKill(t, "create", dir, 0, rand.IntN(40))
		a, err := Open(killOptions(dir))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Discard(); err != nil {
			t.Fatal(err)
		}
	}
}
