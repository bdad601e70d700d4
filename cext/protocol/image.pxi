# What must survive a crash: the durable image of all QoS 2 exchanges (`inflight_image.pxd`). Part of `_session.pyx`.
#
# With `durable`, nothing leaves before the state that explains it is on disk. `take_image` gives the image, numbered;
# when that number comes back through `on_committed`, what it explains may leave.

cdef struct Retired:
    # This image has nothing of the packet id any more.
    uint64_t version
    uint16_t packet_id


cdef tuple _take_image(Exchanges known, list finished):
    cdef list aside = known.parked_exchanges()
    aside += [(message_id, packet_id, RESERVED) for packet_id, message_id in known.reserved.items()]
    aside += known.owner_notes
    if known.durable and known.places.limit < EXCHANGES_MAX:
        aside.append((known.kept_until, places.noted(&known.places), PLACES))
        aside.append((1, known.table.last_packet_id, LAST_GIVEN))
    add_finished(aside, finished or ())
    cdef bytes image = image_of(&known.table, aside)
    cdef uint64_t version = known.version + <uint64_t>known.dirty
    cdef tuple numbered = (version, image)
    vector.reserve(&known.out.gates)
    # Nothing from here on can fail: an image that was not handed out must not have been counted.
    known.version = version
    known.dirty = False
    send_buffer.shut(&known.out, version)
    return numbered


cdef list _load_image(Exchanges known, bytes image):
    cdef int64_t message_id
    cdef uint16_t packet_id
    cdef uint8_t state
    cdef dict loaded = {}
    cdef set packet_ids = set()
    cdef dict reserved = {}
    cdef list finished = []
    cdef list notes = []
    cdef int noted = -1
    cdef uint16_t last_given = known.table.last_packet_id
    known.places.is_told = False
    known.kept_until = UNKNOWN
    for message_id, packet_id, state in entries_of(image):
        if message_id > 0 and packet_id and state == FINISHED:
            finished.append((message_id, message_id + packet_id - 1))
        elif state == PLACES:
            noted = packet_id
            known.kept_until = message_id
        elif state == LAST_GIVEN:
            last_given = packet_id
        elif message_id > 0 and state >= NOTE:
            notes.append((message_id, packet_id, state))
        elif (message_id <= 0 or packet_id == 0 or state not in (SENT, RELEASED, RESERVED) or message_id in loaded
                or packet_id in packet_ids or known.table.exchange_of[packet_id] != ID_FREE):
            raise ValueError(f"an in-flight image with message {message_id} as packet id {packet_id} in state {state}")
        else:
            packet_ids.add(packet_id)
            if state == RESERVED:
                reserved[packet_id] = message_id
            else:
                loaded[message_id] = (packet_id, state, 2, True, False)
    known.table.last_packet_id = last_given
    for packet_id in packet_ids:
        known.table.exchange_of[packet_id] = ID_TAKEN
    known.parked.update(loaded)
    _count_parked(known)
    known.reserved.update(reserved)
    known.owner_notes = notes
    if noted >= 0:
        known.places.is_told = True
        known.places.most_ever = min(noted, known.places.limit - 1)
    return finished
