"""What a plugin is: a small class with a name, its parameters, and one method that does the work.

A user's own plugin subclasses Source, Filter or Output and is added to the list in `plugins.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from longshore.node.logs.fluentd.config import Element
from longshore.node.logs.fluentd.settings import Field, settings
from longshore.wire.forward import Event

if TYPE_CHECKING:
    from longshore.node.logs.fluentd.pipeline import Context


class Plugin:
    """NAME: its @type; FIELDS: its parameters; SECTIONS: names of sections that it reads itself."""

    NAME: ClassVar[str] = ""
    FIELDS: ClassVar[dict[str, Field]] = {}
    SECTIONS: ClassVar[frozenset[str]] = frozenset()
    #: Whether several workers may have it at once; what reads files or runs programs would do everything twice.
    SEVERAL: ClassVar[bool] = True

    def __init__(self, element: Element, context: Context) -> None:
        self.element = element
        self.context = context
        self.id = element.text("@id") or f"{self.NAME}-{element.line}"
        self.set: dict[str, Any] = settings(element, self.FIELDS, self.SECTIONS)
        self.records = 0

    async def start(self) -> None:
        """Begin. Raises OSError."""

    async def close(self) -> None:
        """End; what is kept stays kept."""

    def figures(self) -> dict[str, Any]:
        """What the monitor agent tells beyond the common."""
        return {}


class Source(Plugin):
    """Gives events to `self.emit(tag, events)`."""

    async def emit(self, tag: str, events: Sequence[Event], *, durable: bool = True) -> None:
        """Put events into the pipeline at this source's label; kept on return. Raises OSError: nobody keeps them."""
        self.records += len(events)
        await self.context.emit(self.element.text("@label"), tag, events, durable=durable)


class Filter(Plugin):
    """Changes events on their way."""

    records_in = 0
    #: Whether `prepare` is to be awaited before `filter`.
    PREPARES: ClassVar[bool] = False

    async def prepare(self, tag: str, events: Sequence[Event]) -> None:
        """Fetch what `filter` will need."""

    def filter(self, tag: str, events: Sequence[Event]) -> Sequence[Event]:
        """The events that go on."""
        raise NotImplementedError


class Output(Plugin):
    """Where events end."""

    async def take(self, tag: str, events: Sequence[Event], *, durable: bool) -> None:
        """Keep (or pass on) events; kept on return when durable. Raises OSError."""
        raise NotImplementedError
