# The places that QoS 2 takes in the server's session, one each until its PUBREL, and how many we may take. Header only.
#
# mosquitto acknowledges what comes above its max_inflight_messages, and never hands it on: so we keep below. Before
# MQTT 5, whose server refuses what is too much, the most that were taken on earlier connections count as well: a broker
# that was restored from an older save has them again. Such places are *stale*.

cdef struct Places:
    # The server's limit of them; more than there can be, where it has none.
    int limit
    # Places that the server's session may hold of earlier connections.
    int stale
    # The most that were taken on this one, and on any before, as far as images say so.
    int most, most_ever
    # Exchanges of QoS 2 that are set aside.
    int parked
    # The image said how many.
    bint is_told
    # A row waited for stale places on this connection, and would have fitted without them.
    bint is_held_by_stale


cdef inline int noted(const Places* places) noexcept:
    # The most that may ever have been taken at once.
    return max(places.most_ever, min(places.most, places.limit - 1))


cdef inline int stale_now(const Places* places, bint is_mqtt_5) noexcept:
    return 0 if is_mqtt_5 else places.stale


cdef inline int beside(const Places* places, bint is_mqtt_5, int reserved) noexcept:
    # Taken beside those in flight. What is parked, or was given up, is at the server, or the server's session has gone
    # back to what is stale.
    return max(stale_now(places, is_mqtt_5), places.parked + reserved)


cdef inline void on_taken(Places* places, int taken) noexcept:
    places.most = max(places.most, taken)


cdef inline void expect_stale(Places* places, bint is_known) noexcept:
    if not (places.is_told and is_known):
        places.most_ever = places.limit - 1
    places.stale = places.most_ever


cdef inline void forget_stale(Places* places) noexcept:
    places.stale = places.most_ever = 0


cdef inline void end_connection(Places* places) noexcept:
    places.stale = places.most_ever = noted(places)
    places.most = 0
    places.is_held_by_stale = False


cdef inline bint fits(Places* places, bint is_mqtt_5, int unreleased, int reserved, int qos, bint is_parked) noexcept:
    # Room for another of this QoS, with so many in flight whose PUBREL is not encoded. is_parked: it is set aside, and
    # has its place at the server, or none.
    #
    # Of QoS 1 a place is taken for a moment only, but with none left mosquitto acknowledges it too, and drops it. So
    # one stays free, unless a single message of QoS 2 needs it.
    cdef int limit = places.limit - (qos == 2)
    cdef int stale = stale_now(places, is_mqtt_5)
    cdef int ours = unreleased if is_parked else unreleased + places.parked
    if ours == 0 or unreleased + (stale if is_parked else beside(places, is_mqtt_5, reserved)) < limit:
        return True
    if stale > 0 and unreleased < limit:
        places.is_held_by_stale = True
    return False
