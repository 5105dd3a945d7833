"""What CPU and memory manager write down, byte for byte as upstream's do: either kubelet takes up what the other left.

The checksum is FNV-1a of how Go's spew package prints the structure. Source: kubernetes
pkg/kubelet/cm/{cpumanager,memorymanager}/state/checkpoint.go, pkg/kubelet/checkpointmanager/checksum.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from longshore.machinery.pki import write_file

_TABLE = ("total", "systemReserved", "allocatable", "reserved", "free")
_TABLE_NAMES = ("TotalMemSize", "SystemReserved", "Allocatable", "Reserved", "Free")


class Corrupt(ValueError):
    """The file is not what was written."""


def checksum(state: Mapping[str, Any]) -> int:
    """The checksum of a state, of either kind."""
    return _fnv1a((_memory if "machineState" in state else _cpu)(state).encode())


def read(file: Path) -> dict[str, Any] | None:
    """A state that was written down, None where there is none. Blocking. Raises Corrupt, OSError."""
    try:
        found = orjson.loads(file.read_bytes())
        kept = found.pop("checksum", 0)
        if kept and kept != checksum(found):
            raise Corrupt(f"checkpoint is corrupted: {file}")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(str(error)) from error
    return dict(found)


def of_policy(file: Path, policy: str, manager: str) -> dict[str, Any] | None:
    """The state of a manager ("CPU", "memory") under its policy; None where there is none, or nobody has anything in it.

    Blocking. Raises ValueError where containers were given something under another policy, or the file is broken.
    """
    why = ""
    try:
        kept = read(file)
        if kept is None or kept["policyName"] == policy:
            return kept
        if not kept.get("entries"):
            return None
        why = f'configured policy "{policy}" differs from state checkpoint policy "{kept["policyName"]}"'
    except (OSError, ValueError, KeyError) as error:
        why = str(error)
    raise ValueError(
        f"could not restore state from checkpoint: {why}, please drain this node and delete the {manager} manager"
        f' checkpoint file "{file}" before restarting Kubelet'
    )


def write(file: Path, state: Mapping[str, Any]) -> None:
    """Keep a state, whole or not at all. Blocking."""
    kept = {name: value for name, value in state.items() if value or name != "entries"}
    write_file(file, orjson.dumps(kept | {"checksum": checksum(state)}), 0o600)


def _fnv1a(data: bytes) -> int:
    found = 0x811C9DC5
    for byte in data:
        found = (found ^ byte) * 0x01000193 & 0xFFFFFFFF
    return found


def _map(values: Mapping[str, str]) -> str:
    return "map[" + " ".join(f"{key}:{values[key]}" for key in sorted(values)) + "]"


def _cpu(state: Mapping[str, Any]) -> str:
    entries = _map({uid: _map(own) for uid, own in (state.get("entries") or {}).items()})
    return (
        f"(*state.CPUManagerCheckpoint){{PolicyName:(string){state['policyName']}"
        f" DefaultCPUSet:(string){state['defaultCpuSet']}"
        f" Entries:(map[string]map[string]string){entries} Checksum:(checksum.Checksum)0}}"
    )


def _memory(state: Mapping[str, Any]) -> str:
    nodes = " ".join(f"{number}:{_node(node)}" for number, node in sorted(_numbered(state["machineState"])))
    entries = _map(
        {uid: _map({name: _blocks(b) for name, b in own.items()}) for uid, own in (state.get("entries") or {}).items()}
    )
    return (
        f"(*state.MemoryManagerCheckpoint){{PolicyName:(string){state['policyName']}"
        f" MachineState:(state.NUMANodeMap)map[{nodes}]"
        f" Entries:(state.ContainerMemoryAssignments){entries} Checksum:(checksum.Checksum)0}}"
    )


def _numbered(nodes: Mapping[str, Any]) -> list[tuple[int, Any]]:
    return [(int(number), node) for number, node in nodes.items()]


def _node(node: Mapping[str, Any]) -> str:
    tables = {
        name: "<*>{" + " ".join(f"{go}:(uint64){t[key]}" for key, go in zip(_TABLE, _TABLE_NAMES, strict=True)) + "}"
        for name, t in node["memoryMap"].items()
    }
    return (
        f"<*>{{NumberOfAssignments:(int){node['numberOfAssignments']}"
        f" MemoryMap:(map[v1.ResourceName]*state.MemoryTable){_map(tables)} Cells:([]int){_ints(node['cells'])}}}"
    )


def _blocks(blocks: list[Mapping[str, Any]]) -> str:
    return "[" + " ".join(
        f"{{NUMAAffinity:([]int){_ints(b['numaAffinity'])} Type:(v1.ResourceName){b['type']} Size:(uint64){b['size']}}}"
        for b in blocks
    ) + "]"  # fmt: skip


def _ints(numbers: list[int]) -> str:
    return "[" + " ".join(map(str, numbers)) + "]"
