"""What other clients do badly: locks held in callbacks, dead threads that keep quiet, descriptors above 1,023."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt import client as paho

import glec_fast.mqtt
from glec_fast.runtime.thread import Thread
from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Subscriber
from support import forked
from support.gateway import eventually

if TYPE_CHECKING:
    from glec_fast.testbed.broker import Broker

WAIT_S = 20.0
THREADS = 8
MESSAGES = 100
SOCKET_CALLBACKS = ("on_socket_open", "on_socket_close", "on_socket_register_write", "on_socket_unregister_write")
CALLBACKS = (
    *("on_pre_connect", "on_connect", "on_disconnect", "on_subscribe", "on_unsubscribe", "on_message", "on_publish"),
    *("on_log", "filtered", *SOCKET_CALLBACKS),
)
EACH_CALLBACK = pytest.mark.parametrize("name", CALLBACKS)


@contextmanager
def running(address: tuple[str, int], **settings: Any) -> Iterator[Any]:
    """A client with a thread, which connects to `address`, and what is needed to wait for it."""
    client = glec_fast.mqtt.Client(paho.CallbackAPIVersion.VERSION2, "device", clean_session=False, **settings)
    client.reconnect_delay_set(0, 0)
    client.connect_async(*address)
    try:
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


def publish(client: Any, text: str, qos: int = 1) -> Any:
    return client.publish("t", text, qos)


def live_through(client: Any, link: Link, name: str, act: Callable[[], object]) -> None:
    """Bring about every callback, over a cut too; the first call of callback `name` does `act`."""
    done = threading.Event()
    connected, subscribed, unsubscribed = (threading.Semaphore(0) for _ in range(3))
    release = {"on_connect": connected, "on_subscribe": subscribed, "on_unsubscribe": unsubscribed}

    def callback(own: str) -> Callable[..., None]:
        def called(*_: Any) -> None:
            if own in release:
                release[own].release()
            if own == name and not done.is_set():
                done.set()
                act()

        return called

    for each in ("on_connect", "on_subscribe", "on_unsubscribe", name):
        if each == "filtered":
            client.message_callback_add("t", callback(each))
        else:
            setattr(client, each, callback(each))
    client.loop_start()
    assert connected.acquire(timeout=WAIT_S)
    client.subscribe("t", 2)
    assert subscribed.acquire(timeout=WAIT_S)
    for qos in (0, 1, 2):
        info = publish(client, f"around {qos}", qos)
        info.wait_for_publish(WAIT_S)
        assert info.is_published()
    client.unsubscribe("none such")
    assert unsubscribed.acquire(timeout=WAIT_S)
    link.drop()
    link.restore()
    assert connected.acquire(timeout=WAIT_S)
    assert done.wait(WAIT_S)


@EACH_CALLBACK
def test_publishing_from_every_callback(name: str, link: Link, broker: Broker) -> None:
    """Of every QoS; another thread waits until it is published, and so does this one."""
    infos: list[Any] = []
    waited: list[bool] = []

    def wait() -> None:
        for info in infos:
            info.wait_for_publish(WAIT_S)
            waited.append(info.is_published())

    waiter = threading.Thread(target=wait)

    def act() -> None:
        infos.extend(publish(client, f"inside {qos}", qos) for qos in (1, 2))
        publish(client, "inside 0", 0)
        if all(info.rc == paho.MQTT_ERR_SUCCESS for info in infos):
            waiter.start()

    with running(link.address) as client:
        live_through(client, link, name, act)
        if waiter.ident is not None:
            waiter.join(WAIT_S)
            assert waited == [True, True]
        publish(client, "behind", 2).wait_for_publish(WAIT_S)
        for info in infos:
            # Those from where there was no connection too.
            info.rc = paho.MQTT_ERR_SUCCESS
            info.wait_for_publish(WAIT_S)
            assert info.is_published()


@EACH_CALLBACK
def test_no_lock_is_held_during_a_callback(name: str, link: Link) -> None:
    """Another thread does all that a program may do, while the callback waits for it."""
    ended: list[bool] = []

    def everything() -> None:
        client.publish("elsewhere", b"x", 2)
        client.subscribe("elsewhere/#", 1)
        client.unsubscribe("elsewhere")
        client.message_callback_add("elsewhere", print)
        client.message_callback_remove("elsewhere")
        client.ack(1, 1)
        client.is_connected()
        client.want_write()
        client.user_data_set(None)
        client.loop_write()
        ended.append(True)

    def act() -> None:
        other = threading.Thread(target=everything)
        other.start()
        other.join(WAIT_S)
        assert not other.is_alive(), f"a lock is held during {name}"

    with running(link.address) as client:
        live_through(client, link, name, act)
        assert ended == [True]


def test_no_lock_is_held_where_the_socket_is_full() -> None:
    """on_socket_register_write, called because the server does not read: another thread may write meanwhile."""
    were_free: list[bool] = []

    def on_register(*_: Any) -> None:
        other = threading.Thread(target=client.loop_write)
        other.start()
        other.join(WAIT_S)
        were_free.append(not other.is_alive())

    with socket.create_server(("127.0.0.1", 0)) as listener, running(listener.getsockname()) as client:
        connected = threading.Event()
        client.on_connect = lambda *_: connected.set()
        client.reconnect()
        server, _ = listener.accept()
        with server:
            server.sendall(b"\x20\x02\x00\x00")
            while not connected.is_set():
                assert client.loop(WAIT_S) == paho.MQTT_ERR_SUCCESS
            # More than the two sockets hold.
            for _ in range(100):
                client.publish("t", bytes(200_000))
            client.on_socket_register_write = on_register
            # As after a turn of the loop in which everything had left.
            client._registered_write = False
            assert client.loop_write() == paho.MQTT_ERR_SUCCESS
            client.on_socket_register_write = None
            assert were_free
            assert all(were_free)


@EACH_CALLBACK
def test_the_thread_outlives_an_exception_of_every_callback(
    name: str, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: told.append(str(arguments.exc_value)))

    def act() -> None:
        raise LookupError(name)

    # Without keep alive nothing but the client itself can find out that it did not go on.
    with running(link.address) as client:
        client.connect_async(*link.address, keepalive=0)
        live_through(client, link, name, act)
        thread = client._thread
        assert thread is not None
        assert thread.is_alive()
        publish(client, "behind", 2).wait_for_publish(WAIT_S)
        assert client.is_connected()
    # paho swallows those of on_log; those in a caller's thread are the caller's.
    assert told == ([] if name == "on_log" else [name])


def test_an_exception_of_on_disconnect_leaves_no_connection(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: told.append(str(arguments.exc_value)))
    connected = threading.Event()

    def on_disconnect(*_: Any) -> None:
        raise LookupError("on leaving")

    with running((broker.host, broker.port)) as client:
        client.on_connect, client.on_disconnect = (lambda *_: connected.set()), on_disconnect
        client.loop_start()
        assert connected.wait(WAIT_S)
        thread = client._thread
        client.disconnect()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        assert client.socket() is None
        assert told == ["on leaving"]


@pytest.mark.parametrize("how", ["close", "shutdown", "detach"])
def test_the_thread_outlives_a_socket_that_breaks(how: str, link: Link) -> None:
    connected = threading.Semaphore(0)
    with running(link.address) as client:
        client.on_connect = lambda *_: connected.release()
        client.loop_start()
        assert connected.acquire(timeout=WAIT_S)
        sock = client.socket()
        if how == "shutdown":
            sock.shutdown(2)
        elif how == "close":
            sock.close()
        else:
            os.close(sock.detach())
        info = publish(client, "over it")
        assert connected.acquire(timeout=WAIT_S)
        info.wait_for_publish(WAIT_S)
        assert info.is_published()


@pytest.mark.parametrize("how", ["cut", "SystemExit"])
def test_a_thread_that_ends_says_so(how: str, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    connected, ended = threading.Event(), threading.Event()
    with running(link.address, reconnect_on_failure=how != "cut") as client:

        def on_message(*_: Any) -> None:
            raise SystemExit

        client.on_message = on_message
        client.on_connect = lambda *_: (client.subscribe("t", 1), connected.set())
        client.on_socket_close = lambda *_: ended.set()
        client.loop_start()
        assert connected.wait(WAIT_S)
        thread = client._thread
        if how == "cut":
            link.cut()
        else:
            publish(client, "the end")
        assert ended.wait(WAIT_S)
        thread.join(WAIT_S)
        assert not client.is_connected()
        assert publish(client, "after it").rc == paho.MQTT_ERR_NO_CONN
        assert publish(client, "after it", 0).rc == paho.MQTT_ERR_NO_CONN
        assert client.subscribe("t") == (paho.MQTT_ERR_NO_CONN, None)
        assert client.loop_stop() == paho.MQTT_ERR_INVAL


def test_a_thread_that_ends_can_be_started_again(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever on_socket_close does, when the thread closes the socket on its last way."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    subscribed = threading.Semaphore(0)
    with running(link.address) as client:

        def on_message(*_: Any) -> None:
            raise SystemExit

        def on_socket_close(*_: Any) -> None:
            raise LookupError("a fault of the program")

        client.on_message, client.on_socket_close = on_message, on_socket_close
        client.on_connect = lambda *_: client.subscribe("t", 1)
        client.on_subscribe = lambda *_: subscribed.release()
        client.loop_start()
        assert subscribed.acquire(timeout=WAIT_S)
        thread = client._thread
        publish(client, "the end", 0)
        thread.join(WAIT_S)
        assert not thread.is_alive()
        client.on_message = client.on_socket_close = None
        client.connect_async(*link.address)
        assert client.loop_start() == paho.MQTT_ERR_SUCCESS
        assert subscribed.acquire(timeout=WAIT_S)


def test_a_wake_up_that_is_lost_does_not_keep_others_from_theirs() -> None:
    """loop_start makes new sockets to wake the thread with, while another thread still holds an old one."""
    client = glec_fast.mqtt.Client(paho.CallbackAPIVersion.VERSION2, "device")
    reader, writer = socket.socketpair()
    reader.close()
    writer.close()
    client._sockpairW = writer
    client._glec_wake()
    reader, writer = socket.socketpair()
    client._sockpairW = writer
    with reader, writer:
        client._glec_wake()
        reader.setblocking(False)
        assert reader.recv(10)


@pytest.mark.parametrize("loop", ["loop", "loop_start"])
def test_the_sockets_to_wake_the_loop_with_are_nobody_elses(loop: str) -> None:
    """paho's go over TCP, where another process may connect first."""
    client = glec_fast.mqtt.Client(paho.CallbackAPIVersion.VERSION2, "device")
    client.connect_async("127.0.0.1", 1)
    getattr(client, loop)()
    try:
        assert {client._sockpairR.family, client._sockpairW.family} == {socket.AF_UNIX}
    finally:
        client.loop_stop()


