package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

var (
	errNumber   = errors.New("not a number; write digits")
	errSize     = errors.New("not a size; write bytes or 4K, 64M, 1G, 2T")
	errTooBig   = errors.New("more bytes than 64 bits can count")
	errDuration = errors.New("not a time; write 100ms, 5s, 2m")
)

// sizeSuffixes are powers of 1024, in order.
const sizeSuffixes = "KMGTPE"

// parseSize reads a number of bytes: digits and one of K, M, G, T, P, E (powers
// of 1024), in either case and with an optional 'B' or 'iB' behind it.
func parseSize(text string) (uint64, error) {
	upper := strings.ToUpper(text)
	digits := strings.TrimRight(upper, sizeSuffixes+"IB")
	value, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || strings.HasPrefix(text, "+") {
		return 0, errSize
	}
	shift, ok := sizeShift(upper[len(digits):])
	if !ok {
		return 0, errSize
	}
	if value > math.MaxUint64>>shift {
		return 0, errTooBig
	}
	return value << shift, nil
}

// sizeShift returns by how many bits a unit, in capitals, multiplies.
func sizeShift(unit string) (shift uint, ok bool) {
	if unit == "" || unit == "B" {
		return 0, true
	}
	at := strings.IndexByte(sizeSuffixes, unit[0])
	switch unit[1:] {
	case "", "B", "IB":
		return uint(at+1) * 10, at >= 0
	}
	return 0, false
}

// parseDuration reads a time of Go's notation that is not negative.
func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, errDuration
	}
	return d, nil
}

// formatSize prints bytes for people, with three significant digits.
func formatSize(bytes uint64) string {
	if bytes < 1024 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes)/1024, 0
	for value >= 999.5 && unit < len(sizeSuffixes)-1 {
		value, unit = value/1024, unit+1
	}
	return fmt.Sprintf("%s %ciB", threeDigits(value), sizeSuffixes[unit])
}

// formatCount prints a count for people, with three significant digits.
func formatCount(count float64) string {
	units := []string{"", "k", "M", "G", "T"}
	unit := 0
	for count >= 999.5 && unit < len(units)-1 {
		count, unit = count/1000, unit+1
	}
	if unit == 0 {
		return strconv.FormatFloat(math.Round(count), 'f', 0, 64)
	}
	return threeDigits(count) + units[unit]
}

func threeDigits(value float64) string {
	decimals := 2
	if value >= 99.95 {
		decimals = 0
	} else if value >= 9.995 {
		decimals = 1
	}
	text := strconv.FormatFloat(value, 'f', decimals, 64)
	if decimals > 0 {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text
}

// formatAge prints seconds for people.
func formatAge(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	default:
		return d.Round(time.Second).String()
	}
}

// sizeFlag is a flag that holds a size in bytes; 0 when it was not given.
type sizeFlag uint64

// String prints the size exactly, for help texts.
func (f *sizeFlag) String() string {
	value, unit := uint64(*f), ""
	for i := 0; i < len(sizeSuffixes) && value != 0 && value%1024 == 0; i++ {
		value, unit = value/1024, sizeSuffixes[i:i+1]
	}
	if value == 0 {
		return ""
	}
	return strconv.FormatUint(value, 10) + unit
}

// Set parses the flag's text.
func (f *sizeFlag) Set(text string) error {
	bytes, err := parseSize(text)
	*f = sizeFlag(bytes)
	return err
}

// Type names the value in help texts.
func (f *sizeFlag) Type() string { return "SIZE" }

// durationFlag is a flag that holds a time.
type durationFlag time.Duration

// String prints the time in Go's notation.
func (f *durationFlag) String() string { return time.Duration(*f).String() }

// Set parses the flag's text.
func (f *durationFlag) Set(text string) error {
	d, err := parseDuration(text)
	*f = durationFlag(d)
	return err
}

// Type names the value in help texts.
func (f *durationFlag) Type() string { return "TIME" }

// countFlag is a flag that holds a small number.
type countFlag int

// String prints the number, and nothing for 0, which means 'not given'.
func (f *countFlag) String() string {
	if *f == 0 {
		return ""
	}
	return strconv.Itoa(int(*f))
}

// Set parses the flag's text.
func (f *countFlag) Set(text string) error {
	count, err := strconv.Atoi(text)
	if err != nil {
		return errNumber
	}
	*f = countFlag(count)
	return nil
}

// Type names the value in help texts.
func (f *countFlag) Type() string { return "N" }
