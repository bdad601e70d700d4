"""Our class in paho's place, for programs that import paho themselves and that nobody can change.

`paho.mqtt.client.Client` is looked up where a program imports or calls it, also by paho's own `publish` and
`subscribe`: what is there then is what it gets. A name that was taken before, by `from paho.mqtt.client import Client`,
stays paho's.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote
from weakref import WeakValueDictionary

from paho.mqtt import client as place

from glec_fast._paho import PahoClient
from glec_fast.durable.store import Store
from glec_fast.errors import ConfigError
from glec_fast.mqtt.client import Client
from glec_fast.validation import check_callback

StoreOf = Callable[[str], "str | os.PathLike[str] | Store | None"]

# What a file's name may have on any file system.
_NAME_MAX_BYTES = 200


class Installation:
    """What `install` returns: in a with statement, what was there before is there again behind it."""

    def __init__(self, before: Any, installed: type[Client]) -> None:
        self._before = before
        self.client_class = installed

    def __enter__(self) -> type[Client]:
        return self.client_class

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not where another has put its own there since.
        if place.Client is self.client_class:
            place.Client = self._before  # type: ignore[misc]


def install(store: StoreOf | None = None) -> Installation:
    """Put our class in the place of `paho.mqtt.client.Client`, for all that imports it, or looks it up there, later.

    store: called with the client id of each client that is made; returns its queue file, or None for one in memory, as
    those without a client id are. None: all are in memory, as with paho.

        import glec_fast.mqtt
        glec_fast.mqtt.install(store=lambda client_id: f"/var/lib/gateway/{client_id}.db")
        import their_program

    In a with statement it lasts until the end of that; else until `uninstall`. A second call replaces the first.
    """
    if store is not None:
        check_callback("store", store)
    before = place.Client
    installed = Client if store is None else _client_with(store)
    place.Client = installed  # type: ignore[misc]
    return Installation(before, installed)


def uninstall() -> None:
    """Put paho's own class back, where ours is; clients that were made meanwhile stay ours."""
    if inspect.isclass(place.Client) and issubclass(place.Client, Client):
        place.Client = PahoClient  # type: ignore[misc]


def store_in(directory: str | os.PathLike[str]) -> StoreOf:
    """For `install`: a queue file of each client id in `directory`, which is made, for the owner alone, where missing.

    Raises ConfigError where it is no directory.
    """
    folder = Path(directory)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"no queue files can be kept in {folder}: {error.strerror}") from error

    def file_of(client_id: str) -> Path:
        name = quote(client_id, safe=" ")
        if len(name) > _NAME_MAX_BYTES:
            raise ConfigError(f"the client id of {len(name)} characters is too long for a file's name: {client_id!r}")
        return folder / f"{name}.db"

    return file_of


# Who had the file of a client id last. A program that nobody can change never closes a client.
_holders: WeakValueDictionary[str, Client] = WeakValueDictionary()


def _client_with(store_of: StoreOf) -> type[Client]:
    signature = inspect.signature(Client.__init__)

    class StoredClient(Client):
        """Our class, with a store where `store_of` has one. What bounds or ends messages in memory is no error here."""

        @functools.wraps(Client.__init__)  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            given = signature.bind(self, *args, **kwargs).arguments
            client_id = given.get("client_id") or ""
            store = given.get("store")
            if store is None and client_id:
                if isinstance(client_id, bytes):
                    client_id = client_id.decode()
                store = store_of(client_id)
            kwargs["store"] = store
            if store is None or isinstance(store, Store):
                super().__init__(*args, **kwargs)
                return
            path = os.path.realpath(store)
            holder = _holders.get(path)
            if holder is not None:
                _let_go(holder)
            super().__init__(*args, **kwargs)
            _holders[path] = self

        def reinitialise(self, client_id: str = "", clean_session: bool = True, userdata: Any = None) -> None:
            """As paho's; what waits in the store stays there, for the next client of that id."""
            version = self.callback_api_version
            Client.close(self)
            self._reset_sockets()
            self.__init__(version, client_id, clean_session, userdata)  # type: ignore[misc]

    return StoredClient  # type: ignore[no-any-return]


def _let_go(holder: Client) -> None:
    """Close a client that has left, so that the next one of its id may have the file."""
    if holder.socket() is None and holder._thread is None:
        # Not the program's own, which knows of no file.
        Client.close(holder)
