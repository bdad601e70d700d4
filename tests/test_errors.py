"""The family of errors: each class says what to do, survives a pickle, and can be caught as what it is elsewhere."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import pytest

from glec_fast import errors

if TYPE_CHECKING:
    from collections.abc import Callable

FAMILY = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.GlecError)]


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_each_says_what_to_do(kind: type[errors.GlecError]) -> None:
    assert "advice" in vars(kind), "its own, and not that of its base"
    assert len(kind.advice) >= 10
    assert kind.advice[0].islower() or kind.advice[0] == "`"
    assert not kind.advice.endswith(".")


def test_no_two_say_the_same() -> None:
    assert len({kind.advice for kind in FAMILY}) == len(FAMILY) >= 20


class OwnError(errors.PublishError):
    """As a program may derive one."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}", "of its own")
        self.code = code


MADE: list[errors.GlecError] = [kind("what", 0x87) for kind in (errors.ProtocolError, errors.BrokerRefusalError)]
MADE += [errors.PublishError("what", "expired"), OwnError(code=7), errors.ForkedError(1)]
MADE += [errors.SubscriptionRefusedError("a/#", code) for code in (0x87, None)]
MADE += [errors.QueueStorageError("what"), errors.TLSFileError("what", field="ca_cert")]


@pytest.mark.parametrize("error", MADE, ids=repr)
@pytest.mark.parametrize("again", [lambda each: pickle.loads(pickle.dumps(each)), copy.copy, copy.deepcopy])
def test_another_process_gets_it_as_it_was(
    error: errors.GlecError, again: Callable[[errors.GlecError], errors.GlecError]
) -> None:
    other = again(error)
    assert (type(other), str(other), other.args, vars(other)) == (type(error), str(error), error.args, vars(error))


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.TLSFileError])
def test_the_setting_that_is_to_blame(kind: type[errors.ConfigError]) -> None:
    error = pickle.loads(pickle.dumps(kind("keepalive_s must be", field="keepalive_s")))
    assert (type(error), str(error), error.field) == (kind, "keepalive_s must be", "keepalive_s")
    assert kind("x").field is None