def test_without_descriptors_for_a_thread_the_program_s_own_loop_goes_on(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = glec_fast.mqtt.Client(paho.CallbackAPIVersion.VERSION2, "device")
    client.connect(broker.host, broker.port)
    while not client.is_connected():
        assert client.loop() == paho.MQTT_ERR_SUCCESS

    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as scarce:
        scarce.setattr(socket, "socketpair", fail)
        with pytest.raises(OSError, match="Too many"):
            client.loop_start()
    client.on_publish = lambda *_: client.disconnect()
    client.publish("t", "x", 1)
    while client.socket() is not None:
        assert client.loop() == paho.MQTT_ERR_SUCCESS


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_eight_threads_and_the_callbacks_publish_at_once(qos: int, broker: Broker) -> None:
    """All arrives once, in the order of each thread; on_publish has each id once."""
    total = THREADS * MESSAGES
    answered, all_told = threading.Semaphore(0), threading.Event()
    told: list[int] = []
    together = threading.Barrier(THREADS)

    def on_publish(client: Any, _userdata: Any, mid: int, *_: Any) -> None:
        told.append(mid)
        if len(told) == 2 * total:
            all_told.set()

    def on_message(client: Any, _userdata: Any, message: Any) -> None:
        client.publish("answer", message.payload, qos)
        answered.release()

    def hammer(thread: int) -> None:
        together.wait(WAIT_S)
        for number in range(MESSAGES):
            info = client.publish(f"t/{thread}", str(number), qos)
            if number % 10 == 0:
                info.wait_for_publish(WAIT_S)

    subscribed = threading.Event()
    with Subscriber(broker) as subscriber, running((broker.host, broker.port)) as client:
        client.on_message, client.on_publish = on_message, on_publish
        client.on_connect = lambda *_: client.subscribe("t/#", qos)
        client.on_subscribe = lambda *_: subscribed.set()
        client.loop_start()
        assert subscribed.wait(WAIT_S)
        threads = [threading.Thread(target=hammer, args=(thread,)) for thread in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        assert all_told.wait(WAIT_S)
        assert subscriber.wait_for_count(2 * total)
        for number in range(THREADS):
            assert subscriber.payloads(f"t/{number}") == [b"%d" % each for each in range(MESSAGES)]
        assert len(subscriber.payloads("answer")) == total


@pytest.mark.parametrize("act", ["disconnect", "reconnect", "loop_stop", "unsubscribe"])
def test_leaving_from_a_callback(act: str, link: Link) -> None:
    connected, acted = threading.Semaphore(0), threading.Event()
    with running(link.address) as client:

        def on_message(*_: Any) -> None:
            if not acted.is_set():
                acted.set()
                client.unsubscribe("t") if act == "unsubscribe" else getattr(client, act)()

        client.on_message = on_message
        client.on_connect = lambda *_: (client.subscribe("t", 1), connected.release())
        client.loop_start()
        assert connected.acquire(timeout=WAIT_S)
        thread = client._thread
        publish(client, "go")
        assert acted.wait(WAIT_S)
        if act in ("disconnect", "loop_stop"):
            thread.join(WAIT_S)
            assert not thread.is_alive()
        else:
            info = publish(client, "on")
            if act == "reconnect":
                assert connected.acquire(timeout=WAIT_S)
                info.rc = paho.MQTT_ERR_SUCCESS
            info.wait_for_publish(WAIT_S)
            assert info.is_published()


DESCRIPTORS = """
import json, os, resource, sys
from glec_fast import mqtt
host, port, authority = json.loads(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "device")
if authority:
    client.tls_set(authority)
client.connect(host, port)
assert client.socket().fileno() > 1023
client.loop_start()
for number in range(50):
    client.publish("t", str(number), number % 3).wait_for_publish(20)
client.disconnect()
client.loop_stop()
client.connect(host, port)
while not client.is_connected():
    assert client.loop(1) == 0
print("done", flush=True)
os._exit(0)
"""


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2048, reason="needs 2,048 descriptors")
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_more_than_1023_descriptors(secure: bool, tls_broker: Broker, authority: Any) -> None:
    port = tls_broker.tls_port if secure else tls_broker.port
    arguments = json.dumps(["localhost", port, str(authority.certificate_path) if secure else ""])
    ran = forked.run(["-c", DESCRIPTORS, arguments], 60)
    assert ran.stdout == "done\n", ran.stderr


@pytest.mark.parametrize("ends_first", [False, True])
def test_a_start_of_the_thread_that_is_cut_into_is_none(
    ends_first: bool, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts, start = [KeyboardInterrupt], Thread.start

    def cut_once(thread: Thread) -> None:
        if cuts:
            raise cuts.pop()
        start(thread)

    monkeypatch.setattr(Thread, "start", cut_once)
    client = glec_fast.mqtt.Client(paho.CallbackAPIVersion.VERSION2)
    client.connect(broker.host, broker.port)
    with pytest.raises(KeyboardInterrupt):
        client.loop_start()
    if ends_first:
        client.loop_stop()
    assert client.loop_start() == 0
    assert eventually(client.is_connected)
    client.close()
