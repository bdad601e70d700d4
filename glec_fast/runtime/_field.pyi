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

class Overrides:
    """Which methods of `names` an object has its own of: in a subclass of `ours`, in another class, or by itself.

    Thread-safe.
    """

    def __init__(self, ours: type, names: tuple[str, ...]) -> None: ...
    def of(self, client: Any) -> dict[str, Any]:
        """Name -> method. Nearly always empty, and asked for with every read."""
