"""The parts of a client, each without the others: what they are given is told by a few names."""

from __future__ import annotations

import socket
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.enums import MQTTErrorCode

from glec_fast._paho import ConnectionState
from glec_fast.engine import farewell as farewells
from glec_fast.engine import loop as loops
from glec_fast.engine.connecting import Connecting
from glec_fast.engine.connector import Connector
from glec_fast.engine.ending import Ending
from glec_fast.engine.farewell import Farewell
from glec_fast.engine.loop import Loop
from glec_fast.engine.network_thread import NetworkThread
from glec_fast.engine.policy import Policy
from glec_fast.engine.reading import Reader
from glec_fast.engine.takeover import Takeover
from glec_fast.engine.wakeup import Wakeup
from glec_fast.engine.writing import Writer
from support.gateway import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SUCCESS = MQTTErrorCode.MQTT_ERR_SUCCESS


class Scene:
    """What every part is given, with all that happened to it."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.session = SimpleNamespace(
            sent_to=0,
            answered_to=0,
            sendable_bytes=0,
            in_flight=0,
            window=20,
            has_last=False,
            unsent_bytes=0,
            protocol_version=4,
            # PINGREQ is on its way.
            pinged_to=1,
        )
        self.outbox: Any = SimpleNamespace(
            session=self.session,
            is_woken=False,
            pull_at_s=float("inf"),
            is_left=False,
            is_stored=False,
            is_to_settle=False,
            has_trace=False,
            is_due=False,
            has_to_send=lambda: self.has_to_send,
            hasten=self.note("hasten"),
            pull=self.note("pull"),
            begin_close=self.note("begin_close"),
            is_own_thread=lambda: False,
            look_for_answers=self.note("look_for_answers"),
            put_packet=lambda *_, **__: True,
        )
        self.has_to_send = False
        self.link: Any = SimpleNamespace(
            do=lambda step, *values: step(*values),
            is_torn=False,
            lacks_connect=False,
            wake=self.note("wake"),
            hear=lambda reader: bool(reader.recv(10)),
            write=lambda _paho, _limit: (0, False),
            read=lambda *_: 0,
            flow=self.note("flow"),
            flow_no_more=lambda: None,
            left_s=0.0,
            came_s=0.0,
            failure=None,
        )
        self.arrivals: Any = SimpleNamespace(
            link=self.link,
            is_behind=lambda: False,
            handle=self.note("handle"),
            settle_sent=self.note("settle_sent"),
            acknowledge_returned=lambda: None,
            pass_over=self.note("pass_over"),
            tell_published=self.note("tell_published"),
        )
        self.paho: Any = SimpleNamespace(
            sock=None,
            thread=None,
            is_ending=False,
            state=ConnectionState.MQTT_CS_CONNECTED,
            wake_reader=None,
            wake_writer=None,
            client_id=b"device",
            transport="tcp",
            is_tls=False,
            is_tcp=True,
            is_registered=False,
            reconnects=True,
            on_socket_register_write=None,
            on_socket_unregister_write=None,
            note_sent=lambda _: None,
            note_received=lambda _: None,
            callback_mark=SimpleNamespace(acquire=lambda _: True),
            log=lambda *_: None,
            lose=lambda rc: rc,
            close=self.note("close"),
            close_wake_pair=self.note("close_wake_pair"),
            holder=None,
            through=lambda sock: sock,
            client=SimpleNamespace(
                loop=self.note("loop"),
                loop_read=self.note("loop_read"),
                loop_write=self.note("loop_write"),
                loop_misc=self.note("loop_misc"),
                loop_forever=lambda **_: _SUCCESS,
            ),
        )

    def note(self, what: str) -> Callable[..., MQTTErrorCode]:
        def happen(*_: object, **__: object) -> MQTTErrorCode:
            self.happened.append(what)
            return _SUCCESS

        return happen

    def take(self) -> list[str]:
        """What happened since the last call."""
        happened, self.happened[:] = list(self.happened), []
        return happened


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def sockets(scene: Scene) -> Iterator[socket.socket]:
    """The peer's end of the scene's connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        scene.paho.sock = ours
        yield theirs


