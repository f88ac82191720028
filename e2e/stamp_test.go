package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// A stamp is what a block says of itself: of whose write it is, and the how
// manieth. Versions grow over all volumes of a test, so that an older block is
// told from a newer one; a life is one run of one server. The zero stamp is a
// block that was never written.
type stamp struct{ life, version uint32 }

// stampMagic begins every block that was stamped.
const stampMagic = 0x7472697665740a01

// put makes a block that holds the stamp, its own address and a checksum; the
// bytes in between depend on all three, so that no two blocks share a sector.
func (s stamp) put(block []byte, lba int) {
	binary.LittleEndian.PutUint64(block, stampMagic)
	binary.LittleEndian.PutUint64(block[8:], uint64(lba))
	binary.LittleEndian.PutUint32(block[16:], s.life)
	binary.LittleEndian.PutUint32(block[20:], s.version)
	x := uint64(lba)<<32 ^ uint64(s.life)<<16 ^ uint64(s.version) | 1
	for at := 24; at < blockSize-8; at += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(block[at:], x)
	}
	binary.LittleEndian.PutUint64(block[blockSize-8:], uint64(crc32.ChecksumIEEE(block[:blockSize-8])))
}

// readStamp tells what a block holds; foreign says what it is when it is no
// block that was ever written at this address.
func readStamp(block []byte, lba int) (s stamp, foreign string) {
	magic := binary.LittleEndian.Uint64(block)
	switch {
	case !slices.ContainsFunc(block, func(b byte) bool { return b != 0 }):
		return stamp{}, ""
	case binary.LittleEndian.Uint64(block[blockSize-8:]) != uint64(crc32.ChecksumIEEE(block[:blockSize-8])):
		return s, "a mix: its checksum does not match"
	case magic != stampMagic:
		return s, "foreign: nobody has stamped it"
	}
	if at := binary.LittleEndian.Uint64(block[8:]); at != uint64(lba) {
		return s, fmt.Sprintf("foreign: block %d's", at)
	}
	return stamp{binary.LittleEndian.Uint32(block[16:]), binary.LittleEndian.Uint32(block[20:])}, ""
}

// content is what each block of a volume may hold: what was acknowledged last
// comes last, what was flushed last comes first. Between them is what was
// acknowledged and not flushed; it is there or not where memory was left behind.
type content [][]stamp

func newContent(blocks int) content {
	c := make(content, blocks)
	for i := range c {
		c[i] = []stamp{{}}
	}
	return c
}

// copy returns a content of its own.
func (c content) copy() content {
	out := make(content, len(c))
	for i := range c {
		out[i] = slices.Clone(c[i])
	}
	return out
}

// wrote notes an acknowledged write.
func (c content) wrote(lba int, s stamp) { c[lba] = append(c[lba], s) }

// settle notes that all that was acknowledged is what counts: it was flushed,
// or a start has found it.
func (c content) settle() {
	for i := range c {
		c[i] = c[i][len(c[i])-1:]
	}
}

// judge holds a block against what it may hold; empty when it is right. From then
// on it may hold nothing else.
func (c content) judge(lba int, block []byte, lives []string) string {
	found, foreign := readStamp(block, lba)
	allowed := c[lba]
	name := func(s stamp) string {
		if s == (stamp{}) {
			return "zeros"
		}
		if int(s.life) >= len(lives) {
			return fmt.Sprintf("version %d of an unknown life", s.version)
		}
		return fmt.Sprintf("version %d by %s", s.version, lives[s.life])
	}
	newest := allowed[len(allowed)-1]
	switch {
	case foreign != "":
		return fmt.Sprintf("%s; expected %s", foreign, name(newest))
	case slices.Contains(allowed, found):
		c[lba] = []stamp{found} // and so it stays
		return ""
	case found == stamp{}:
		return fmt.Sprintf("zeros where data was acknowledged; expected %s", name(newest))
	case found.version < allowed[0].version:
		return fmt.Sprintf("an older block: %s; expected %s", name(found), name(newest))
	}
	return fmt.Sprintf("of another life, or later: %s; expected %s", name(found), name(newest))
}

