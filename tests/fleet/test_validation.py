"""What is refused at the door, and what is let through unchanged."""

from __future__ import annotations

import math
from collections import OrderedDict
from types import MappingProxyType

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glec_fast import Telemetry, validation
from glec_fast.errors import ConfigError, GlecError, MessageError, PayloadTypeError
from glec_fast.fleet.payload import as_payload
from glec_fast.validation import check_id, check_publish, check_topic_level, check_ttl, is_utf8


def short(value: object) -> str:
    """A name for a case, whatever the value's length."""
    return repr(value)[:30]


# One of each kind, and the ends of each range (MQTT 5, 1.5.4).
FORBIDDEN = "\x01\t\n\x1f\x7f\x80\x85\x9f\ufdd0\ufdef\ufffe\uffff\U0001fffe\U0001ffff\U0010fffe\U0010ffff"
# Their neighbours, and what only looks like one.
ALLOWED = " ~\xa0\ufdcf\ufdf0\ufffd\ufeff\U0001fffd\u200b\u2028\U0010fffd"


class TestTopic:
    @pytest.mark.parametrize(
        "topic",
        ["a", "glec/dtg/DTG-SN-12345/telemetry", "/", "//", " ", "차량/속도", "$SYS/x", "a" * 65_535, "é" * 32_767],
        ids=short,
    )
    def test_accepted(self, topic: str) -> None:
        for qos in (0, 1, 2):
            assert check_publish(topic, qos) is None

    @pytest.mark.parametrize(
        ("topic", "says"),
        [
            (None, "NoneType"),
            (b"t", "bytes"),
            ("", "empty"),
            ("a/+/b", "wildcard"),
            ("a/#", "wildcard"),
            ("a#", "wildcard"),
            ("a\0", "NUL"),
            *[(f"a{sign}b", f"U\\+{ord(sign):04X}") for sign in FORBIDDEN],
            ("a" * 65_536, "65536 bytes"),
            ("é" * 32_768, "65536 bytes"),
            ("a\ud800", "surrogates"),
        ],
        ids=short,
    )
    def test_refused(self, topic: object, says: str) -> None:
        with pytest.raises(MessageError, match=says):
            check_publish(topic, 1)  # type: ignore[arg-type]

    @given(
        st.text(
            st.characters(codec="utf-8", exclude_categories=["Cc", "Cn", "Cs"], exclude_characters="+#"),
            min_size=1,
            max_size=200,
        )
    )
    def test_any_text_without_signs_is_a_topic(self, topic: str) -> None:
        assert check_publish(topic, 0) is None

    @pytest.mark.parametrize("sign", ALLOWED)
    def test_their_neighbours_are_topics(self, sign: str) -> None:
        assert check_publish(f"a{sign}b", 1) is None

    @pytest.mark.parametrize("qos", [-1, 3, 1.0, "1", None, True, False])
    def test_qos_refused(self, qos: object) -> None:
        with pytest.raises(MessageError, match="qos"):
            check_publish("t", qos)  # type: ignore[arg-type]


