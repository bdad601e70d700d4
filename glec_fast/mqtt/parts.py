"""What a client is made of, and how that is put together: each part is given those that it needs, and no other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from glec_fast._paho import Paho
from glec_fast.durable.store import Store
from glec_fast.engine.connecting import Connecting
from glec_fast.engine.ending import Ending
from glec_fast.engine.farewell import Farewell
from glec_fast.engine.liveness import Liveness
from glec_fast.engine.loop import Loop
from glec_fast.engine.network_thread import NetworkThread
from glec_fast.engine.reading import Reader
from glec_fast.engine.takeover import Takeover
from glec_fast.engine.wakeup import Wakeup
from glec_fast.engine.writing import Writer
from glec_fast.mqtt.dispatch import Dispatcher
from glec_fast.mqtt.greeting import Greeting
from glec_fast.mqtt.trace import log_sent
from glec_fast.outbox.stored import DurableOutbox

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from glec_fast.engine.connector import Connector
    from glec_fast.engine.policy import Policy
    from glec_fast.mqtt.client import Client
    from glec_fast.outbox._outbox import Outbox
    from glec_fast.runtime._field import Overrides


@dataclass(frozen=True)
class Parts:
    """Of one client. Each says in its docstring which thread may use it."""

    outbox: Outbox
    dispatcher: Dispatcher
    wakeup: Wakeup
    farewell: Farewell
    connecting: Connecting
    writer: Writer
    reader: Reader
    loop: Loop
    thread: NetworkThread
    greeting: Greeting
    liveness: Liveness
    ending: Ending


def compose(
    client: Client,
    outbox: Outbox,
    connector: Connector,
    policy: Policy,
    overrides: Overrides,
    *,
    answer_timeout_s: float = 0.0,
    ack_timeout_s: float = 0.0,
) -> Parts:
    """The parts of `client`; see `Liveness` for the last two."""
    paho, takeover, ending = Paho(client), Takeover(), Ending()
    own = overrides.of(client)
    liveness = Liveness(paho, outbox, ending, answer_timeout_s=answer_timeout_s, ack_timeout_s=ack_timeout_s)
    dispatcher = Dispatcher(paho, outbox, ending, overrides)
    wakeup = Wakeup(paho, outbox, dispatcher.link)
    farewell = Farewell(paho, outbox, dispatcher, wakeup, takeover)
    writer = Writer(
        paho, outbox, dispatcher, wakeup, farewell, partial(log_sent, paho, outbox, own, client._glec_send_mark)
    )
    connecting = Connecting(paho, farewell, connector, policy, ending, silence_max_s=2 * answer_timeout_s)
    reader = Reader(paho, outbox, dispatcher, connecting, writer, farewell, ending)
    return Parts(
        outbox=outbox,
        dispatcher=dispatcher,
        wakeup=wakeup,
        farewell=farewell,
        connecting=connecting,
        writer=writer,
        reader=reader,
        loop=Loop(paho, outbox, dispatcher, reader, writer, farewell, policy),
        thread=NetworkThread(paho, outbox, dispatcher, wakeup, farewell, writer, connector, policy),
        greeting=Greeting(paho, outbox, dispatcher, writer, farewell, takeover, liveness, overrides),
        liveness=liveness,
        ending=ending,
    )


def open_outbox(given: str | os.PathLike[str] | Store, make: Callable[[Store], DurableOutbox]) -> DurableOutbox:
    """What `make` makes over a store, or over a path where one is opened; that is closed again where `make` raises."""
    store = given if isinstance(given, Store) else Store(given)
    try:
        return make(store)
    except BaseException:
        if store is not given:
            store.close()
        raise
