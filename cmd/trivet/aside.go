package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"trivet/arena"
	"trivet/aside"
	"trivet/device"
	"trivet/replica"
)

const asideHelp = `What a slot holds is set aside when it cannot be believed, or when the slot is
replaced: it is moved to a directory aside-… in the slot's, and the slot is filled
anew by its peers. So is an arena that belongs to another life of the volume: it
is renamed to ….aside-N. Nothing of that is used again. It stays until somebody
has looked at it, and takes the space that it took; when four lie in a slot's
directory, nothing more is set aside there, and the slot stays away.

'aside list' names them, and 'aside rm' removes those that are named. Both work
whether or not the volume is served.`

func newAsideCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "aside",
		Short: "List or remove what the volume's slots could no longer use",
		Long:  asideHelp,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("aside: unknown action %q; write 'aside list DIR' or 'aside rm PATH...'", args[0])
			}
			return usagef("aside: no action given; write 'aside list DIR' or 'aside rm PATH...'")
		},
		Args: cobra.ArbitraryArgs,
	}
	cmd.AddCommand(newAsideListCommand(), newAsideRemoveCommand())
	return cmd
}

func newAsideListCommand() *cobra.Command {
	var flags serveFlags
	var arenaDir string
	cmd := &cobra.Command{
		Use:   "list DIR",
		Short: "List what was set aside of the volume in DIR, with its size",
		Long:  asideHelp,
		Args:  wantArgs("DIR"),
	}
	cmd.Flags().StringArrayVar(&flags.slots, "slot", nil, "ID=DIR: where a slot lives (default DIR/slot-ID)")
	cmd.Flags().StringVar(&arenaDir, "arena-dir", "", "where the arena is (default /dev/shm)")
	nameValue(cmd.Flags(), "slot", "ID=DIR")
	nameValue(cmd.Flags(), "arena-dir", "DIR")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p := servePlan{volume: VolumeOptions{Dir: args[0]}}
		if err := flags.planSlots(&p); err != nil {
			return usagef("aside list: %w", err)
		}
		if err := listAside(cmd.OutOrStdout(), p.volume, arenaDir); err != nil {
			return fmt.Errorf("aside list: %w", err)
		}
		return nil
	}
	return cmd
}

// listAside prints what was set aside of a volume.
func listAside(out io.Writer, o VolumeOptions, arenaDir string) error {
	dirs, known, err := device.Locate(device.Options{Dir: o.Dir, Slots: o.Slots})
	if errors.Is(err, device.ErrNoVolume) {
		return errors.New("no volume here; give the directory that 'trivet serve' was given")
	}
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		all, err := aside.List(dir)
		if err != nil {
			return err
		}
		for _, e := range all {
			fmt.Fprintf(out, "%s\t%s\n", e.Path, formatSize(uint64(e.SizeBytes)))
		}
	}
	for _, path := range device.ArenasAside(known.Volume, arenaDir, o.Dir) {
		if info, err := os.Lstat(path); err == nil {
			fmt.Fprintf(out, "%s\t%s\n", path, formatSize(uint64(aside.Blocks(info))))
		}
	}
	return nil
}

func newAsideRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rm PATH...",
		Short: "Remove what was set aside, by the paths that 'aside list' prints",
		Long:  asideHelp,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("aside rm: PATH is missing; usage: %s", cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, path := range args {
				if err := removeAside(path); err != nil {
					return fmt.Errorf("aside rm: %w", err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "removed %s\n", path)
			}
			return nil
		},
	}
}

// removeAside removes what was set aside in a slot's directory, or of an arena, and
// nothing else.
func removeAside(path string) error {
	dir, name := filepath.Split(filepath.Clean(path))
	if dir == "" {
		dir = "."
	}
	if arena.IsAside(name) {
		return arena.RemoveAside(filepath.Join(dir, name))
	}
	if !replica.HoldsSlot(dir) {
		return fmt.Errorf("%s: %s is no slot's directory: %w", path, dir, aside.ErrNotAside)
	}
	return aside.Remove(dir, name)
}
