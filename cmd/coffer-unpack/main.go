// Command coffer-unpack unpacks one layer, locked into its directory, for coffer-guest or coffer-pull, which start it. It
// is a program of its own so that it starts fast and has nothing of theirs: no keys, no network, no policy.
package main

import (
	"os"

	"github.com/coffer-project/coffer/guestpull/unpack/worker"
)

func main() { os.Exit(worker.Main()) }
