"""Memory of one's own: NUMA nodes alone or in a group, what is reserved, init containers, and after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from longshore.node.kubelet.config import Config
from longshore.node.kubelet.placement import checkpoint, machine
from longshore.node.kubelet.placement.cpus import write_none
from longshore.node.kubelet.placement.errors import AllocationError
from longshore.node.kubelet.placement.hints import ANYWHERE, Hint
from longshore.node.kubelet.placement.machine import Cpu, Machine, NumaNode
from longshore.node.kubelet.placement.manager import Placement, placement
from longshore.node.kubelet.placement.memory import Block, MemoryManager

GIB = 1 << 30
TWO = Machine({0: Cpu(0, 0), 1: Cpu(1, 1, 1)}, {n: NumaNode(8 * GIB, {2 << 20: 512}) for n in range(2)})
RESERVED = {0: {"memory": GIB}, 1: {}}


class NoDevices:
    """A device manager without a device."""

    def hints(self, pod: Any, container: Any) -> dict[str, Any]:
        return {}

    def pod_hints(self, pod: Any) -> dict[str, Any]:
        return {}

    async def allocate(self, pod: Any, container: Any, place: Hint) -> None:
        """There is nothing to give."""

    def forget(self, uid: str) -> None:
        """There is nothing to free."""

    async def save(self) -> None:
        """There is nothing to write."""


def pod(uid: str, *sizes: str, inits: tuple[str, ...] = (), pages: str = "", cpu: str = "1") -> dict[str, Any]:
    def one(name: str, size: str) -> dict[str, Any]:
        amounts = {"cpu": cpu, "memory": size} | ({"hugepages-2Mi": pages} if pages else {})
        return {"name": name, "resources": {"requests": amounts, "limits": amounts}}

    return {
        "metadata": {"uid": uid, "name": uid, "namespace": "default"},
        "spec": {
            "initContainers": [one(f"i{n}", size) for n, size in enumerate(inits)],
            "containers": [one(f"c{n}", size) for n, size in enumerate(sizes)],
        },
    }


def give(memory: MemoryManager, made: dict[str, Any], place: Hint = ANYWHERE) -> None:
    for container in [*made["spec"]["initContainers"], *made["spec"]["containers"]]:
        memory.allocate(made, container, place)
    memory.save()


def free(tmp_path: Path) -> list[int]:
    state = orjson.loads((tmp_path / "memory_manager_state").read_bytes())["machineState"]
    return [state[n]["memoryMap"]["memory"]["free"] // GIB for n in sorted(state)]


def test_one_node_where_it_fits_else_a_group(tmp_path: Path) -> None:
    memory = MemoryManager(tmp_path, TWO, RESERVED)
    assert [(b.nodes, b.kind, b.size) for b in memory.allocatable if b.kind == "memory"] == [
        ([0], "memory", 6 * GIB), ([1], "memory", 7 * GIB),
    ]  # fmt: skip
    give(memory, pod("a", "4Gi", pages="4Mi"))
    assert memory.of_container("a", "c0") == [Block([0], "memory", 4 * GIB), Block([0], "hugepages-2Mi", 4 << 20)]
    assert memory.nodes_of("a", "c0") == {0}
    give(memory, pod("b", "4Gi"))
    assert memory.nodes_of("b", "c0") == {1} and free(tmp_path) == [2, 3]
    # Both nodes serve alone: no group of them, also where it would have enough.
    with pytest.raises(AllocationError, match=r"failed to get the default NUMA affinity"):
        give(memory, pod("c", "5Gi"))
    assert memory.release("a") and memory.release("b") and not memory.release("a")
    give(memory, pod("d", "9Gi"))
    assert memory.nodes_of("d", "c0") == {0, 1} and free(tmp_path) == [0, 4]
    assert memory.hints(pod("e", "1Gi"), pod("e", "1Gi")["spec"]["containers"][0]) == {"memory": [Hint(0b11, False)]}
    again = MemoryManager(tmp_path, TWO, RESERVED)
    assert again.nodes_of("d", "c0") == {0, 1} and again.users() == {"d"}
    again.release("d")
    again.save()
    assert free(tmp_path) == [6, 7]


def test_what_a_place_lacks_comes_from_around_it(tmp_path: Path) -> None:
    memory = MemoryManager(tmp_path, TWO, RESERVED)
    give(memory, pod("a", "9Gi"), Hint(0b01, False))
    assert memory.nodes_of("a", "c0") == {0, 1}
    with pytest.raises(AllocationError, match="failed to find NUMA nodes to extend the current topology hint"):
        give(memory, pod("b", "7Gi"), Hint(0b01, False))


def test_init_containers_hand_theirs_on(tmp_path: Path) -> None:
    memory = MemoryManager(tmp_path, TWO, RESERVED)
    give(memory, pod("a", "2Gi", "1Gi", inits=("3Gi",)), Hint(0b10, True))
    assert free(tmp_path) == [6, 4]
    assert [b.size for n in ("i0", "c0", "c1") for b in memory.of_container("a", n)] == [0, 2 * GIB, GIB]
    memory.release("a")
    memory.save()
    assert free(tmp_path) == [6, 7]


def test_files_are_upstreams_byte_for_byte(tmp_path: Path) -> None:
    """What upstream's code writes for these states (printed by it)."""
    file = tmp_path / "state"
    for state, text in (
        (
            {"policyName": "static", "defaultCpuSet": "0-1,4",
             "entries": {"uid-a": {"x": "6"}, "uid-b": {"a": "5", "c1": "2-3"}}},
            b'{"policyName":"static","defaultCpuSet":"0-1,4","entries":{"uid-a":{"x":"6"},"uid-b":{"a":"5","c1":"2-3"}},"checksum":2487322511}',
        ),
        ({"policyName": "none", "defaultCpuSet": "", "entries": {}}, b'{"policyName":"none","defaultCpuSet":"","checksum":1353318690}'),
        ({"policyName": "None", "machineState": {}, "entries": {}}, b'{"policyName":"None","machineState":{},"checksum":4236770233}'),
    ):  # fmt: skip
        checkpoint.write(file, state)
        assert file.read_bytes() == text
    theirs = (
        b'{"policyName":"Static","machineState":{"0":{"numberOfAssignments":2,"memoryMap":{"hugepages-2Mi":{"total":0,'
        b'"systemReserved":0,"allocatable":0,"reserved":0,"free":0},"memory":{"total":10,"systemReserved":2,"allocatable":8,'
        b'"reserved":3,"free":5}},"cells":[0]},"1":{"numberOfAssignments":0,"memoryMap":{"memory":{"total":10,'
        b'"systemReserved":2,"allocatable":8,"reserved":0,"free":8}},"cells":[1]}},"entries":{"uid-a":{"c":[{"numaAffinity":'
        b'[0],"type":"memory","size":3}]}},"checksum":556644908}'
    )
    file.write_bytes(theirs)
    state = checkpoint.read(file)
    assert state is not None
    checkpoint.write(file, state)
    assert file.read_bytes() == theirs
    file.write_bytes(theirs.replace(b'"size":3', b'"size":4'))
    with pytest.raises(checkpoint.Corrupt):
        checkpoint.read(file)


