"""The table as it should be, and the shortest transaction from one state of it to the next. Pure.

Several ports may want the same element (two Services with one external address and port; ports that share a cluster IP):
the one that came first has it, and the next takes over when it goes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from longshore.node.proxy.rules import Dialect, Element, Rules, table_text

_ELEMENTS_A_COMMAND = 2000


class RuleSet:
    """The rules of one IP family."""

    def __init__(self, table: str, dialect: Dialect) -> None:
        self.table = table
        self.dialect = dialect
        self._owned: dict[Hashable, Rules] = {}
        # (map, key) to who wants it, in order of arrival, and with which value.
        self._wanted: dict[tuple[str, str], dict[Hashable, str]] = {}
        self._chains: dict[str, tuple[str, ...]] = {}
        self._chain_users: dict[str, int] = {}
        self._maps: dict[str, str] = {}
        self._map_users: dict[str, int] = {}

    @property
    def element_count(self) -> int:
        return len(self._wanted)

    def owner_elements(self, owner: Hashable) -> set[Element]:
        rules = self._owned.get(owner)
        return rules.elements if rules else set()

    def affinity_maps(self) -> list[str]:
        return list(self._maps)

    def chain_names(self) -> set[str]:
        """The chains that must be there: Services' own, and those on which everything hangs."""
        return {"nat-prerouting", "nat-output", "services", *self._chains}

    def targets(self) -> frozenset[str]:
        """Every endpoint that connections may be sent to, as "address . port"."""
        return frozenset(
            value
            for (table, _), wanted in self._wanted.items()
            if "endpoints-" in table and not table.startswith("no-")
            for value in wanted.values()
        )

    def update(self, changes: Iterable[tuple[Hashable, Rules | None]]) -> str:
        """Give owners new rules (None: remove them). Returns the commands that carry the table over; "" for none."""
        touched: dict[tuple[str, str], str | None] = {}
        new_chains: list[str] = []
        new_maps: list[str] = []
        maybe_unused: dict[str, None] = {}
        unused_maps: dict[str, None] = {}
        for owner, rules in changes:
            old = self._owned.pop(owner, None)
            if rules is not None:
                self._owned[owner] = rules
                for name, definition in rules.maps.items():
                    self._map_users[name] = self._map_users.get(name, 0) + 1
                    if name not in self._maps:
                        self._maps[name] = definition
                        new_maps.append(name)
                for name, body in rules.chains.items():
                    self._chain_users[name] = self._chain_users.get(name, 0) + 1
                    if name not in self._chains:
                        self._chains[name] = body
                        new_chains.append(name)
            fresh = rules.elements if rules is not None else set()
            gone = old.elements - fresh if old is not None else set()
            for element in gone:
                self._release(owner, element, touched)
            for element in fresh - old.elements if old is not None else fresh:
                place = (element.table, element.key)
                wanted = self._wanted.setdefault(place, {})
                if place not in touched:
                    touched[place] = next(iter(wanted.values()), None)
                wanted[owner] = element.value
            if old is not None:
                for name in old.chains:
                    self._chain_users[name] -= 1
                    if old.maps:
                        maybe_unused[name] = None
                for name in old.maps:
                    self._map_users[name] -= 1
                    unused_maps[name] = None
        adds: dict[str, list[str]] = {}
        deletes: dict[str, list[str]] = {}
        for (table, key), before in touched.items():
            wanted = self._wanted.get((table, key), {})
            after = next(iter(wanted.values()), None)
            if not wanted:
                self._wanted.pop((table, key), None)
            if before == after:
                continue
            if before is not None:
                deletes.setdefault(table, []).extend(_keys(table, key, before))
            if after is not None:
                adds.setdefault(table, []).extend(_words(table, key, after))
        lines: list[str] = []
        for name in new_maps:
            if self._map_users[name]:
                lines.append(f"add map {self._place} {name} {{ {self._maps[name]} }}")
        for name in new_chains:
            if self._chain_users[name] or name not in maybe_unused:
                lines.append(f"add chain {self._place} {name}")
                lines += [f"add rule {self._place} {name} {rule}" for rule in self._chains[name]]
        lines += self._commands("delete", deletes)
        lines += self._commands("add", adds)
        # Outer chains were made after the inner ones to which they lead, so they go first. Those of no one Service stay:
        # they are few, and to make one again with the next change costs the kernel more than all the rest.
        unused = [name for name in maybe_unused if not self._chain_users.get(name, 0)]
        if unused:
            order = {name: place for place, name in enumerate(self._chains)}
            unused.sort(key=lambda name: -order.get(name, 0))
        for name in unused:
            if name in self._chains:
                del self._chains[name]
                del self._chain_users[name]
                if name not in new_chains:
                    lines.append(f"flush chain {self._place} {name}")
                    lines.append(f"delete chain {self._place} {name}")
        for name in unused_maps:
            if not self._map_users.get(name, 0) and name in self._maps:
                del self._maps[name]
                del self._map_users[name]
                if name not in new_maps:
                    lines.append(f"delete map {self._place} {name}")
        return "\n".join(lines)

    def text(self) -> str:
        """The whole table, in place of whatever is there."""
        lines = [
            f"add table {self._place}",
            f"delete table {self._place}",
            table_text(self.table, self.dialect),
        ]
        lines += [f"add map {self._place} {name} {{ {definition} }}" for name, definition in self._maps.items()]
        for name, body in self._chains.items():
            lines.append(f"add chain {self._place} {name}")
            lines += [f"add rule {self._place} {name} {rule}" for rule in body]
        adds: dict[str, list[str]] = {}
        for (table, key), wanted in self._wanted.items():
            adds.setdefault(table, []).extend(_words(table, key, next(iter(wanted.values()))))
        lines += self._commands("add", adds)
        return "\n".join(lines)

    @property
    def _place(self) -> str:
        return f"{self.dialect.ip} {self.table}"

    def _release(self, owner: Hashable, element: Element, touched: dict[tuple[str, str], str | None]) -> None:
        place = (element.table, element.key)
        wanted = self._wanted.setdefault(place, {})
        if place not in touched:
            touched[place] = next(iter(wanted.values()), None)
        wanted.pop(owner, None)

    def _commands(self, verb: str, elements: dict[str, list[str]]) -> list[str]:
        lines: list[str] = []
        for table, keys in elements.items():
            for start in range(0, len(keys), _ELEMENTS_A_COMMAND):
                part = ", ".join(keys[start : start + _ELEMENTS_A_COMMAND])
                lines.append(f"{verb} element {self._place} {table} {{ {part} }}")
        return lines


def _keys(table: str, key: str, value: str) -> list[str]:
    """What to delete. Ranges of one destination come and go together, so that two Services' ranges never overlap."""
    return [f"{key} . {part}" for part in value.split()] if table == "source-ranges" else [key]


def _words(table: str, key: str, value: str) -> list[str]:
    if table == "source-ranges":
        return _keys(table, key, value)
    return [f"{key} : {value}" if value else key]
