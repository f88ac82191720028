package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"trivet/disk"
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

A slot that has lost something is repaired from its peers when the volume is
served. The exit status is 1 when something is wrong.`

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
	out, progress   io.Writer
	findings, notes int
	sizeBytes       uint64 // of data verified
	said            time.Time
}

// sayEvery is the time between two lines of progress.
const sayEvery = 2 * time.Second

// checkVolume verifies a volume that nobody serves and prints what it finds.
// The error wraps errFindings when something is wrong in it.
func checkVolume(ctx context.Context, o VolumeOptions, out, progress io.Writer) (err error) {
	c := &volumeCheck{out: out, progress: progress, said: time.Now()}
	slots, err := c.open(ctx, slotDirs(o))
	defer func() {
		for _, s := range slots {
			if s != nil {
				err = errors.Join(err, s.Close())
			}
		}
	}()
	if err != nil {
		return err
	}
	err = replica.Check(slots, replica.CheckReport{Found: c.found, Note: c.note, Verified: c.verified})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: %s, %s, %s of data verified\n",
		o.Dir, plural(c.findings, "finding"), plural(c.notes, "note"), formatSize(c.sizeBytes))
	if c.findings > 0 {
		return fmt.Errorf("%w: %s", errFindings, plural(c.findings, "finding"))
	}
	return ctx.Err()
}

// slotDirs returns where the slots of a volume are: as many as the first
// superblock says that can be read, or else those that are there.
func slotDirs(o VolumeOptions) []string {
	var dirs []string
	count := 0
	for i := range journal.MaxSlots {
		dir := o.Slots[i]
		if dir == "" {
			dir = filepath.Join(o.Dir, "slot-"+strconv.Itoa(i))
		}
		dirs = append(dirs, dir)
		if _, err := os.Stat(dir); err == nil && count == 0 {
			count = i + 1
		}
		if replicas, err := replicasOf(dir); err == nil {
			count = max(count, replicas)
		}
	}
	return dirs[:count]
}

// replicasOf reads from a slot's superblock how many slots its volume has.
func replicasOf(dir string) (int, error) {
	files, err := disk.Real(dir, disk.Options{})
	if err != nil {
		return 0, err
	}
	f, err := files.Open(journal.SuperblockFile)
	if err != nil {
		return 0, err
	}
	super, _, err := journal.ReadSuperblock(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	return int(super.Replicas), nil
}

// open opens what slots there are. One that is served refuses the whole check.
func (c *volumeCheck) open(ctx context.Context, dirs []string) ([]*replica.Slot, error) {
	slots := make([]*replica.Slot, len(dirs))
	opened := 0
	for i, dir := range dirs {
		s, err := openForCheck(i, dir)
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

// openForCheck opens a slot, and makes nothing that is not there.
func openForCheck(id int, dir string) (*replica.Slot, error) {
	files, err := disk.Real(dir, disk.Options{})
	if err != nil {
		return nil, err
	}
	s, err := replica.ReadSlot(files, journal.SlotID(id), dir)
	if err != nil {
		return nil, err
	}
	store := filepath.Join(dir, "meta")
	if _, err := os.Stat(store); err != nil {
		return nil, errors.Join(fmt.Errorf("metadata: %w", err), s.Close())
	}
	m, err := meta.StartHelper(meta.HelperOptions{Dir: store})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("metadata: %w", err), s.Close())
	}
	s.Attach(m)
	return s, nil
}

func (c *volumeCheck) found(slot int, place string, err error) {
	c.findings++
	fmt.Fprintf(c.out, "slot %d: %s: %v\n", slot, place, err)
}

func (c *volumeCheck) note(slot int, what string) {
	c.notes++
	fmt.Fprintf(c.out, "note: slot %d %s\n", slot, what)
}

func (c *volumeCheck) verified(slot int, sizeBytes int64) {
	c.sizeBytes += uint64(sizeBytes)
	if now := time.Now(); now.Sub(c.said) > sayEvery {
		c.said = now
		fmt.Fprintf(c.progress, "slot %d, %s of data verified\n", slot, formatSize(c.sizeBytes))
	}
}
