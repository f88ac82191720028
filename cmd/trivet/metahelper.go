package main

import (
	"fmt"
	"os"
)

// metaHelperCommand is the hidden first argument with which a server starts the
// process that holds one slot's metadata store.
const metaHelperCommand = "meta-helper"

// runMetaHelper serves one metadata store until the server goes away.
func runMetaHelper() int {
	fmt.Fprintln(os.Stderr, "trivet: meta-helper: not in this build")
	return exitFailure
}