// A verdict gathers what is wrong in a volume.
type verdict struct {
	wrong, failed int // blocks; failed ones could not be read
	first         []string
}

func (v *verdict) add(lba int, what string) {
	v.wrong++
	if len(v.first) < 6 {
		v.first = append(v.first, fmt.Sprintf("block %d: %s", lba, what))
	}
}

func (v *verdict) err() error {
	if v.wrong == 0 {
		return nil
	}
	return fmt.Errorf("%d blocks are wrong:\n\t%s", v.wrong, strings.Join(v.first, "\n\t"))
}

// readAll reads every block and judges it. Reads that fail are counted, and are
// the caller's to judge.
func readAll(ctx context.Context, socket string, c content, lives []string) (*verdict, error) {
	conn, err := dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer conn.close()
	if got, want := conn.sizeBytes(), uint64(len(c)*blockSize); got != want {
		return nil, fmt.Errorf("the export has %d bytes, want %d", got, want)
	}
	const step = 64
	v, buf := &verdict{}, make([]byte, len(c)*blockSize)
	var single []int
	for _, first := range readEach(conn, buf, everyStep(len(c), step), step) {
		for lba := first; lba < first+step; lba++ { // each for itself: an error must not hide zeros
			single = append(single, lba)
		}
	}
	for _, lba := range readEach(conn, buf, single, 1) {
		v.failed++
		unreadable(buf[lba*blockSize:][:blockSize])
	}
	if err := conn.alive(); err != nil {
		return v, err
	}
	v.judge(c, buf, lives)
	return v, nil
}

// everyStep returns 0, step, 2·step, … below n.
func everyStep(n, step int) (list []int) {
	for at := 0; at < n; at += step {
		list = append(list, at)
	}
	return list
}

// readEach reads so many blocks from each of some places on, many at a time, and
// returns the places at which that failed.
func readEach(conn *client, buf []byte, places []int, blocks int) (failed []int) {
	results := make([]error, len(places))
	var readers errgroup.Group
	readers.SetLimit(1024 / blocks)
	for i, first := range places {
		readers.Go(func() error {
			results[i] = conn.read(buf[first*blockSize:][:blocks*blockSize], uint64(first*blockSize))
			return nil
		})
	}
	readers.Wait() // each result is its own
	for i, err := range results {
		if err != nil {
			failed = append(failed, places[i])
		}
	}
	return failed
}

// alive returns why the connection has ended, if it has.
func (c *client) alive() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broken
}

// unreadable marks a block that could not be read.
func unreadable(block []byte) { binary.LittleEndian.PutUint64(block, ^uint64(0)) }

func (v *verdict) judge(c content, buf []byte, lives []string) {
	for lba := range c {
		block := buf[lba*blockSize:][:blockSize]
		if binary.LittleEndian.Uint64(block) == ^uint64(0) {
			continue
		}
		if what := c.judge(lba, block, lives); what != "" {
			v.add(lba, what)
		}
	}
}

// write stamps the blocks that which picks, and makes them durable if asked to.
func (c content) write(ctx context.Context, socket string, s stamp, which func(lba int) bool, flush bool) error {
	conn, err := dial(ctx, socket)
	if err != nil {
		return err
	}
	defer conn.close()
	buf := make([]byte, 0, 64*blockSize)
	send := func(end int) error {
		first := end - len(buf)/blockSize
		if len(buf) == 0 {
			return nil
		}
		if err := conn.write(buf, uint64(first*blockSize), 0); err != nil {
			return fmt.Errorf("write block %d: %w", first, err)
		}
		for lba := first; lba < end; lba++ {
			c.wrote(lba, s)
		}
		buf = buf[:0]
		return nil
	}
	for lba := range c {
		if !which(lba) || len(buf) == cap(buf) {
			if err := send(lba); err != nil {
				return err
			}
		}
		if which(lba) {
			buf = buf[:len(buf)+blockSize]
			s.put(buf[len(buf)-blockSize:], lba)
		}
	}
	if err := send(len(c)); err != nil || !flush {
		return err
	}
	if err := conn.do(cmdFlush, 0, 0, 0, nil); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	c.settle()
	return nil
}
