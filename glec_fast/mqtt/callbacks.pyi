"""For type checkers alone: paho's callbacks, called with our Client, so that `client: mqtt.Client` fits them."""

# mypy: disable-error-code="override, assignment"

from collections.abc import Callable
from typing import Any, TypeAlias

from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import ConnectFlags, DisconnectFlags, MQTTMessage, PayloadType, SocketLike
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from glec_fast.mqtt.client import Client
from glec_fast.outbox.handle import PublishHandle

OnConnect: TypeAlias = (
    Callable[[Client, Any, ConnectFlags, ReasonCode, Properties | None], object]
    | Callable[[Client, Any, ConnectFlags, ReasonCode, Properties], object]
    | Callable[[Client, Any, dict[str, Any], ReasonCode, Properties | None], object]
    | Callable[[Client, Any, dict[str, Any], MQTTErrorCode], object]
)
OnDisconnect: TypeAlias = (
    Callable[[Client, Any, DisconnectFlags, ReasonCode, Properties | None], object]
    | Callable[[Client, Any, DisconnectFlags, ReasonCode, Properties], object]
    | Callable[[Client, Any, ReasonCode | int | None, Properties | None], object]
    | Callable[[Client, Any, MQTTErrorCode], object]
)
OnPublish: TypeAlias = (
    Callable[[Client, Any, int, ReasonCode, Properties], object] | Callable[[Client, Any, int], object]
)
OnSubscribe: TypeAlias = (
    Callable[[Client, Any, int, list[ReasonCode], Properties | None], object]
    | Callable[[Client, Any, int, list[ReasonCode], Properties], object]
    | Callable[[Client, Any, int, tuple[int, ...]], object]
)
OnUnsubscribe: TypeAlias = (
    Callable[[Client, Any, int, list[ReasonCode], Properties | None], object]
    | Callable[[Client, Any, int, list[ReasonCode], Properties], object]
    | Callable[[Client, Any, int, Properties, ReasonCode | list[ReasonCode]], object]
    | Callable[[Client, Any, int], object]
)
OnMessage: TypeAlias = Callable[[Client, Any, MQTTMessage], object]
OnSocket: TypeAlias = Callable[[Client, Any, SocketLike], object]
OnLog: TypeAlias = Callable[[Client, Any, int, str], object]
OnEvent: TypeAlias = Callable[[Client, Any], object]

class WithCallbacks(PahoClient):
    """paho's class, with callbacks that are given our Client."""

    on_connect: OnConnect | None
    on_connect_fail: OnEvent | None
    on_disconnect: OnDisconnect | None
    on_log: OnLog | None
    on_message: OnMessage | None
    on_pre_connect: OnEvent | None
    on_publish: OnPublish | None
    on_socket_close: OnSocket | None
    on_socket_open: OnSocket | None
    on_socket_register_write: OnSocket | None
    on_socket_unregister_write: OnSocket | None
    on_subscribe: OnSubscribe | None
    on_unsubscribe: OnUnsubscribe | None
    def publish(
        self,
        topic: str,
        payload: PayloadType = None,
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> PublishHandle: ...
    def connect_callback(self) -> Callable[[OnConnect], OnConnect]: ...
    def connect_fail_callback(self) -> Callable[[OnEvent], OnEvent]: ...
    def disconnect_callback(self) -> Callable[[OnDisconnect], OnDisconnect]: ...
    def log_callback(self) -> Callable[[OnLog], OnLog]: ...
    def message_callback(self) -> Callable[[OnMessage], OnMessage]: ...
    def pre_connect_callback(self) -> Callable[[OnEvent], OnEvent]: ...
    def publish_callback(self) -> Callable[[OnPublish], OnPublish]: ...
    def socket_close_callback(self) -> Callable[[OnSocket], OnSocket]: ...
    def socket_open_callback(self) -> Callable[[OnSocket], OnSocket]: ...
    def socket_register_write_callback(self) -> Callable[[OnSocket], OnSocket]: ...
    def socket_unregister_write_callback(self) -> Callable[[OnSocket], OnSocket]: ...
    def subscribe_callback(self) -> Callable[[OnSubscribe], OnSubscribe]: ...
    def topic_callback(self, sub: str) -> Callable[[OnMessage], OnMessage]: ...
    def unsubscribe_callback(self) -> Callable[[OnUnsubscribe], OnUnsubscribe]: ...
    def message_callback_add(self, sub: str, callback: OnMessage) -> None: ...
