package nbd

import (
	"errors"
	"net"
	"os"
	"syscall"
)

// spare is a file descriptor that a listener keeps back. When there is no other
// one left, clients are accepted with it and hung up on: else they would wait in the
// kernel's queue until somebody else is done, and not know why.
type spare struct {
	file *os.File // nil: there is none
}

// keepSpare keeps one back, if there is one.
func keepSpare() *spare {
	s := new(spare)
	s.keep()
	return s
}

func (s *spare) keep() {
	// Without one it is as if there were no spare at all.
	s.file, _ = os.Open(os.DevNull)
}

func (s *spare) close() {
	if s.file != nil {
		_ = s.file.Close() // nothing was written to it
		s.file = nil
	}
}

// refuse hangs up on the client for whom accepting has failed, if it did for want of
// a descriptor. It reports whether there was one, and does not wait.
func (s *spare) refuse(l net.Listener, err error) (refused bool) {
	if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) {
		return false
	}
	sc, ok := l.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	s.close()
	defer s.keep()
	err = raw.Control(func(fd uintptr) {
		client, _, err := syscall.Accept4(int(fd), syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK)
		if err == nil {
			refused = true
			_ = syscall.Close(client) // it goes, either way
		}
	})
	return refused && err == nil
}
