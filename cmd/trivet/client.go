package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"trivet/control"
)

const (
	controlSocketName = "control.sock"
	controlVariable   = "TRIVET_CONTROL"
)

// clientFlags are the flags of every command that asks a running server.
type clientFlags struct {
	control string
	json    bool
}

func (f *clientFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.control, "control", "", "control socket of the server, or the volume's directory\n"+
		"(default $"+controlVariable+", ./"+controlSocketName+" or ./volume/"+controlSocketName+")")
	nameValue(cmd.Flags(), "control", "PATH")
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
}

// client connects to the server that the flags name.
func (f *clientFlags) client(cmd *cobra.Command) (*control.Client, error) {
	path, err := controlPath(f.control)
	if err != nil {
		return nil, fmt.Errorf("%s%w", prefix(cmd), err)
	}
	return control.NewClient(path), nil
}

// controlPath finds the socket: the flag, the environment, then the places in
// which a newcomer's volume is.
func controlPath(flag string) (string, error) {
	if flag == "" {
		flag = os.Getenv(controlVariable)
	}
	if flag != "" {
		return socketIn(flag)
	}
	for _, path := range []string{controlSocketName, filepath.Join("volume", controlSocketName)} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", &usageError{errors.New("no control socket here; say which server with --control DIR, " +
		"the directory that 'trivet serve' was given")}
}

// socketIn turns a volume's directory into its control socket.
func socketIn(path string) (string, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, controlSocketName)
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("--control %s: %w; is 'trivet serve' running?", path, bareSyscall(err))
	}
	return path, nil
}

// explain names the command in an error, and what to do about a dead server.
func explain(cmd *cobra.Command, err error) error {
	if errors.Is(err, control.ErrUnreachable) {
		return fmt.Errorf("%s%w; is 'trivet serve' running?", prefix(cmd), err)
	}
	return fmt.Errorf("%s%w", prefix(cmd), err)
}

// query makes a command that asks the server one thing and prints the answer,
// as JSON or by the given function.
func query[T any](cmd *cobra.Command, ask func(*cobra.Command, *control.Client, []string) (T, error), print func(io.Writer, T)) *cobra.Command {
	var flags clientFlags
	flags.register(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, err := flags.client(cmd)
		if err != nil {
			return err
		}
		defer client.Close()
		value, err := ask(cmd, client, args)
		if err != nil {
			return explain(cmd, err)
		}
		if flags.json {
			return printJSON(cmd.OutOrStdout(), value)
		}
		print(cmd.OutOrStdout(), value)
		return nil
	}
	return cmd
}

func printJSON(out io.Writer, value any) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}
