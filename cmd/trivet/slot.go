package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"trivet/control"
)

const slotHelp = `A slot whose disk is lost, or holds something else now, is left out and never
made anew by itself: 'slot replace ID' is the operator's word for that. The two
other slots must be whole. What is in the place is set aside in a directory
there if it is a slot of this volume, and refused if it is anything else. The
replaced slot never takes part again, wherever its disk is plugged in; the new
one is filled while the others serve, and 'trivet status' shows how far it is.`

func newSlotCommand() *cobra.Command {
	slot := &cobra.Command{
		Use:   "slot",
		Short: "Replace a slot that is lost",
		Long:  slotHelp,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("slot: unknown action %q; write 'slot replace ID [--at DIR]'; a slot that was dropped comes back by itself", args[0])
			}
			return usagef("slot: no action given; write 'slot replace ID [--at DIR]'")
		},
		Args: cobra.ArbitraryArgs,
	}
	slot.AddCommand(newSlotReplaceCommand())
	return slot
}

func newSlotReplaceCommand() *cobra.Command {
	var at string
	cmd := query(&cobra.Command{
		Use:     "replace ID",
		Short:   "Make a new slot in the place of one, and fill it while the others serve",
		Long:    slotHelp,
		Example: "  trivet slot replace 1\n  trivet slot replace 1 --at /mnt/new/vol",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := wantArgs("ID")(cmd, args); err != nil {
				return err
			}
			if id, err := strconv.Atoi(args[0]); err != nil || id < 0 {
				return usagef("slot replace: %q is no slot; they are numbered from 0 on", args[0])
			}
			return nil
		},
	}, func(cmd *cobra.Command, c *control.Client, args []string) (control.Replaced, error) {
		id, err := strconv.Atoi(args[0])
		if err == nil && at != "" {
			at, err = filepath.Abs(at)
		}
		if err != nil {
			return control.Replaced{}, err
		}
		return control.Replaced{Slot: id}, c.ReplaceSlot(cmd.Context(), id, at)
	}, func(out io.Writer, r control.Replaced) {
		fmt.Fprintf(out, "slot %d is new, and is filled while the others serve\n", r.Slot)
	})
	cmd.Flags().StringVar(&at, "at", "", "directory of the new slot, empty or absent (default: where the old one was)")
	nameValue(cmd.Flags(), "at", "DIR")
	return cmd
}
