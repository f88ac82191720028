package e2e

import (
	"strings"
	"testing"
)

// TestStampNamesWhatIsWrong: TestOperator can fail, and says how.
func TestStampNamesWhatIsWrong(t *testing.T) {
	lives := []string{"nobody", "life 1", "life 2"}
	const lba = 5
	for _, c := range []struct {
		name   string
		holds  stamp
		at     int
		spoil  func([]byte)
		judged string
	}{
		{"right", stamp{1, 3}, lba, nil, ""},
		{"flushed before, and still allowed", stamp{1, 2}, lba, nil, ""},
		{"older", stamp{1, 1}, lba, nil, "an older block: version 1 by life 1; expected version 3 by life 1"},
		{"another life", stamp{2, 3}, lba, nil, "of another life"},
		{"another block", stamp{1, 3}, lba + 1, nil, "foreign: block 6's"},
		{"zeros", stamp{1, 3}, lba, func(b []byte) { clear(b) }, "zeros where data was acknowledged"},
		{"half of an older one", stamp{1, 3}, lba, func(b []byte) {
			old := make([]byte, blockSize)
			stamp{1, 2}.put(old, lba)
			copy(b[blockSize/2:], old[blockSize/2:])
		}, "a mix"},
		{"one bit", stamp{1, 3}, lba, func(b []byte) { b[2000] ^= 4 }, "a mix"},
	} {
		content := newContent(8)
		content.wrote(lba, stamp{1, 1})
		content.wrote(lba, stamp{1, 2})
		content.settle()
		content.wrote(lba, stamp{1, 3})
		block := make([]byte, blockSize)
		c.holds.put(block, c.at)
		if c.spoil != nil {
			c.spoil(block)
		}
		if what := content.judge(lba, block, lives); what != c.judged && (c.judged == "" || !strings.Contains(what, c.judged)) {
			t.Errorf("%s: %q, expected %q", c.name, what, c.judged)
		}
	}
}
