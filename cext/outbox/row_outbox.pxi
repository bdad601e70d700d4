# What waits in the store, on its way through the window. Part of `_outbox.pyx`.

cdef enum:
    # A statement for fewer rows costs more than the rows: wait for that much room, unless nothing else is in flight.
    PULL_ROWS_MIN = 100

# Encoded and not yet taken by the socket. More would only be memory, and the buffer may be twice as large.
UNSENT_BYTES_MAX = 64 * 1024


cdef class RowOutbox(Outbox):
    """The part of an outbox over a store that every turn of a flush goes through.

    Rows that were read wait in `_rows` until they fit, and alerts that go first in `_alerts`; what is finished is kept
    until the store takes it. A subclass says what `is_due`, and makes the parts that are no matter of each turn.
    """

    cdef readonly object store
    # These parts: NextRows, Narrow, Blame, Weaknesses.
    cdef public object next_rows, narrow, blame, weaknesses
    # What did not fit yet; and alerts, where they have a lane of their own: they wait for nothing but their own kind.
    cdef readonly Lane _rows, _alerts
    cdef public bint _more_to_read
    # On this connection nobody has looked yet whether each exchange that was parked has a row.
    cdef public bint _may_have_orphans
    # Refused on this connection, and not sent again yet; and when they are.
    cdef public list _again
    cdef public double _again_at_s
    # Refused, and the store does not know.
    cdef public list _refused
    cdef readonly Doubt doubt
    cdef public object _finished
    # So many of them, the first, are in the image last handed out, and in that on disk.
    cdef Py_ssize_t in_image, named
    # More has finished since the store was told, and it is worth telling from so many on.
    cdef bint has_news
    cdef Py_ssize_t tell_at
    # message id -> handle, as long as somebody has it.
    cdef readonly object _handles
    # Of these: PublishHandle, or one of it. And the store's method, which all of them share.
    cdef public object handle_type
    cdef object wait_durable
    # QoS 0 that went past the store, under negative ids, until the socket has taken it: message, and handle last.
    cdef readonly dict _direct
    # Ids of messages that are of this connection alone, see `Direct.say`, in flight.
    cdef readonly set _said
    cdef public bint _tells_all
    # The server has accepted the connection, and what waits is read for it before it is open.
    cdef public bint is_opening
    # Something was acknowledged on this connection.
    cdef public bint has_progress
    # The window is one exchange, and no QoS 0 goes, until `Narrow.may_widen`.
    cdef public bint is_narrow
    # Nothing more goes until all that is on its way is answered: what goes last is due.
    cdef public bint makes_way
    # Messages are suspected of ending connections: `blame` is to hear of what is finished.
    cdef public bint has_suspects
    # The broker has refused a message on this connection, and may end it for that.
    cdef public bint has_refusals
    # Rows are between the store and `_rows`.
    cdef public bint is_reading
    # `weaknesses` has something to tell.
    cdef public bint has_remarks
    # Of what leaves, where that is bounded by count; else None.
    cdef public object quota
    cdef Unproven _in_the_air
    # QoS 0 of the store is rare and large: whether it has arrived is asked right behind it, in the same segment, and
    # not some seconds later, in three of their own.
    cdef public bint asks_at_once
    # Some has gone since, and nobody has asked.
    cdef bint _is_to_ask
    cdef public Py_ssize_t in_doubt_count
    # Held to read and to rewind: a program's own loop may have several threads pull.
    cdef readonly Lock _pulling

    def __init__(self, store, int window, on_work, *, int max_unreleased=0, bint resend_in_doubt=False):
        super().__init__(window, on_work, durable=True, max_unreleased=max_unreleased)
        self.store = store
        self.pace = Pace()
        self._rows = Lane()
        self._alerts = Lane()
        self._more_to_read = True
        self._again = []
        self._refused = []
        self.doubt = Doubt(self, resend_in_doubt)
        self._finished = Finished()
        self._handles = WeakValueDictionary()
        self.handle_type = PublishHandle
        self.wait_durable = store.wait_durable
        self._direct = {}
        self._said = set()
        self._in_the_air = Unproven()
        self._pulling = Lock("Outbox._pulling")

    cdef object _take(self, client, str topic, bytes payload, qos, retain, properties, Py_ssize_t size):
        """See `Outbox`."""
        return client._glec_publish_stored(topic, payload, qos, retain, properties)

    def pull(self):
        """Encode the next rows as far as the window has room, and read more of them from the store."""
        # In a signal's handler or a finaliser that cut into a pull: whoever is pulling pulls on.
        with self._pulling.attempt(-1) as is_first:
            if is_first:
                self._pull()

    def _pull(self):
        if not self.makes_way:
            self._pull_rows()
        cdef bint tries = (self.has_suspects or self.makes_way) and self.narrow.try_last()
        if self.is_narrow and not tries and self.narrow.may_widen():
            self.narrow.widen()
            self._pull_rows()
            tries = self.has_suspects and self.narrow.try_last()
        if tries:
            self._pull_rows()
        if self.session.wants_commit:
            version = self.store.commit_image()
            if version is not None:
                with self.lock:
                    self.session.on_committed(version)
                    self.named = self.in_image
        if self._is_to_ask and self._have_all_gone() and not self._more_to_read:
            self._is_to_ask = False
            if self.session.unasked_bytes and not self.session.pinged_to and self.is_open:
                self.put_packet(PINGREQ)
        elif self.session.wants_proof and self.is_open:
            self.put_packet(PINGREQ)

    def _pull_rows(self):
        if self._again and self.is_open and self.is_due:
            self.next_rows.read_again()
        if self.quota is not None:
            with self.lock:
                self._fill_quota()
        # Once there is something to send, the broker begins on it while the next are read.
        while self.is_open:
            if self._admit_alerts() and self.next_rows.read(alerts=True):
                continue
            if not self._admit_rows() or self.session.sendable_bytes or not self._may_read():
                break
            if not self.next_rows.read(alerts=False):
                break
        if self.quota is not None:
            with self.lock:
                is_held_back = self.session.publish_quota <= 0 and not self._have_all_gone()
                self._fill_quota()
                self.pull_at_s = self.quota.next_s if is_held_back else NEVER_S
        if self._may_have_orphans and self.is_open and not self._more_to_read and self._have_all_gone():
            if not self.store.has_alerts:
                self.next_rows.end_orphans()

    cdef bint _may_read(self) except -1:
        """False where `NextRows.read` would find nothing, which is dearer to ask."""
        return self._more_to_read or self.session.in_flight == 0

    cpdef bint _fill_quota(self) except -1:
        """Have the session know what may leave; False where nothing may. The caller holds the lock."""
        if self.quota is not None:
            self.session.publish_quota = self.quota.fill(self.session.publish_quota)
        return self.session.publish_quota > 0

    cpdef bint _have_all_gone(self) except -1:
        return self._rows.is_empty() and self._alerts.is_empty()

    cdef bint _admit_alerts(self) except -1:
        """True where all alerts that were read have gone, and there may be more."""
        if not self._alerts.is_empty():
            with self.lock:
                self._admit(self._alerts, False)
            if not self._alerts.is_empty():
                return False
        return self.store.has_alerts and self.session.unsent_bytes <= UNSENT_BYTES_MAX

    cdef bint _admit_rows(self) except -1:
        """True where all rows that were read have gone, and more would fit."""
        cdef Py_ssize_t room
        with self.lock:
            if not self._rows.is_empty():
                self._admit(self._rows, True)
            if not self._rows.is_empty() or self.session.unsent_bytes > UNSENT_BYTES_MAX:
                return False
            room = self.session.room()
            return room >= min(PULL_ROWS_MIN, <int>self.session.window // 2) or self.session.in_flight == 0

    cpdef int _forget_rows(self) except -1:
        """They are read again. The caller holds the lock."""
        self._rows.put([])
        self._alerts.put([])
        self._more_to_read = True
        return 0

    cdef int _admit(self, Lane lane, bint is_bounded) except -1:
        """`Session.admit_rows`; what went with QoS 0, as alerts do too where their QoS is lowered, is in the air."""
        cdef uint64_t encoded = self.session.unacknowledged_count
        cdef Py_ssize_t index, first = lane.gone
        cdef tuple row
        cdef list settling
        lane.gone = self.session.admit_rows(lane.rows, first, is_bounded, self.store.clock.offset_ms)
        if self.session.unacknowledged_count != encoded:
            settling = self.session.settling_ids
            for index in range(first, lane.gone):
                row = lane.rows[index]
                if row[3] == 0 and row[0] not in settling:
                    self._in_the_air.add(row)
                    self._is_to_ask = self.asks_at_once
        return 0

    def _admit_direct(self, tuple row not None):
        """QoS 0 that goes past the store, as a row; the caller holds the lock."""
        self.session.admit(row[0], row[1], row[2], 0, *row[6:])
        self._in_the_air.add(row)

    def on_acks(self, bytes acks not None, finished, dict reasons) -> int:
        """See `Outbox.on_acks`."""
        self.session.now_ms = self.store.since_boot_ms()
        return Outbox.on_acks(self, acks, finished, reasons)

    def _finish(self, list ids):
        """The broker has these, or nobody will; the caller holds the lock."""
        if ids:
            self._finished.add(ids)
            self.has_news = True

    def settle(self) -> list:
        """The handles of what is finished, where somebody holds one or all are told; the caller holds the lock."""
        cdef list done = self.session.take_done()
        cdef list handles, direct
        handles, self.untold = self.untold, []
        refused = self.session.take_refused()
        self._refused += refused
        if self._said:
            self._refused = [message_id for message_id in self._refused if message_id not in self._said]
            answered = self._said.intersection(done)
            done = [message_id for message_id in done if message_id not in answered]
            self._said -= answered
        if PyList_GET_SIZE(self._in_the_air.rows):
            self._in_the_air.prove(self.session.proven_count)
        if refused:
            self.has_refusals = True
        if self.has_suspects and (done or refused):
            self.blame.on_answered(done + refused)
        if not done:
            return handles
        if self.doubt.may_be_odd():
            done = self.doubt.sort_out(done)
        self.sent_count += PyList_GET_SIZE(done)
        if self._direct:
            direct = [message_id for message_id in done if message_id in self._direct]
            done = [message_id for message_id in done if message_id not in self._direct]
            handles += [self._direct.pop(message_id)[3] for message_id in direct]
        if done:
            self.has_progress = True
        self._finish(done)
        # Which QoS is in its acknowledgement; QoS 0 has none.
        handles += self._take_handles(done, 0)
        return handles

    cdef list _take_handles(self, list ids, int qos):
        """Of those that somebody holds, or of all where all are told; they are not looked for again."""
        cdef list handles = []
        # Past the mapping's own methods, which are Python, and may be cut short.
        cdef dict held = self._handles.data
        if not (held or self._tells_all):
            return handles
        for message_id in ids:
            reference = held.pop(message_id, None)
            handle = None if reference is None else reference()
            if handle is None and self._tells_all:
                handle = _new_handle(self._published, qos)
                _set_mid(handle, message_id)
            if handle is not None:
                handles.append(handle)
        return handles

    def greet(self, bint session_present, int receive_maximum):
        """See `Outbox.greet`. From here on a program may see that it is connected."""
        self.is_opening = True

    def _begin_connection(self, int receive_maximum):
        """The broker has accepted it; the queue is to be rewound next."""
        with self.lock:
            self.session.resume(True, receive_maximum)
            self.session.on_accepted()
            self.pace.begin()
            self.session.byte_window = self.pace.window_bytes
            self._forget_rows()
            self._may_have_orphans = True

    def _end_connection(self) -> tuple:
        """(which of `_direct` had not left, of QoS 0 in the air as many rows as are known, how many they were)."""
        with self.lock:
            self.is_open = self.is_opening = False
            proven, left = self.session.proven_count, self.session.left_count
            self.session.park()
            for message_id in self._said:
                # The next connection has its own to say.
                self.session.forget(message_id)
            self._said.clear()
            lost = self._in_the_air.take(proven, left, self.session.unacknowledged_count)
            self._release_control_ids()
            self._forget_rows()
            # Told with the next that are finished.
            self.untold = self.settle()
            return list(self._direct), lost, left - proven

    def new_handle(self, qos):
        """Of a message that is given to the store next, which says its id."""
        handle = _new_handle(self._published, qos, self.handle_type)
        PyObject_SetAttr(handle, "_wait_durable", self.wait_durable)
        _set_mid(handle, 0)
        return handle

    def _requeue(self, list direct_ids not None, append):
        """`append(topic, payload, extras, handle)` of each that nobody else has taken over, until one raises."""
        for direct_id in direct_ids:
            kept = self._direct.pop(direct_id, None)
            if kept is None:
                continue
            try:
                append(*kept)
            except BaseException:
                if kept[3].mid == direct_id:
                    self._direct[direct_id] = kept
                raise

    def after_settle(self):
        """Tell the store what is new for it. Not under the lock."""
        cdef Py_ssize_t waiting
        cdef bint is_drained
        if self._refused:
            self.next_rows.pass_on_refused()
        if self.has_remarks:
            self.next_rows.note_lowered()
            self.doubt.note_downgraded()
            self.weaknesses.tell()
            self.has_remarks = False
        if self.has_news:
            self.has_news = False
            waiting = len(self._finished)
            is_drained = self.session.in_flight == 0
            if waiting >= self.tell_at or is_drained:
                try:
                    self.tell_at = self.store.on_finished(waiting, named=self.named, drained=is_drained)
                except BaseException:
                    self.has_news = True
                    raise

    # ---- called by the store's thread

    def take_finished(self) -> list:
        """See `glec_fast.durable.transaction.Outbox`."""
        with self.lock:
            finished, self._finished = self._finished.ids, Finished()
            self.in_image = self.named = self.tell_at = 0
        return finished

    def abandon(self, list ids not None):
        """See `glec_fast.durable.transaction.Outbox`."""
        cdef set staying, gone
        with self.lock:
            if self.is_reading:
                return None
            staying = set(self.session.abandon(ids))
            staying.update(self._finished.ids, self._refused, self._direct)
            gone = set(ids) - staying
            self._rows.put([row for row in self._rows.left if row[0] not in gone])
            self._alerts.put([row for row in self._alerts.left if row[0] not in gone])
            self._again = [message_id for message_id in self._again if message_id not in gone]
        return [message_id for message_id in ids if message_id in staying]

    def take_image(self, list kept) -> tuple:
        """See `glec_fast.durable.transaction.Outbox`."""
        with self.lock:
            version, image = self.session.take_image(merged(kept + self._finished.ranges))
            self.in_image = len(self._finished)
            return version, image, self.doubt.take()
