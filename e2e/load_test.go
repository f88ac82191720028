package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// The shape of the load: a few connections with several requests in flight on
// each, and one that does nothing but flush.
const (
	loadConns   = 4
	loadDepth   = 8
	maxSectors  = 64 * sectorsPerBlock // the largest request
	hotBlocks   = 1024                 // half of all requests go to the first ones
	flushPeriod = 10 * time.Millisecond
)

// A load writes to a server at random and checks what it reads, against a
// model that outlives it.
type load struct {
	model  *model
	dial   func(context.Context) (export, error)
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu    sync.Mutex // guards what follows
	err   error      // the first violation
	acked int        // requests acknowledged
}

// startLoad begins at once and waits for the server to come if it is not
// there yet. The load ends when stop is called, or its connections break.
func startLoad(ctx context.Context, m *model, socket string, random *rand.Rand) *load {
	return startLoadOn(ctx, m, random, func(ctx context.Context) (export, error) {
		return redial(ctx, socket)
	})
}

// startLoadOn is startLoad with the client's way to connect.
func startLoadOn(ctx context.Context, m *model, random *rand.Rand, dial func(context.Context) (export, error)) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{model: m, dial: dial, cancel: cancel}
	for range loadConns {
		l.startConn(ctx, rand.New(rand.NewPCG(random.Uint64(), 1)))
	}
	return l
}

// stop ends the load, returns how many requests were acknowledged, and the
// first violation of what the server promises.
func (l *load) stop() (int, error) {
	l.cancel()
	l.done.Wait()
	return l.acked, l.err
}

// startConn runs one connection: its requests, and a flush now and then.
func (l *load) startConn(ctx context.Context, random *rand.Rand) {
	seeds := make([]uint64, loadDepth)
	for i := range seeds {
		seeds[i] = random.Uint64()
	}
	l.done.Add(1)
	go func() {
		defer l.done.Done()
		c, err := l.dial(ctx)
		if err != nil {
			return // the load was stopped before the server came
		}
		defer c.close()
		var workers sync.WaitGroup
		for _, seed := range seeds {
			workers.Go(func() { l.work(ctx, c, rand.New(rand.NewPCG(seed, 2))) })
		}
		workers.Go(func() { l.flushes(ctx, c) })
		workers.Wait()
	}()
}

// An export is what a load writes to: a connection, or a client that reconnects.
type export interface {
	do(cmd, flags uint16, offset uint64, length uint32, data []byte) error
	sizeBytes() uint64
	close()
}

// redial connects as soon as the server is there.
func redial(ctx context.Context, socket string) (*client, error) {
	for {
		c, err := dial(ctx, socket)
		if err == nil {
			return c, nil
		}
		if pause(ctx, 2*time.Millisecond) != nil {
			return nil, fmt.Errorf("redial: %w: %w", ctx.Err(), err)
		}
	}
}

// count notes the outcome of a request and tells whether to go on.
func (l *load) count(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.acked++
		return true
	case !errors.Is(err, errBroken) && l.err == nil:
		l.err = err
	}
	return false
}

// flushes flushes until the load ends.
func (l *load) flushes(ctx context.Context, c export) {
	for pause(ctx, flushPeriod) == nil {
		at := l.model.now()
		err := c.do(cmdFlush, 0, 0, 0, nil)
		if !l.count(wrap(err, "flush")) {
			return
		}
		l.model.flushed(at)
	}
}

// work does one request after another.
func (l *load) work(ctx context.Context, c export, random *rand.Rand) {
	buf := make([]byte, maxSectors*sectorSize+2*blockSize)
	for ctx.Err() == nil {
		s := l.choose(random, int(c.sizeBytes()/sectorSize))
		claimed, known := l.model.claim(s)
		if !claimed {
			continue
		}
		if !known || random.IntN(5) == 0 {
			if !l.count(l.readSpan(c, s, buf)) {
				return
			}
		}
		if !l.count(l.change(c, s, buf, random)) {
			return
		}
	}
}

// choose picks a span: mostly single blocks, some of many, some ragged.
func (l *load) choose(random *rand.Rand, sectors int) span {
	within := sectors
	if random.IntN(2) == 0 {
		within = min(sectors, hotBlocks*sectorsPerBlock)
	}
	s := span{random.IntN(within), sectorsPerBlock}
	switch random.IntN(10) {
	case 0, 1:
		s.count = (1 + random.IntN(maxSectors/sectorsPerBlock)) * sectorsPerBlock
	case 2, 3:
		s.count = 1 + random.IntN(5*sectorsPerBlock)
		s.count = min(s.count, sectors-s.first)
		return s
	}
	s.first = s.first / sectorsPerBlock * sectorsPerBlock
	s.count = min(s.count, sectors-s.first)
	return s
}

// readSpan reads the whole blocks of a claimed span and checks them.
func (l *load) readSpan(c export, s span, buf []byte) error {
	first, end := s.blocks()
	data := buf[:(end-first)*blockSize]
	if err := c.do(cmdRead, 0, uint64(first)*blockSize, uint32(len(data)), data); err != nil {
		return wrap(err, "read")
	}
	return l.model.check(first, data)
}

// change writes, trims or zeroes a claimed span.
func (l *load) change(c export, s span, buf []byte, random *rand.Rand) error {
	flags := uint16(0)
	if random.IntN(10) == 0 {
		flags = flagFUA
	}
	offset, length := uint64(s.first)*sectorSize, uint32(s.count*sectorSize)
	var err error
	switch random.IntN(20) {
	case 0:
		l.model.begin(s, true)
		err = wrap(c.do(cmdTrim, flags, offset, length, nil), "trim")
	case 1:
		l.model.begin(s, true)
		err = wrap(c.do(cmdWriteZeroes, flags, offset, length, nil), "write zeroes")
	default:
		encode(buf[:length], s.first, l.model.begin(s, false))
		err = wrap(c.do(cmdWrite, flags, offset, length, buf[:length]), "write")
	}
	if err == nil {
		l.model.ack(s, flags == flagFUA)
	}
	return err
}

// wrap says which operation an error belongs to.
func wrap(err error, operation string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", operation, err)
}

// verify reads the whole device and checks it.
func verify(ctx context.Context, m *model, socket string) error {
	c, err := dial(ctx, socket)
	if err != nil {
		return err
	}
	defer c.close()
	buf := make([]byte, 1<<20)
	for offset := uint64(0); offset < c.size; offset += uint64(len(buf)) {
		data := buf[:min(uint64(len(buf)), c.size-offset)]
		if err := c.read(data, offset); err != nil {
			return wrap(err, "verify")
		}
		if err := m.check(int(offset/blockSize), data); err != nil {
			return err
		}
	}
	return nil
}