def test_another_policys_file_is_taken_over_where_nobody_has_anything(tmp_path: Path) -> None:
    write_none(tmp_path)
    file = tmp_path / "cpu_manager_state"
    assert checkpoint.of_policy(file, "static", "CPU") is None
    checkpoint.write(file, {"policyName": "static", "defaultCpuSet": "0", "entries": {"u": {"c": "1"}}})
    with pytest.raises(ValueError, match="please drain this node and delete the CPU manager checkpoint file"):
        write_none(tmp_path)


def fake_sys(root: Path) -> Path:
    """/sys of a machine of two nodes with two CPUs each."""
    system = root / "devices" / "system"

    def put(path: str, text: str) -> None:
        (system / path).parent.mkdir(parents=True, exist_ok=True)
        (system / path).write_text(text + "\n")

    put("cpu/online", "0-3")
    put("node/online", "0-1")
    for cpu in range(4):
        put(f"cpu/cpu{cpu}/topology/physical_package_id", str(cpu // 2))
        put(f"cpu/cpu{cpu}/topology/thread_siblings_list", str(cpu))
        put(f"cpu/cpu{cpu}/cache/index3/level", "3")
        put(f"cpu/cpu{cpu}/cache/index3/id", str(cpu // 2))
    for node in range(2):
        put(f"node/node{node}/cpulist", f"{node * 2}-{node * 2 + 1}")
        put(f"node/node{node}/meminfo", f"Node {node} MemTotal:       8388608 kB\nNode {node} MemFree:  1 kB")
        put(f"node/node{node}/distance", "10 21" if node == 0 else "21 10")
        put(f"node/node{node}/hugepages/hugepages-2048kB/nr_hugepages", "4")
    return root


def config(tmp_path: Path, **fields: Any) -> Config:
    return Config(
        "n", ["127.0.0.1"], tmp_path, tmp_path, sys_root=fake_sys(tmp_path / "sys"),
        eviction_hard={"memory.available": "1Gi"}, **fields,
    )  # fmt: skip


def test_the_machine_is_read_from_sys(tmp_path: Path) -> None:
    found = machine.read(fake_sys(tmp_path))
    assert found.cpus == {n: Cpu(n // 2, n, n // 2, n // 2) for n in range(4)}
    assert found.nodes[1] == NumaNode(8 * GIB, {2 << 20: 4}, (21, 10))
    assert set(machine.read().cpus) and sum(n.memory for n in machine.read().nodes.values()) > 0


@pytest.mark.parametrize("scope", ["container", "pod"])
async def test_all_at_one_place_or_not_at_all(tmp_path: Path, scope: str) -> None:
    managers = placement(
        config(
            tmp_path, cpu_manager_policy="static", reserved_system_cpus="0", memory_manager_policy="Static",
            reserved_memory=[(0, {"memory": "1Gi"})], topology_manager_policy="single-numa-node",
            topology_manager_scope=scope,
        ),
        NoDevices(),
    )  # fmt: skip
    assert isinstance(managers, Placement) and managers.memory is not None
    made = pod("a", "5Gi", cpu="2")
    await managers.admit(made)
    await managers.admit(made)
    assert managers.cpuset("a", "c0") == ("2-3", "1")
    with pytest.raises(AllocationError) as refused:
        await managers.admit(pod("b", "2Gi", cpu="2"))
    assert refused.value.reason == "TopologyAffinityError"
    assert refused.value.message == "Resources cannot be allocated with Topology locality"
    assert managers.users() == {"a"} and managers.counts["unaligned", scope] == 1
    await managers.admit(pod("c", "2Gi", cpu="1"))
    assert managers.cpuset("c", "c0") == ("1", "0")
    managers.release("a")
    await managers.admit(pod("d", "4Gi", cpu="2"))
    assert managers.cpuset("d", "c0") == ("2-3", "1")
    # Two containers that fit a node each, but no node together: the scope decides.
    managers.release("d")
    both = pod("e", "6Gi", "4Gi", cpu="1")
    if scope == "pod":
        with pytest.raises(AllocationError):
            await managers.admit(both)
    else:
        managers.release("c")
        await managers.admit(both)
        assert managers.memory.nodes_of("e", "c0") != managers.memory.nodes_of("e", "c1")


def test_bad_settings_are_refused_in_upstreams_words(tmp_path: Path) -> None:
    for fields, text in (
        ({"memory_manager_policy": "Static"}, 'the total amount "0" of type "memory" is not equal to the value "1073741824"'),
        (
            {"memory_manager_policy": "Static", "reserved_memory": [(7, {"memory": "1Gi"})]},
            "references a NUMA node 7 that does not exist on this machine",
        ),
        (
            {"topology_manager_policy": "restricted", "topology_manager_options": {"max-allowable-numa-nodes": "2"}},
            'the minimum value of "max-allowable-numa-nodes" should not be less than 8',
        ),
        ({"topology_manager_policy": "restricted", "topology_manager_options": {"x": "2"}}, "unknown Topology Manager Policy"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            placement(config(tmp_path, **fields), NoDevices())
