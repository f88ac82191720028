package main

import (
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// version is set by the linker (-X main.version=…); otherwise it is what the
// go command recorded.
var version string

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "dev"
}

const rootHelp = `Trivet is a block device in userspace: served over NBD, kept on three replicas,
built to be broken on purpose.

Make a volume and serve it, then use it from another terminal:

  trivet serve ./volume --size 1G
  trivet status --control ./volume
  nbdinfo 'nbd+unix:///?socket=./volume/nbd.sock'

Sizes are written 4K, 1G, 2T; times 100ms, 5s. The exit status is 0 for success,
1 for a failure and 2 for a command line that makes no sense.`

// newRootCommand builds the whole command line.
func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "trivet",
		Short:         "A replicated block device in userspace, served over NBD",
		Long:          rootHelp,
		Version:       buildVersion(),
		SilenceErrors: true, // run prints them, in one line
		SilenceUsage:  true,
		Args:          refuseUnknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usagef("no command given; 'trivet --help' lists them")
		},
	}
	root.SetVersionTemplate("trivet {{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%s%w; '%s --help' lists the flags", prefix(cmd), err, cmd.CommandPath())
	})
	root.SuggestionsMinimumDistance = 2
	root.AddGroup(
		&cobra.Group{ID: "serve", Title: "Serve a volume:"},
		&cobra.Group{ID: "watch", Title: "Watch and break a running server:"},
		&cobra.Group{ID: "later", Title: "Not in this build:"},
	)
	addGrouped(root, "serve", newServeCommand(), newCheckCommand(), newAsideCommand())
	addGrouped(root, "watch", newStatusCommand(), newTopCommand(), newInflightCommand(),
		newEventsCommand(), newFaultsCommand(), newFaultCommand(), newSlotCommand())
	addGrouped(root, "later", plannedCommands()...)
	return root
}

func addGrouped(root *cobra.Command, group string, commands ...*cobra.Command) {
	for _, command := range commands {
		command.GroupID = group
		root.AddCommand(command)
	}
}

// prefix names the command in front of a refusal, as in 'fault rm: '; nothing
// for the root.
func prefix(cmd *cobra.Command) string {
	if !cmd.HasParent() {
		return ""
	}
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ") + ": "
}

func refuseUnknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "'trivet --help' lists them"
	if near := cmd.SuggestionsFor(args[0]); args[0] != "" && len(near) > 0 {
		hint = fmt.Sprintf("did you mean %q?", near[0])
	}
	return usagef("unknown command %q; %s", args[0], hint)
}

// wantArgs accepts exactly these arguments, by name.
func wantArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		if len(args) > len(names) {
			return usagef("%sunexpected argument %q; usage: %s", prefix(cmd), args[len(names)], cmd.UseLine())
		}
		return usagef("%s%s is missing; usage: %s", prefix(cmd), names[len(args)], cmd.UseLine())
	}
}

// plannedCommands refuse in one line what the design promises for later, so
// that a script learns why rather than that the command is unknown.
func plannedCommands() []*cobra.Command {
	planned := []struct{ use, short, instead string }{
		{"replica", "Serve one remote slot", "all slots are directories of 'trivet serve' for now"},
		{"attach", "Attach a volume to the kernel's nbd", "use 'nbd-client -unix SOCKET /dev/nbd0', or nbdfuse"},
		{"detach", "Detach a volume from the kernel's nbd", "use 'nbd-client -d /dev/nbd0'"},
	}
	var commands []*cobra.Command
	for _, p := range planned {
		commands = append(commands, &cobra.Command{
			Use:                p.use,
			Short:              p.short,
			DisableFlagParsing: true,
			RunE: func(*cobra.Command, []string) error {
				return fmt.Errorf("%s: not in this build; %s", p.use, p.instead)
			},
		})
	}
	return commands
}
