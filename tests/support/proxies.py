"""Proxies on loopback that note what they are asked for."""

from __future__ import annotations

import socket
import threading

from support.gateway import TIMEOUT_S


class HTTPProxy:
    """Takes one CONNECT after another, and relays what follows."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._socks.append(client)
            try:
                server = socket.create_connection(self._agree(client))
            except EOFError:
                # It was only looked at.
                continue
            self._socks.append(server)
            for source, sink in ((client, server), (server, client)):
                self._threads.append(threading.Thread(target=relay, args=(source, sink), daemon=True))
                self._threads[-1].start()

    def _agree(self, client: socket.socket) -> tuple[str, int]:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += received(client, 1)
        self.requests.append(request)
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        host, _, port = request.split()[1].decode().rpartition(":")
        return host, int(port)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        for sock in self._socks:
            sock.close()


class SOCKSProxy(HTTPProxy):
    """SOCKS 5 with a user name and a password (RFC 1928, RFC 1929)."""

    def _agree(self, client: socket.socket) -> tuple[str, int]:
        version, count = received(client, 2)
        assert (version, 2 in received(client, count)) == (5, True)
        client.sendall(b"\x05\x02")
        login = received(client, 2)
        login += received(client, login[1] + 1)
        login += received(client, login[-1])
        client.sendall(b"\x01\x00")
        request = received(client, 5)
        request += received(client, request[4] if request[3] == 3 else 3)
        port = received(client, 2)
        self.requests.append(login + request)
        client.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
        host = request[5:].decode() if request[3] == 3 else socket.inet_ntoa(request[4:])
        return host, int.from_bytes(port, "big")


def received(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise EOFError("the peer has left")
        data += part
    return data


def relay(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return
