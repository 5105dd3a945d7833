"""Header fields: an ordered multi-map whose names do not care for case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_KEYS: dict[str, bytes] = {}


def _key(name: str) -> bytes:
    key = _KEYS.get(name)
    if key is None:
        key = name.lower().encode("utf-8", "surrogateescape")
        if len(_KEYS) < 2048:  # names come from code, but a proxy may ask for a peer's
            _KEYS[name] = key
    return key


class Headers:
    """Header fields as they came, decoded when they are asked for.

    Values are UTF-8 with surrogate escapes, so that any octets go through a proxy unchanged.
    """

    __slots__ = ("_fields", "_map")

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        self._fields: list[tuple[bytes, bytes]] = [
            (n.encode("utf-8", "surrogateescape"), v.encode("utf-8", "surrogateescape")) for n, v in fields
        ]
        self._map: dict[bytes, bytes] | None = None

    @classmethod
    def of_wire(cls, fields: list[tuple[bytes, bytes]]) -> Headers:
        """Headers of (name, value) octets; the list is kept, not copied."""
        self = cls.__new__(cls)
        self._fields = fields
        self._map = None
        return self

    def first(self) -> dict[bytes, bytes]:
        """Lower-case name to first value, as octets."""
        found = self._map
        if found is None:
            found = self._map = {}
            for name, value in self._fields:
                found.setdefault(name.lower(), value)
        return found

    def get(self, name: str, default: str | None = None) -> str | None:
        """The first value of `name`."""
        value = (self._map or self.first()).get(_key(name))
        return default if value is None else value.decode("utf-8", "surrogateescape")

    def getall(self, name: str) -> list[str]:
        """All values of `name`, in order."""
        key = _key(name)
        return [v.decode("utf-8", "surrogateescape") for n, v in self._fields if n.lower() == key]

    def tokens(self, name: str) -> list[str]:
        """The comma separated elements of all `name` fields, lower-case, without empty ones (RFC 9110 section 5.6.1)."""
        return [t for v in self.getall(name) for t in (e.strip().lower() for e in v.split(",")) if t]

    def items(self) -> Iterator[tuple[str, str]]:
        """Every field in order, with its name as it came."""
        for name, value in self._fields:
            yield name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _key(name) in self.first()

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"Headers({list(self.items())!r})"
