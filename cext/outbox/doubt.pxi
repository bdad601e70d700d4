# What becomes of messages of which nobody can know whether they arrived. Part of `_outbox.pyx`.

cdef object SENT_AGAIN = Decision.SENT_AGAIN
cdef object LEFT_TO_BROKER = Decision.LEFT_TO_BROKER
cdef object AT_LEAST_ONCE = Decision.AT_LEAST_ONCE


cdef class RowOutbox(Outbox)


cdef class Doubt:
    """Of one outbox: messages in doubt are sent again, or left to the broker; the ledger says which.

    What is left is finished, and told with the next that are. Callers of `sort_out` and `take` hold the outbox's lock.
    """

    cdef RowOutbox outbox
    cdef bint resends
    # (message id, decision), for the next image.
    cdef readonly list decisions
    # Messages of QoS 2 that ended with PUBACK, as far as they were noted. And the ledger has one of this broker's.
    cdef Py_ssize_t noted_downgraded
    cdef public bint is_downgrade_recorded

    def __init__(self, RowOutbox outbox not None, bint resends):
        self.outbox = outbox
        self.resends = resends
        self.decisions = []

    def void_session(self):
        """The broker knows nothing of what is in flight (MQTT 3.1.1, 3.1.2.4): decide what becomes of each message."""
        cdef list received
        with self.outbox.lock:
            parked = self.outbox.session.parked_ids(2)
            received = self.outbox.session.resume(False)
            self.leave(self.decide(set(parked).difference(received), received))

    def leave_owner(self, set again not None, list received not None):
        """Messages in flight with a broker that another takes the place of: as in `void_session`."""
        with self.outbox.lock:
            self.leave(self.decide(again, received))

    def give_up(self, list ids not None) -> int:
        """End the exchanges of these messages whose PUBREL is not answered; returns how many there were."""
        cdef list given_up
        with self.outbox.lock:
            given_up = [message_id for message_id in ids if self.outbox.session.give_up(message_id)]
            self.leave(self.decide(set(), given_up))
            if self.resends:
                self.send_again(given_up)
            self.outbox.has_progress = self.outbox.has_progress or self.outbox.is_open
        return len(given_up)

    cdef bint may_be_odd(self) except -1:
        """True where `sort_out` has something to find."""
        return self.outbox.session.downgraded_count != self.noted_downgraded or self.outbox.session.has_doubtful

    cdef list sort_out(self, list done):
        """What is odd in the acknowledgements of `done`; returns those that are done."""
        cdef list doubtful = self.outbox.session.take_doubtful()
        self.decide(set(), doubtful)
        if self.outbox.session.downgraded_count != self.noted_downgraded and not self.is_downgrade_recorded:
            # Once for each broker: the others are counted.
            self.is_downgrade_recorded = True
            self.decisions.append((self.outbox.session.downgraded_id, AT_LEAST_ONCE))
        self.outbox.has_remarks = True
        if not self.resends:
            return done
        self.send_again(doubtful)
        return [message_id for message_id in done if message_id not in doubtful]

    cdef int note_downgraded(self) except -1:
        """Not under the lock."""
        cdef Py_ssize_t downgraded = self.outbox.session.downgraded_count
        if downgraded != self.noted_downgraded:
            self.outbox.weaknesses.note(Weakness.QOS_2_AS_QOS_1, downgraded - self.noted_downgraded)
            self.noted_downgraded = downgraded
        return 0

    cdef list take(self):
        """The decisions since the last call, for the image that carries them out."""
        decisions, self.decisions = self.decisions, []
        return decisions

    cdef list decide(self, set again, list received):
        """Record what becomes of messages in doubt, and return those of `received` that are left to the broker.

        received: the broker had acknowledged them with PUBREC. The caller holds the lock.
        """
        cdef list decisions
        if self.resends:
            again, received = again.union(received), []
        decisions = [(message_id, LEFT_TO_BROKER) for message_id in received]
        if not self.outbox.weaknesses.is_at_least_once:
            decisions = [(message_id, SENT_AGAIN) for message_id in sorted(again)] + decisions
        self.decisions += decisions
        self.outbox.in_doubt_count += len(decisions)
        return received

    cdef int leave(self, list ids) except -1:
        """They are the broker's. The caller holds the lock."""
        self.outbox._finish(ids)
        self.outbox.untold += self.outbox._take_handles(ids, 2)
        return 0

    cdef int send_again(self, list ids) except -1:
        """On this connection. The caller holds the lock."""
        if ids and not self.outbox._again:
            self.outbox._again_at_s = 0.0
        self.outbox._again += ids
        return 0
