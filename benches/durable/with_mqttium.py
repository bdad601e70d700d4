"""mqttium with its SQLite store, as its README has it. Without a link `publish` may raise: it is then tried again."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Any

import publisher
from mqttium import MQTTProtocolVersion
from mqttium.api import AsyncClient, Properties, ReconnectPolicy
from mqttium.persistence import SqliteInflightStore


class MqttiumPublisher:
    """Its loop runs in a thread, so that this is used like the others; one call at a time crosses over."""

    def __init__(self, job: publisher.Job) -> None:
        self._job = job
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._receipts: deque[Any] = deque()
        self._run(self._open())

    def _run(self, call: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(publisher.TIMEOUT_S)

    async def _open(self) -> None:
        self._store = SqliteInflightStore(str(self._job.directory / "mqttium.sqlite"))
        self._client = AsyncClient(
            publisher.CLIENT_ID,
            protocol=MQTTProtocolVersion.MQTTv5,
            clean_start=False,
            connect_properties=Properties({"session_expiry_interval": 86_400}),
            reconnect=ReconnectPolicy(max_retries=None),
            store=self._store,
        )
        await self._client.connect(publisher.HOST, self._job.port)

    def publish(self, number: int) -> None:
        self._run(self._publish(number))

    async def _publish(self, number: int) -> None:
        while True:
            try:
                receipt = await self._client.publish(publisher.TOPIC, publisher.payload_of(number), qos=self._job.qos)
            except Exception:
                await asyncio.sleep(0.02)
                continue
            if self._job.mode == "rate":
                self._receipts.append(receipt)
            return

    def finish(self) -> None:
        self._run(self._finish())

    async def _finish(self) -> None:
        for receipt in self._receipts:
            await receipt.wait()

    def close(self) -> None:
        self._run(self._client.disconnect())
        self._store.close()


if __name__ == "__main__":
    publisher.main(MqttiumPublisher)
