"""A forked child has nothing of its parent's clients and queues but an error that says so."""

from __future__ import annotations

import os
import pickle
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import traceback
import warnings
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt import client as paho

import glec_fast
import glec_fast.mqtt as mqtt
from glec_fast import ForkedError, MQTTManager, OfflineQueueManager, QueueLockedError, UnsupportedError
from glec_fast.durable.store import Store
from support.gateway import TIMEOUT_S, eventually, quick_config
from support.program import Program, kept, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import StartSubscriber
    from glec_fast.testbed.broker import Broker

V2 = paho.CallbackAPIVersion.VERSION2


def failure_in_child(work: Callable[[], object]) -> str:
    """The traceback of `work` in a forked child of this process, "it hung" where it did; "" where all went well."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Of threads in the parent, which are what this is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            work()
            status = 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(writer)
    watchdog = threading.Timer(TIMEOUT_S, os.kill, (pid, 9))
    watchdog.start()
    try:
        _, status = os.waitpid(pid, 0)
    finally:
        watchdog.cancel()
    with os.fdopen(reader) as said:
        return "" if status == 0 else said.read() or "it hung"


@contextmanager
def connected(broker: Broker, **settings: Any) -> Iterator[mqtt.Client]:
    client = mqtt.Client(V2, "parent", **settings)
    client.connect(broker.host, broker.port)
    client.loop_start()
    assert eventually(client.is_connected)
    try:
        yield client
    finally:
        client.close()


def refused(call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(ForkedError, match=rf"pid {os.getppid()}\).*make a new client after the fork") as caught:
        call(*arguments)
    assert caught.value.pid == os.getppid()
    assert not caught.value.retryable


CLIENT_CALLS = {
    "publish": ("t", "x"),
    "connect": ("127.0.0.1",),
    "connect_async": ("127.0.0.1",),
    "reconnect": (),
    "subscribe": ("t",),
    "unsubscribe": ("t",),
    "disconnect": (),
    "loop": (),
    "loop_start": (),
    "loop_stop": (),
    "loop_forever": (),
    "loop_read": (),
    "loop_write": (),
    "loop_misc": (),
    "flush": (),
    "handle_for": (1,),
    "ack": (1, 1),
}


@pytest.mark.parametrize("with_store", [False, True], ids=["memory", "store"])
def test_every_call_on_a_client(with_store: bool, broker: Broker, tmp_path: Path) -> None:
    with connected(broker, **({"store": tmp_path / "queue.db"} if with_store else {})) as client:
        # Bound to the client before the fork.
        bound = {name: getattr(client, name) for name in ("publish", "connect", "subscribe", "loop_start")}

        def work() -> None:
            for name, arguments in CLIENT_CALLS.items():
                refused(getattr(client, name), *arguments)
            for name, method in bound.items():
                refused(method, *CLIENT_CALLS[name])
            for qos in (0, 1, 2):
                refused(client.publish, "t", "x", qos)
            assert not client.is_connected()
            if with_store:
                refused(lambda: client.store.size)
            client.close()
            with client:
                pass

        assert failure_in_child(work) == ""
        assert client.is_connected()
        client.publish("t", "x", 1).wait_for_publish(TIMEOUT_S)


def test_every_call_on_a_manager(broker: Broker, tmp_path: Path) -> None:
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        manager.connect()
        assert eventually(manager.is_connected)
        handle = manager.publish("t", "x", 1)
        handle.wait_for_publish(TIMEOUT_S)

        def work() -> None:
            for name in sorted(vars(MQTTManager)):
                if not name.startswith("_") and callable(getattr(manager, name)):
                    if name in ("disconnect", "is_connected"):
                        assert not getattr(manager, name)()
                    else:
                        refused(getattr(manager, name))
            with manager:
                pass

        assert failure_in_child(work) == ""
        manager.publish("t", "x", 2).wait_for_publish(TIMEOUT_S)


def test_a_subscription_of_the_parent(broker: Broker, tmp_path: Path) -> None:
    came: list[Any] = []
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        unanswered = manager.subscribe("before", came.append)
        manager.connect()
        subscription = manager.subscribe("in", came.append)
        assert subscription.wait_granted(TIMEOUT_S)

        def work() -> None:
            for each in (subscription, unanswered):
                refused(each.wait_granted)
                refused(lambda each=each: each.granted_qos)

        assert failure_in_child(work) == ""
        manager.publish("in", "x", 2)
        assert eventually(lambda: len(came) == 1)


@pytest.mark.parametrize("kind", [Store, OfflineQueueManager])
def test_every_call_on_a_queue(kind: type, tmp_path: Path) -> None:
    queue = kind(tmp_path / "queue.db")
    end = "close" if kind is Store else "release"

    def work() -> None:
        for name in dir(kind):
            if callable(getattr(kind, name)) and not name.startswith("_") and name != end:
                refused(getattr(queue, name))
        getattr(queue, end)()

    assert failure_in_child(work) == ""
    getattr(queue, end)()


def test_who_waits_for_a_message_of_the_parent(broker: Broker, tmp_path: Path) -> None:
    clients = [mqtt.Client(V2, "parent"), mqtt.Client(V2, "other", store=tmp_path / "queue.db")]
    for client in clients:
        client.connect_async("127.0.0.1", 1)
        client.loop_start()
    handles = [client.publish("t", "x", 1) for client in clients]
    handles[0].rc = paho.MQTT_ERR_SUCCESS

    def work() -> None:
        for handle in handles:
            refused(handle.wait_for_publish)
            assert not handle.is_published()
        refused(handles[1].wait_durable)

    assert failure_in_child(work) == ""
    for client in clients:
        client.close()


def test_nothing_is_sent_on_the_parents_connection(
    broker: Broker, tls_broker: Broker, authority: Any, start_subscriber: StartSubscriber, tmp_path: Path
) -> None:
    """Not by a call, the garbage collector or the end of the child; over TLS one byte would break it."""
    subscriber = start_subscriber(tls_broker)
    script = f"""
        import gc, os, sys, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import glec_fast.mqtt as mqtt
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "device", store=sys.argv[1])
        client.tls_set({str(authority.certificate_path)!r})
        client.connect("localhost", {tls_broker.tls_port})
        client.loop_start()
        while not client.is_connected(): time.sleep(0.001)
        lost = []
        client.on_disconnect = lambda *_: lost.append(True)
        for number in range(10):
            client.publish("t", f"{{number}}", 1)
            pid = os.fork()
            if pid == 0:
                del client
                gc.collect()
                sys.exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        assert client.flush(15)
        assert not lost
        client.close()
    """
    ended = run(script, tmp_path / "queue.db")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert subscriber.wait_for_count(10, TIMEOUT_S)
    assert set(subscriber.tally.values()) == {1}
    assert kept(tmp_path / "queue.db") == []


@pytest.mark.parametrize("owner", ["close", "os._exit", "SIGKILL", "sys.exit"])
def test_the_lock_ends_with_its_owner(owner: str, tmp_path: Path) -> None:
    """Also where a child, and a child of that, live on."""
    text = """
        import os, sys, time, signal, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import glec_fast.mqtt as mqtt
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "device", store=sys.argv[1])
        client.publish("t", "x", 1).wait_durable(15)
        if os.fork() == 0:
            os.fork()
            sys.stdin.readline()
            os._exit(0)
        end = sys.argv[2]
        if end == "close": client.close()
        print("ready", flush=True)
        if end == "os._exit": os._exit(0)
        if end == "SIGKILL": os.kill(os.getpid(), signal.SIGKILL)
        if end == "close": sys.stdin.readline()
    """
    with Program(text, tmp_path / "queue.db", owner) as program:
        program.wait_ready()

        def opens() -> bool:
            try:
                return kept(tmp_path / "queue.db") == ["x"]
            except QueueLockedError:
                # Until the process has ended.
                return False

        assert eventually(opens)
        # Whoever lives on reads to the end of its input, which is the end of this.


def test_while_the_owner_lives_the_child_does_not_get_its_file(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "queue.db")) as store:
        store.append("t", "x", 1)

        def work() -> None:
            with pytest.raises(QueueLockedError):
                Store(tmp_path / "queue.db")

        def work_in_a_child() -> None:
            assert failure_in_child(work) == ""

        assert failure_in_child(work) == ""
        assert failure_in_child(work_in_a_child) == ""
        store.append("t", "y", 1)
    assert kept(tmp_path / "queue.db") == ["x", "y"]


def test_a_child_goes_on_with_the_file_of_a_parent_that_has_ended(tmp_path: Path) -> None:
    """As a program does that makes a daemon of itself after the queue was opened."""
    text = """
        import os, sys, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from glec_fast import QueueLockedError
        from glec_fast.durable.store import Store
        how = sys.argv[2]
        store = Store(sys.argv[1])
        for number in range(100): store.append("t", f"parent {number}" + "x" * 1000, 1)
        store.wait_durable(100)
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)
            deadline = time.monotonic() + 15
            while True:
                # Until the parent has ended, too: which descriptor the kernel lets go of first is its own matter.
                try: with_new = Store(sys.argv[1])
                except QueueLockedError: assert time.monotonic() < deadline
                else: break
                time.sleep(0.01)
            assert with_new.size == 100, with_new.size
            for number in range(100): with_new.append("t", f"child {number}" + "x" * 1000, 1)
            with_new.close()
            print("ready", flush=True)
            os._exit(0)
        if how == "close": store.close()
        os._exit(0)
    """
    for how in ("close", "end"):
        path = tmp_path / f"{how}.db"
        with Program(text, path, how) as program:
            program.wait_ready()
            assert program.end() == ""
        assert len(kept(path)) == 200
        with closing(sqlite3.connect(path)) as file:
            assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_forks_while_every_lock_is_in_use(broker: Broker, tmp_path: Path) -> None:
    """Other threads publish, commit and send; each child makes a client of its own, and uses it."""
    text = f"""
        import os, sys, threading, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import glec_fast.mqtt as mqtt
        from glec_fast import ForkedError
        V2 = mqtt.CallbackAPIVersion.VERSION2
        clients = [mqtt.Client(V2, "memory"), mqtt.Client(V2, "stored", store=sys.argv[1] + "/parent.db")]
        for client in clients:
            client.connect("{broker.host}", {broker.port})
            client.loop_start()
        over = threading.Event()
        counts = [0, 0]
        def publish(index):
            while not over.is_set():
                handle = clients[index].publish("t", "x" * 200, 1)
                counts[index] += 1
                # Or the queue is full on a slow machine.
                if counts[index] % 500 == 0: handle.wait_for_publish(15)
                time.sleep(0)
        threads = [threading.Thread(target=publish, args=(index,), daemon=True) for index in (0, 1)]
        for thread in threads: thread.start()
        for number in range(30):
            pid = os.fork()
            if pid == 0:
                for client in clients:
                    try: client.publish("t", "never", 1)
                    except ForkedError: pass
                    else: os._exit(2)
                own = mqtt.Client(V2, f"child-{{number}}", store=f"{{sys.argv[1]}}/{{number}}.db")
                own.connect("{broker.host}", {broker.port})
                own.loop_start()
                own.publish("t", "child", 2).wait_for_publish(15)
                own.close()
                os._exit(0)
            deadline = time.monotonic() + 15
            while True:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended: break
                if time.monotonic() > deadline:
                    os.kill(pid, 9)
                    sys.exit(f"child {{number}} hangs")
                time.sleep(0.002)
            if status: sys.exit(f"child {{number}}: {{status}}")
        over.set()
        for thread in threads: thread.join()
        assert clients[1].flush(30)
        clients[0].loop_stop()
        for client in clients: client.close()
    """
    ended = run(text, tmp_path, timeout_s=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    with closing(sqlite3.connect(tmp_path / "parent.db")) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_fork_during_a_commit_that_takes_long(tmp_path: Path) -> None:
    """It does not wait for ever; the child then closes nothing that a thread of the parent was in."""
    text = """
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from glec_fast import ForkedError
        from glec_fast.durable.store import Store
        store = Store(sys.argv[1])
        print("ready", flush=True)
        sys.stdin.readline()
        store.append("t", "x", 1)
        while not store._writer.lock.locked(): pass
        pid = os.fork()
        if pid == 0:
            try: store.append("t", "y", 1)
            except ForkedError: sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        print("ready", flush=True)
        sys.stdin.readline()
    """
    with Program(text, tmp_path / "queue.db") as program:
        program.wait_ready()
        with closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            program.go_on()
            program.wait_ready()
            other.execute("ROLLBACK")
        program.go_on()
        assert "lost" not in program.end()
    assert kept(tmp_path / "queue.db") == ["x"]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_client_is_not_handed_to_a_worker(method: str, broker: Broker, tmp_path: Path) -> None:
    """By fork it is inherited, and says so; otherwise it would have to be pickled, and says so as well."""
    import multiprocessing

    context = multiprocessing.get_context(method)
    with connected(broker, store=tmp_path / "queue.db") as client:
        if method == "fork":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                worker = context.Process(target=publish_and_say, args=(client, str(tmp_path / "said")))
                worker.start()
            worker.join(TIMEOUT_S)
            assert worker.exitcode == 0
            assert (tmp_path / "said").read_text() == "ForkedError"
        else:
            with pytest.raises(UnsupportedError, match="cannot be handed to another process: make one there"):
                context.Process(target=publish_and_say, args=(client, "")).start()


def publish_and_say(client: mqtt.Client, path: str) -> None:
    try:
        client.publish("t", "x", 1)
    except ForkedError:
        Path(path).write_text("ForkedError")


def test_a_program_that_is_executed_inherits_no_descriptor(broker: Broker, tmp_path: Path) -> None:
    script = (
        "import os; print(sorted(os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if n > '2'))"
    )
    with connected(broker, store=tmp_path / "queue.db") as client:
        client.publish("t", "x", 2).wait_for_publish(TIMEOUT_S)
        found = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, close_fds=False, check=False
        )
    assert "queue.db" not in found.stdout
    assert "socket" not in found.stdout


def open_files() -> list[str]:
    """What this process's descriptors are."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            # The listing's own is gone.
            found.append(str(each.readlink()))
    return found


