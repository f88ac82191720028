package meta

import (
	"fmt"
	"io"
	"sync"
)

// quietLog passes Badger's warnings and errors on, each kind only the first,
// second, fourth, … time: a flush that fails is retried, and told of, for ever.
type quietLog struct {
	mu    sync.Mutex
	out   io.Writer
	count map[string]uint64 // by format, of which Badger has a fixed number
}

func newQuietLog(out io.Writer) *quietLog {
	return &quietLog{out: out, count: make(map[string]uint64)}
}

func (q *quietLog) Errorf(format string, args ...any)   { q.print("error", format, args) }
func (q *quietLog) Warningf(format string, args ...any) { q.print("warning", format, args) }
func (q *quietLog) Infof(string, ...any)                {}
func (q *quietLog) Debugf(string, ...any)               {}

func (q *quietLog) print(level, format string, args []any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.count[format]++
	if n := q.count[format]; n&(n-1) == 0 {
		fmt.Fprintf(q.out, "meta: badger %s (%d times): %s\n", level, n, fmt.Sprintf(format, args...))
	}
}
