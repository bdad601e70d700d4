"""Our class in paho's place: where programs find it, with a store by client id, and for a program as it is."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any
from unittest import mock

import paho.mqtt.client as paho
import pytest
from paho.mqtt import publish as paho_publish
from paho.mqtt import subscribe as paho_subscribe

import glec_fast.mqtt as mqtt
from glec_fast import ConfigError, QueueLockedError
from glec_fast._paho import PahoClient
from glec_fast.mqtt.swap import store_in
from support.gateway import TIMEOUT_S, eventually
from support.program import kept

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.subscriber import Subscriber

V2 = paho.CallbackAPIVersion.VERSION2


@pytest.fixture(autouse=True)
def _paho_s_own() -> Iterator[None]:
    yield
    mqtt.uninstall()
    assert paho.Client is PahoClient


def test_it_is_found_wherever_the_name_is_looked_up() -> None:
    mqtt.install()
    found: dict[str, Any] = {}
    exec("from paho.mqtt.client import Client\nimport paho.mqtt.client as c\nfrom paho.mqtt import client", found)
    assert found["Client"] is found["c"].Client is found["client"].Client is mqtt.Client
    mqtt.uninstall()
    assert paho.Client is PahoClient


def test_a_with_statement_puts_back_what_was_there() -> None:
    with mqtt.install() as outer:
        with mqtt.install(store=lambda _: None) as inner:
            assert paho.Client is inner is not outer
        assert paho.Client is outer is mqtt.Client
    assert paho.Client is PahoClient


def test_it_leaves_alone_what_another_has_put_there() -> None:
    with mock.patch("paho.mqtt.client.Client") as mocked:
        mqtt.uninstall()
        assert paho.Client is mocked
        with mqtt.install():
            assert paho.Client is mqtt.Client
        assert paho.Client is mocked


def test_every_callback_is_kept_by_a_client_in_paho_s_place() -> None:
    with mqtt.install(), paho.Client(V2) as client:  # type: ignore[attr-defined]
        names = [name for name in dir(PahoClient) if name.startswith("on_")]
        for name in names:
            setattr(client, name, print)
        assert [getattr(client, name) for name in names] == [print] * len(names)
        with mock.patch("paho.mqtt.client.Client"):
            client.on_publish = repr
        assert client.on_publish is repr


def test_paho_s_helpers_are_served_by_it(
    broker: Broker, start_subscriber: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscriber: Subscriber = start_subscriber(broker, "t/#")
    calls = []

    def publish(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return mqtt.Client.publish(self, *args, **kwargs)

    with mqtt.install(store=store_in(tmp_path)) as ours:
        monkeypatch.setattr(ours, "publish", publish)
        for number in range(3):
            paho_publish.single("t/single", str(number), 1, hostname=broker.host, port=broker.port, client_id="helper")
        many: list[Any] = [("t/many", b"%d" % number, 2, True) for number in range(3)]
        paho_publish.multiple(many, hostname=broker.host, port=broker.port)
        assert len(calls) == 6
        got = paho_subscribe.simple("t/many", qos=1, hostname=broker.host, port=broker.port, client_id="helper-2")
    assert got.payload == b"2"
    assert subscriber.wait_for_end(TIMEOUT_S)
    assert subscriber.payloads("t/single") == [b"0", b"1", b"2"]
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["helper-2.db", "helper.db"]


def test_a_client_id_has_the_store_that_is_given_for_it(tmp_path: Path) -> None:
    asked = []

    def store_of(client_id: str) -> Path | None:
        asked.append(client_id)
        return tmp_path / f"{client_id}.db" if client_id != "b" else None

    class Programs(mqtt.Client):
        pass

    with mqtt.install(store_of):

        class Theirs(paho.Client):  # type: ignore[name-defined,misc]
            def __init__(self, name: str) -> None:
                super().__init__(paho.CallbackAPIVersion.VERSION2, client_id=name)

        makers = [lambda: paho.Client(V2, "a"), lambda: paho.Client(V2, client_id="c"), lambda: Theirs("d")]
        for make in makers:
            with make() as client:  # type: ignore[attr-defined]
                assert client.publish("t", "x", 1).wait_durable(TIMEOUT_S)
        for in_memory in ("b", "", None):
            with paho.Client(V2, in_memory) as client:  # type: ignore[attr-defined]
                assert client.publish("t", "x", 1).rc == paho.MQTT_ERR_NO_CONN
        with Programs(V2, "own", store=tmp_path / "own.db") as client:
            assert client.store.size == 0
    assert asked == ["a", "c", "d", "b"]
    assert [kept(tmp_path / f"{name}.db") for name in "acd"] == [["x"]] * 3


def test_the_next_client_of_an_id_goes_on_where_the_last_has_left(broker: Broker, tmp_path: Path) -> None:
    """A program that nobody changes closes none."""
    with mqtt.install(store_in(tmp_path)):
        first = paho.Client(V2, "gateway/7")
        first.publish("t", "1", 1)
        second = paho.Client(V2, "gateway/7")
        second.publish("t", "2", 1)
        second.connect(broker.host, broker.port)
        second.loop_start()
        with pytest.raises(QueueLockedError):
            paho.Client(V2, "gateway/7")
        assert second.flush(TIMEOUT_S)  # type: ignore[attr-defined]
        second.disconnect()
        second.loop_stop()
        second.reinitialise("gateway/8")
        second.publish("t", "3", 1)
        second.close()  # type: ignore[attr-defined]
        third = paho.Client(V2, "gateway/7")
        third.close()  # type: ignore[attr-defined]
    assert kept(tmp_path / "gateway%2F7.db") == []
    assert kept(tmp_path / "gateway%2F8.db") == ["3"]


@pytest.mark.parametrize("client_id", ["..", "a/../../b", "\x7fé\n", "x" * 300])
def test_no_client_id_leads_out_of_the_folder(client_id: str, tmp_path: Path) -> None:
    file_of = store_in(tmp_path / "queues")
    if len(client_id) > 200:
        with pytest.raises(ConfigError):
            file_of(client_id)
        return
    mqtt.Client(V2, client_id, store=file_of(client_id)).close()
    assert {path.parent for path in tmp_path.rglob("*.db")} == {tmp_path / "queues"}


def test_a_folder_that_cannot_be_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        store_in(tmp_path / "file")


# ---- python -m glec_fast.mqtt


def run(*arguments: object, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-m", "glec_fast.mqtt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=3 * TIMEOUT_S, check=False)


def script(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text))
    return path


def test_a_program_runs_as_ever(tmp_path: Path) -> None:
    program = script(
        tmp_path / "program.py",
        """
        import sys
        from paho.mqtt.client import Client
        print(sys.argv[1:], __name__, __spec__, sys.path[0], sys.flags.dev_mode, Client.__module__)
        sys.exit(3)
        """,
    )
    ended = run(program, "-x", "--store", "y", options=("-X", "dev", "-W", "error"))
    folder = str(tmp_path)
    assert ended.stdout.split("\n")[0] == f"['-x', '--store', 'y'] __main__ None {folder} True glec_fast.mqtt.client"
    assert (ended.returncode, ended.stderr) == (3, "")


@pytest.mark.parametrize("start", [["-m", "glec_fast.mqtt"], ["-q", "-bm", "glec_fast.mqtt"], ["-qbmglec_fast.mqtt"]])
@pytest.mark.parametrize("first", ["paho.mqtt.client", "glec_fast.mqtt", "paho.mqtt.publish"])
def test_it_is_there_whichever_is_imported_first(start: list[str], first: str) -> None:
    text = f"import {first}, sys, paho.mqtt.client as c; print(c.Client.__module__, sys.flags.quiet)"
    command = [sys.executable, *start, "-c", text]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=3 * TIMEOUT_S, check=False)
    assert (ended.stdout, ended.stderr) == (f"glec_fast.mqtt.client {int('-q' in str(start))}\n", "")


def test_the_processes_that_it_starts_have_it_too(tmp_path: Path) -> None:
    program = script(
        tmp_path / "program.py",
        """
        import multiprocessing, subprocess, sys

        def tell(queue):
            from paho.mqtt.client import Client
            queue.put(Client.__module__)

        if __name__ == "__main__":
            for kind in ("spawn", "forkserver", "fork"):
                context = multiprocessing.get_context(kind)
                queue = context.Queue()
                child = context.Process(target=tell, args=(queue,))
                child.start()
                print(queue.get())
                child.join()
            text = "import paho.mqtt.client as c; print(c.Client.__module__)"
            print(subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout)
        """,
    )
    ended = run(program)
    assert ended.stdout.split() == ["glec_fast.mqtt.client"] * 4, ended.stderr


def test_the_system_s_own_customisation_is_run_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "sitecustomize.py", "import sys; sys.customised = True")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = run("-c", "import sys, paho.mqtt.client as c; print(sys.customised, c.Client.__module__)")
    assert ended.stdout == "True glec_fast.mqtt.client\n", ended.stderr


def test_a_program_that_imports_neither_pays_for_neither() -> None:
    ended = run("-c", "import sys; print('glec_fast' in sys.modules, 'paho' in sys.modules)")
    assert ended.stdout == "False False\n", ended.stderr


def test_what_it_publishes_outlives_it(broker: Broker, start_subscriber: Any, tmp_path: Path) -> None:
    """Its first run has no broker, and its second publishes nothing."""
    subscriber: Subscriber = start_subscriber(broker, "t/#")
    program = script(
        tmp_path / "program.py",
        """
        import sys, time
        import paho.mqtt.client as mqtt
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "gateway")
        if sys.argv[1] == "publish":
            client.connect_async("127.0.0.1", 1)
            client.loop_start()
            for number in range(50):
                client.publish("t/offline", str(number), qos=1 + number % 2)
        else:
            client.on_publish = lambda client, userdata, mid, reason, properties: print(mid, flush=True)
            client.connect("127.0.0.1", int(sys.argv[1]))
            client.loop_forever()
        """,
    )
    queues = tmp_path / "queues"
    assert run("--store", queues, program, "publish").returncode == 0
    command = [sys.executable, "-m", "glec_fast.mqtt", f"--store={queues}", str(program), str(broker.port)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        assert eventually(lambda: len(subscriber.payloads("t/offline")) == 50)
    finally:
        child.kill()
        child.wait()
    assert sorted(subscriber.payloads("t/offline"), key=int) == [b"%d" % number for number in range(50)]


@pytest.mark.parametrize("arguments", [(), ("--store",), ("--nonsense", "x.py")])
def test_what_cannot_be_run_says_why(arguments: tuple[str, ...]) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert "usage: python -m glec_fast.mqtt" in ended.stderr


def test_an_environment_that_python_ignores_is_not_relied_on() -> None:
    ended = run("-c", "1", options=("-E",))
    assert ended.returncode == 2
    assert "PYTHONPATH" in ended.stderr
