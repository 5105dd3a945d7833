"""SBOM attestations: a scanner image is run on what was built, and what it writes is attested.

Source: BuildKit docs/attestations/sbom-protocol.md, frontend/attestations/sbom, exporter/attestation/unbundle.go.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.build.buildkit.attributes import host_platform
from longshore.engine.build.context import new_folder
from longshore.engine.build.step import Mount, RunStep, StepRoot
from longshore.engine.errors import EngineError, SystemFailure
from longshore.engine.images import references
from longshore.engine.images.extract import remove_path
from longshore.engine.images.streams import in_thread

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.frontend import Frontend
    from longshore.engine.build.buildkit.progress import Vertex
    from longshore.engine.build.buildkit.stages import Stages
    from longshore.engine.images.model import Image

SPDX = "https://spdx.dev/Document"
DEFAULT = "docker/buildkit-syft-scanner:stable-1"
CONTEXT, STAGE = "BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"
_CORE, _SOURCES, _OUT = "sbom", "/run/src", "/run/out/"
_LIMIT = 64 << 20


@dataclass(frozen=True, slots=True)
class Attested:
    """What is attested about an image. file: the name that it has among a result's files ("": it goes into images only)."""

    predicate: str
    statement: bytes
    file: str = ""


def enabled(text: str | None, stage: str) -> bool:
    """Does a scan argument mean a stage? It is true or false, or a list of stages."""
    if text in ("1", "t", "T", "true", "True", "TRUE"):
        return True
    return text is not None and stage in (word.strip() for word in text.split(","))


class Scanner:
    """One scanner. settings: its generator's name and parameters for it."""

    def __init__(self, frontend: Frontend, settings: Mapping[str, str]) -> None:
        self._frontend = frontend
        self._name = settings.get("generator", DEFAULT)
        self._parameters = {key: value for key, value in settings.items() if key != "generator"}
        self._image: Image | None = None

    async def load(self) -> None:
        """Bring the scanner here, before anything is built. Raises EngineError."""
        frontend, store = self._frontend, self._frontend.store
        if not self._name:
            return
        reference = references.parse(self._name).with_default_tag()
        with frontend.progress.vertex(f"[internal] load metadata for {reference}"):
            found = store.find(self._name)
            if found is None or frontend.options.pull:
                auth = await frontend.session.credentials(reference.domain)
                try:
                    found = await store.pull(reference, auth=auth, platform=host_platform())
                except EngineError as error:
                    raise SystemFailure(f"failed to resolve source metadata for {reference}: {error.message}") from None
        if not self._words(found):
            raise SystemFailure(f"scanner {reference} does not have cmd")
        self._image = found

    @staticmethod
    def _words(image: Image) -> list[str]:
        config = image.run_config
        return [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]

    async def scan(self, build: Stages, target: int, needed: list[int], image: Image) -> list[Attested]:
        """What the scanner says of a build's result, and of the context and the stages that are to be scanned too.

        Raises EngineError.
        """
        if self._image is None:
            return []
        store = self._frontend.store
        with self._frontend.progress.vertex(f"[{build.full_platform}] generating sbom using {self._name}") as vertex:
            async with contextlib.AsyncExitStack() as stack:
                out = new_folder(store)
                stack.push_async_callback(in_thread, remove_path, out)
                held = [Mount(str(await self._root(image.chain, stack)), f"{_SOURCES}/core/{_CORE}")]
                for name, place in (await self._extras(build, target, needed, stack)).items():
                    held.append(Mount(str(place), f"{_SOURCES}/extras/{_CORE}-{name}"))
                held.append(Mount(str(out), _OUT.rstrip("/"), ("rbind", "rw")))
                held.append(Mount("tmpfs", "/tmp", ("nosuid", "nodev"), "tmpfs"))
                await self._run(held, stack, vertex)
                return await in_thread(_statements, out)

    async def _root(self, chain: str, stack: contextlib.AsyncExitStack) -> Path:
        root = StepRoot(self._frontend.store, chain)
        stack.push_async_callback(in_thread, root.discard)
        return await in_thread(root.mount)

    async def _extras(
        self, build: Stages, target: int, needed: list[int], stack: contextlib.AsyncExitStack
    ) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for index in needed:
            state = build.tasks[index].result()
            name = build.program.stages[index].name or f"stage-{index}"
            wanted = {key: state.args.get(key, build.arguments.meta_values().get(key)) for key in (CONTEXT, STAGE)}
            if index == target:
                if enabled(wanted[CONTEXT], name):
                    await build.contexts.ready()
                    found["context"] = build.contexts.main.root
            elif enabled(wanted[STAGE], name):
                found[name] = await self._root(state.chain, stack)
        return found

    async def _run(self, held: list[Mount], stack: contextlib.AsyncExitStack, vertex: Vertex) -> None:
        image = self._image
        assert image is not None
        config, store = image.run_config, self._frontend.store
        lease = stack.enter_context(store.lease())
        lease.add(image.chain)
        root = StepRoot(store, image.chain)
        stack.push_async_callback(in_thread, root.discard)
        await in_thread(root.mount)
        await in_thread(root.add_mount_points, [(mount.target, mount.folder) for mount in held])
        extras = any(mount.target.startswith(f"{_SOURCES}/extras/") for mount in held)
        env = [
            *(config.get("Env") or []),
            f"BUILDKIT_SCAN_DESTINATION={_OUT}",
            f"BUILDKIT_SCAN_SOURCE={_SOURCES}/core/{_CORE}",
            *([f"BUILDKIT_SCAN_SOURCE_EXTRAS={_SOURCES}/extras"] if extras else []),
            *(f"BUILDKIT_SCAN_{key}={value}" for key, value in self._parameters.items()),
        ]
        words = self._words(image)
        step = RunStep(
            root.id, root.merged, words, env, config.get("WorkingDir") or "/", mounts=held, network=self._network
        )
        code = await self._frontend.runner.run(step, vertex.log)
        if code != 0:
            raise SystemFailure(f'process "{" ".join(words)}" did not complete successfully: exit code: {code}')

    @property
    def _network(self) -> str:
        """A scanner gets what commands get by default, unless the build has no network at all."""
        return "none" if self._frontend.options.network == "none" else "default"


def _statements(folder: Path) -> list[Attested]:
    """What a scanner wrote, the scan of the result itself first. Raises SystemFailure. In a thread."""
    found: list[Attested] = []
    for name in sorted(os.listdir(folder)):
        statement = _statement(folder, name)
        kind = str(statement.get("predicateType") or "")
        if kind != SPDX:
            raise SystemFailure(f"bundle entry {kind} does not match required predicate type {SPDX}")
        body = {
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": kind,
            "subject": statement.get("subject") or [],
            "predicate": statement.get("predicate"),
        }
        found.append(Attested(kind, orjson.dumps(body), name))
    return sorted(found, key=lambda attested: attested.file.partition(".")[0] != _CORE)


def _statement(folder: Path, name: str) -> dict[str, Any]:
    # The scanner's folder is somebody else's: links and pipes in it are not followed.
    try:
        fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SystemFailure(f"open {name}: {(error.strerror or '').lower()}") from None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SystemFailure(f"{name} is not a regular file")
        data = file.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise SystemFailure(f"{name} exceeds {_LIMIT} bytes")
    try:
        statement = orjson.loads(data)
    except ValueError as error:
        raise SystemFailure(f"cannot decode in-toto statement: {error}") from None
    if not isinstance(statement, dict):
        raise SystemFailure("cannot decode in-toto statement: not an object")
    return statement
