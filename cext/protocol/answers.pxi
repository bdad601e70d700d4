# What a server may answer to PUBLISH and PUBREL (MQTT 3.1.1 and 5.0, section 4.3). Part of `_session.pyx`.
#
# The question of an exchange is the packet that waits for an answer: PUBLISH while it is SENT, PUBREL once it is
# RELEASED. It was asked once its bytes were offered to the socket on this connection, or may have left on one before.
# An acknowledgement names a packet id:
#
#     |                   | not in flight | parked  | not asked | SENT, QoS 1 | SENT, QoS 2   | RELEASED     |
#     |-------------------|---------------|---------|-----------|-------------|---------------|--------------|
#     | PUBACK            | error         | ignored | error     | done        | done, counted | error        |
#     | PUBREC            | PUBREL        | ignored | error     | error       | RELEASED      | PUBREL again |
#     | PUBACK above 0x7F | error         | ignored | error     | refused     | refused       | error        |
#     | PUBREC above 0x7F | ignored       | ignored | error     | error       | refused       | error        |
#     | PUBCOMP           | ignored       | ignored | error     | error       | error         | done         |
#
# A repeated PUBREC is answered also while its PUBREL has not left. Not in flight are also ids that are reserved for
# SUBSCRIBE, that wait in memory, or whose end waits for the disk.
#
# An error is a ProtocolError: it ends the connection, and acknowledges nothing. It must not meet a server that keeps to
# MQTT, whatever became of the link. So it is ignored where the id is *stray*: where this connection may bring more
# answers for it than its exchange explains. That is what was published again on it (a first copy may be answered late,
# and each copy is), what was given up in flight, and what had more PUBRELs than one, for a PUBREC that came again or
# that nobody knew: which must be answered, or the server waits for ever.
#
# PUBACK for QoS 2 is what servers send that know no more than QoS 1 (RabbitMQ): the message is done, as one of QoS 1.
# PUBCOMP above 0x7F (0x92: no such exchange) to a PUBREL that was sent again is a plain PUBCOMP, as the first was
# taken. To one that was sent once it says that the server lost what it had acknowledged: the message is done, and with
# `durable` in doubt (`take_doubtful`).

cdef enum:
    REASON_FAILURE = 0x80
    REASON_PACKET_ID_NOT_FOUND = 0x92
    REASON_PROTOCOL_ERROR = 0x82


cdef list _done_ids(Session session):
    cdef size_t index
    return [(<int64_t*>vector.at(&session.done, index))[0] for index in range(session.done.count)]


cdef int _on_acks(Session session, bytes packets) except -1:
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(packets)
    cdef size_t left = <size_t>PyBytes_GET_SIZE(packets)
    cdef size_t size
    cdef uint32_t body = 0
    cdef int used
    while left:
        used = load_remaining_length(at + 1, left - 1, &body)
        size = 1 + <size_t>used + body
        if used <= 0 or size > left or body < 2 or (at[0] & 0xF0) not in (PUBACK, PUBREC, PUBCOMP):
            raise ValueError("these are not whole acknowledgements")
        _on_ack(session, at[0] & 0xF0, at + size - body, body)
        at += size
        left -= size
    return 0


