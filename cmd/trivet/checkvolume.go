package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/spf13/cobra"

	"trivet/device"
	"trivet/journal"
	"trivet/meta"
	"trivet/replica"
)

// errFindings: the volume was read, and something in it is wrong.
var errFindings = errors.New("the volume is damaged")

const checkHelp = `Reads the volume in DIR, which nobody may serve meanwhile, and verifies every
checksum, every map entry and every block of data, then compares the slots.
What is wrong is printed, one line each, with the slot and the place; a note is
what the next start puts right by itself. The log and the superblocks are only
read; the metadata stores are opened, which finishes what they had under way.

A slot whose log has lost something is brought together with its peers by the
next start. A block that is rotten in one slot alone is repaired when it is read
there, which may be never: to have it all anew, have the slot replaced while the
volume is served ('trivet slot replace ID'). The exit status is 1 when something
is wrong.`

func newCheckCommand() *cobra.Command {
	var flags serveFlags
	cmd := &cobra.Command{
		Use:   "check DIR",
		Short: "Verify every checksum and every map entry of a volume that is not served",
		Long:  checkHelp,
		Args:  wantArgs("DIR"),
	}
	cmd.Flags().StringArrayVar(&flags.slots, "slot", nil, "ID=DIR: where a slot lives (default DIR/slot-ID)")
	nameValue(cmd.Flags(), "slot", "ID=DIR")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if info, err := os.Stat(args[0]); err != nil || !info.IsDir() {
			return fmt.Errorf("check: %s is not a directory; give the one that 'trivet serve' was given", args[0])
		}
		p := servePlan{volume: VolumeOptions{Dir: args[0]}}
		if err := flags.planSlots(&p); err != nil {
			return usagef("check: %w", err)
		}
		if err := checkVolume(cmd.Context(), p.volume, cmd.OutOrStdout(), cmd.ErrOrStderr()); err != nil {
			return fmt.Errorf("check: %w", err)
		}
		return nil
	}
	return cmd
}

// volumeCheck prints what is found in a volume at rest.
type volumeCheck struct {
	out             io.Writer
	progress        *progress
	findings, notes int
	verifiedBytes   atomic.Uint64 // of data
	readBytes       atomic.Uint64 // of logs and superblocks, some of it more than once
}

// checkVolume verifies a volume that nobody serves and prints what it finds.
// The error wraps errFindings when something is wrong in it.
func checkVolume(ctx context.Context, o VolumeOptions, out, stderr io.Writer) (err error) {
	c := &volumeCheck{out: out, progress: newProgress(stderr)}
	dirs, known, err := device.Locate(device.Options{Dir: o.Dir, Slots: o.Slots})
	if errors.Is(err, device.ErrNoVolume) {
		return errors.New("no volume here; give the directory that 'trivet serve' was given")
	}
	if err != nil {
		return err
	}
	slots, err := c.open(ctx, dirs)
	defer func() {
		c.progress.clear()
		for _, s := range slots {
			if s != nil {
				err = errors.Join(err, s.Close())
				forgetCached(s.Where)
			}
		}
	}()
	if err != nil {
		return err
	}
	err = replica.Check(slots, known, replica.CheckReport{Found: c.found, Note: c.note, Verified: c.verified, AttachStore: attachStore})
	if err != nil {
		return err
	}
	c.progress.clear()
	fmt.Fprintf(out, "%s: %s, %s, %s of data verified\n",
		o.Dir, plural(c.findings, "finding"), plural(c.notes, "note"), formatSize(c.verifiedBytes.Load()))
	if c.findings > 0 {
		return fmt.Errorf("%w: %s", errFindings, plural(c.findings, "finding"))
	}
	return ctx.Err()
}

// open opens what slots there are. One that is served refuses the whole check.
func (c *volumeCheck) open(ctx context.Context, dirs []string) ([]*replica.Slot, error) {
	slots := make([]*replica.Slot, len(dirs))
	opened := 0
	for i, dir := range dirs {
		s, err := c.openSlot(i, dir)
		switch {
		case errors.Is(err, replica.ErrInUse):
			return slots, fmt.Errorf("%s is being served; stop its 'trivet serve' first", dir)
		case err != nil:
			c.found(i, dir, err)
			continue
		}
		slots[i] = s
		opened++
	}
	if opened == 0 {
		return slots, errors.New("no volume here; give the directory that 'trivet serve' was given")
	}
	return slots, ctx.Err()
}

// openSlot opens a slot, and makes nothing that is not there.
func (c *volumeCheck) openSlot(id int, dir string) (*replica.Slot, error) {
	files, err := openToCheck(dir, c.read)
	if err != nil {
		return nil, err
	}
	return replica.ReadSlot(files, journal.SlotID(id), dir)
}

// attachStore opens the metadata store of a slot, and makes none.
func attachStore(s *replica.Slot) error {
	store := filepath.Join(s.Where, "meta")
	if _, err := os.Stat(store); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	expect := s.Expect()
	expect.Create = false
	m, err := meta.StartHelper(meta.HelperOptions{Dir: store, Badger: meta.BadgerOptions{Expect: expect}})
	if err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	s.Attach(m)
	return nil
}

func (c *volumeCheck) found(slot int, place string, err error) {
	c.findings++
	c.progress.clear()
	fmt.Fprintf(c.out, "slot %d: %s: %v\n", slot, place, err)
}

func (c *volumeCheck) note(slot int, what string) {
	c.notes++
	c.progress.clear()
	fmt.Fprintf(c.out, "note: slot %d %s\n", slot, what)
}

func (c *volumeCheck) verified(_ int, sizeBytes int64) { c.verifiedBytes.Add(uint64(sizeBytes)) }

// read is told of every read of a slot's files.
func (c *volumeCheck) read(sizeBytes int) {
	c.readBytes.Add(uint64(sizeBytes))
	c.progress.tell(func() string {
		return fmt.Sprintf("%s read, %s of data verified", formatSize(c.readBytes.Load()), formatSize(c.verifiedBytes.Load()))
	})
}
