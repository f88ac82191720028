package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// The pace of a progress line.
const (
	progressAfter = time.Second            // what takes less needs none
	progressEvery = 200 * time.Millisecond // between two
)

// progress is a line at the bottom of a terminal that tells how far long work
// has come. Its methods may be called from any goroutine.
type progress struct {
	out io.Writer // nil: nobody looks
	now func() time.Time

	mu    sync.Mutex // guards what follows, and the terminal
	next  time.Time  // when it is written again
	shown bool
}

// newProgress begins the work. Only somebody at a terminal is told: in a file
// the line would be noise.
func newProgress(out io.Writer) *progress {
	if f, ok := out.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		out = nil
	}
	return progressOn(out, time.Now)
}

func progressOn(out io.Writer, now func() time.Time) *progress {
	return &progress{out: out, now: now, next: now().Add(progressAfter)}
}

// tell shows what line returns, unless the last one is recent.
func (p *progress) tell(line func() string) {
	if p.out == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if now.Before(p.next) {
		return
	}
	p.next, p.shown = now.Add(progressEvery), true
	fmt.Fprint(p.out, "\r"+line()+clearLine)
}

// clear takes the line away: something else is written, or the work is done.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprint(p.out, "\r"+clearLine)
		p.shown, p.next = false, p.now() // it comes back with the next call
	}
}
