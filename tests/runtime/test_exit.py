"""A program that ends without `close()`: what was accepted is on disk or at the broker, however it ended."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import textwrap
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from paho.mqtt.enums import CallbackAPIVersion

import glec_fast
from glec_fast import OfflineQueueManager
from glec_fast.runtime.process import EXIT_TIMEOUT_S
from support.gateway import TIMEOUT_S
from support.program import Program, kept, run

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartSubscriber
    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.link import Link

QOS = pytest.mark.parametrize("qos", [0, 1, 2])

# Each defines `publish(payload, qos)`, over the file in sys.argv[1].
OWNERS = {
    "client": """
        import glec_fast.mqtt as mqtt
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "device", store=sys.argv[1])
        def publish(payload, qos): client.publish("t", payload, qos)
    """,
    "connecting client": """
        import glec_fast.mqtt as mqtt
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "device", store=sys.argv[1])
        client.connect_async("127.0.0.1", 1)
        client.loop_start()
        def publish(payload, qos): client.publish("t", payload, qos)
    """,
    "client that nobody holds": """
        import glec_fast.mqtt as mqtt
        def publish(payload, qos):
            client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "device", store=sys.argv[1])
            client.publish("t", payload, qos)
            del client
            import gc; gc.collect()
    """,
    "manager": """
        from glec_fast import MQTTConfig, MQTTManager
        manager = MQTTManager(MQTTConfig(broker_url="tcp://127.0.0.1:1", client_id="device", queue_path=sys.argv[1]))
        def publish(payload, qos): manager.publish("t", payload, qos)
    """,
    "queue": """
        from glec_fast import OfflineQueueManager
        queue = OfflineQueueManager(sys.argv[1])
        def publish(payload, qos): queue.enqueue("t", payload, qos)
    """,
    "store": """
        from glec_fast.durable.store import Store
        store = Store(sys.argv[1])
        def publish(payload, qos): store.append("t", payload, qos, urgent=False)
    """,
}
HEAD = """
    import os, signal, sys, threading, time
