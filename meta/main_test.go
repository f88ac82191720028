package meta

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// helperEnv makes the test binary a helper process.
const helperEnv = "TRIVET_META_TEST_HELPER=1"

func TestMain(m *testing.M) {
	if os.Getenv("TRIVET_META_TEST_HELPER") == "1" {
		os.Exit(HelperMain(os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}
