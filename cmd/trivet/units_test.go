package main

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]uint64{
		"0": 0, "1": 1, "4096": 4096, "512B": 512, "4K": 4 << 10, "4k": 4 << 10, "4KiB": 4 << 10, "4kb": 4 << 10,
		"64M": 64 << 20, "1G": 1 << 30, "2T": 2 << 40, "3P": 3 << 50, "15E": 15 << 60,
		"18446744073709551615": math.MaxUint64,
	} {
		if got, err := parseSize(text); got != want || err != nil {
			t.Errorf("parseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "K", "-1", "+1", "1.5G", "1KK", "1KM", "4 K", "0x10", "1iB", "1Ki", "1BB", "16E", "18446744073709551616", "١",
	} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", text, got)
		}
	}
}

// FuzzParseSize: what a flag prints is what it parses.
func FuzzParseSize(f *testing.F) {
	for _, text := range []string{"4K", "1G", "16E", "3iB", "", "00000000001T"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var first, second sizeFlag
		if first.Set(text) != nil || first == 0 {
			return
		}
		if err := second.Set(first.String()); err != nil || first != second {
			t.Errorf("%q is %d, prints as %q, is then %d, %v", text, first, first.String(), second, err)
		}
	})
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{"100ms": 100 * time.Millisecond, "5s": 5 * time.Second, "2m": 2 * time.Minute} {
		if got, err := parseDuration(text); got != want || err != nil {
			t.Errorf("parseDuration(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "5", "-5s", "s", "5 s", "1h2"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("parseDuration(%q) = %v, want an error", text, got)
		}
	}
}

func TestFormatForPeople(t *testing.T) {
	for bytes, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 10 << 20: "10 MiB", 1<<30 - 1: "1 GiB",
		1234567: "1.18 MiB", 999 << 10: "999 KiB", 1000 << 10: "0.98 MiB", math.MaxUint64: "16 EiB",
	} {
		if got := formatSize(bytes); got != want {
			t.Errorf("formatSize(%d) = %q, want %q", bytes, got, want)
		}
	}
	for count, want := range map[float64]string{0: "0", 0.4: "0", 12: "12", 999.4: "999", 999.6: "1k", 48213: "48.2k", 1.5e6: "1.5M"} {
		if got := formatCount(count); got != want {
			t.Errorf("formatCount(%v) = %q, want %q", count, got, want)
		}
	}
	for seconds, want := range map[float64]string{0.0042: "4ms", 5.23: "5.2s", 75: "1m15s"} {
		if got := formatAge(seconds); got != want {
			t.Errorf("formatAge(%v) = %q, want %q", seconds, got, want)
		}
	}
}

func TestCutKeepsTheCursorInItsLine(t *testing.T) {
	for _, test := range []struct{ line, want string }{
		{"short", "short"}, {"exactly ten", "exactly te"}, {"a\x1b[2Jb\r\nc", "a?[2Jb??c"}, {strings.Repeat("ü", 12), strings.Repeat("ü", 10)},
	} {
		if got := cut(test.line, 10); got != test.want {
			t.Errorf("cut(%q) = %q, want %q", test.line, got, test.want)
		}
	}
}