"""
ENDS = {
    "return": "publish('last', qos)",
    "sys.exit": "publish('last', qos); sys.exit(3)",
    "sys.exit in a thread": """
        def work():
            publish('last', qos)
            sys.exit(3)
        thread = threading.Thread(target=work)
        thread.start()
    """,
    "exception": "publish('last', qos); raise RuntimeError('no more')",
    # A background job of a shell inherits that it is ignored.
    "Ctrl-C": """
        signal.signal(signal.SIGINT, signal.default_int_handler)
        publish('last', qos)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    """,
    "SIGTERM": """
        def leave(*_): sys.exit(0)
        signal.signal(signal.SIGTERM, leave)
        publish('last', qos)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    """,
    "thread that goes on": """
        ended = threading.main_thread()
        def work():
            ended.join()
            publish('last', qos)
        threading.Thread(target=work).start()
    """,
    "pool": """
        from concurrent.futures import ThreadPoolExecutor
        ThreadPoolExecutor(1).submit(publish, 'last', qos)
    """,
}


def program(owner: str, end: str, qos: int = 1) -> str:
    return "\n".join(textwrap.dedent(each) for each in (HEAD, OWNERS[owner], f"qos = {qos}", end))


@QOS
@pytest.mark.parametrize("owner", OWNERS)
def test_what_each_owner_of_a_queue_accepted(owner: str, qos: int, tmp_path: Path) -> None:
    ended = run(program(owner, ENDS["return"], qos), tmp_path / "queue.db")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert kept(tmp_path / "queue.db") == ["last"]


@pytest.mark.parametrize("end", ENDS)
def test_every_normal_end(end: str, tmp_path: Path) -> None:
    ended = run(program("client", ENDS[end], qos=0), tmp_path / "queue.db")
    assert "are lost" not in ended.stderr
    assert kept(tmp_path / "queue.db") == ["last"]


@QOS
@pytest.mark.parametrize("is_first", [True, False], ids=["before the open", "after the open"])
def test_handlers_of_the_program_may_publish(is_first: bool, qos: int, tmp_path: Path) -> None:
    """They run in the opposite order of their registration: behind ours, or before it."""
    handler = "import atexit\nif {0}: atexit.register(lambda: publish('goodbye', qos))\n"
    text = textwrap.dedent(HEAD) + handler.format(is_first) + program("client", handler.format(not is_first), qos)
    ended = run(text, tmp_path / "queue.db")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert kept(tmp_path / "queue.db") == ["goodbye"]


@pytest.mark.parametrize("call", ["client.close()", "client.store.close()"])
def test_a_handler_that_closes_runs_before_or_behind_ours(call: str, tmp_path: Path) -> None:
    for is_first in (True, False):
        path = tmp_path / f"{is_first}.db"
        handler = f"import atexit\nif {{0}}: atexit.register(lambda: {call})\n"
        end = handler.format(not is_first) + "publish('last', qos)"
        ended = run(textwrap.dedent(HEAD) + handler.format(is_first) + program("client", end), path)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert kept(path) == ["last"]


def test_several_stores(tmp_path: Path) -> None:
    text = """
        import sys
        from glec_fast.durable.store import Store
        stores = [Store(f"{sys.argv[1]}/{number}.db") for number in range(5)]
        for store in stores:
            store.append("t", "last", 0, urgent=False)
    """
    assert run(text, tmp_path).returncode == 0
    assert [kept(tmp_path / f"{number}.db") for number in range(5)] == [["last"]] * 5


def test_a_store_does_not_wait_for_the_disk_of_another(tmp_path: Path) -> None:
    """Whichever was opened first."""
    text = """
        import sys
        from glec_fast.durable.store import Store
        stores = [Store(f"{sys.argv[1]}/{name}.db") for name in ("first", "stuck", "last")]
        print("ready", flush=True)
        sys.stdin.readline()
        for store in stores: store.append("t", "last", 0, urgent=False)
    """
    with Program(text, tmp_path) as program:
        program.wait_ready()
        with closing(connect(tmp_path / "stuck.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            program.go_on()
            said = program.end()
            other.execute("ROLLBACK")
    assert said.count("are lost") == 1
    assert [kept(tmp_path / f"{name}.db") for name in ("first", "stuck", "last")] == [["last"], [], ["last"]]


def test_a_program_that_has_said_disconnect_leaves_in_order(
    broker: Broker, start_subscriber: StartSubscriber, tmp_path: Path
) -> None:
    subscriber = start_subscriber(broker)
    text = f"""
        import sys, time
        import glec_fast.mqtt as mqtt
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "device", store=sys.argv[1])
        client.will_set("will", "x")
        client.connect("{broker.host}", {broker.port})
        client.loop_start()
        client.publish("t", "x", 1)
        client.disconnect()
    """
    for number in range(5):
        assert run(text, tmp_path / f"{number}.db").returncode == 0
        assert kept(tmp_path / f"{number}.db") == []
    assert subscriber.wait_for_end(TIMEOUT_S)
    assert dict(subscriber.tally) == {(("t", b"x"), 1): 5}


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("kind", ["process", "pool", "executor"])
def test_a_worker_of_multiprocessing(kind: str, method: str, tmp_path: Path) -> None:
    """It ends by os._exit, and runs no handlers of atexit."""
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing, sys
        from concurrent.futures import ProcessPoolExecutor
        def work(path):
            from glec_fast.durable.store import Store
            global store
            store = Store(path)
            store.append("t", "last", 0, urgent=False)
        if __name__ == "__main__":
            path, method, kind = sys.argv[1:]
            context = multiprocessing.get_context(method)
            if kind == "process":
                worker = context.Process(target=work, args=(path,))
                worker.start()
                worker.join()
            elif kind == "pool":
                with context.Pool(1) as pool:
                    pool.apply(work, (path,))
                    pool.close()
                    pool.join()
            else:
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    pool.submit(work, path).result()
    """)
    )
    text = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    # spawn imports the main module by its path.
    ended = run(text, script, tmp_path / "queue.db", method, kind)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert kept(tmp_path / "queue.db") == ["last"]


