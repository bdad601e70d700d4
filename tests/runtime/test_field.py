"""The fields of another object, through one's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from glec_fast.runtime._field import Facade, Field, Overrides


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


class Base:
    def move(self) -> int:
        return 1

    def stay(self) -> int:
        return 2


def test_what_an_object_has_its_own_of() -> None:
    class Kind(Base):
        def stay(self) -> int:
            return 3

    class Other:
        move = Base.move
        stay = Base.stay

    overrides = Overrides(Base, ("move", "stay"))
    assert overrides.of(Base()) == overrides.of(Other()) == {}
    one, another = Kind(), Base()
    assert overrides.of(one) == {"stay": one.stay}
    another.move = int  # type: ignore[method-assign]
    assert overrides.of(another) == {"move": int}
    assert overrides.of(Base()) == {}


def test_a_class_may_change_at_any_time() -> None:
    class Root(Base):
        pass

    class Kind(Root):
        pass

    overrides = Overrides(Root, ("move", "stay"))
    thing = Kind()
    for _ in range(3):
        # Looked up: before that it may have no version.
        assert thing.move() == 1
        assert overrides.of(thing) == {}
        assert overrides.of(thing) == {}
        Kind.move = lambda _self: 2  # type: ignore[method-assign]
        assert overrides.of(thing) == {"move": thing.move}
        del Kind.move
        Root.move = lambda _self: 3  # type: ignore[method-assign]
        assert overrides.of(thing) == {"move": thing.move}
        del Root.move
