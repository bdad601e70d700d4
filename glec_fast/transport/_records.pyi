import ssl
from typing import Any

def gather(sock: Any, context: ssl.SSLContext, session: ssl.SSLSession | None) -> None:
    """Have `sock`, an SSLSocket that `context` has made for a handshake to come, move many records with a system call.

    A context with a `wrap_socket` of its own, as green threads have, has its own reasons for that: nothing is changed.
    session: to be resumed, or None.
    """

class Records:
    """In the place of the object of OpenSSL's connection in an SSLSocket, which it has all methods of.

    For one thread at a time. An exception that is no OSError may come out of a step that was done: nobody knows then
    what was read, or has left.
    """