@QOS
def test_online_it_is_at_the_broker_or_on_disk(
    qos: int, broker: Broker, start_subscriber: StartSubscriber, tmp_path: Path
) -> None:
    subscriber = start_subscriber(broker)
    text = f"""
        import sys, time
        import glec_fast.mqtt as mqtt
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, sys.argv[2], store=sys.argv[1])
        client.connect("{broker.host}", {broker.port})
        client.loop_start()
        while not client.is_connected(): time.sleep(0.001)
        client.publish("t", sys.argv[2], {qos})
    """
    for number in range(5):
        path, name = tmp_path / f"{number}.db", f"device-{number}"
        ended = run(text, path, name)
        assert (ended.returncode, ended.stderr) == (0, "")
        with closing(glec_fast.Client(CallbackAPIVersion.VERSION2, name, store=path)) as client:
            client.connect(broker.host, broker.port)
            client.loop_start()
            assert client.flush(TIMEOUT_S)
    assert subscriber.wait_for_end(TIMEOUT_S)
    assert {identity for identity, _ in subscriber.tally} == {("t", f"device-{number}".encode()) for number in range(5)}


def test_what_the_broker_has_is_not_sent_again(broker: Broker, tmp_path: Path) -> None:
    """Deleting what is finished may wait for a second; the end does not."""
    text = f"""
        import sys
        import glec_fast.mqtt as mqtt
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "device", store=sys.argv[1])
        client.connect("{broker.host}", {broker.port})
        client.loop_start()
        for qos in (1, 2):
            client.publish("t", "x", qos).wait_for_publish(15)
        client.disconnect()
        client.loop_stop()
        # With it, that was not all.
        client.publish("t", "left", 1)
    """
    assert run(text, tmp_path / "queue.db").returncode == 0
    with closing(connect(tmp_path / "queue.db")) as file:
        assert file.execute("SELECT payload FROM mqtt_offline_queue").fetchall() == [("left",)]


def test_the_will_is_published_unless_it_was_closed(
    broker: Broker, start_subscriber: StartSubscriber, tmp_path: Path
) -> None:
    """As with paho, whose thread just ends with the process."""
    subscriber = start_subscriber(broker)
    text = f"""
        import sys
        import glec_fast.mqtt as mqtt
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "device", store=sys.argv[1])
        client.will_set("will", sys.argv[2])
        client.connect("{broker.host}", {broker.port})
        client.loop_start()
        client.publish("t", "x", 1).wait_for_publish(15)
        if sys.argv[2] == "closed": client.close()
    """
    for payload in ("closed", "left"):
        assert run(text, tmp_path / "queue.db", payload).returncode == 0
    assert subscriber.wait_for(lambda arrivals: ("will", b"left", 0) in arrivals, TIMEOUT_S)
    assert (("will", b"closed"), 0) not in subscriber.tally


def test_qos_0_that_the_link_does_not_take_goes_to_the_disk(
    link: Link, broker: Broker, start_subscriber: StartSubscriber, tmp_path: Path
) -> None:
    subscriber = start_subscriber(broker, identity=lambda _topic, payload: int(payload[:3]))
    host, port = link.address
    text = f"""
        import sys, time
        import glec_fast.mqtt as mqtt
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "device", store=sys.argv[1])
        client.connect("{host}", {port})
        client.loop_start()
        while not client.is_connected(): time.sleep(0.001)
        print("ready", flush=True)
        sys.stdin.readline()
        def publish(number): return client.publish("t", b"%03d" % number + bytes(20_000), 0)
        number = 0
        while True:
            handles = [publish(number + index) for index in range(5)]
            number += 5
            handles[-1].wait_for_publish(5.0)
            # The buffers on the way are full: these went past the queue, and no further.
            if not any(handle.is_published() for handle in handles): break
    """
    with Program(text, tmp_path / "queue.db") as program:
        program.wait_ready()
        link.stall()
        program.go_on()
        said = program.end()
    # Nobody has answered for what the system's buffers have.
    told = re.fullmatch(r"(?:(\d+) messages dropped: lost_in_the_air\n)?", said)
    assert told, said
    lost = int(told[1] or 0)
    left = [int(payload[:3]) for payload in payloads(tmp_path / "queue.db")]
    assert len(left) >= 5
    assert left == list(range(left[0], left[0] + len(left)))
    # Each is on disk, has arrived, or is told of.
    link.restore()
    assert subscriber.wait_for(lambda _: len(subscriber.tally) >= left[0] - lost, TIMEOUT_S)
    assert {number for number, _ in subscriber.tally} >= set(range(left[0] - lost))


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def payloads(path: Path) -> list[bytes]:
    with OfflineQueueManager(path) as queue:
        found = [message.payload for message in queue.dequeue_all()]
    return [each.encode() if isinstance(each, str) else each for each in found]


