import ssl

def gather(sock: ssl.SSLSocket, session: ssl.SSLSession | None) -> None:
    """Have `sock`, before its handshake, move many records with a system call.

    session: to be resumed, or None.
    """

class Records:
    """In the place of the object of OpenSSL's connection in an SSLSocket, which it has all methods of.

    For one thread at a time. An exception that is no OSError may come out of a step that was done: nobody knows then
    what was read, or has left.
    """
