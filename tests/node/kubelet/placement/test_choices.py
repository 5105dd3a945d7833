"""The pure parts on many machines: what is taken, where all agree, and that nothing is lost."""

from __future__ import annotations

import itertools
import random

import pytest

from longshore.node.kubelet.placement import devices
from longshore.node.kubelet.placement.assignment import NotEnough, distributed, packed
from longshore.node.kubelet.placement.hints import (
    ANYWHERE,
    BEST_EFFORT,
    NOWHERE,
    RESTRICTED,
    SINGLE_NUMA_NODE,
    Hint,
    Merger,
    mask_of,
    masks,
    nodes_of,
)
from longshore.node.kubelet.placement.machine import Cpu, Machine, NumaNode


def some_machine(chance: random.Random) -> Machine:
    sockets, per_socket, cores, threads = chance.choice((1, 2)), chance.choice((1, 2)), chance.choice((1, 2, 4)), chance.choice((1, 2))  # fmt: skip
    cpus, number = {}, 0
    for socket, numa, core in itertools.product(range(sockets), range(per_socket), range(cores)):
        first = number
        for _ in range(threads):
            node = socket * per_socket + numa
            cpus[number] = Cpu(socket, first, node, node * 2 + core // 2)
            number += 1
    return Machine(cpus, {n: NumaNode(1 << 30) for n in range(sockets * per_socket)})


@pytest.mark.parametrize("seed", range(60))
def test_so_many_of_the_free_ones_are_taken(seed: int) -> None:
    chance = random.Random(seed)
    machine = some_machine(chance)
    free = set(chance.sample(sorted(machine.cpus), chance.randint(0, len(machine.cpus))))
    for count in range(len(free) + 1):
        for taken in (
            packed(machine, free, count),
            packed(machine, free, count, uncore=True),
            packed(machine, free, count, spread=True),
            distributed(machine, free, count),
            distributed(machine, free, count, machine.cpus_per_core),
        ):
            assert taken <= free and len(taken) == count
        whole = [c for c in machine.groups("core").values() if c <= free]
        if count == machine.cpus_per_core and whole:
            assert len(machine.groups("core", packed(machine, free, count))) == 1
    with pytest.raises(NotEnough, match=f"requested={len(free) + 1}, available={len(free)}"):
        packed(machine, free, len(free) + 1)


def brute(sides: list[list[Hint]], everywhere: int) -> set[Hint]:
    """What every choice of one hint a side comes to, as upstream walks them."""
    found = set()
    for choice in itertools.product(*sides):
        some = [h.mask for h in choice if h.mask is not None]
        common = everywhere
        for mask in some:
            common &= mask
        found.add(Hint(common, all(h.preferred for h in choice) and all(m == some[0] for m in some)))
    return {h for h in found if h.mask}


@pytest.mark.parametrize("seed", range(80))
def test_the_best_place_of_all_choices(seed: int) -> None:
    chance = random.Random(seed)
    nodes = tuple(range(chance.randint(1, 4)))
    some = [Hint(m, chance.random() < 0.5) for m in masks(nodes)] + [ANYWHERE]
    hints = {str(n): chance.sample(some, chance.randint(0, len(some))) for n in range(chance.randint(0, 3))}
    everywhere = mask_of(nodes)
    best, admitted = Merger(BEST_EFFORT, nodes).merge([hints])
    assert admitted
    choices = brute([side or [NOWHERE] for side in hints.values()] or [[ANYWHERE]], everywhere)
    if choices:
        assert best in choices
        assert best.preferred == any(h.preferred for h in choices)
        if best.preferred:
            same = [h.mask or 0 for h in choices if h.preferred]
            assert best.mask == min(same, key=lambda m: (m.bit_count(), m))
    else:
        assert best == Hint(everywhere, False)
    assert Merger(RESTRICTED, nodes).merge([hints]) == (best, best.preferred)


def test_policies() -> None:
    one, two, both = Hint(0b01, True), Hint(0b10, True), Hint(0b11, False)
    single = Merger(SINGLE_NUMA_NODE, (0, 1))
    assert single.merge([{"cpu": [one, two, both]}, {"memory": [two, both]}]) == (two, True)
    assert single.merge([{"cpu": [one]}, {"memory": [two]}])[1] is False
    assert single.merge([{"cpu": [Hint(0b11, True)]}])[1] is False
    assert single.merge([{}, {"gpu": None}]) == (ANYWHERE, True)
    assert Merger(RESTRICTED, (0, 1)).merge([{"cpu": [Hint(0b11, True)]}]) == (Hint(0b11, True), True)
    assert Merger(BEST_EFFORT, (0, 1)).merge([{"cpu": []}]) == (Hint(0b11, False), True)
    # Of two places of one size the nearer one, where distances are looked at.
    far = {0: (10, 31, 12), 1: (31, 10, 12), 2: (12, 12, 10)}
    hints = {"cpu": [Hint(0b011, True), Hint(0b110, True)]}
    assert Merger(BEST_EFFORT, (0, 1, 2)).merge([hints])[0].mask == 0b011
    assert Merger(BEST_EFFORT, (0, 1, 2), far).merge([hints])[0].mask == 0b110
    assert nodes_of(0b1010) == [1, 3]


def test_a_large_machine_costs_no_time() -> None:
    nodes = tuple(range(8))
    side = [Hint(m, m.bit_count() == 1) for m in masks(nodes)]
    best, _ = Merger(BEST_EFFORT, nodes).merge([{"cpu": side, "memory": side, "gpu": side[3:]}])
    assert best == Hint(0b1000, True)


def test_devices_by_node() -> None:
    homes = {"a": (0,), "b": (1,), "c": (1,), "d": ()}
    assert devices.hints(homes, homes, (), 2) == [Hint(0b10, True), Hint(0b11, False)]
    assert devices.hints(homes, ("c",), ("a",), 2) == [Hint(0b11, False)]
    assert devices.hints({"a": ()}, ("a",), (), 1) is None
    assert devices.at_place(homes, ("a", "d", "b", "c"), 0b10) == (["b", "c"], ["a", "d"])
    assert devices.at_place(homes, ("d", "a"), None) == ([], ["d", "a"])
