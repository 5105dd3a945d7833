"""Claim: 1,000 NetworkPolicies over 1,000 pods, 250 of them on this node; a change is in force in under 20 ms. Peer in the same run:
the whole table loaded anew, which is what a change costs without incremental rules.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from typing import Any

from bench.report import figure
from longshore.machinery.nftables import Nftables
from longshore.node.policy.enforcer import Enforcer
from longshore.node.policy.model import pod_of, policy_of
from longshore.node.policy.state import PolicyState

POLICIES, PODS, LOCAL, TURNS = 1000, 1000, 250, 20


def pod(number: int, app: int) -> dict[str, Any]:
    return {
        "metadata": {"namespace": f"ns{number % 20}", "name": f"p{number}", "labels": {"app": f"a{app}"}},
        "spec": {"nodeName": "n" if number < LOCAL else "far", "containers": [{}]},
        "status": {"podIPs": [{"ip": f"10.244.{number // 200}.{number % 200 + 1}"}], "phase": "Running"},
    }


def policy(number: int, port: int) -> dict[str, Any]:
    """Those of app N may be reached from app N + 1 of the same namespace and from a team's namespaces."""
    return {
        "metadata": {"namespace": f"ns{number % 20}", "name": f"n{number}"},
        "spec": {
            "podSelector": {"matchLabels": {"app": f"a{number // 20}"}},
            "ingress": [
                {
                    "from": [
                        {"podSelector": {"matchLabels": {"app": f"a{(number // 20 + 1) % 50}"}}},
                        {"namespaceSelector": {"matchLabels": {"team": f"t{number % 5}"}}},
                    ],
                    "ports": [{"port": port}],
                }
            ],
        },
    }


async def measure() -> None:
    state = PolicyState()
    for number in range(20):
        state.set_namespace(f"ns{number}", {"team": f"t{number % 5}"})
    for number in range(PODS):
        state.set_pod(f"p{number}", pod_of(pod(number, number // 20), "n"))
    for number in range(POLICIES):
        state.set_policy(f"n{number}", policy_of(policy(number, 80)))
    enforcer = Enforcer(state, families=(4,))
    started = time.perf_counter()
    task = asyncio.create_task(enforcer.run())
    await enforcer.synced.wait()
    figure(f"{POLICIES:,} policies over {PODS:,} pods loaded", (time.perf_counter() - started) * 1000, "ms")
    await enforcer.idle.wait()

    async def settle() -> float:
        begun = time.perf_counter()
        enforcer.touch()
        await enforcer.idle.wait()
        return (time.perf_counter() - begun) * 1000

    by_policy, by_pod = [], []
    for turn in range(TURNS):
        begun = time.perf_counter()
        state.set_policy("n7", policy_of(policy(7, 81 + turn)))
        by_policy.append((time.perf_counter() - begun) * 1000 + await settle())
        begun = time.perf_counter()
        state.set_pod("p9", pod_of(pod(9, turn % 50), "n"))
        by_pod.append((time.perf_counter() - begun) * 1000 + await settle())
    with Nftables() as nft:
        text = enforcer._sets[0].text()
        whole = []
        for _ in range(5):
            begun = time.perf_counter()
            nft.run(text)
            whole.append((time.perf_counter() - begun) * 1000)
    await enforcer.idle.wait()
    theirs = statistics.median(whole)
    figure(
        "a policy's change in force",
        statistics.median(by_policy),
        "ms",
        peer="whole table",
        theirs=theirs,
        target="< 20",
    )
    figure(
        "a pod's change of labels in force",
        statistics.median(by_pod),
        "ms",
        peer="whole table",
        theirs=theirs,
        target="< 20",
    )
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("needs root (a network namespace of its own)")
    asyncio.run(measure())
