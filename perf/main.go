// Perf measures Trivet beside other NBD servers: the same fio jobs against
// each, in turn, over unix sockets, on the same disk, within one run, because
// only ratios within one run mean anything on a shared machine. It prints
// markdown tables with medians over the rounds; a ratio is the median of the
// rounds' own ratios.
//
// Every measurement has a server and data of its own: the span was written
// once and flushed before the job starts, and read once if the job reads, so
// that both sides hold it in memory.
//
// The span lies at the beginning of a larger thin volume, unless -volume says
// otherwise: a volume that is full has less room for its log, and is slowed to
// what the cleaner can do.
//
//	go run ./perf                                       # everything
//	go run ./perf -volume 1g -jobs randwrite,fsync      # the volume is full
//	go run ./perf -jobs randwrite,fsync-1 -servers trivet3,nbdkit-file -rounds 5
//	go run ./perf -variant old=/tmp/trivet.old -jobs fsync -servers trivet3,old3 -base old3
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// spanText and spanSize are the span of all jobs.
const (
	spanText = "1g"
	spanSize = 1 << 30
)

// options are the command line.
type options struct {
	jobs, servers, base string
	rounds              int
	runtime, ramp       time.Duration
	binary, dir, out    string
	memory, volume      string
	variants            variants
}

// variants are further builds of Trivet to measure, by name.
type variants []struct{ name, binary string }

// String prints the variants as they were given.
func (v *variants) String() string {
	var all []string
	for _, one := range *v {
		all = append(all, one.name+"="+one.binary)
	}
	return strings.Join(all, " ")
}

// Set adds one variant, NAME=BINARY.
func (v *variants) Set(text string) error {
	name, binary, ok := strings.Cut(text, "=")
	if !ok || name == "" || binary == "" {
		return errors.New("expected NAME=BINARY")
	}
	*v = append(*v, struct{ name, binary string }{name, binary})
	return nil
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	o := parse()
	if err := measureAll(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "perf:", err)
		cancel()
		os.Exit(1)
	}
}

// parse reads the command line.
func parse() options {
	var o options
	flag.StringVar(&o.jobs, "jobs", "all", "which to run, of "+strings.Join(jobNames(), ", ")+"; the beginning of a name stands for all that have it")
	flag.StringVar(&o.servers, "servers", "all", "which to measure, of trivet3, trivet1, nbdkit-file, nbdkit-memory, and of the variants, NAME3 and NAME1")
	flag.StringVar(&o.base, "base", "nbdkit-file", "the server that ratios are taken to")
	flag.IntVar(&o.rounds, "rounds", 3, "how often to do everything")
	flag.DurationVar(&o.runtime, "runtime", 4*time.Second, "how long a job is measured")
	flag.DurationVar(&o.ramp, "ramp", time.Second, "how long a job runs before")
	flag.StringVar(&o.binary, "trivet", "", "the trivet program; built from this tree when empty")
	flag.StringVar(&o.memory, "memory", "1536M", "what trivet may use for payloads and cache; at least the span, for reads from memory")
	flag.StringVar(&o.volume, "volume", "16g", "the size of trivet's volumes, of which the span is used; "+spanText+" for one that is full")
	flag.StringVar(&o.dir, "dir", ".", "where the data is put, in a directory of its own; on a real disk")
	flag.StringVar(&o.out, "out", "", "a file to write the tables to, too")
	flag.Var(&o.variants, "variant", "NAME=BINARY: another trivet to measure beside; may be repeated")
	flag.Parse()
	if flag.NArg() > 0 || o.rounds < 1 {
		flag.Usage()
		os.Exit(2)
	}
	return o
}

// measureAll sets the stage, runs the bench and prints what came out, also
// when it was interrupted half-way.
func measureAll(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp(o.dir, ".perf-")
	if err != nil {
		return fmt.Errorf("work directory: %w", err)
	}
	defer os.RemoveAll(dir)
	if dir, err = filepath.Abs(dir); err != nil {
		return fmt.Errorf("work directory: %w", err)
	}
	jobs, err := choose(o.jobs, jobNames())
	if err != nil {
		return fmt.Errorf("-jobs: %w", err)
	}
	targets, err := chooseTargets(ctx, o, dir)
	if err != nil {
		return err
	}
	b := &bench{
		targets: targets, jobs: jobs, rounds: o.rounds, runtime: o.runtime, ramp: o.ramp,
		span: spanText, spanSize: spanSize, dir: dir, progress: os.Stderr, results: results{},
	}
	runErr := b.run(ctx)
	out := io.Writer(os.Stdout)
	if o.out != "" {
		file, err := os.Create(o.out)
		if err != nil {
			return errors.Join(runErr, fmt.Errorf("-out: %w", err))
		}
		defer file.Close()
		out = io.MultiWriter(os.Stdout, file)
	}
	b.print(out, o.base)
	return runErr
}

// chooseTargets makes the chosen targets, and builds Trivet if one needs it.
func chooseTargets(ctx context.Context, o options, dir string) ([]target, error) {
	binary := o.binary
	if binary == "" {
		binary = filepath.Join(dir, "trivet")
	}
	all := []target{
		trivetTarget("trivet3", binary, o.volume, o.memory, 3),
		trivetTarget("trivet1", binary, o.volume, o.memory, 1),
		nbdkitFile(spanSize),
		nbdkitMemory(spanText),
	}
	for _, v := range o.variants {
		all = append(all,
			trivetTarget(v.name+"3", v.binary, o.volume, o.memory, 3),
			trivetTarget(v.name+"1", v.binary, o.volume, o.memory, 1))
	}
	byName := map[string]target{}
	var known []string
	for _, t := range all {
		byName[t.name] = t
		known = append(known, t.name)
	}
	names, err := choose(o.servers, known)
	if err != nil {
		return nil, fmt.Errorf("-servers: %w", err)
	}
	var chosen []target
	needed := false
	for _, name := range names {
		chosen = append(chosen, byName[name])
		needed = needed || strings.HasPrefix(name, "trivet")
	}
	if needed && o.binary == "" {
		return chosen, build(ctx, binary)
	}
	return chosen, nil
}

// build compiles Trivet from the tree that perf is run in.
func build(ctx context.Context, path string) error {
	out, err := exec.CommandContext(ctx, "go", "build", "-o", path, "trivet/cmd/trivet").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build trivet: %w\n%s", err, out)
	}
	return nil
}
