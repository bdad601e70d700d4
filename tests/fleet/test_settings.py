"""The table of settings: every field is described, and by names that no other has."""

from __future__ import annotations

import dataclasses

import pytest

from glec_fast import ConfigError, MQTTConfig, TLSConfig
from glec_fast.settings import FLAG, number, one_of, optional_text, settings_of, whole
from support.setting_values import SETTING_VALUES

DESCRIBED = [*settings_of(MQTTConfig).values(), *settings_of(TLSConfig, of_tls=True).values()]


def test_every_field_is_described() -> None:
    names = [field.name for each in (MQTTConfig, TLSConfig) for field in dataclasses.fields(each)]
    assert [name for name in names if name != "tls_config"] == [each.name for each in DESCRIBED]
    assert all(each.meaning.endswith(".") and each.kind.values for each in DESCRIBED)
    assert set(SETTING_VALUES) == {each.name for each in DESCRIBED}


def test_no_two_have_a_name_in_common() -> None:
    for names in ([each.key for each in DESCRIBED], [each.variable for each in DESCRIBED]):
        assert len(set(names)) == len(names)


def test_each_default_is_one_of_its_values() -> None:
    for each in DESCRIBED:
        # An empty one stands for what must be set.
        if each.default not in (dataclasses.MISSING, ""):
            each.kind.check(each.name, each.default)


@pytest.mark.parametrize(
    ("kind", "good", "bad", "unreadable"),
    [
        (whole(1, 5, "s"), [1, 5], [0, 6, 1.0, True, None, "1"], ["", "1.0", "1_0", "0x1", "\u0663"]),
        (number(0.5, 5), [0.5, 1, 5], [0.4, 5.1, float("nan"), True, None, "1"], ["", "1e3", "nan", ".5"]),
        (one_of({4: "", 5: ""}), [4, 5], [3, 4.0, True, "4", None], ["", "four", "4.0"]),
        (one_of({"a": "", "b": ""}), ["a", "b"], ["c", 1, None], []),
        (FLAG, [True, False], [1, 0, None, "true"], ["", "1", "True", "yes"]),
        (optional_text(), [None, "", "a"], [5, b"a", "\ud800", "x" * 65_536], []),
    ],
)
def test_kinds(kind: object, good: list[object], bad: list[object], unreadable: list[str]) -> None:
    for value in good:
        kind.check("it", value)  # type: ignore[attr-defined]
    for value in bad:
        with pytest.raises(ConfigError, match="it must be") as caught:
            kind.check("it", value)  # type: ignore[attr-defined]
        assert caught.value.field == "it"
    for text in unreadable:
        with pytest.raises(ValueError, match="it must be"):
            kind.parse(text)  # type: ignore[attr-defined]