def open_sockets() -> int:
    return sum(each.startswith("socket:") for each in open_files())


def test_a_forked_child_holds_no_descriptor(broker: Broker, tmp_path: Path) -> None:
    def ours() -> list[str]:
        return [each for each in open_files() if str(tmp_path / "queue.db") in each]

    before = open_sockets()
    with connected(broker, store=tmp_path / "queue.db") as client:
        client.publish("t", "x", 2).wait_for_publish(TIMEOUT_S)
        assert ours(), "the control"
        assert open_sockets() > before, "the control"

        def work() -> None:
            assert ours() == []
            # Those of other tests are let go as well.
            assert open_sockets() <= before

        assert failure_in_child(work) == ""


def test_a_client_that_never_connected_is_the_childs_own(broker: Broker, start_subscriber: StartSubscriber) -> None:
    """In memory, it is a copy of which nothing is shared: as with paho, a server may make it before it forks."""
    subscriber = start_subscriber(broker)
    client = mqtt.Client(V2, "made before")

    def work() -> None:
        client.connect(broker.host, broker.port)
        client.loop_start()
        client.publish("t", "child", 1).wait_for_publish(TIMEOUT_S)
        assert failure_in_child(lambda: refused(client.publish, "t", "grandchild")) == ""
        client.disconnect()
        client.loop_stop()

    assert failure_in_child(work) == ""
    assert subscriber.wait_for_count(1, TIMEOUT_S)
    client.connect(broker.host, broker.port)
    client.loop_start()
    client.publish("t", "parent", 1).wait_for_publish(TIMEOUT_S)
    client.close()
    assert subscriber.wait_for_all({b"child", b"parent"}, TIMEOUT_S)


