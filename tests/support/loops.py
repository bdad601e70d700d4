"""Loops as programs write them, around a client of paho's or ours. Each works until the connection is over."""

from __future__ import annotations

import asyncio
import select
import time
from typing import Any

from paho.mqtt import client as paho

WAIT_S = 10.0


class AsyncioLoop:
    """A client in asyncio's loop, the way paho's documentation connects the two."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.loop = asyncio.get_running_loop()
        self.over = self.loop.create_future()
        self.misc: asyncio.Task[None] | None = None
        client.on_socket_open = self._on_open
        client.on_socket_close = self._on_close
        client.on_socket_register_write = self._on_register
        client.on_socket_unregister_write = self._on_unregister

    def _on_open(self, client: Any, _userdata: Any, sock: Any) -> None:
        self.loop.add_reader(sock, client.loop_read)
        self.misc = self.loop.create_task(self._keep_alive())

    def _on_close(self, _client: Any, _userdata: Any, sock: Any) -> None:
        self.loop.remove_reader(sock)
        assert self.misc is not None
        self.misc.cancel()
        if not self.over.done():
            self.over.set_result(None)

    def _on_register(self, client: Any, _userdata: Any, sock: Any) -> None:
        self.loop.add_writer(sock, client.loop_write)

    def _on_unregister(self, _client: Any, _userdata: Any, sock: Any) -> None:
        self.loop.remove_writer(sock)

    async def _keep_alive(self) -> None:
        while self.client.loop_misc() == paho.MQTT_ERR_SUCCESS:
            await asyncio.sleep(1)


def run_in_asyncio(client: Any, connect: Any) -> None:
    async def run() -> None:
        in_loop = AsyncioLoop(client)
        connect()
        await asyncio.wait_for(in_loop.over, WAIT_S)

    asyncio.run(run())


def run_in_select(client: Any, connect: Any) -> None:
    connect()
    deadline_s = time.monotonic() + WAIT_S
    while (sock := client.socket()) is not None:
        assert time.monotonic() < deadline_s
        readable, writable, _ = select.select([sock], [sock] if client.want_write() else [], [], 1)
        if readable:
            client.loop_read()
        if writable:
            client.loop_write()
        client.loop_misc()


def run_in_loop(client: Any, connect: Any) -> None:
    connect()
    deadline_s = time.monotonic() + WAIT_S
    while client.loop(1) == paho.MQTT_ERR_SUCCESS and client.socket() is not None:
        assert time.monotonic() < deadline_s


def run_forever(client: Any, connect: Any) -> None:
    connect()
    client.loop_forever()


RUNNERS = {"asyncio": run_in_asyncio, "select": run_in_select, "loop": run_in_loop, "loop_forever": run_forever}
