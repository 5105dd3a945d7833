"""An nftables table as it should be, and the shortest transaction from one state of it to the next. Pure.

What is in the table belongs to owners (any hashable: a Service's port, a pod). Several may want the same element: the one that
came first has it, and the next takes over when it goes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

_ELEMENTS_A_COMMAND = 2000


class Element(NamedTuple):
    """One element of a map (or of a set: value ""). Of a `ranges` set: all ranges of one destination, as the value."""

    table: str
    key: str
    value: str = ""


@dataclass(slots=True)
class Rules:
    """What one owner wants.

    elements: in no order. chains: name to rules, in the order in which they must be made; a chain's name says what is in
    it, so that it never changes. sets: name to definition, "map {...}" or "set {...}". lasting: the chains stay when
    nobody wants them any more (few, shared ones: to make one again costs the kernel more than it takes to keep it).
    """

    elements: set[Element] = field(default_factory=set)
    chains: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sets: dict[str, str] = field(default_factory=dict)
    lasting: bool = False


class RuleSet:
    """The rules of one table.

    family: "ip", "ip6" or "inet". fixed: the table's text with everything that belongs to no owner. anchors: chains of it
    that must be there. ranges: sets whose elements are ranges of one destination (see Element).
    """

    def __init__(
        self, family: str, table: str, fixed: str, *, anchors: Iterable[str] = (), ranges: Iterable[str] = ()
    ) -> None:
        self.family = family
        self.table = table
        self._fixed = fixed
        self._anchors = frozenset(anchors)
        self._ranges = frozenset(ranges)
        self._owned: dict[Hashable, Rules] = {}
        # (map, key) to who wants it, in order of arrival, and with which value.
        self._wanted: dict[tuple[str, str], dict[Hashable, str]] = {}
        self._chains: dict[str, tuple[str, ...]] = {}
        self._chain_users: dict[str, int] = {}
        self._sets: dict[str, str] = {}
        self._set_users: dict[str, int] = {}

    @property
    def element_count(self) -> int:
        return len(self._wanted)

    def owner_elements(self, owner: Hashable) -> set[Element]:
        rules = self._owned.get(owner)
        return rules.elements if rules else set()

    def set_names(self) -> list[str]:
        """The maps and sets that owners have brought."""
        return list(self._sets)

    def values(self, prefix: str) -> frozenset[str]:
        """Every value in the maps whose names begin so."""
        return frozenset(
            value
            for (table, _), wanted in self._wanted.items()
            if table.startswith(prefix)
            for value in wanted.values()
        )

    def chain_names(self) -> frozenset[str]:
        """The chains that must be there: owners', and those on which everything hangs."""
        return self._anchors | set(self._chains)

    def update(self, changes: Iterable[tuple[Hashable, Rules | None]]) -> str:
        """Give owners new rules (None: remove them). Returns the commands that carry the table over; "" for none."""
        touched: dict[tuple[str, str], str | None] = {}
        new_chains: list[str] = []
        new_sets: list[str] = []
        maybe_unused: dict[str, None] = {}
        unused_sets: dict[str, None] = {}
        for owner, rules in changes:
            old = self._owned.pop(owner, None)
            if rules is not None:
                self._owned[owner] = rules
                for name, definition in rules.sets.items():
                    self._set_users[name] = self._set_users.get(name, 0) + 1
                    if name not in self._sets:
                        self._sets[name] = definition
                        new_sets.append(name)
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
                    if not old.lasting:
                        maybe_unused[name] = None
                for name in old.sets:
                    self._set_users[name] -= 1
                    unused_sets[name] = None
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
                deletes.setdefault(table, []).extend(self._keys(table, key, before))
            if after is not None:
                adds.setdefault(table, []).extend(self._words(table, key, after))
        lines: list[str] = []
        for name in new_sets:
            if self._set_users[name]:
                lines.append(self._definition(name))
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
        kinds: dict[str, str] = {}
        for name in unused_sets:
            if not self._set_users.get(name, 0) and name in self._sets:
                kinds[name] = self._sets.pop(name).partition(" ")[0]
                del self._set_users[name]
                if name not in new_sets:
                    lines.append(f"delete {kinds[name]} {self._place} {name}")
        return "\n".join(lines)

    def take(self, changes: Iterable[tuple[Hashable, Rules | None]]) -> None:
        """The same as `update` where the whole table follows: nothing is worked out but what the table should be."""
        for owner, rules in changes:
            if rules is None or owner in self._owned:
                self.update([(owner, rules)])
                continue
            self._owned[owner] = rules
            for name, definition in rules.sets.items():
                self._set_users[name] = self._set_users.get(name, 0) + 1
                self._sets.setdefault(name, definition)
            for name, body in rules.chains.items():
                self._chain_users[name] = self._chain_users.get(name, 0) + 1
                self._chains.setdefault(name, body)
            wanted = self._wanted
            for table, key, value in rules.elements:
                place = (table, key)
                if place in wanted:
                    wanted[place][owner] = value
                else:
                    wanted[place] = {owner: value}

    def text(self) -> str:
        """The whole table, in place of whatever is there."""
        lines = [
            f"add table {self._place}",
            f"delete table {self._place}",
            self._fixed,
        ]
        lines += [self._definition(name) for name in self._sets]
        for name, body in self._chains.items():
            lines.append(f"add chain {self._place} {name}")
            lines += [f"add rule {self._place} {name} {rule}" for rule in body]
        adds: dict[str, list[str]] = {}
        for (table, key), wanted in self._wanted.items():
            adds.setdefault(table, []).extend(self._words(table, key, next(iter(wanted.values()))))
        lines += self._commands("add", adds)
        return "\n".join(lines)

    @property
    def _place(self) -> str:
        return f"{self.family} {self.table}"

    def _definition(self, name: str) -> str:
        kind, _, definition = self._sets[name].partition(" ")
        return f"add {kind} {self._place} {name} {definition}"

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

    def _keys(self, table: str, key: str, value: str) -> list[str]:
        """What to delete. Ranges of one destination come and go together, so that two owners' ranges never overlap."""
        return [f"{key} . {part}" for part in value.split()] if table in self._ranges else [key]

    def _words(self, table: str, key: str, value: str) -> list[str]:
        if table in self._ranges:
            return self._keys(table, key, value)
        return [f"{key} : {value}" if value else key]
