"""CPUs of one's own: who gets which, what the others keep, options, and after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longshore.node.kubelet.placement.cpus import CpuManager, CpuOptions
from longshore.node.kubelet.placement.cpusets import parse, render
from longshore.node.kubelet.placement.errors import AllocationError
from longshore.node.kubelet.placement.hints import ANYWHERE, Hint
from longshore.node.kubelet.placement.machine import Cpu, Machine, NumaNode

GIB = 1 << 30
#: two sockets of two cores of two threads, numbered as Linux does; a NUMA node a socket
SMALL = Machine(
    {n: Cpu(n % 4 // 2, n % 4, n % 4 // 2, n % 4 // 2) for n in range(8)}, {0: NumaNode(GIB), 1: NumaNode(GIB)}
)
#: two sockets of two NUMA nodes of two caches of two cores of two threads
LARGE = Machine({n: Cpu(n // 16, n // 2 * 2, n // 8, n // 4) for n in range(32)}, {n: NumaNode(GIB) for n in range(4)})


def pod(uid: str, *cpus: str, inits: tuple[str, ...] = ()) -> dict[str, Any]:
    def one(name: str, cpu: str) -> dict[str, Any]:
        amounts = {"cpu": cpu, "memory": "1Mi"}
        return {"name": name, "resources": {"requests": amounts, "limits": amounts}}

    return {
        "metadata": {"uid": uid},
        "spec": {
            "initContainers": [one(f"i{n}", cpu) for n, cpu in enumerate(inits)],
            "containers": [one(f"c{n}", cpu) for n, cpu in enumerate(cpus)],
        },
    }


def give(cpus: CpuManager, made: dict[str, Any], place: Hint = ANYWHERE) -> None:
    try:
        for container in [*made["spec"]["initContainers"], *made["spec"]["containers"]]:
            cpus.allocate(made, container, place)
    except AllocationError:
        cpus.release(made["metadata"]["uid"])
        raise
    finally:
        cpus.save()


def options(**given: bool) -> CpuOptions:
    return CpuOptions(**given)


def test_lists() -> None:
    assert parse("0-2,7, 9") == {0, 1, 2, 7, 9} and render({9, 0, 1, 2, 7}) == "0-2,7,9" and render(()) == ""


def test_whole_cores_go_first(tmp_path: Path) -> None:
    cpus = CpuManager(tmp_path, SMALL, 1)
    assert cpus.reserved == {0}
    give(cpus, pod("a", "2"))
    assert cpus.of_container("a", "c0") == {1, 5}  # a core; core 0 is no longer whole
    give(cpus, pod("b", "4"))
    assert cpus.of_container("b", "c0") == {2, 3, 6, 7}  # a socket
    assert cpus.shared == {0, 4} and cpus.cpuset("x", "c0") == "0,4"
    # parts of a CPU, and pods that are not Guaranteed, share
    give(cpus, pod("c", "500m", "1500m"))
    burstable = pod("d", "1")
    del burstable["spec"]["containers"][0]["resources"]["limits"]["memory"]
    give(cpus, burstable)
    text = "not enough cpus available to satisfy request: requested=2, available=1"
    with pytest.raises(AllocationError, match=f"^{text}$") as refused:
        give(cpus, pod("e", "2"))
    assert refused.value.message == f"Allocate failed due to {text}, which is unexpected"
    assert cpus.users() == {"a", "b"} and cpus.by_node() == {0: 2, 1: 4}
    assert (
        cpus.counts["cpu_manager_pinning_requests_total"] == 3 and cpus.counts["cpu_manager_pinning_errors_total"] == 1
    )
    again = CpuManager(tmp_path, SMALL, 1)
    assert again.of_container("b", "c0") == {2, 3, 6, 7} and again.shared == {0, 4}
    assert again.release("b") and not again.release("b")
    assert again.shared == {0, 2, 3, 4, 6, 7}


def test_init_containers_hand_theirs_on(tmp_path: Path) -> None:
    cpus = CpuManager(tmp_path, SMALL, 0, "0,4")
    give(cpus, pod("a", "1", "2", inits=("2", "4")))
    first, second = cpus.of_container("a", "i0"), cpus.of_container("a", "i1")
    assert first < second and cpus.of_container("a", "c0") | cpus.of_container("a", "c1") < second
    assert not cpus.of_container("a", "c0") & cpus.of_container("a", "c1")
    assert len(cpus.shared) == 4


def test_a_place_goes_first(tmp_path: Path) -> None:
    cpus = CpuManager(tmp_path, SMALL, 0, "0,4")
    give(cpus, pod("a", "2"), Hint(0b10, True))
    assert cpus.of_container("a", "c0") == {2, 6}
    give(cpus, pod("b", "3"), Hint(0b10, True))
    assert cpus.of_container("b", "c0") > {3, 7}  # and one of the other node
    hints = cpus.hints(pod("c", "1"), pod("c", "1")["spec"]["containers"][0])
    assert hints == {"cpu": [Hint(0b01, True), Hint(0b11, False)]}
    assert cpus.pod_hints(pod("b", "3")) == {"cpu": [Hint(0b11, False)]}
    assert cpus.pod_hints(pod("d", "500m")) == {}


def test_only_whole_cores(tmp_path: Path) -> None:
    cpus = CpuManager(tmp_path, SMALL, 0, "0", options(full_pcpus_only=True))
    with pytest.raises(AllocationError) as refused:
        give(cpus, pod("a", "3"))
    assert refused.value.reason == "SMTAlignmentError"
    assert refused.value.message == "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2"
    give(cpus, pod("b", "4"))
    with pytest.raises(AllocationError, match="available physical CPUs = 2, requested CPUs = 4, CPUs per core = 2"):
        give(cpus, pod("c", "4"))


def test_strictly_reserved_ones_are_not_shared(tmp_path: Path) -> None:
    cpus = CpuManager(tmp_path, SMALL, 0, "0,4", options(strict_cpu_reservation=True))
    assert cpus.shared == {1, 2, 3, 5, 6, 7}
    give(cpus, pod("a", "2"))
    assert CpuManager(tmp_path, SMALL, 0, "0,4", options(strict_cpu_reservation=True)).users() == {"a"}
    with pytest.raises(ValueError, match="not all reserved cpus"):
        CpuManager(tmp_path, SMALL, 0, "0,4")


def test_distributed_over_nodes(tmp_path: Path) -> None:
    cpus = CpuManager(tmp_path, LARGE, 0, "0-1", options(distribute_cpus_across_numa=True, full_pcpus_only=True))
    give(cpus, pod("a", "12"))
    share = {node: len([c for c in cpus.of_container("a", "c0") if LARGE.cpus[c].numa == node]) for node in range(4)}
    assert sorted(share.values()) == [0, 0, 6, 6]
    assert all({c ^ 1} <= cpus.of_container("a", "c0") for c in cpus.of_container("a", "c0"))


def test_one_cache_where_it_fits(tmp_path: Path) -> None:
    plain, aligned = (
        CpuManager(folder, LARGE, 0, "0,1", options(prefer_align_cpus_by_uncorecache=on))
        for folder, on in ((tmp_path / "a", False), (tmp_path / "b", True))
    )
    for cpus in (plain, aligned):
        give(cpus, pod("a", "3"))
    assert len({LARGE.cpus[c].uncore for c in aligned.of_container("a", "c0")}) == 1
    assert aligned.counts["uncore_cache"] == 1


def test_aligned_by_socket(tmp_path: Path) -> None:
    cpus = CpuManager(tmp_path, LARGE, 0, "0,1", options(align_by_socket=True))
    hints = dict(cpus.pod_hints(pod("a", "6"))["cpu"] or ())
    assert hints[0b0011] and hints[0b1100] and not hints[0b0101]
    give(cpus, pod("a", "10"), Hint(0b0100, True))
    assert {LARGE.cpus[c].socket for c in cpus.of_container("a", "c0")} == {1}


def test_options_are_upstreams() -> None:
    assert CpuOptions.read({"full-pcpus-only": "true", "strict-cpu-reservation": "T"}) == options(
        full_pcpus_only=True, strict_cpu_reservation=True
    )
    for given, text in (
        ({"x": "true"}, 'unknown CPU Manager Policy option: "x"'),
        ({"full-pcpus-only": "yes"}, 'bad value for option "full-pcpus-only"'),
        ({"align-by-socket": "true"}, "Alpha-level Options not enabled"),
        (
            {"distribute-cpus-across-numa": "1", "prefer-align-cpus-by-uncorecache": "1"},
            "can not be used at the same time",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            CpuOptions.read(given)
    assert CpuOptions.read({"align-by-socket": "true"}, alpha=True).align_by_socket


def test_something_must_be_reserved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unable to determine reserved CPU resources for static policy"):
        CpuManager(tmp_path, SMALL, 0)
    with pytest.raises(ValueError, match="not all online"):
        CpuManager(tmp_path, SMALL, 0, "9")


def test_what_was_written_for_another_machine_is_refused(tmp_path: Path) -> None:
    give(CpuManager(tmp_path, LARGE, 1), pod("a", "2"))
    with pytest.raises(ValueError, match="doesn't match with CPUs in state"):
        CpuManager(tmp_path, SMALL, 1)
    (tmp_path / "cpu_manager_state").write_bytes(b'{"policyName":"static","defaultCpuSet":"0-7","checksum":1}')
    with pytest.raises(ValueError, match="checkpoint is corrupted"):
        CpuManager(tmp_path, SMALL, 1)
