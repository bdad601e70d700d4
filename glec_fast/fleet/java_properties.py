"""Lines, keys and escapes of a properties file, as `java.util.Properties.load` reads them from UTF-8.

What is not UTF-8 is carried through as lone surrogates, so that a comment in another encoding does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_WHITESPACE = " \t\f"
_NATURAL_LINE_END = re.compile(r"\r\n|\n|\r")
_KEY_AND_SEPARATOR = re.compile(r"((?:[^\\=: \t\f]|\\.)*)([ \t\f]*[=:]?)[ \t\f]*", re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|u|.)", re.DOTALL)
_CONTROL = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


class Entry(NamedTuple):
    """A key and its value, escapes and all.

    line: the number of the line that it begins in. has_separator: False where nothing follows the key.
    is_cut: the file ended where the entry was to go on. is_utf8: False where its bytes are of another encoding.
    """

    line: int
    raw_key: str
    raw_value: str
    has_separator: bool
    is_cut: bool
    is_utf8: bool


class EscapeError(ValueError):
    r"""A \u without its four digits. Never holds any of the text."""


def entries(content: bytes) -> Iterator[Entry]:
    """The entries of a file in its order, also those of which a later one has the key."""
    for number, line, is_cut in _logical_lines(content.decode("utf-8-sig", "surrogateescape")):
        found = _KEY_AND_SEPARATOR.match(line)
        assert found is not None
        is_utf8 = _NOT_UTF8.search(line) is None
        yield Entry(number, found[1], line[found.end() :], bool(found[2]), is_cut, is_utf8)


def unescape(text: str) -> str:
    r"""What a text with escapes stands for; a backslash before any other character is dropped. Raises EscapeError."""
    return with_pairs_joined(_ESCAPE.sub(lambda escape: unescaped(escape[1]), text))


def unescaped(escape: str) -> str:
    r"""What one escape stands for, given without its backslash. Raises EscapeError."""
    if len(escape) == 5:
        return chr(int(escape[1:], 16))
    if escape == "u":
        raise EscapeError("a \\u has not four digits of 0 to f after it")
    return _CONTROL.get(escape, escape)


def with_pairs_joined(text: str) -> str:
    r"""The text with each \ud83d\ude00, two escapes, as the one character that it is. A lone half stays."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _logical_lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """(number, the line with those that continue it, whether the file ends in its last backslash)."""
    natural = _NATURAL_LINE_END.split(text)
    # After a last line's end follows nothing, which is no line.
    count = len(natural) if natural[-1] else len(natural) - 1
    position = 0
    while position < count:
        number = position + 1
        line = natural[position].lstrip(_WHITESPACE)
        position += 1
        if line[:1] in ("#", "!"):
            continue
        while is_cut := _continues(line):
            line = line[:-1]
            # While there is nothing of an entry yet, the next line may be a comment as well.
            if position == count or not line:
                break
            line += natural[position].lstrip(_WHITESPACE)
            position += 1
        if line or (is_cut and position == count):
            yield number, line, is_cut


def _continues(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1
