"""Brokers beside mosquitto, as far as `make brokers` finds them: each on loopback, with all its files in a folder.

What is started is ended by the id of its process or group. What a broker is set to is its default, but for the address,
anonymous logins, and what it is to keep over its end where it can.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from glec_fast.testbed.broker import HOST, Broker, find_mosquitto, free_port
from glec_fast.testbed.subscriber import Login
from support import ejabberd
from support.places import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Sequence

# Where `.ci/brokers` puts what is no package of the system.
INSTALLED = REPOSITORY / "build" / "brokers"
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 20.0
_POLL_S = 0.05
_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


@dataclass
class ForeignBroker:
    """One broker. `directory` is its own. The same port over all its starts."""

    name: ClassVar[str]
    versions: ClassVar[tuple[int, ...]] = (4,)

    directory: Path
    login: Login = field(default_factory=Login)
    host: str = HOST
    port: int = field(default_factory=free_port)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def is_installed(cls) -> bool:
        raise NotImplementedError

    def command(self) -> Sequence[str]:
        """Write what it reads, and return how it is started."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What it needs beside the environment there is."""
        return {}

    @property
    def url(self) -> str:
        return f"tcp://{self.host}:{self.port}"

    def start(self) -> None:
        """Returns once it listens."""
        self.directory.mkdir(exist_ok=True)
        self._run(self.command())
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._listens():
            if self._processes[-1].poll() is not None or time.monotonic() > deadline_s:
                said = (self.directory / "output.txt").read_text(errors="replace")
                self.kill()
                raise RuntimeError(f"{self.name} does not listen: {said[-2000:]}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """SIGTERM."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def _run(self, command: Sequence[str]) -> None:
        with (self.directory / "output.txt").open("ab") as output:
            self._processes.append(
                subprocess.Popen(
                    list(command),
                    cwd=self.directory,
                    env={**os.environ, "HOME": str(self.directory), **self.environment()},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            )

    def _end(self, number: signal.Signals) -> None:
        while self._processes:
            process = self._processes.pop()
            # Some are a script with the broker as its child: the group that was made for them has no other.
            os.killpg(process.pid, number)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0

    def __enter__(self) -> ForeignBroker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Mosquitto(ForeignBroker):
    """The testbed's, which saves each change within a second."""

    name = "mosquitto"
    versions = (4, 5)

    @classmethod
    def is_installed(cls) -> bool:
        return bool(find_mosquitto())

    def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        if not hasattr(self, "_broker"):
            self._broker = Broker(self.directory, persistence=True)
        self._broker.start()
        self.port = self._broker.port

    def stop(self) -> None:
        self._broker.stop()

    def kill(self) -> None:
        self._broker.kill()


class EjabberdNode(ForeignBroker):
    """ejabberd's mod_mqtt; see `support.ejabberd`. It keeps sessions in memory."""

    name = "ejabberd"
    versions = (4, 5)

    @classmethod
    def is_installed(cls) -> bool:
        return ejabberd.libraries() is not None

    def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        self.login = Login(ejabberd.USERNAME, ejabberd.PASSWORD)
        self._node = ejabberd.Ejabberd(self.directory, port=self.port)
        self._node.start()

    def stop(self) -> None:
        self._node.stop()

    def kill(self) -> None:
        self._node.kill()


class Rabbitmq(ForeignBroker):
    """rabbitmq_mqtt, with Erlang's epmd on a port of its own."""

    name = "RabbitMQ"

    @classmethod
    def is_installed(cls) -> bool:
        return _RABBITMQ.exists()

    def command(self) -> Sequence[str]:
        self._epmd_port = getattr(self, "_epmd_port", 0) or free_port()
        (self.directory / "enabled_plugins").write_text("[rabbitmq_mqtt].\n")
        (self.directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {HOST}:{free_port()}\nmqtt.listeners.tcp.1 = {HOST}:{self.port}\n"
            "mqtt.allow_anonymous = true\nlog.console = false\nlog.file.level = warning\n"
        )
        self._run(["epmd", "-address", HOST, "-port", str(self._epmd_port)])
        return [str(_RABBITMQ)]

    def environment(self) -> dict[str, str]:
        at = self.directory
        return {
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": f"rabbit{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self.port + 1),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none",
            "RABBITMQ_MNESIA_BASE": str(at / "mnesia"),
            "RABBITMQ_LOG_BASE": str(at / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(at / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(at / "rabbitmq.conf"),
            "RABBITMQ_PID_FILE": str(at / "pid"),
        }


class Nats(ForeignBroker):
    """Its MQTT keeps sessions in JetStream, on disk. QoS 2 since 2.10, which Debian has not."""

    name = "NATS"

    @classmethod
    def is_installed(cls) -> bool:
        return (INSTALLED / "python" / "bin" / "nats-server").exists()

    def command(self) -> Sequence[str]:
        configuration = self.directory / "nats.conf"
        configuration.write_text(
            f"server_name: one\nlisten: {HOST}:{free_port()}\njetstream {{ store_dir: {self.directory / 'store'} }}\n"
            f"mqtt {{ listen: {HOST}:{self.port} }}\n"
        )
        return [str(INSTALLED / "python" / "bin" / "nats-server"), "-c", str(configuration)]


class Amqtt(ForeignBroker):
    name = "amqtt"

    @classmethod
    def is_installed(cls) -> bool:
        return (INSTALLED / "python" / "bin" / "amqtt").exists()

    def command(self) -> Sequence[str]:
        configuration = self.directory / "amqtt.yaml"
        configuration.write_text(
            f"listeners:\n  default:\n    type: tcp\n    bind: {HOST}:{self.port}\n"
            "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n"
        )
        return [str(INSTALLED / "python" / "bin" / "amqtt"), "-c", str(configuration)]


class Iotcore(ForeignBroker):
    """rumqttd in a Python process."""

    name = "iotcore"

    @classmethod
    def is_installed(cls) -> bool:
        return (INSTALLED / "python" / "bin" / "iotcore").exists()

    def command(self) -> Sequence[str]:
        serve = f"IotCoreBroker(listen={HOST!r}, port={self.port}).run_forever()"
        python = INSTALLED / "python" / "bin" / "python"
        return [str(python), "-c", f"from iotcore.iotcore import IotCoreBroker; {serve}"]


class Aedes(ForeignBroker):
    """It keeps sessions in memory."""

    name = "aedes"

    @classmethod
    def is_installed(cls) -> bool:
        return shutil.which("node") is not None and (INSTALLED / "node" / "node_modules" / "aedes").exists()

    def command(self) -> Sequence[str]:
        program = INSTALLED / "node" / f"serve-{self.port}.mjs"
        program.write_text(
            "import { createServer } from 'node:net'\nimport { Aedes } from 'aedes'\n"
            f"const aedes = await Aedes.createBroker()\ncreateServer(aedes.handle).listen({self.port}, '{HOST}')\n"
        )
        return ["node", str(program)]


KINDS: tuple[type[ForeignBroker], ...] = (Mosquitto, EjabberdNode, Rabbitmq, Nats, Aedes, Amqtt, Iotcore)


class Cluster:
    """Two nodes of ejabberd, each on a loopback address of its own."""

    name = "ejabberd, two nodes"

    def __init__(self, directory: Path) -> None:
        self.login = Login(ejabberd.USERNAME, ejabberd.PASSWORD)
        distribution_port = free_port()
        self.nodes = []
        for number in (1, 2):
            at = directory / f"node-{number}"
            at.mkdir()
            self.nodes.append(ejabberd.Ejabberd(at, host=f"127.0.0.{number}", distribution_port=distribution_port))

    def __enter__(self) -> Cluster:
        try:
            self.nodes[0].start()
            self.nodes[1].join(self.nodes[0].host)
            self.nodes[1].start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()
