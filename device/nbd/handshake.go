package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"trivet/device"
)

// outcome is what an option leads to.
type outcome uint8

const (
	haggle   outcome = iota // await the next option
	transmit                // enter the transmission phase
	hangUp                  // send what there is and close the connection
)

// handshake is the server's side of option haggling: options in, replies out,
// no I/O.
type handshake struct {
	export     device.Info
	place      func() error // gets the client a place, or says why there is none; nil: there is
	noZeroes   bool
	structured bool

	// What SET_META_CONTEXT selected last, and for which export name: it holds
	// only when the same name is then used to enter transmission.
	allocation     bool
	allocationName string

	entered string // the name under which transmission was entered
}

// greeting is what the server says first.
func greeting() []byte {
	hello := protocol.NegotiationNewstyleHeader{
		OldstyleMagic:  protocol.NEGOTIATION_MAGIC_OLDSTYLE,
		OptionMagic:    protocol.NEGOTIATION_MAGIC_OPTION,
		HandshakeFlags: protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE | handshakeNoZeroes,
	}
	return appendWire(nil, hello)
}

// appendWire appends a structure of go-nbd's in network byte order. Those have
// fixed sizes, so it cannot fail.
func appendWire(out []byte, v any) []byte {
	out, err := binary.Append(out, binary.BigEndian, v)
	if err != nil {
		panic(fmt.Sprintf("nbd: encode %T: %v", v, err))
	}
	return out
}

// errClientFlags is wrapped when a client sets flags that were not offered.
var errClientFlags = errors.New("unknown client flags")

// clientFlags takes the client's answer to the greeting. Fixed newstyle is
// taken for granted: a client that does not know it sends EXPORT_NAME only.
func (s *handshake) clientFlags(flags uint32) error {
	if flags&^(clientFixedNewstyle|clientNoZeroes) != 0 {
		return fmt.Errorf("%w: %#x", errClientFlags, flags)
	}
	s.noZeroes = flags&clientNoZeroes != 0
	return nil
}

// session returns what was agreed, once transmission was entered.
func (s *handshake) session() session {
	return session{
		sizeBytes:  s.export.SizeBytes,
		deadline:   s.export.Deadline,
		structured: s.structured,
		allocation: s.allocation && s.allocationName == s.entered,
	}
}

// transmissionFlags tells the client what the export can do.
func (s *handshake) transmissionFlags() uint16 {
	flags := protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS | protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN |
		transSendFlush | transSendFUA | transSendTrim | transSendWriteZeroes | transSendCache | transSendFastZero
	if s.structured {
		flags |= transSendDF
	}
	return flags
}

// serves tells whether the export name is the volume's, or the default.
func (s *handshake) serves(name string) bool { return name == "" || name == s.export.Name }

// option answers one option; the replies are appended to out.
func (s *handshake) option(id uint32, data, out []byte) ([]byte, outcome) {
	switch id {
	case optExportName:
		return s.exportName(string(data), out)
	case protocol.NEGOTIATION_ID_OPTION_ABORT:
		return appendReply(out, id, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil), hangUp
	case protocol.NEGOTIATION_ID_OPTION_LIST:
		return s.list(id, data, out), haggle
	case protocol.NEGOTIATION_ID_OPTION_INFO, protocol.NEGOTIATION_ID_OPTION_GO:
		return s.info(id, data, out)
	case optStructuredReply:
		return s.structuredReply(id, data, out), haggle
	case optListMetaContext, optSetMetaContext:
		return s.metaContext(id, data, out), haggle
	case optStartTLS:
		return appendRefusal(out, id, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED, "this server does not speak TLS"), haggle
	}
	return appendRefusal(out, id, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED, "unknown option"), haggle
}

// tooBig answers an option whose data is not worth reading.
func (s *handshake) tooBig(id uint32, out []byte) ([]byte, outcome) {
	if id == optExportName { // it cannot be answered with an error
		return out, hangUp
	}
	if id == optSetMetaContext { // replaces the selection even when it fails
		s.allocation = false
	}
	return appendRefusal(out, id, repErrTooBig, "option data is too long"), haggle
}

// exportName enters transmission the old way; an unknown name can only be
// answered by hanging up, and so is one for whom there is no place.
func (s *handshake) exportName(name string, out []byte) ([]byte, outcome) {
	if !s.serves(name) || s.enter() != nil {
		return out, hangUp
	}
	s.entered = name
	out = binary.BigEndian.AppendUint64(out, s.export.SizeBytes)
	out = binary.BigEndian.AppendUint16(out, s.transmissionFlags())
	if !s.noZeroes {
		out = append(out, make([]byte, paddingBytes)...)
	}
	return out, transmit
}