class TestPayload:
    @pytest.mark.parametrize("payload", ["", "text", "é한", "a\0b", b"", b"\xff\0", "1.5"])
    def test_text_and_bytes_are_left_as_they_are(self, payload: str | bytes) -> None:
        assert as_payload(payload) is payload

    @pytest.mark.parametrize("payload", [bytearray(b"a\xff"), memoryview(b"a\xff"), memoryview(b"a?\xff")[::2]])
    def test_what_can_change_later_is_copied(self, payload: bytearray | memoryview) -> None:
        data = as_payload(payload)
        assert data == b"a\xff"
        assert type(data) is bytes

    @pytest.mark.parametrize("make", [dict, OrderedDict, MappingProxyType])
    def test_mappings_become_json(self, make: type) -> None:
        content = {"speed": 60.5, "gps": {"lat": None}, "list": [1, "é", True]}
        data = as_payload(make(content))
        assert isinstance(data, bytes)
        assert orjson.loads(data) == content

    def test_nothing_and_numbers_as_paho_sends_them(self) -> None:
        assert [as_payload(payload) for payload in (None, 0, -5, 1.5, 2**80)] == [b"", "0", "-5", "1.5", str(2**80)]

    @pytest.mark.parametrize("payload", [math.nan, math.inf, -math.inf, {"a": math.nan}, {"a": [math.inf]}])
    def test_numbers_that_json_cannot_carry(self, payload: object) -> None:
        with pytest.raises(MessageError):
            as_payload(payload)

    def test_a_number_too_long_for_text(self) -> None:
        with pytest.raises(MessageError, match="number"):
            as_payload(10**5000)

    @pytest.mark.parametrize("payload", [True, object(), [1], (1,), {1}, 1j, {"a": object()}, {1: 2}, {b"a": 1}])
    def test_types_without_an_encoding(self, payload: object) -> None:
        with pytest.raises(PayloadTypeError) as caught:
            as_payload(payload)
        assert isinstance(caught.value, (GlecError, TypeError))

    def test_a_typed_message_is_told_how_to_become_bytes(self) -> None:
        with pytest.raises(PayloadTypeError, match=r"^payload is Telemetry; its encode\(device_id, timestamp_ms\)"):
            as_payload(Telemetry(1, 2, 3, 4))

    @pytest.mark.parametrize("payload", ["a\ud800", {"a": "\udfff"}, {"\ud800": 1}])
    def test_lone_surrogates(self, payload: object) -> None:
        with pytest.raises(MessageError):
            as_payload(payload)

    def test_a_container_within_itself(self) -> None:
        loop: dict[str, object] = {}
        loop["loop"] = loop
        with pytest.raises(MessageError):
            as_payload(loop)

    def test_the_size_is_that_of_the_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(validation, "PAYLOAD_MAX_BYTES", 10)
        for fits in (b"x" * 10, "x" * 10, "é" * 5):
            assert as_payload(fits) == fits
        for too_large in (b"x" * 11, "x" * 11, "é" * 6, {"a": "xxxxxxxxxx"}):
            with pytest.raises(MessageError, match="at most 10"):
                as_payload(too_large)

    def test_the_largest_fits_a_packet_beside_the_longest_topic(self) -> None:
        # Remaining length: topic length, topic, packet id, payload.
        assert 2 + validation.TOPIC_MAX_BYTES + 2 + validation.PAYLOAD_MAX_BYTES == 268_435_455


class TestNames:
    @pytest.mark.parametrize("value", ["DTG-SN-12345", "a b", "한", "a.b:c", "x" * 65_471], ids=short)
    def test_levels_accepted(self, value: str) -> None:
        assert check_topic_level("client_id", value) is None

    @pytest.mark.parametrize(
        "value",
        ["", None, 5, "a/b", "+", "a#", "a\0", "a\nb", "\x7f", "\ud800", "x" * 65_472, "한" * 30_000],
        ids=short,
    )
    def test_levels_refused(self, value: object) -> None:
        with pytest.raises(ConfigError, match="client_id"):
            check_topic_level("client_id", value)  # type: ignore[arg-type]

    def test_utf8(self) -> None:
        assert is_utf8("한\0")
        assert not is_utf8("a\udc80")


class TestNumbers:
    @pytest.mark.parametrize("ttl_millis", [None, 0, 1, -5, 10**15])
    def test_ttl_accepted(self, ttl_millis: int | None) -> None:
        assert check_ttl(ttl_millis) is None

    @pytest.mark.parametrize("ttl_millis", [1.0, "5", True, 10**15 + 1, math.nan])
    def test_ttl_refused(self, ttl_millis: object) -> None:
        with pytest.raises(MessageError, match="ttl_millis"):
            check_ttl(ttl_millis)  # type: ignore[arg-type]

    @pytest.mark.parametrize("message_id", [1, 0, -1, 2**63 - 1])
    def test_id_accepted(self, message_id: int) -> None:
        assert check_id(message_id) is None

    @pytest.mark.parametrize("message_id", [None, "1", 1.0, True, 2**63])
    def test_id_refused(self, message_id: object) -> None:
        with pytest.raises(MessageError, match="message id"):
            check_id(message_id)  # type: ignore[arg-type]
