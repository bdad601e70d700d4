"""PEM (RFC 7468) as OpenSSL reads it: BEGIN at the start of a line, any text between blocks."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from typing import NamedTuple

# After it there may be what nobody sees, such as a space that does not break.
_BEGIN = re.compile(rb"-----BEGIN ([A-Za-z0-9 #.]+)-----[\x00-\x20\x7f-\xff]*")
_END = re.compile(rb"-----END ([A-Za-z0-9 #.]+)-----[\x00-\x20\x7f-\xff]*")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class PemError(ValueError):
    """Neither PEM nor DER of what was expected. Never holds any of the content, which may be a key."""


class Block(NamedTuple):
    """What stands between BEGIN and END, as it is."""

    label: str
    lines: tuple[bytes, ...]

    @property
    def der(self) -> bytes:
        """The content. Raises PemError."""
        try:
            return base64.b64decode(b"".join(b"".join(self.lines).split()), validate=True)
        except binascii.Error:
            pass
        # Without the cause: a traceback's frames would hold the content.
        raise PemError("it has damaged base64")

    @property
    def is_encrypted(self) -> bool:
        return "ENCRYPTED" in self.label or any(b"ENCRYPTED" in line for line in self.lines[:2])

    def encode(self) -> bytes:
        """The block as a file of its own, without the empty lines that mail programs and editors put between."""
        label = self.label.encode()
        body = [line for line in self.lines if line]
        headers = [line for line in body if b":" in line]
        if headers:
            body = [*headers, b"", *body[len(headers) :]]
        return b"\n".join([b"-----BEGIN %b-----" % label, *body, b"-----END %b-----" % label, b""])


def blocks(content: bytes) -> Iterator[Block]:
    """The blocks of a file, in its order. Raises PemError for one that has lost its beginning or end."""
    label: bytes | None = None
    lines: list[bytes] = []
    for raw in content.splitlines():
        # Files that were put together have one in the middle, too.
        line = raw.removeprefix(_BYTE_ORDER_MARK).rstrip()
        begin, end = _BEGIN.fullmatch(line), _END.fullmatch(line)
        if begin is not None and label is None:
            label = begin[1]
        elif end is not None and end[1] == label:
            yield Block(end[1].decode("ascii"), tuple(lines))
            label = None
            lines.clear()
        elif begin is not None or end is not None:
            raise PemError("it is cut: a block in it has no beginning or no end")
        elif label is not None:
            lines.append(line)
    if label is not None:
        raise PemError("it is cut: its last block has no end")


def block_of(label: str, der: bytes) -> Block:
    """DER as a block. OpenSSL's older readers insist on lines; 64 characters are what RFC 7468 asks for."""
    encoded = base64.b64encode(der)
    return Block(label, tuple(encoded[start : start + 64] for start in range(0, len(encoded), 64)))
