package main

import (
	"os"

	"trivet/meta"
)

// metaHelperCommand is the hidden first argument with which a server starts the
// process that holds one slot's metadata store.
const metaHelperCommand = "meta-helper"

// runMetaHelper serves one metadata store until the server goes away, and
// returns the exit status.
func runMetaHelper() int { return meta.HelperMain(os.Args[2:]) }
