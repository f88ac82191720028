package nbd

import (
	"fmt"

	"trivet/device"
)

// maxRuns is the most chunks that a read is answered with: their headers share
// the headroom of its buffer. A read that is more fragmented is answered with
// its zeros spelled out.
const maxRuns = headroom / holeChunkBytes

// smallStatus is how many extents a block status reply may have to be queued
// among the replies without payload (256 bytes).
const smallStatus = 32

// completed is every command's Done. It runs on any goroutine, and neither
// blocks nor allocates in the steady state.
func (c *conn) completed(cmd *command) {
	errno, reason := errnoOf(cmd.request.Err)
	c.mu.Lock()
	c.returned.writeBytes += cmd.charged
	cmd.charged = 0
	whole := cmd.whole
	if whole == nil {
		cmd.fail(errno, reason)
		c.finish(cmd)
	} else {
		whole.fail(errno, reason)
		c.returned.commands++
		c.finished++
		c.recycle(cmd)
		c.finishPart(whole)
	}
	c.regained()
	c.sendFromCompletion()
}

// finishPart takes one part off a long write, and finishes it after the last.
// c.mu is held.
func (c *conn) finishPart(whole *command) {
	if whole.parts--; whole.parts == 0 {
		c.finish(whole)
	}
}

// finish queues the reply of a command and frees it. c.mu is held.
func (c *conn) finish(cmd *command) {
	c.finished++
	if cmd.abandoned {
		c.returned.commands++
		c.recycle(cmd)
		return
	}
	o := &c.pending
	o.commands++
	switch {
	case cmd.errno != 0 && c.session.structured:
		o.small = appendErrorChunk(o.small, cmd.cookie, cmd.errno, cmd.reason)
	case cmd.errno != 0:
		o.small = appendSimple(o.small, cmd.cookie, cmd.errno)
	case cmd.kind == cmdRead && cmd.request.Length > 0:
		c.finishRead(cmd)
	case cmd.kind == cmdRead && c.session.structured:
		o.small = chunkHeader{chunkFlagDone, chunkNone, cmd.cookie, 0}.appendTo(o.small)
	case cmd.kind == cmdBlockStatus && cmd.request.Length > 0:
		c.finishStatus(cmd)
	case cmd.kind == cmdBlockStatus:
		o.small = appendErrorChunk(o.small, cmd.cookie, errnoInvalid, "status of an empty range")
	default:
		o.small = appendSimple(o.small, cmd.cookie, 0)
	}
	if cmd.reply != nil { // the reply needed no payload
		c.srv.pool.put(cmd.reply)
		cmd.reply = nil
	}
	c.returned.replyBytes += cmd.reserved
	if c.dead {
		c.drop()
	}
	c.recycle(cmd)
}

// recycle makes a command free. c.mu is held.
func (c *conn) recycle(cmd *command) {
	cmd.forget()
	cmd.next, c.freed = c.freed, cmd
}

// queue adds the rest of a reply, whose memory is b, to the outbox. Its share
// of the reservation comes back when it has been sent. c.mu is held.
func (c *conn) queue(cmd *command, b *buffer, data []byte) {
	cost := b.class.cost()
	cmd.reserved -= cost
	c.pending.segments = append(c.pending.segments, segment{data: data, release: b})
	c.pending.bytes += len(data)
}

// finishRead queues the payload of a read, with as few headers as describe it.
func (c *conn) finishRead(cmd *command) {
	n := int(cmd.request.Length)
	b := cmd.reply
	extents := cmd.request.Extents
	switch {
	case !c.session.structured:
		cmd.reply = nil
		appendSimple(b.mem[headroom-simpleReplyBytes:headroom-simpleReplyBytes], cmd.cookie, 0)
		c.queue(cmd, b, b.mem[headroom-simpleReplyBytes:headroom+n])
	case len(extents) == 1 && extents[0].Zero:
		c.pending.small = appendHoleChunk(c.pending.small, chunkFlagDone, cmd.cookie, cmd.request.Offset, n)
	case len(extents) < 2 || len(extents) > maxRuns:
		cmd.reply = nil
		appendDataHeader(b.mem[headroom-dataChunkBytes:headroom-dataChunkBytes], chunkFlagDone, cmd.cookie, cmd.request.Offset, n)
		c.queue(cmd, b, b.mem[headroom-dataChunkBytes:headroom+n])
	default:
		cmd.reply = nil
		c.queueRuns(cmd, b)
	}
}

// queueRuns queues a read as one chunk an extent. The chunks lie one after
// another in the outbox, and the buffer goes with the last.
func (c *conn) queueRuns(cmd *command, b *buffer) {
	r := &cmd.request
	mustCover(r)
	last := len(r.Extents) - 1
	at := uint64(0)
	for i, e := range r.Extents {
		var flags uint16
		if i == last {
			flags = chunkFlagDone
		}
		n := int(e.Length)
		room := b.mem[b.front:b.front:headroom]
		var head, data []byte
		if e.Zero {
			head = appendHoleChunk(room, flags, cmd.cookie, r.Offset+at, n)
		} else {
			head = appendDataHeader(room, flags, cmd.cookie, r.Offset+at, n)
			data = b.payload(int(r.Length))[at : at+e.Length]
		}
		b.front += len(head)
		at += e.Length
		c.pending.add(head)
		if i == last {
			c.queue(cmd, b, data)
		} else {
			c.pending.add(data)
		}
	}
}

// mustCover crashes when the device described more or less than was read:
// replies made from such a description would corrupt the client's view.
func mustCover(r *device.Request) {
	sum := uint64(0)
	for _, e := range r.Extents {
		sum += e.Length
	}
	if sum != uint64(r.Length) {
		panic(fmt.Sprintf("nbd: device described %d of %d bytes read at %#x", sum, r.Length, r.Offset))
	}
}

// finishStatus queues a block status reply.
func (c *conn) finishStatus(cmd *command) {
	extents := statusExtents(&cmd.request)
	if len(extents) <= smallStatus {
		c.pending.small = appendStatusChunk(c.pending.small, cmd.cookie, extents)
		return
	}
	n := statusChunkBytes + descriptorBytes*len(extents)
	b := c.srv.pool.take(classFor(n))
	appendStatusChunk(b.payload(0), cmd.cookie, extents)
	c.queue(cmd, b, b.payload(n))
}

// statusExtents returns the extents to report. The reply may be shorter than
// the request, but not empty, so a device that knows nothing is taken to have
// data everywhere.
func statusExtents(r *device.Request) []device.Extent {
	extents := r.Extents
	if len(extents) == 0 {
		extents = append(extents, device.Extent{Length: uint64(r.Length)})
	}
	limit := maxExtents(r.Length)
	if r.Flags&device.ReqOne != 0 {
		limit = 1
	}
	return extents[:min(len(extents), limit)]
}
