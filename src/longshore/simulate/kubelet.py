"""The kubelet's part for pods on simulated nodes: one small life a pod, driven by timers and the pod's own changes.

A life knows only what the pod's status says and what comes next, so that a simulator that was killed and started again
goes on where the pods are. Writes stand in one line, taken by a fixed number of hands; what cannot be written now is
tried again with growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from longshore.client.objects import is_deleting, is_terminal, phase, seconds, timestamp
from longshore.client.resources import PODS
from longshore.client.rest import Client
from longshore.client.store import key_of
from longshore.machinery.errors import StatusError
from longshore.machinery.http import ClientError
from longshore.simulate import addresses
from longshore.simulate.rules import Rule, Rules
from longshore.simulate.status import Moment

log = logging.getLogger("longshore.simulate")

Object = dict[str, Any]
HANDS = 48  # writes under way at once
RETRY_START, RETRY_END = 0.25, 15.0
RESTART_SECONDS = 0.1
LASTED_SECONDS = 600.0  # a run of this length ends the back-off


class Life:
    """One pod: the newest object, the rule, and the next thing to do."""

    __slots__ = (
        "address", "crashes", "due", "last", "next", "pause", "pod", "remove", "restarts", "retry", "rule", "started",
        "unsent", "waiting",
    )  # fmt: skip

    def __init__(self, pod: Object, rule: Rule) -> None:
        self.pod, self.rule = pod, rule
        self.address = ""
        self.restarts = 0
        self.started = 0.0  # when the present run began, seconds since the epoch
        self.last: dict[str, Object] = {}
        self.next: Callable[[], None] | None = None
        self.due: asyncio.TimerHandle | None = None
        self.pause = 0.0  # of image pulls
        self.retry = RETRY_START
        self.crashes = 0  # restarts since the last run that lasted
        self.unsent: Object | None = None  # the newest status, while the API server has an older one
        self.remove = False
        self.waiting = False  # in the line, or in a hand


class Kubelets:
    """Lives of all pods on the nodes of `hosts` (node name -> address); ranges: a node's own range for pods."""

    def __init__(self, client: Client, rules: Rules, *, pod_range: str = addresses.DEFAULT_PODS) -> None:
        self.client, self.rules = client, rules
        self.hosts: dict[str, str] = {}
        self.lives: dict[str, Life] = {}
        self.written = 0  # statuses
        self.deleted = 0
        self._pools: dict[str, addresses.Pool] = {}
        self._common = addresses.Pool(pod_range)
        self._images: dict[str, set[str]] = {}  # node -> images there
        self._line: deque[Life] = deque()
        self._more = asyncio.Event()

    # -- what the nodes and pods tell --------------------------------------------------------------------------------

    def node(self, name: str, address: str, ranges: list[str]) -> None:
        """A simulated node, and the range that the cluster gave it."""
        self.hosts[name] = address
        if ranges and name not in self._pools:
            self._pools[name] = addresses.Pool(ranges[0])

    def node_gone(self, name: str) -> None:
        self.hosts.pop(name, None)
        self._pools.pop(name, None)
        self._images.pop(name, None)
        for key, life in list(self.lives.items()):
            if life.pod["spec"]["nodeName"] == name:
                self._forget(key)

    def pod(self, pod: Object) -> None:
        """A pod, or its new state."""
        if pod["spec"].get("nodeName") not in self.hosts:
            return
        key = key_of(pod)
        life = self.lives.get(key)
        if life is not None and life.pod["metadata"]["uid"] != pod["metadata"]["uid"]:
            self._forget(key)
            life = None
        if life is None:
            if is_terminal(pod) and not is_deleting(pod):
                return
            life = self.lives[key] = Life(pod, self.rules.of(pod))
            self._begin(life)
            return
        before = life.pod["metadata"].get("deletionTimestamp")
        life.pod = pod
        if is_deleting(pod) and (before is None or life.due is not None):
            if before != pod["metadata"]["deletionTimestamp"]:
                self._stop(life)  # to be deleted now, or sooner than it was to be
        elif phase(pod) == "Failed" and life.next is not None:
            self._wait(life, 0, None)  # somebody else ended it

    def pod_gone(self, pod: Object) -> None:
        key = key_of(pod)
        life = self.lives.get(key)
        if life is not None and life.pod["metadata"]["uid"] == pod["metadata"]["uid"]:
            self._forget(key)

    def _forget(self, key: str) -> None:
        life = self.lives.pop(key)
        if life.due is not None:
            life.due.cancel()
        life.next = None
        if life.address:
            self._pool(life).give_back(life.address)

    def _pool(self, life: Life) -> addresses.Pool:
        return self._pools.get(life.pod["spec"]["nodeName"], self._common)

    # -- the stations ----------------------------------------------------------------------------------------------------

    def _begin(self, life: Life) -> None:
        pod, status = life.pod, life.pod.get("status") or {}
        for entry in status.get("containerStatuses") or ():
            life.restarts = max(life.restarts, int(entry.get("restartCount") or 0))
            if entry.get("lastState"):
                life.last[entry["name"]] = entry["lastState"]
            running = (entry.get("state") or {}).get("running")
            if running:
                life.started = seconds(running.get("startedAt"))
        life.crashes = life.restarts
        if status.get("podIP"):
            life.address = status["podIP"]
            self._pool(life).note(life.address)
        if is_deleting(pod):
            self._stop(life)
        elif phase(pod) == "Running" and life.started:
            ready = all(entry.get("ready") for entry in status["containerStatuses"])
            if ready:
                self._await_end(life)
            else:
                self._wait(life, life.rule.ready.draw(self.rules.chance), lambda: self._ready(life))
        elif phase(pod) == "Running":
            self._wait(life, self._back_off(life), lambda: self._run(life))
        else:
            self._pull(life)

    def _pull(self, life: Life) -> None:
        """Get the images that the node has not yet, then start."""
        rule, chance = life.rule, self.rules.chance
        here = self._images.setdefault(life.pod["spec"]["nodeName"], set())
        images = {c.get("image", "") for c in life.pod["spec"]["containers"]}
        pull = 0.0 if images <= here else rule.pull.draw(chance)
        if not images <= here and rule.pull.fails(chance):
            life.pause = min(max(rule.backoff, life.pause * 2), rule.backoff_max)
            image = sorted(images - here)[0]
            self._write(life, self._moment(life).pending("ContainerCreating"))

            def failed() -> None:
                message = f'Back-off pulling image "{image}"'
                self._write(life, self._moment(life).pending("ImagePullBackOff", message))
                self._wait(life, life.pause, lambda: self._pull(life))

            self._wait(life, pull, failed)
            return

        def pulled() -> None:
            here.update(images)
            self._run(life)

        delay = pull + rule.start.draw(chance)
        if delay:
            self._write(life, self._moment(life).pending("ContainerCreating"))
        self._wait(life, delay, pulled)

    def _run(self, life: Life) -> None:
        """A run begins."""
        if not life.address:
            life.address = self._pool(life).take()
        life.started = time.time()
        delay = life.rule.ready.draw(self.rules.chance)
        if not delay:
            self._ready(life)
            return
        self._write(life, self._moment(life).running(ready=False))
        self._wait(life, delay, lambda: self._ready(life))

    def _ready(self, life: Life) -> None:
        self._write(life, self._moment(life).running(ready=True))
        self._await_end(life)

    def _await_end(self, life: Life) -> None:
        run = life.rule.run
        if run is None:
            self._wait(life, 0, None)
            return
        chance = self.rules.chance
        code = life.rule.exit_code if run.fails(chance) else 0
        self._wait(life, max(0.0, life.started + run.draw(chance) - time.time()), lambda: self._end(life, code))

    def _end(self, life: Life, code: int) -> None:
        """A run is over: the pod ends, or another run follows, as its restart policy says."""
        policy = life.pod["spec"].get("restartPolicy") or "Always"
        if policy == "Never" or (policy == "OnFailure" and code == 0):
            self._write(life, self._moment(life).finished(code))
            self._wait(life, 0, None)
            return
        life.last = self._moment(life).ended_runs(code)
        if time.time() - life.started >= LASTED_SECONDS:
            life.crashes = 0
        pause = self._back_off(life)
        life.restarts += 1
        life.crashes += 1
        life.started = 0.0
        if pause:
            self._write(life, self._moment(life).waiting(pause))
        self._wait(life, max(pause, RESTART_SECONDS), lambda: self._run(life))

    def _back_off(self, life: Life) -> float:
        """Seconds before the next run: the first restart follows at once, each later one waits twice as long."""
        if life.crashes == 0:
            return 0.0
        return min(life.rule.backoff * 2.0 ** min(life.crashes - 1, 30), life.rule.backoff_max)

    def _stop(self, life: Life) -> None:
        """The pod is to go: its containers end within the grace period, then it is deleted for good."""
        grace = float(life.pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        left = max(0.0, seconds(life.pod["metadata"]["deletionTimestamp"]) - time.time())
        delay = min(life.rule.stop.draw(self.rules.chance), grace, left)

        def stopped() -> None:
            # Who holds the pod by a finalizer (the Job controller) wants to see how it ended.
            if life.pod["metadata"].get("finalizers") and not is_terminal(life.pod):
                self._write(life, self._moment(life).finished(0 if life.rule.stop.seconds <= grace else 137))
            self._write(life, None)

        self._wait(life, delay, stopped)

    def _moment(self, life: Life) -> Moment:
        started = timestamp(life.started) if life.started else ""
        return Moment(
            life.pod, timestamp(time.time()), host_ip=self.hosts.get(life.pod["spec"]["nodeName"], ""),
            pod_ip=life.address, restarts=life.restarts, started=started, last=life.last,
        )  # fmt: skip

    def _wait(self, life: Life, delay: float, then: Callable[[], None] | None) -> None:
        """Do `then` after delay seconds, instead of whatever else was to come."""
        if life.due is not None:
            life.due.cancel()
            life.due = None
        life.next = then
        if then is None:
            return
        if not delay:
            life.next = None
            then()
            return

        def now() -> None:
            life.due = life.next = None
            try:
                then()
            except Exception:
                log.exception("pod %s", key_of(life.pod))

        life.due = asyncio.get_running_loop().call_later(delay, now)

    # -- writing -------------------------------------------------------------------------------------------------------------

    def _write(self, life: Life, status: Object | None) -> None:
        """Put a status (None: the deletion) in the line. Of two statuses of a pod that wait, the newer goes out."""
        if status is None:
            life.remove = True
        else:
            life.pod = {**life.pod, "status": {**(life.pod.get("status") or {}), **status}}
            life.unsent = status
        if not life.waiting:
            life.waiting = True
            self._line.append(life)
            self._more.set()

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as hands:
            for _ in range(HANDS):
                hands.create_task(self._hand())

    async def _hand(self) -> None:
        while True:
            while not self._line:
                self._more.clear()
                await self._more.wait()
            life = self._line.popleft()
            try:
                while life.unsent is not None or life.remove:
                    await self._send(life)
            except StatusError as error:
                if error.code == 429 or error.code >= 500:
                    self._again(life)
                    continue
                # Gone, or another pod of that name by now (404, 409); else the server will never take it.
                if error.code not in (404, 409):
                    log.warning("pod %s: %s", key_of(life.pod), error)
                life.unsent, life.remove = None, False
            except (OSError, TimeoutError, ClientError) as error:
                log.debug("pod %s: %s", key_of(life.pod), error)
                self._again(life)
                continue
            life.waiting, life.retry = False, RETRY_START

    def _again(self, life: Life) -> None:
        def back() -> None:
            self._line.append(life)
            self._more.set()

        asyncio.get_running_loop().call_later(life.retry, back)
        life.retry = min(life.retry * 2, RETRY_END)

    async def _send(self, life: Life) -> None:
        meta = life.pod["metadata"]
        namespace, name, uid = meta.get("namespace", ""), meta["name"], meta["uid"]
        status = life.unsent
        if status is None:
            await self.client.delete(PODS, name, namespace, grace_seconds=0, uid=uid)
            life.remove = False
            self.deleted += 1
            return
        body = {"metadata": {"uid": uid}, "status": status}
        await self.client.patch(PODS, name, body, namespace, kind="strategic", subresource="status")
        if life.unsent is status:
            life.unsent = None
        self.written += 1
