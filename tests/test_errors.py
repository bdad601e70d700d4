"""The family of errors: each class says what to do, survives a pickle, and can be caught as what it is elsewhere."""

from __future__ import annotations

import pickle

import pytest

from glec_fast import errors

FAMILY = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.GlecError)]


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_each_says_what_to_do(kind: type[errors.GlecError]) -> None:
    assert "advice" in vars(kind), "its own, and not that of its base"
    assert len(kind.advice) >= 10
    assert kind.advice[0].islower() or kind.advice[0] == "`"
    assert not kind.advice.endswith(".")


def test_no_two_say_the_same() -> None:
    assert len({kind.advice for kind in FAMILY}) == len(FAMILY) >= 20


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.TLSFileError])
def test_the_setting_that_is_to_blame(kind: type[errors.ConfigError]) -> None:
    error = pickle.loads(pickle.dumps(kind("keepalive_s must be", field="keepalive_s")))
    assert (type(error), str(error), error.field) == (kind, "keepalive_s must be", "keepalive_s")
    assert kind("x").field is None
