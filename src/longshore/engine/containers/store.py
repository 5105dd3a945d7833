"""The containers that there are: by id, by name, by an id's beginning; and their records on disk."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from longshore.engine.errors import Conflict, InvalidParameter, NotFound

from . import names
from .model import NAME, Container

log = logging.getLogger("longshore.engine.containers")


class ContainerStore:
    """Containers under `root`, a folder each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_id: dict[str, Container] = {}
        self._by_name: dict[str, str] = {}
        self._number = 0
        root.mkdir(parents=True, exist_ok=True, mode=0o710)

    def load(self) -> list[Container]:
        """Read all records back; what a crash left half-made is removed."""
        for folder in sorted(self.root.iterdir()):
            if not folder.is_dir():
                continue
            try:
                container = Container.load(folder)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                log.warning("container record %s is damaged or was never finished; removed", folder.name[:12])
                shutil.rmtree(folder, ignore_errors=True)
                continue
            self.add(container)
            self._number = max(self._number, container.number)
        return self.all()

    def add(self, container: Container) -> None:
        self._by_id[container.id] = container
        self._by_name[container.name] = container.id

    def next_number(self) -> int:
        """Grows with each container made: the order of creation."""
        self._number += 1
        return self._number

    def remove(self, container: Container) -> None:
        self._by_id.pop(container.id, None)
        if self._by_name.get(container.name) == container.id:
            del self._by_name[container.name]

    def all(self) -> list[Container]:
        """Every container, the newest first."""
        return sorted(self._by_id.values(), key=lambda c: c.number, reverse=True)

    def __iter__(self) -> Iterator[Container]:
        return iter(list(self._by_id.values()))

    def get(self, id: str) -> Container | None:
        return self._by_id.get(id)

    def find(self, term: str) -> Container:
        """By full id, name, name of a link to it ("holder/alias") or an id's beginning. Raises NotFound, InvalidParameter."""
        if not term:
            raise InvalidParameter("bad parameter: container name or ID cannot be empty")
        found = self._by_id.get(term)
        if found is not None:
            return found
        id = self._by_name.get(term if term.startswith("/") else "/" + term)
        if id is not None:
            return self._by_id[id]
        holder, _, alias = term.strip("/").partition("/")
        if alias and "/" + holder in self._by_name:
            linked = self._by_id[self._by_name["/" + holder]].links.get(alias)
            if linked in self._by_id:
                return self._by_id[linked]
        matches = [c for i, c in self._by_id.items() if i.startswith(term)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise InvalidParameter(f"Multiple IDs found with provided prefix: {term}")
        raise NotFound(f"No such container: {term}")

    def reserve(self, wanted: str, id: str, *, shown: str = "") -> str:
        """Take a name (or a generated one) for a container id; returns it with its slash. Raises InvalidParameter, Conflict."""
        if not wanted:
            attempt = 0
            while True:
                name = "/" + names.generate(attempt)
                if name not in self._by_name:
                    self._by_name[name] = id
                    return name
                attempt += 1
        if not NAME.match(wanted):
            raise InvalidParameter(
                f"Invalid container name ({shown or wanted}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            )
        name = wanted if wanted.startswith("/") else "/" + wanted
        holder = self._by_name.get(name)
        if holder is not None and holder != id:
            raise Conflict(
                f'Conflict. The container name "{name}" is already in use by container "{holder}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )
        self._by_name[name] = id
        return name

    def free_name(self, name: str, id: str) -> None:
        if self._by_name.get(name) == id:
            del self._by_name[name]