class TestFarewell:
    @pytest.fixture
    def farewell(self, scene: Scene) -> Farewell:
        wakeup: Any = SimpleNamespace(wake=scene.note("wake"))
        return Farewell(scene.paho, scene.outbox, scene.arrivals, wakeup, Takeover())

    def test_it_leaves_at_once_where_nothing_waits(self, farewell: Farewell, scene: Scene) -> None:
        scene.paho.sock = object()
        farewell.begin(scene.note("leave"))
        assert scene.take() == ["leave"]
        assert not farewell.is_waiting

    def test_it_waits_for_what_goes_before_it(self, farewell: Farewell, scene: Scene) -> None:
        scene.paho.sock, scene.paho.thread, scene.has_to_send = object(), object(), True
        farewell.begin(scene.note("leave"))
        farewell.leave_when_due()
        assert scene.take() == ["hasten", "wake", "pull"]
        assert farewell.is_waiting
        scene.has_to_send = False
        farewell.leave_when_due()
        farewell.leave_when_due()
        assert scene.take() == ["pull", "leave"], "once"

    def test_it_does_not_wait_for_ever(self, farewell: Farewell, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(farewells, "TIMEOUT_S", 0.0)
        scene.paho.sock, scene.paho.thread, scene.has_to_send = object(), object(), True
        farewell.begin(scene.note("leave"))
        farewell.leave_when_due()
        assert scene.take() == ["hasten", "wake", "pull", "leave"]

    def test_the_end_of_the_connection_is_what_was_asked_for(self, farewell: Farewell, scene: Scene) -> None:
        scene.paho.sock, scene.paho.thread, scene.has_to_send = object(), object(), True
        farewell.begin(scene.note("leave"))
        farewell.end()
        assert scene.paho.state == ConnectionState.MQTT_CS_DISCONNECTING
        assert not farewell.is_waiting


class TestLoop:
    @pytest.fixture
    def reader(self) -> Any:
        return SimpleNamespace(is_stream=False, is_torn=False, end_torn=lambda: MQTTErrorCode.MQTT_ERR_CONN_LOST)

    @pytest.fixture
    def loop(self, scene: Scene, reader: Any) -> Loop:
        farewell: Any = SimpleNamespace(is_waiting=False, end=scene.note("end"))
        writer: Any = SimpleNamespace()
        return Loop(scene.paho, scene.outbox, scene.arrivals, reader, writer, farewell, Policy())

    @pytest.mark.parametrize(
        ("in_flight", "window", "expected_s"), [(1000, 1, [0.002]), (500, 1000, [0.001]), (20, 20, []), (0, 1000, [])]
    )
    def test_the_pause_for_acknowledgements_is_bounded(
        self,
        loop: Loop,
        reader: Any,
        scene: Scene,
        monkeypatch: pytest.MonkeyPatch,
        in_flight: int,
        window: int,
        expected_s: list[float],
    ) -> None:
        """Also where more is in flight than a window that was made smaller; paho's own 20 in flight are no load."""
        pauses_s: list[float] = []
        monkeypatch.setattr(loops.time, "sleep", pauses_s.append)
        reader.is_stream, scene.session.in_flight, scene.session.window = True, in_flight, window
        loop.let_acks_gather()
        assert pauses_s == expected_s

    def test_a_broker_that_had_answered_a_quarter_is_not_paused_for_as_long(
        self, loop: Loop, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of what is on its way as each pause begins, it answers so much until the next."""
        pauses_s: list[float] = []
        monkeypatch.setattr(loops.time, "sleep", pauses_s.append)
        session = scene.session
        session.in_flight = session.window = 1000
        for answered in (0, 249, 250, 500, 999, 1000, 1000, 250, 249, 0, 100, 0, 0):
            session.answered_to += answered
            session.sent_to = session.answered_to + 1000
            loop.let_acks_gather()
        assert pauses_s == [0.002, 0.002, 0.001, 0.0005, 0.00025, 0.000125, 0.0002, 0.0004, 0.0008, 0.0016, 0.002]

    def test_a_stream_of_acknowledgements_is_read_without_a_wait(
        self, loop: Loop, reader: Any, scene: Scene, sockets: socket.socket
    ) -> None:
        scene.paho.thread = object()
        reader.is_stream = True
        loop.misc_done_s = time.monotonic() + 1000
        loop.turn(0.0)
        assert scene.take() == ["loop_read"], "though nothing has come"
        scene.paho.holder = scene.paho
        scene.link.flow_no_more = scene.note("flow_no_more")
        loop.turn(0.0)
        assert scene.take() == ["flow", "loop_read", "flow_no_more"]
        scene.link.flow_no_more = lambda: None
        scene.paho.on_socket_register_write = print
        loop.turn(0.0)
        assert scene.take() == ["loop_read"], "a program's own loop is to hear of it"
        reader.is_stream = False
        loop.turn(0.0)
        assert scene.take() == []
        sockets.send(b"x")
        loop.turn(TIMEOUT_S)
        assert scene.take() == ["loop_read"]

    def test_whoever_woke_the_loop_is_heard_in_a_stream_too(
        self, loop: Loop, reader: Any, scene: Scene, sockets: socket.socket
    ) -> None:
        scene.paho.wake_reader, writer = socket.socketpair()
        with scene.paho.wake_reader, writer:
            writer.send(b"0")
            reader.is_stream = scene.outbox.is_woken = True
            loop.turn(TIMEOUT_S)
        assert scene.take()[:2] == ["pull", "loop_write"]

    def test_a_busy_loop_looks_at_keep_alive_now_and_then(
        self, loop: Loop, scene: Scene, sockets: socket.socket
    ) -> None:
        scene.paho.thread = object()
        loop.misc_done_s = time.monotonic() + 1000
        loop.turn(0.0)
        assert scene.take() == []
        loop.misc_done_s = time.monotonic() - 1
        loop.turn(0.0)
        assert scene.take() == ["loop_misc"]
        scene.paho.thread = None
        loop.turn(0.0)
        loop.turn(0.0)
        assert scene.take() == ["loop_misc"] * 2, "a program's own loop each time, as with paho"

    def test_a_socket_that_is_gone_ends_the_connection(self, loop: Loop, scene: Scene, sockets: socket.socket) -> None:
        scene.paho.sock.close()
        assert loop.turn(0.0) == MQTTErrorCode.MQTT_ERR_CONN_LOST
        assert scene.paho.state == ConnectionState.MQTT_CS_CONNECTION_LOST
        assert scene.take() == ["end"]


class TestReader:
    @pytest.fixture
    def reader(self, scene: Scene) -> Reader:
        farewell: Any = SimpleNamespace(leave_when_due=scene.note("leave_when_due"))
        writer: Any = SimpleNamespace(write_out=scene.note("write_out"), log_sent=scene.note("log_sent"))
        connecting: Any = SimpleNamespace(is_under_way=False)
        return Reader(scene.paho, scene.outbox, scene.arrivals, connecting, writer, farewell, Ending())

    def test_what_has_come_is_handled(self, reader: Reader, scene: Scene, sockets: socket.socket) -> None:
        scene.link.read = lambda *_: 100
        assert reader.read() == _SUCCESS
        assert scene.take() == ["handle", "leave_when_due"]
        assert reader.is_stream

    def test_the_end_is_in_order_where_the_server_makes_it(
        self, reader: Reader, scene: Scene, sockets: socket.socket
    ) -> None:
        assert reader.read() == MQTTErrorCode.MQTT_ERR_CONN_LOST
        assert scene.outbox.is_left

    def test_what_flowed_is_noted(self, reader: Reader, scene: Scene, sockets: socket.socket) -> None:
        sent_s: list[float] = []
        received_s: list[float] = []
        scene.paho.note_sent, scene.paho.note_received = sent_s.append, received_s.append
        scene.link.read = lambda *_: 1
        scene.link.left_s, scene.link.came_s, scene.outbox.is_to_settle = 5.0, 6.0, True
        assert reader.read() == reader.read() == _SUCCESS
        assert scene.take() == ["handle", "settle_sent", "leave_when_due"] * 2
        assert sent_s == [5.0]
        assert received_s[1] == 6.0
        assert len(received_s) == 3, "one of each read, and one of what flowed"

    def test_who_resets_the_connection_while_it_flows_has_ended_it(
        self, reader: Reader, scene: Scene, sockets: socket.socket
    ) -> None:
        scene.link.read = lambda *_: 1
        scene.link.failure = ConnectionResetError()
        assert reader.read() == MQTTErrorCode.MQTT_ERR_CONN_LOST
        assert scene.outbox.is_broken_off

    def test_the_last_words_leave_before_the_connection_ends(
        self, reader: Reader, scene: Scene, sockets: socket.socket
    ) -> None:
        scene.link.read = lambda *_: 1
        scene.arrivals.handle = lambda _: MQTTErrorCode.MQTT_ERR_PROTOCOL
        scene.session.has_last = True
        assert reader.read() == MQTTErrorCode.MQTT_ERR_PROTOCOL
        assert scene.take() == ["write_out"]


class TestWriter:
    @pytest.fixture
    def writer(self, scene: Scene) -> Writer:
        wakeup: Any = SimpleNamespace(wake=scene.note("wake"))
        farewell: Any = SimpleNamespace(on_sent=scene.note("on_sent"))
        return Writer(scene.paho, scene.outbox, scene.arrivals, wakeup, farewell, scene.note("log_sent"))

    def test_the_thread_is_woken_once_for_what_is_queued(self, writer: Writer, scene: Scene) -> None:
        scene.paho.sock, scene.paho.thread = object(), SimpleNamespace(ident=0)
        writer.after_queueing()
        scene.outbox.is_woken = True
        writer.after_queueing()
        assert scene.take() == ["wake"]

    def test_without_a_thread_it_is_written_at_once(self, writer: Writer, scene: Scene) -> None:
        writer.after_queueing()
        assert scene.take() == ["wake", "loop_write"]

    def test_disconnect_that_has_left_ends_the_connection(
        self, writer: Writer, scene: Scene, sockets: socket.socket
    ) -> None:
        scene.link.write = lambda _paho, _limit: (2, True)
        assert writer.write() == _SUCCESS
        assert scene.take() == ["on_sent"]


class TestWakeup:
    def test_another_pair_hears_who_woke_the_loop_by_the_old_one(self, scene: Scene) -> None:
        wakeup = Wakeup(scene.paho, scene.outbox, scene.link)
        wakeup.wake()
        assert scene.take() == [], "there is no pair"
        wakeup.open()
        old = scene.paho.wake_reader
        scene.outbox.is_woken = True
        wakeup.open()
        assert (old.fileno(), scene.outbox.is_woken) == (-1, False)
        wakeup.wake()
        assert scene.take() == ["wake"]
        for end in (scene.paho.wake_reader, scene.paho.wake_writer):
            end.close()


class TestNetworkThread:
    @pytest.fixture
    def thread(self, scene: Scene) -> NetworkThread:
        wakeup: Any = SimpleNamespace(wake=scene.note("wake"), open=scene.note("open"))
        farewell: Any = SimpleNamespace(is_waiting=False, leave_now=scene.note("leave_now"))
        writer: Any = SimpleNamespace()
        thread = NetworkThread(
            scene.paho, scene.outbox, scene.arrivals, wakeup, farewell, writer, Connector(), Policy()
        )
        scene.paho.run_thread = thread.main
        return thread

    def test_it_goes_on_behind_what_a_callback_raised(
        self, thread: NetworkThread, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        raised: list[object] = []
        monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_value))
        failures = [ValueError("a callback's")]
        scene.paho.sock = object()

        def loop_forever(**_: object) -> MQTTErrorCode:
            if failures:
                raise failures.pop()
            return _SUCCESS

        scene.paho.client.loop_forever = loop_forever
        assert thread.start() == _SUCCESS
        running = scene.paho.thread
        if running is not None:
            running.join()
        assert [str(each) for each in raised] == ["a callback's"]
        assert scene.take() == ["open", "pass_over", "close"]
        assert not thread.is_running

    def test_the_pause_doubles_up_to_its_most(self, thread: NetworkThread, scene: Scene) -> None:
        paho = scene.paho
        paho.delay_lock, paho.delay_s, paho.min_delay_s, paho.max_delay_s = threading.Lock(), None, 0.001, 0.003
        for expected_s in (0.001, 0.002, 0.003, 0.003):
            thread.wait_to_reconnect()
            assert paho.delay_s == expected_s

    def test_an_end_without_a_thread_sends_what_is_left(self, thread: NetworkThread, scene: Scene) -> None:
        scene.paho.sock = object()
        thread.end(scene.note("disconnect"))
        assert scene.take() == ["begin_close", "disconnect", "leave_now", "loop_write", "close"]


class TestConnecting:
    @pytest.fixture
    def connecting(self, scene: Scene) -> Connecting:
        farewell: Any = SimpleNamespace(forget=scene.note("forget"))
        return Connecting(scene.paho, farewell, Connector(), Policy(), Ending(), silence_max_s=0)

    @pytest.mark.parametrize("error", [OSError("no route"), KeyboardInterrupt()])
    def test_an_attempt_that_fails_leaves_no_connection(
        self, connecting: Connecting, scene: Scene, error: BaseException
    ) -> None:
        def make() -> MQTTErrorCode:
            raise error

        with pytest.raises(type(error)):
            connecting.reconnect(make)
        assert scene.take() == ["forget", "close"]
