// Package errtext reads errors.
package errtext

import "strings"

func full(err error) bool { return strings.Contains(err.Error(), "no space") }
