"""The format of properties files, against a table of what the JDK's java.util.Properties (17) made of 230 of them."""

from __future__ import annotations

import json

import pytest

from glec_fast.fleet.java_properties import EscapeError, entries, unescape
from support.places import TESTS

# [[the file's bytes in hexadecimal, its entries or null where Java refuses it], ...]
TABLE = json.loads((TESTS / "data" / "java_properties.json").read_text())


def read(content: bytes) -> dict[str, str] | None:
    try:
        return {unescape(entry.raw_key): unescape(entry.raw_value) for entry in entries(content)}
    except EscapeError:
        return None


def test_each_file_is_read_as_java_reads_it() -> None:
    assert len(TABLE) >= 200
    wrong = {content: (read(bytes.fromhex(content)), expected) for content, expected in TABLE}
    assert {content: pair for content, pair in wrong.items() if pair[0] != pair[1]} == {}


@pytest.mark.parametrize("comment", [b"# \xe4\xf6", b"! \xff\xfe", b"#\x80\\"])
def test_a_comment_may_be_in_any_encoding(comment: bytes) -> None:
    assert [(entry.raw_key, entry.is_utf8) for entry in entries(comment + b"\na=b\nc=\xe4\n")] == [
        ("a", True),
        ("c", False),
    ]


@pytest.mark.parametrize(
    ("content", "is_cut"),
    [(b"a=b\\", True), (b"a=b\\\n", True), (b"a=b\\\n  ", False), (b"a=b\\\nc", False), (b"a=b\\\nc\n", False)],
)
def test_an_entry_that_the_end_of_the_file_cuts(content: bytes, is_cut: bool) -> None:
    assert [entry.is_cut for entry in entries(content)] == [is_cut]


def test_the_number_is_that_of_the_first_line() -> None:
    assert [entry.line for entry in entries(b"# x\n\na=b\\\r\n c\r\nd=e\rf=g")] == [3, 5, 6]
