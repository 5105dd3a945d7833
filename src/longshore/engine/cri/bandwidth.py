"""Bandwidth limits that a pod's annotations ask for, as token buckets on both ends of its interface.

Source: kubernetes pkg/util/bandwidth (annotations, least and most); tc-tbf(8).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from longshore.engine.cri.network import INTERFACE, host_interface
from longshore.machinery import process, quantity

INGRESS, EGRESS = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"
_LEAST, _MOST = 10**3, 10**15
_SECONDS = 10.0
MOST_BURST = 2**32 - 1


class BadBandwidth(ValueError):
    """An annotation that is no sensible rate; the text tells why."""


def limits(annotations: Mapping[str, str]) -> tuple[int, int]:
    """(ingress, egress) of a pod in bits a second, 0 without a limit. Raises BadBandwidth."""
    found = []
    for name in (INGRESS, EGRESS):
        text = annotations.get(name)
        if text is None:
            found.append(0)
            continue
        try:
            rate = quantity.parse(text).value
        except ValueError as error:
            raise BadBandwidth(f"annotation {name}: {error}") from error
        if rate < _LEAST:
            raise BadBandwidth(f"annotation {name}: resource is unreasonably small (< 1kbit)")
        if rate > _MOST:
            raise BadBandwidth(f"annotation {name}: resource is unreasonably large (> 1Pbit)")
        found.append(rate)
    return found[0], found[1]


def capability(annotations: Mapping[str, str]) -> dict[str, int]:
    """The same for a CNI plugin: rates in bits a second, bursts as containerd gives them. Raises BadBandwidth."""
    return {
        f"{way}{what}": value
        for way, rate in zip(("ingress", "egress"), limits(annotations), strict=True)
        for what, value in (("Rate", rate), ("Burst", MOST_BURST))
        if rate
    }


async def limit(sandbox_id: str, namespace: Path, rates: tuple[int, int]) -> None:
    """Put (ingress, egress) into force on a pod's interface. Raises process.ProcessFailed, OSError, TimeoutError."""
    ingress, egress = rates
    if ingress:
        # What goes into the pod leaves the node by the interface's outer end.
        await process.run(_tbf(host_interface(sandbox_id), ingress), timeout=_SECONDS)
    if egress:
        await process.run(["nsenter", f"--net={namespace}", *_tbf(INTERFACE, egress)], timeout=_SECONDS)


def _tbf(interface: str, rate: int) -> list[str]:
    # A tenth of a second at full rate, and room for a packet that the kernel has put together from many.
    burst = min(max(rate // 80, 128 * 1024), 2**31)
    return ["tc", "qdisc", "replace", "dev", interface, "root", "tbf", "rate", f"{rate}bit", "burst", f"{burst}b",
            "latency", "50ms"]  # fmt: skip