// enter gets the client a place.
func (s *handshake) enter() error {
	if s.place == nil {
		return nil
	}
	return s.place()
}

func (s *handshake) list(id uint32, data, out []byte) []byte {
	if len(data) != 0 {
		return appendRefusal(out, id, repErrInvalid, "LIST carries no data")
	}
	server := binary.BigEndian.AppendUint32(nil, uint32(len(s.export.Name)))
	server = append(server, s.export.Name...)
	out = appendReply(out, id, protocol.NEGOTIATION_TYPE_REPLY_SERVER, server)
	return appendReply(out, id, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
}

func (s *handshake) structuredReply(id uint32, data, out []byte) []byte {
	if len(data) != 0 {
		return appendRefusal(out, id, repErrInvalid, "STRUCTURED_REPLY carries no data")
	}
	s.structured = true
	return appendReply(out, id, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
}

// info answers INFO and GO, which differ only in what follows.
func (s *handshake) info(id uint32, data, out []byte) ([]byte, outcome) {
	name, wanted, err := parseInfo(data)
	switch {
	case err != nil:
		return appendRefusal(out, id, repErrInvalid, err.Error()), haggle
	case !s.serves(name):
		return appendRefusal(out, id, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, "no such export"), haggle
	}
	if id == protocol.NEGOTIATION_ID_OPTION_GO {
		if err := s.enter(); err != nil {
			return appendRefusal(out, id, repErrPolicy, err.Error()), haggle
		}
	}
	out = s.appendInfo(out, id, wanted)
	out = appendReply(out, id, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
	if id == protocol.NEGOTIATION_ID_OPTION_INFO {
		return out, haggle
	}
	s.entered = name
	return out, transmit
}

// appendInfo appends the mandatory item and those that were asked for.
func (s *handshake) appendInfo(out []byte, id uint32, wanted infoSet) []byte {
	item := func(v []byte) { out = appendReply(out, id, protocol.NEGOTIATION_TYPE_REPLY_INFO, v) }
	item(appendWire(nil, protocol.NegotiationReplyInfo{
		Type:              protocol.NEGOTIATION_TYPE_INFO_EXPORT,
		Size:              s.export.SizeBytes,
		TransmissionFlags: s.transmissionFlags(),
	}))
	if wanted.has(protocol.NEGOTIATION_TYPE_INFO_NAME) {
		h := protocol.NegotiationReplyNameHeader{Type: protocol.NEGOTIATION_TYPE_INFO_NAME}
		item(append(appendWire(nil, h), s.export.Name...))
	}
	if wanted.has(protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION) {
		h := protocol.NegotiationReplyDescriptionHeader{Type: protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION}
		item(append(appendWire(nil, h), "Trivet volume"...))
	}
	if wanted.has(protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE) {
		item(appendWire(nil, protocol.NegotiationReplyBlockSize{
			Type:               protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE,
			MinimumBlockSize:   1,
			PreferredBlockSize: preferredBlock,
			MaximumBlockSize:   maxPayload,
		}))
	}
	return out
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (s *handshake) metaContext(id uint32, data, out []byte) []byte {
	if id == optSetMetaContext { // replaces the selection even when it fails
		s.allocation = false
	}
	if !s.structured {
		return appendRefusal(out, id, repErrInvalid, "structured replies were not negotiated")
	}
	query, err := parseMetaQuery(data)
	switch {
	case err != nil:
		return appendRefusal(out, id, repErrInvalid, err.Error())
	case !s.serves(query.export):
		return appendRefusal(out, id, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, "no such export")
	}
	found := query.allocation
	if id == optListMetaContext {
		found = found || query.wildcard || query.count == 0
	} else {
		s.allocation, s.allocationName = found, query.export
	}
	if found {
		context := binary.BigEndian.AppendUint32(nil, contextID(id))
		out = appendReply(out, id, repMetaContext, append(context, allocationName...))
	}
	return appendReply(out, id, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
}

// contextID is the number to report: it is reserved, and 0, in a mere list.
func contextID(id uint32) uint32 {
	if id == optListMetaContext {
		return 0
	}
	return allocationID
}

// appendReply appends one option reply.
func appendReply(out []byte, id, kind uint32, data []byte) []byte {
	out = appendWire(out, protocol.NegotiationReplyHeader{
		ReplyMagic: protocol.NEGOTIATION_MAGIC_REPLY,
		ID:         id,
		Type:       kind,
		Length:     uint32(len(data)),
	})
	return append(out, data...)
}

// appendRefusal appends an error reply with a reason for people.
func appendRefusal(out []byte, id, kind uint32, reason string) []byte {
	return appendReply(out, id, kind, []byte(reason))
}
