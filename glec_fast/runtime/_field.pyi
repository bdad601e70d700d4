from typing import Any

class Facade:
    """Stands in front of `client`, whose fields its subclass names with `Field`. As thread-safe as that is."""

    @property
    def client(self) -> Any: ...
    def __init__(self, client: Any) -> None: ...

class Field:
    """In a subclass of `Facade`: the client's field `name`, to read and to set. Raises as the client does."""

    def __init__(self, name: str) -> None: ...
    def __get__(self, facade: Facade | None, kind: type | None, /) -> Any: ...
    def __set__(self, facade: Facade, value: object, /) -> None: ...

def has_any(own: dict[str, Any], names: tuple[str, ...]) -> bool:
    """True where any of these is a key."""

def version_of(kind: type) -> int:
    """Another number for each state of a class and its bases; 0 where it has none yet, since it was last changed."""