def test_methods_of_a_programs_own_class_are_left_alone(broker: Broker) -> None:
    class Own(mqtt.Client):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

        def name(self) -> str:
            return "own"

        def publish(self, *arguments: Any, **settings: Any) -> Any:
            return super().publish(*arguments, **settings)

    client = Own(V2, "own")
    client.connect(broker.host, broker.port)

    def work() -> None:
        assert client.name() == "own"
        refused(client.publish, "t", "x")
        refused(client.subscribe, "t")

    assert failure_in_child(work) == ""
    client.close()


def test_a_child_that_ends_runs_no_ending_of_the_parents(tmp_path: Path) -> None:
    text = """
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from glec_fast.durable.store import Store
        store = Store(sys.argv[1])
        store.append("t", "parent", 0, urgent=False)
        pid = os.fork()
        if pid == 0:
            own = Store(sys.argv[1] + ".child")
            own.append("t", "child", 0, urgent=False)
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        store.append("t", "parent", 0, urgent=False)
    """
    ended = run(text, tmp_path / "queue.db")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert kept(tmp_path / "queue.db") == ["parent"] * 2
    assert kept(tmp_path / "queue.db.child") == ["child"]


def test_a_server_that_forks_its_workers(broker: Broker, start_subscriber: StartSubscriber, tmp_path: Path) -> None:
    """As gunicorn does with --preload: docs/processes.md has the same."""
    subscriber = start_subscriber(broker)
    text = f"""
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import glec_fast.mqtt as mqtt
        V2 = mqtt.CallbackAPIVersion.VERSION2
        master = mqtt.Client(V2, "master", store=sys.argv[1] + "/master.db")
        master.connect("{broker.host}", {broker.port})
        master.loop_start()
        def post_fork(number):
            client = mqtt.Client(V2, f"worker-{{number}}", store=f"{{sys.argv[1]}}/worker-{{number}}.db")
            client.connect("{broker.host}", {broker.port})
            client.loop_start()
            return client
        workers = []
        for number in range(4):
            pid = os.fork()
            if pid == 0:
                client = post_fork(number)
                client.publish("t", f"worker {{number}}", 2).wait_for_publish(15)
                sys.exit(0)
            workers.append(pid)
        master.publish("t", "master", 2).wait_for_publish(15)
        for pid in workers: assert os.waitpid(pid, 0)[1] == 0
    """
    ended = run(text, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert subscriber.wait_for_end(TIMEOUT_S)
    payloads = sorted(identity[1] for identity, _ in subscriber.tally)
    assert payloads == [b"master", *(f"worker {number}".encode() for number in range(4))]


def test_the_error_says_what_to_do() -> None:
    error = ForkedError(42)
    assert re.search(r"pid 42.*make a new client", str(error))
    assert isinstance(error, glec_fast.GlecError)
    assert isinstance(error, RuntimeError)
    handed_on = pickle.loads(pickle.dumps(error))
    assert (str(handed_on), handed_on.pid) == (str(error), 42)


def test_a_socket_that_is_being_connected_is_let_go(swallowed: int) -> None:
    client = mqtt.Client(V2, "connecting")
    client.connect_async("127.0.0.1", swallowed)
    client.loop_start()
    assert eventually(lambda: client._glec_connector.attempt._socks)
    sock: socket.socket = client._glec_connector.attempt._socks[0]
    number = sock.fileno()

    def work() -> None:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(number)

    assert failure_in_child(work) == ""
    client.close()


@pytest.mark.parametrize("module", [paho, mqtt], ids=["paho", "glec"])
def test_a_forked_child_is_told(module: Any, broker: Broker, start_subscriber: StartSubscriber) -> None:
    subscriber = start_subscriber(broker)
    client = module.Client(V2, "parent")
    client.connect(broker.host, broker.port)
    client.loop_start()
    assert eventually(client.is_connected)

    def work() -> None:
        if module is paho:
            assert client.publish("t", "x", 1).rc == paho.MQTT_ERR_SUCCESS
        else:
            refused(client.publish, "t", "x", 1)

    assert failure_in_child(work) == ""
    assert subscriber.wait_for_end(TIMEOUT_S)
    assert not subscriber.tally
    client.disconnect()
    client.loop_stop()
