"""The fields of another object, through one's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from glec_fast.runtime._field import Facade, Field, has_any, version_of


class Front(Facade):
    __slots__ = ()

    height_m = Field("_height")


def test_a_field_is_the_client_s() -> None:
    client = SimpleNamespace(_height=2)
    front = Front(client)
    assert front.height_m == 2
    front.height_m = 3
    assert client._height == 3
    assert isinstance(Front.height_m, Field)


def test_what_the_client_raises_goes_through() -> None:
    with pytest.raises(AttributeError, match="_height"):
        _ = Front(object()).height_m
    with pytest.raises(AttributeError):
        Front(object()).height_m = 1
    with pytest.raises(TypeError):
        Field("x").__get__(object(), None)  # type: ignore[arg-type]


def test_any_of_some_names() -> None:
    assert has_any({"a": 1}, ("b", "a"))
    assert not has_any({"a": 1}, ("b",))


def test_a_class_that_is_changed_has_another_version() -> None:
    class Base:
        def move(self) -> int:
            return 1

    class Kind(Base):
        pass

    def version() -> int:
        # Looked up: before that it may have none.
        assert Kind().move()
        return version_of(Kind)

    first = version()
    assert first
    assert version() == first
    Base.move = lambda _self: 2  # type: ignore[method-assign]
    second = version()
    assert second != first
    del Base.move
    Base.move = lambda _self: 3  # type: ignore[method-assign]
    assert version() not in (first, second)
