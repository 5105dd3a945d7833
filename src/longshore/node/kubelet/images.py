"""Images of containers: present, pulled by policy, backed off from.

Source: kubernetes pkg/kubelet/images/image_manager.go.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from longshore.machinery.grpc import RpcError, Status
from longshore.node.kubelet.backoff import BackOff
from longshore.node.kubelet.pulls.credentials import Login, default_tag
from longshore.node.kubelet.pulls.keyring import Keyring
from longshore.node.kubelet.pulls.records import PullRecords
from longshore.node.kubelet.runtime import Runtime
from longshore.wire.cri import cri

Pod = dict[str, Any]
#: (container, type, reason, message)
Tell = Callable[[Mapping[str, Any], str, str, str], None]


_USERS_KEPT = 1000
#: an ImageSpec's annotation for Longshore's engine (docs/cri.md); others do not mind it
VERIFY = "longshore.io/verify-pull"


class ImageError(Exception):
    """An image cannot be had now. reason: the container's waiting reason; message: its text; wait: seconds to back off."""

    def __init__(self, reason: str, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.reason, self.message, self.wait = reason, message, wait


def policy_of(container: Mapping[str, Any]) -> str:
    found = container.get("imagePullPolicy")
    if found:
        return str(found)
    return "Always" if default_tag(container.get("image", "")).endswith(":latest") else "IfNotPresent"


class ImageManager:
    """Has images present before their containers are made."""

    def __init__(
        self,
        runtime: Runtime,
        tell: Callable[[Pod, Mapping[str, Any], str, str, str], None],
        keyring: Keyring,
        records: PullRecords,
    ) -> None:
        self._runtime, self._tell, self._keyring, self._records = runtime, tell, keyring, records
        self.backoff = BackOff()
        self._errors: dict[tuple[str, str], str] = {}
        # An image's id is the digest of its configuration: who it runs as never changes.
        self._users: dict[str, tuple[int | None, str]] = {}

    async def status(self, image: str) -> Any:
        """The runtime's Image message; None when it is not present. Raises RpcError."""
        answer = await self._runtime.image_call("ImageStatus", image=cri.ImageSpec(image=image))
        if not answer.HasField("image"):
            return None
        found = answer.image
        if len(self._users) > _USERS_KEPT:
            self._users.clear()
        self._users[found.id] = (int(found.uid.value), "") if found.HasField("uid") else (None, str(found.username))
        return found

    async def user(self, image: str) -> tuple[int | None, str] | None:
        """(uid, "") or (None, name) that an image asks for; None when it is not present. image: its id or a name."""
        if image in self._users:
            return self._users[image]
        found = await self.status(image)
        return None if found is None else self._users[found.id]

    async def ensure(self, pod: Pod, container: Mapping[str, Any], secrets: Iterable[Mapping[str, Any]], config: Any) -> str:  # fmt: skip
        """The image's reference for CreateContainer. Raises ImageError."""
        name = container["image"]
        image = default_tag(name)
        policy = policy_of(container)
        if name != name.strip() or not name:
            raise ImageError("InvalidImageName", f'Failed to apply default image tag "{name}": couldn\'t parse image name "{name}": invalid reference format')  # fmt: skip
        try:
            present = await self.status(image)
        except RpcError as error:
            message = f'Failed to inspect image "{image}": {error.message}'
            self._tell(pod, container, "Warning", "InspectFailed", message)
            raise ImageError("ImageInspectError", message) from error
        asked: list[list[Login]] = []

        async def logins() -> list[Login]:
            if not asked:
                asked.append(await self._keyring.logins(image, pod, secrets))
            return asked[0]

        shown = present is None or not await self._records.must_pull(name, present.id, logins)
        if policy != "Always" and present is not None and shown:
            message = f'Container image "{name}" already present on machine and can be accessed by the pod'
            self._tell(pod, container, "Normal", "Pulled", message)
            return str(present.id)
        if policy == "Never":
            # Also where it is there and the pod may not have it: nobody learns that it is.
            message = f'Container image "{name}" is not present with pull policy of Never'
            self._tell(pod, container, "Warning", "ErrImageNeverPull", message)
            raise ImageError("ErrImageNeverPull", message, 60.0)
        key = (pod["metadata"]["uid"], image)
        wait = self.backoff.since_update(key)
        if wait > 0:
            reason = self._errors.get(key, "")
            message = f'Back-off pulling image "{name}"' + (f": {reason}" if reason else "")
            self._tell(pod, container, "Normal", "BackOff", f'Back-off pulling image "{name}"')
            raise ImageError("ImagePullBackOff", message, wait)
        self._tell(pod, container, "Normal", "Pulling", f'Pulling image "{name}"')
        begin = time.monotonic()
        try:
            # Our engine lets a local image serve where its registry is away: not for who has yet to show a login.
            spec = cri.ImageSpec(image=image, annotations={} if shown else {VERIFY: "true"})
            reference = await self._pull(name, spec, await logins(), config)
        except RpcError as error:
            text = f"rpc error: code = {go_code(error.status)} desc = {error.message}"
            self._tell(pod, container, "Warning", "Failed", f'Failed to pull image "{name}": {text}')
            self.backoff.step(key)
            self._errors[key] = f"ErrImagePull: {text}"
            kind = "ErrImagePull"
            if error.status is Status.INVALID_ARGUMENT and "invalid reference format" in (error.message or ""):
                kind = "InvalidImageName"
            raise ImageError(kind, text, self.backoff.since_update(key)) from error
        took = time.monotonic() - begin
        self._errors.pop(key, None)
        self.backoff.reset(key)
        self.backoff.collect()
        size = ""
        present = await self.status(reference)
        if present is not None:
            size = f" Image size: {present.size} bytes."
        span = f"{took * 1000:.0f}ms" if took < 1 else f"{took:.3f}s"
        self._tell(pod, container, "Normal", "Pulled", f'Successfully pulled image "{name}" in {span} ({span} including waiting).{size}')  # fmt: skip
        return reference

    async def _pull(self, name: str, spec: Any, logins: list[Login], config: Any) -> str:
        """name: as the pod has it. The image's reference, once one of the logins has been good enough. Raises RpcError."""
        await asyncio.to_thread(self._records.begin, name)
        problem: RpcError | None = None
        try:
            attempts: list[Login | None] = [*logins]
            for login in attempts or [None]:
                fields: dict[str, Any] = {"image": spec, "sandbox_config": config}
                if login is not None:
                    fields["auth"] = cri.AuthConfig(**login.fields())
                try:
                    answer = await self._runtime.image_call("PullImage", deadline=None, **fields)
                except RpcError as error:
                    problem = error
                    continue
                await asyncio.to_thread(self._records.pulled, name, str(answer.image_ref), login)
                problem = None
                return str(answer.image_ref)
        finally:
            if problem is not None:
                await asyncio.to_thread(self._records.failed, name)
        assert problem is not None
        raise problem

    def forget(self, uid: str) -> None:
        for key in [k for k in self._errors if k[0] == uid]:
            del self._errors[key]
            self.backoff.reset(key)


def go_code(status: Any) -> str:
    """A gRPC code in Go's words ("NotFound")."""
    return "".join(word.capitalize() for word in status.name.split("_"))
