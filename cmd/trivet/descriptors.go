package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"trivet/device"
	"trivet/device/nbd"
)

const (
	// controlDescriptors are for the control socket: its clients, and what their
	// answers read.
	controlDescriptors = 12
	// listenerDescriptors are a listener and what it keeps back to refuse clients.
	listenerDescriptors = 2
	// keptDescriptors are kept back for the control socket's clients, for whom there
	// may be none left.
	keptDescriptors = 2
)

// enoughDescriptors refuses a start that is bound to run out of file descriptors.
func enoughDescriptors(plan *servePlan) error {
	v := &plan.volume
	volume, shards, slots := device.Descriptors(device.Options{Dir: v.Dir, Slots: v.Slots, Replicas: v.Replicas, Shards: v.Shards})
	need := volume + controlDescriptors + listenerDescriptors*len(plan.listen) + nbd.Descriptors(plan.connections)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	if limit.Cur >= uint64(need) {
		return nil
	}
	hint := ""
	if least := need - nbd.Descriptors(plan.connections) + nbd.Descriptors(1); limit.Cur > uint64(least) {
		hint = fmt.Sprintf(", or give --connections %d", 1+int(limit.Cur)-least)
	}
	return fmt.Errorf("%d file descriptors are allowed, but %d shards on %d slots with %d connections need %d; raise the limit (ulimit -n %d)%s",
		limit.Cur, shards, slots, plan.connections, need, max(need, wantFiles), hint)
}

// keptListener accepts a few clients when the process has run out of file
// descriptors: it keeps some back for them.
type keptListener struct {
	net.Listener
	mu   sync.Mutex // guards kept
	kept []*os.File
}

// keepDescriptors wraps a listener.
func keepDescriptors(l net.Listener) (*keptListener, error) {
	k := &keptListener{Listener: l}
	for range keptDescriptors {
		f, err := os.Open(os.DevNull)
		if err != nil {
			k.drop()
			return nil, fmt.Errorf("keep a file descriptor: %w", err)
		}
		k.kept = append(k.kept, f)
	}
	return k, nil
}

// Accept awaits a client. When there is no descriptor for it, it gets one that was
// kept back.
func (k *keptListener) Accept() (net.Conn, error) {
	conn, err := k.Listener.Accept()
	if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) || !k.spend() {
		return conn, err
	}
	if conn, err = k.Listener.Accept(); err != nil {
		k.restore()
		return nil, err
	}
	return &keptConn{Conn: conn, restore: sync.OnceFunc(k.restore)}, nil
}

// spend lets go of a descriptor that was kept, and reports whether there was one.
func (k *keptListener) spend() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	last := len(k.kept) - 1
	if last < 0 {
		return false
	}
	f := k.kept[last]
	k.kept = k.kept[:last]
	return f.Close() == nil
}

// restore keeps another one back, unless there is none: then there is one less.
func (k *keptListener) restore() {
	f, err := os.Open(os.DevNull)
	if err != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept = append(k.kept, f)
}

// Close ends the accepting.
func (k *keptListener) Close() error {
	err := k.Listener.Close()
	k.drop()
	return err
}

func (k *keptListener) drop() {
	for k.spend() {
	}
}

// keptConn gives its descriptor back when it is closed, once.
type keptConn struct {
	net.Conn
	restore func()
}

func (c *keptConn) Close() error {
	err := c.Conn.Close()
	c.restore()
	return err
}
