// Package gostmt starts a goroutine where nobody looks for it.
package gostmt

func run() { go run() }