cdef int _on_ack(Session session, uint8_t kind, const uint8_t* body, uint32_t size) except -1:
    """By the table above."""
    cdef uint16_t packet_id = load_u16(body)
    cdef uint16_t index
    cdef uint8_t reason = 0
    cdef bint refused
    if size > 2:
        reason = body[2]
    refused = reason >= REASON_FAILURE
    index = session.table.exchange_of[packet_id]
    if index == ID_FREE or index == ID_TAKEN:
        return _on_unknown(session, kind, packet_id, refused)
    cdef Exchange* exchange = &session.table.exchanges[index - 1]
    cdef bint was_asked = exchange.asked_end <= session.out.offered or exchange.left_before
    if exchange.state == SENT:
        if not was_asked:
            return _on_misfit(session, packet_id, "it was acknowledged before its PUBLISH was sent (MQTT 4.3)")
        session._prove_by(exchange)
        if kind == PUBREC:
            if exchange.qos != 2:
                return _on_misfit(session, packet_id, "PUBREC for a QoS 1 message (MQTT 4.3.2)")
            if not refused:
                return _on_pubrec(session, exchange)
        elif kind == PUBCOMP:
            return _on_misfit(session, packet_id, "PUBCOMP for a message that has had no PUBREL (MQTT 4.3.3)")
        elif exchange.qos == 2 and not refused:
            session.downgraded_count += 1
            session.downgraded_id = exchange.message_id
    else:
        if kind == PUBREC and not refused:
            return _on_pubrec_again(session, exchange)
        if kind != PUBCOMP:
            return _on_misfit(session, packet_id, "another answer to a PUBLISH that had its PUBREL (MQTT 4.3.3)")
        if not was_asked:
            return _on_misfit(session, packet_id, "PUBCOMP before its PUBREL was sent (MQTT 4.3.3)")
        session._prove_by(exchange)
        if refused:
            refused = False
            if exchange.left_before:
                return session._finish(exchange, DONE)
            if session.durable:
                session.doubtful.append(exchange.message_id)
    if reason or size > 3 or session.keeps_all_reasons:
        properties = PyBytes_FromStringAndSize(<const char*>body + 3, size - 3) if size > 3 else b""
        session.reasons[exchange.message_id] = (kind, packet_id, reason, properties)
    return session._finish(exchange, REFUSED if refused else DONE)


cdef int _on_unknown(Session session, uint8_t kind, uint16_t packet_id, bint failed) except -1:
    """For an id that no exchange has."""
    if kind != PUBREC or failed:
        session.unanswered.discard(packet_id)
    if packet_id in session.reserved:
        return _on_reserved(session, kind, packet_id, failed)
    if kind == PUBACK:
        return _on_misfit(session, packet_id, "PUBACK for a message that is not in flight (MQTT 4.3.2)")
    # The peer waits for an answer to PUBREC, whatever became of ours (MQTT 5, 4.3.3). What is parked gets it when
    # its turn to be resent comes: a PUBREL now would let the peer take that resend for a new message.
    if kind == PUBREC and not failed and not _is_parked(session, packet_id):
        session.strays.add(packet_id)
        session._encode_pubrel(packet_id, REASON_PACKET_ID_NOT_FOUND)
    return 0


cdef int _on_reserved(Session session, uint8_t kind, uint16_t packet_id, bint failed) except -1:
    """A late answer to a message that was given up: PUBREC wants its PUBREL, anything else ends the exchange."""
    session.strays.add(packet_id)
    if kind == PUBREC and not failed:
        # An image that does not name it as given up would have its message sent again, as a new one by then.
        session._wait_for_what_changed()
        return session._encode_pubrel(packet_id, 0)
    del session.reserved[packet_id]
    session.table.exchange_of[packet_id] = ID_FREE
    session.dirty = True
    return 0


cdef int _on_misfit(Session session, uint16_t packet_id, str what) except -1:
    if packet_id in session.strays or _is_parked(session, packet_id):
        return 0
    raise ProtocolError(f"packet id {packet_id}: {what}", REASON_PROTOCOL_ERROR)


cdef bint _is_parked(Session session, uint16_t packet_id) except -1:
    for aside in session.parked.values():
        if aside[0] == packet_id:
            return True
    return False


cdef int _on_pubrec(Session session, Exchange* exchange) except -1:
    send_buffer.reserve(&session.out, ACK_MAX_BYTES)
    if session.durable:
        session.dirty = session.out.gate_wanted = True
    session._encode_pubrel(exchange.packet_id, 0)
    exchanges.release(&session.table, exchange, send_buffer.encoded_to(&session.out))
    session._ask(exchange, exchange.asked_end)
    session.answered_count += 1
    return 0


cdef int _on_pubrec_again(Session session, Exchange* exchange) except -1:
    """The peer waits for an answer; one is on its way, but may have gone before it asked."""
    session._encode_pubrel(exchange.packet_id, 0)
    session.strays.add(exchange.packet_id)
    if exchange.asked_end <= session.out.offered:
        exchange.left_before = True
    return 0
