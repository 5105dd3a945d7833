"""Devices and their NUMA nodes: where so many of them could be, and which go first at a place. Pure.

Source: kubernetes pkg/kubelet/cm/devicemanager (topology_hints.go, manager.go filterByAffinity).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from longshore.node.kubelet.placement.hints import Hint, mask_of, masks, prefer

#: device id -> the NUMA nodes it is near to; none: it does not matter
Homes = Mapping[str, Sequence[int]]


def hints(homes: Homes, free: Iterable[str], reusable: Iterable[str], count: int) -> list[Hint] | None:
    """Where `count` devices could be, those of init containers used again; None where no device is near anything."""
    nodes = {node for near in homes.values() for node in near}
    if not nodes:
        return None
    near = {device: mask_of(places) for device, places in homes.items()}
    smallest, found = len(nodes), []
    again, left = [near[d] for d in reusable if near.get(d)], [near[d] for d in free if d in near]
    for mask in masks(nodes):
        if sum(bool(place & mask) for place in near.values()) >= count:
            smallest = min(smallest, mask.bit_count())
        if all(place & mask for place in again) and len(again) + sum(bool(p & mask) for p in left) >= count:
            found.append(mask)
    return prefer(found, smallest)


def at_place(homes: Homes, devices: Iterable[str], mask: int | None) -> tuple[list[str], list[str]]:
    """(those of the place, the others: of other nodes, then those that are near to none), each in its order."""
    order = list(devices)
    if mask is None or not any(homes.get(d) for d in order):
        return [], order
    aligned = [d for d in order if mask_of(homes.get(d, ())) & mask]
    rest = [d for d in order if d not in aligned]
    return aligned, sorted(rest, key=lambda d: not homes.get(d))
