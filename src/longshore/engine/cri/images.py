"""CRI's ImageService over the engine's image store: what `docker build` made, a pod can use at once, and the reverse."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson

from longshore.engine.errors import EngineError, NotFound, Unauthorized
from longshore.engine.images import references
from longshore.engine.images.model import Image
from longshore.engine.images.store import ImageStore
from longshore.machinery.grpc import RpcError, Status
from longshore.wire.cri import cri

log = logging.getLogger("longshore.engine.cri")

STREAM_PIECE = 100
#: An annotation of a PullImage's ImageSpec: the registry itself must give the image, as who asks has yet to show that
#: it may have it; the local one does not serve in the registry's place.
VERIFY = "longshore.io/verify-pull"


class Images:
    """The RPCs of ImageService, one method each."""

    def __init__(self, store: ImageStore) -> None:
        self.store = store
        self._pulls: dict[tuple[Any, ...], tuple[asyncio.Task[Any], set[object]]] = {}
        self._usage: tuple[float, int, int] = (0.0, 0, 0)

    def _find(self, name: str) -> Image | None:
        if not name:
            return None
        try:
            return self.store.find(name)
        except EngineError:
            return None

    def message(self, image: Image) -> Any:
        """An Image message."""
        names = self.store.names(image.id)
        found = cri.Image(
            id=image.id,
            repo_tags=[str(n) for n in names if n.tag],
            repo_digests=[str(n) for n in names if n.digest],
            size=image.size,
            spec=cri.ImageSpec(image=image.id),
        )
        user = str(image.run_config.get("User") or "").partition(":")[0]
        if user.isdigit():
            found.uid.value = int(user)
        elif user:
            found.username = user
        else:
            found.uid.value = 0
        return found

    def _listed(self, request: Any) -> list[Any]:
        wanted = request.filter.image.image
        if wanted:
            image = self._find(wanted)
            return [self.message(image)] if image is not None else []
        # Intermediate images of a build have neither a name nor a use of their own.
        images = [i for i in self.store.images() if self.store.names(i.id) or not self.store.children(i.id)]
        used = {user.image for user in (self.store.users() if self.store.users else ())}
        found = []
        for image in images:
            message = self.message(image)
            # A kubelet in want of space takes what it can pull again, not what was built or loaded here or what a
            # container of docker's or of another node has.
            message.pinned = not message.repo_digests or image.id in used or bool(self.store.used_by_others(image.id))
            found.append(message)
        return found

    async def list_images(self, request: Any) -> Any:
        return cri.ListImagesResponse(images=self._listed(request))

    async def stream_images(self, request: Any) -> AsyncIterator[Any]:
        found = self._listed(request)
        for start in range(0, len(found), STREAM_PIECE):
            yield cri.StreamImagesResponse(images=found[start : start + STREAM_PIECE])

    async def image_status(self, request: Any) -> Any:
        image = self._find(request.image.image)
        if image is None:
            return cri.ImageStatusResponse()
        info = {}
        if request.verbose:
            info["info"] = orjson.dumps({"chainID": image.chain, "imageSpec": image.config}).decode()
        return cri.ImageStatusResponse(image=self.message(image), info=info)

    async def pull_image(self, request: Any) -> Any:
        name = request.image.image
        auth = _auth(request.auth) if request.HasField("auth") else None
        verify = request.image.annotations.get(VERIFY) == "true"
        key = (name, verify, *sorted((auth or {}).items()))
        found = self._pulls.get(key)
        if found is None:
            # Pods that come up together want the same image: it is asked for once.
            task = asyncio.create_task(self._pull(name, auth, verify), name=f"pull {name}")
            found = self._pulls[key] = (task, set())
            task.add_done_callback(lambda done: self._pulled(key, done))
        task, waiting = found
        me = object()
        waiting.add(me)
        try:
            return await asyncio.shield(task)
        finally:
            waiting.discard(me)
            if not waiting and not task.done():
                # Nobody wants it any more.
                self._pulled(key, task)
                task.cancel()

    def _pulled(self, key: tuple[Any, ...], task: asyncio.Task[Any]) -> None:
        if key in self._pulls and self._pulls[key][0] is task:
            del self._pulls[key]

    async def _pull(self, name: str, auth: dict[str, str] | None, verify: bool) -> Any:
        try:
            image = await self.store.pull(references.parse(name).with_default_tag(), auth=auth)
        except NotFound as error:
            raise RpcError(Status.NOT_FOUND, f'failed to pull and unpack image "{name}": {error.message}') from error
        except Unauthorized as error:
            raise RpcError(Status.PERMISSION_DENIED, f'failed to pull and unpack image "{name}": {error.message}') from error  # fmt: skip
        except EngineError as error:
            local = self._find(name) if error.status >= 500 and not verify else None
            if local is not None:
                # Built or loaded here, and its registry cannot be reached to say otherwise: `docker build` and a Pod of
                # `:latest` (whose pull policy is Always) work without a network.
                log.warning("image %s: the registry cannot be reached, the local one serves: %s", name, error.message)
                return cri.PullImageResponse(image_ref=local.id)
            kind = Status.INVALID_ARGUMENT if error.status == 400 else Status.UNKNOWN
            raise RpcError(kind, f'failed to pull and unpack image "{name}": {error.message}') from error
        self._usage = (0.0, 0, 0)
        return cri.PullImageResponse(image_ref=image.id)

    async def remove_image(self, request: Any) -> Any:
        image = self._find(request.image.image)
        if image is not None:
            try:
                await self.store.remove(image.id, force=True)
            except NotFound:
                pass
            except EngineError as error:
                raise RpcError(Status.FAILED_PRECONDITION, error.message) from error
            self._usage = (0.0, 0, 0)
        return cri.RemoveImageResponse()

    async def image_fs_info(self, _: Any) -> Any:
        used, inodes = await asyncio.to_thread(self._disk_usage)
        usage = cri.FilesystemUsage(
            timestamp=time.time_ns(),
            fs_id=cri.FilesystemIdentifier(mountpoint=str(self.store.root)),
            used_bytes=cri.UInt64Value(value=used),
            inodes_used=cri.UInt64Value(value=inodes),
        )
        return cri.ImageFsInfoResponse(image_filesystems=[usage], container_filesystems=[usage])

    def _disk_usage(self) -> tuple[int, int]:
        """Bytes and inodes of the store; walked at most every ten seconds."""
        when, used, inodes = self._usage
        if time.monotonic() - when > 10 or not when:
            used = inodes = 0
            for folder, names, files in os.walk(self.store.root):
                inodes += len(names) + len(files)
                for name in files:
                    try:
                        used += os.lstat(os.path.join(folder, name)).st_blocks * 512
                    except OSError:
                        continue
            self._usage = (time.monotonic(), used, inodes)
        return used, inodes


def _auth(config: Any) -> dict[str, str]:
    """Docker's form of an AuthConfig; `auth` is base64 of user:password."""
    found = {
        "username": config.username,
        "password": config.password,
        "serveraddress": config.server_address,
        "identitytoken": config.identity_token,
        "registrytoken": config.registry_token,
    }
    if config.auth and not config.username:
        try:
            user, _, password = base64.b64decode(config.auth, validate=True).decode().partition(":")
        except ValueError as error:
            raise RpcError(Status.INVALID_ARGUMENT, "invalid auth") from error
        found["username"], found["password"] = user, password.rstrip("\0")
    return {key: value for key, value in found.items() if value}