@pytest.mark.parametrize("is_released", [True, False])
def test_a_disk_that_is_in_use_is_waited_for_and_not_for_ever(is_released: bool, tmp_path: Path) -> None:
    text = """
        import sys
        from glec_fast.durable.store import Store
        store = Store(sys.argv[1])
        store.append("t", "first", 1)
        store.wait_durable(1)
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(3): store.append("t", "last", 1)
        import atexit
        # Runs before ours.
        atexit.register(lambda: (print("ready", flush=True), sys.stdin.readline()))
    """
    with Program(text, tmp_path / "queue.db") as program, closing(connect(tmp_path / "queue.db")) as other:
        program.wait_ready()
        other.execute("BEGIN IMMEDIATE")
        program.go_on()
        program.wait_ready()
        started_s = time.monotonic()
        program.go_on()
        if is_released:
            # Longer than SQLite itself waits.
            with pytest.raises(subprocess.TimeoutExpired):
                program.end(2.5)
            other.execute("ROLLBACK")
            assert "are lost" not in program.end()
        else:
            assert re.search(r"3 messages for \S*queue\.db are lost, as the program ended: .*locked", program.end())
            # SQLite's own wait may begin just before the end of ours.
            assert time.monotonic() - started_s < EXIT_TIMEOUT_S + TIMEOUT_S
            other.execute("ROLLBACK")
    assert kept(tmp_path / "queue.db") == ["first", *["last"] * (3 if is_released else 0)]


def test_a_full_disk_is_told_of(tmp_path: Path) -> None:
    text = """
        import atexit, resource, signal, sys
        from glec_fast.durable.ending import Ending
        from glec_fast.durable.store import Store
        tries, try_now = [], Ending._try_now
        Ending._try_now = lambda *given: tries.append(1) or try_now(*given)
        # Registered ahead of the store's, it runs behind it.
        atexit.register(lambda: print(len(tries)))
        store = Store(sys.argv[1])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        for number in range(30): store.append("t", "x" * 20_000, 0, urgent=False)
    """
    ended = run(text, tmp_path / "queue.db")
    assert ended.returncode == 0
    assert re.search(r"\d+ messages for \S*queue\.db are lost, as the program ended", ended.stderr)
    # Every tenth of a second at most: no core is busy with it.
    assert 1 < int(ended.stdout) <= 10 * EXIT_TIMEOUT_S + 1


def test_what_waits_where_another_file_has_the_name_is_kept_beside_it(tmp_path: Path) -> None:
    queue = tmp_path / "queue.db"
    source = """
        import os, sys
        from glec_fast.durable.store import Store
        store = Store(sys.argv[1])
        open(sys.argv[1] + "-other", "w").close()
        os.rename(sys.argv[1] + "-other", sys.argv[1])
        for number in range(20):
            store.append("t", f"{number}", 1, urgent=False)
    """
    assert "start anew" in run(source, queue).stderr
    assert kept(tmp_path / "queue.db.replaced-1") == [f"{number}" for number in range(20)]


def test_a_signal_without_a_handler_leaves_what_is_on_disk(tmp_path: Path) -> None:
    """No normal end: what a kill leaves."""
    end = "publish('last', 2); publish('lost', 0); os.kill(os.getpid(), signal.SIGKILL)"
    assert run(program("client", end), tmp_path / "queue.db").returncode == -signal.SIGKILL
    assert kept(tmp_path / "queue.db")[:1] == ["last"]


def test_it_keeps_nothing_alive_and_a_closed_store_is_left_alone(tmp_path: Path) -> None:
    text = """
        import gc, sys, weakref
        import glec_fast
        from glec_fast.runtime import process
        from glec_fast.durable.store import Store
        assert not process._is_exit_watched, "it costs something before the first is opened"
        store = Store(sys.argv[1])
        client = glec_fast.Client(client_id="device", store=store)
        plain = glec_fast.Client()
        assert len(process._ending) == 2
        refs = [weakref.ref(each) for each in (store, client, plain)]
        client.close()
        assert len(process._ending) == len(process._still) == 0
        assert len(process._inherited) == 1
        del store, client, plain
        gc.collect()
        assert [each() for each in refs] == [None] * 3
        assert not process._inherited
    """
    ended = run(text, tmp_path / "queue.db")
    assert (ended.returncode, ended.stderr) == (0, "")
