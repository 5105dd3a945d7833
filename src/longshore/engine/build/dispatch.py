"""Each instruction of the classic builder: what it does to the stage, and how the history tells it.

Source: moby builder/dockerfile/dispatchers.go, internals.go.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import secrets
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.build.buildkit import steps
from longshore.engine.build.cache import KIT
from longshore.engine.build.instructions import BUILDKIT_FLAGS, Instruction
from longshore.engine.build.shell import ExpansionError, expand, expand_words
from longshore.engine.build.state import StageState
from longshore.engine.build.step import StepRoot
from longshore.engine.containers import signals
from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.engine.images.commit import make_config
from longshore.engine.images.model import Image, encode, parse_time
from longshore.engine.images.streams import in_thread
from longshore.machinery import rooted

if TYPE_CHECKING:
    from pathlib import Path

    from longshore.engine.build.state import Host
    from longshore.engine.images.layers import Layer

_NEEDS_BUILDKIT = (
    "the --{} option requires BuildKit. Refer to https://docs.docker.com/go/buildkit/ to learn how to build images with "
    "BuildKit enabled"
)
_PORT = re.compile(r"(\d+)(?:-(\d+))?(?:/([A-Za-z]+))?")


def go_quoted(words: list[str]) -> str:
    """A list as Go's %q prints it: ["a" "b"]."""
    return "[" + " ".join(orjson.dumps(word).decode() for word in words) + "]"


def go_duration(nanoseconds: int) -> str:
    """A duration as Go prints it: "1m30s"."""
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 10**9:
        for unit, size in (("ms", 10**6), ("µs", 10**3), ("ns", 1)):
            if nanoseconds >= size:
                return f"{nanoseconds / size:g}{unit}"
    seconds, rest = divmod(nanoseconds, 10**9)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{seconds + rest / 10**9:.9f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


class Dispatcher:
    """Carries out the instructions of one stage."""

    def __init__(self, build: Host, state: StageState) -> None:
        self.build, self.state = build, state
        self._escape = build.program.file.escape
        self._kit = build.buildkit

    async def run(self, instruction: Instruction) -> None:
        """One instruction. Raises EngineError."""
        for flag in () if self._kit else (*instruction.flags, *instruction.lists):
            if flag in BUILDKIT_FLAGS or flag == "chmod":
                raise InvalidParameter(_NEEDS_BUILDKIT.format(flag))
        handler = getattr(self, f"_{instruction.command}")
        try:
            await handler(instruction)
        except OSError as error:
            # The image is odd (a link where a folder must be), or the disk is full.
            shown = f"{error.filename}: " if isinstance(error.filename, str) else ""
            raise SystemFailure(f"{shown}{(error.strerror or str(error)).lower()}") from None

    def expand(self, text: str, instruction: Instruction) -> str:
        try:
            return expand(text, self.state.variables(), self._escape)
        except ExpansionError as error:
            raise InvalidParameter(f"failed to process {orjson.dumps(text).decode()}: {error}") from None

    def expand_words(self, text: str) -> list[str]:
        try:
            return expand_words(text, self.state.variables(), self._escape)
        except ExpansionError as error:
            raise InvalidParameter(f"failed to process {orjson.dumps(text).decode()}: {error}") from None

    # -- what only changes the configuration -----------------------------------------------------------------------

    async def _env(self, instruction: Instruction) -> None:
        pairs = [(self.expand(n, instruction), self.expand(v or "", instruction)) for n, v in instruction.pairs]
        for name, value in pairs:
            self.state.set_env(name, value)
        await self.configured("ENV " + " ".join(f"{name}={value}" for name, value in pairs))

    async def _label(self, instruction: Instruction) -> None:
        pairs = [(self.expand(n, instruction), self.expand(v or "", instruction)) for n, v in instruction.pairs]
        self.state.config["Labels"] = {**(self.state.config.get("Labels") or {}), **dict(pairs)}
        await self.configured("LABEL " + " ".join(f"{name}={value}" for name, value in pairs))

    async def _maintainer(self, instruction: Instruction) -> None:
        self.state.author = instruction.words[0]
        await self.configured("MAINTAINER " + instruction.words[0])

    async def _arg(self, instruction: Instruction) -> None:
        told: list[str] = []
        for name, default in instruction.pairs:
            name = self.expand(name, instruction)
            value = None if default is None else self.expand(default, instruction)
            told.append(name if value is None else f"{name}={value}")
            found = self.state.arguments.declared(name, value)
            if found is not None:
                self.state.args[name] = found
        await self.configured("ARG " + " ".join(told))

    async def _user(self, instruction: Instruction) -> None:
        user = self.expand(instruction.words[0], instruction)
        self.state.config["User"] = user
        await self.configured(f"USER {user}")

    async def _stopsignal(self, instruction: Instruction) -> None:
        name = self.expand(instruction.words[0], instruction)
        signals.parse(name)
        self.state.config["StopSignal"] = name
        await self.configured(f"STOPSIGNAL {name}")

    def _check_volumes(self, paths: list[str]) -> None:
        """A step of the classic builder is a container, which can have no volume over a file. Raises InvalidParameter."""
        root = StepRoot(self.build.store, self.state.chain)
        try:
            merged = root.mount()
            for path in paths:
                with contextlib.suppress(OSError), rooted.opened(merged, path, os.O_PATH) as fd:
                    if not stat.S_ISDIR(os.fstat(fd).st_mode):
                        raise InvalidParameter(f"cannot mount volume over existing file, file exists {path}")
        finally:
            root.discard()

    async def _volume(self, instruction: Instruction) -> None:
        words = [self.expand(text, instruction) for text in instruction.words]
        volumes = dict(self.state.config.get("Volumes") or {})
        for word in words:
            if not word:
                raise InvalidParameter("VOLUME specified can not be an empty string")
            volumes[word] = {}
        if not self._kit and self.state.chain:
            await in_thread(self._check_volumes, words)
        self.state.config["Volumes"] = volumes
        await self.configured(f"VOLUME [{' '.join(words)}]")

    async def _expose(self, instruction: Instruction) -> None:
        words = [word for text in instruction.words for word in self.expand_words(text)]
        ports = dict(self.state.config.get("ExposedPorts") or {})
        for word in words:
            if self._kit:
                # An address or a port of the host is warned of by the build checks, and left out.
                word = word.rpartition("]:")[2].rpartition(":")[2]
            for port in exposed(word):
                ports[port] = {}
        self.state.config["ExposedPorts"] = ports
        await self.configured("EXPOSE " + " ".join(sorted(words)))

    async def _shell(self, instruction: Instruction) -> None:
        self.state.config["Shell"] = list(instruction.words)
        await self.configured(f"SHELL [{' '.join(instruction.words)}]")

    async def _healthcheck(self, instruction: Instruction) -> None:
        health = dict(instruction.health)
        if health.get("Test") == ["NONE"]:
            self.state.config["Healthcheck"] = {"Test": ["NONE"]}
            await self.configured("HEALTHCHECK NONE")
            return
        self.state.config["Healthcheck"] = health
        times = [
            go_duration(int(str(health.get(key, 0)))) for key in ("Interval", "Timeout", "StartPeriod", "StartInterval")
        ]
        test = " ".join(str(word) for word in health["Test"])  # type: ignore[attr-defined]
        await self.configured(f"HEALTHCHECK &{{[{test}] {' '.join(times)} {health.get('Retries', 0)}}}")

    def command(self, instruction: Instruction) -> list[str]:
        return [*self.state.shell, *instruction.words] if instruction.shell else list(instruction.words)

    async def _cmd(self, instruction: Instruction) -> None:
        words = self.command(instruction) if instruction.words else []
        self.state.config["Cmd"] = words
        self.state.config.pop("ArgsEscaped", None)
        self.state.cmd_set = bool(words)
        await self.configured(f"CMD {go_quoted(words)}")

    async def _entrypoint(self, instruction: Instruction) -> None:
        words = self.command(instruction) if instruction.words else []
        self.state.config["Entrypoint"] = words or None
        if not self.state.cmd_set:
            self.state.config["Cmd"] = None
        await self.configured(f"ENTRYPOINT {go_quoted(words)}")

    async def _onbuild(self, instruction: Instruction) -> None:
        self.state.config["OnBuild"] = [*(self.state.config.get("OnBuild") or []), instruction.inner]
        await self.configured(f"ONBUILD {instruction.inner}")

    async def configured(self, comment: str) -> None:
        """A step that is configuration only: from the cache, or a new image without a layer."""
        told = comment if self._kit else f"{' '.join(self.state.shell)} #(nop)  {comment}"
        if comment.startswith("SHELL") and not self._kit:
            told = f"{' '.join(self.state.config['Shell'])} #(nop)  {comment}"
        key = self.key(told)
        if await self.cached(key, told):
            return
        step = secrets.token_hex(32)
        self.build.running(step)
        self.build.removed(step)
        self.commit(key, told, None, step)

    async def empty(self) -> None:
        """An image of a stage without instructions from scratch: no layer, the configuration alone."""
        key = self.key("scratch")
        if not await self.cached(key):
            self.commit(key, "", None)

    # -- images ----------------------------------------------------------------------------------------------------

    def key(self, told: str, *more: Any) -> str:
        """The cache key of a step: the image below, the configuration that it leaves, its words, what else matters."""
        image = self.state.image.id if self.state.image else ""
        parts = (image, self.state.config, self.state.author, told, self.build.options.platform, more)
        return (KIT if self._kit else "") + self.build.cache.key(*parts)

    async def cached(self, key: str, told: str = "") -> bool:
        """Take the step from the cache, if it is there."""
        options = self.build.options
        if options.no_cache or (self.state.name and self.state.name in options.no_cache_stages):
            return False
        found = await self.build.known(key, told, self.state)
        if found is None:
            return False
        self.build.hit()
        self.build.used(key, found, told)
        self.take(found)
        return True

    def take(self, image: Image) -> None:
        self.state.image = image

    def commit(self, key: str, told: str, layer: Layer | None, container: str = "") -> None:
        """The step's image over the stage's, with the stage's configuration."""
        state = self.state
        platform = [*self.build.options.platform.split("/"), "", ""]
        config = make_config(
            state.image.config if state.image else None,
            state.config,
            diff=layer.diff if layer else "",
            created=self.build.options.created,
            created_by=told,
            author=state.author,
            comment="buildkit.dockerfile.v0" if self._kit else "",
            # Without a base the image is of the platform that was asked for.
            architecture="" if state.image else platform[1],
            variant="" if state.image else platform[2],
            container="" if self._kit else container,
            container_config=None if self._kit else {**state.config, "Cmd": told.split(" ", 2)},
        )
        if self._kit:
            config.pop("docker_version", None)
            config.pop("comment", None)
        if state.author:
            config["author"] = state.author
        chain = layer.chain if layer else state.chain
        below = state.image.id if state.image else ""
        # A step is durable with the build's end.
        image = self.build.store.add(encode(config), chain, parent=below, durable=False)
        self.build.cache.put(key, image.id, told[:200], layer.size if layer else 0)
        self.build.used(key, image, told)
        self.take(image)

    # -- steps with a root -----------------------------------------------------------------------------------------

    async def _workdir(self, instruction: Instruction) -> None:
        wanted = self.expand(instruction.words[0], instruction)
        if not wanted:
            raise InvalidParameter("WORKDIR specified can not be an empty string")
        path = posixpath.normpath(posixpath.join("/", self.state.config.get("WorkingDir") or "/", wanted))
        path = "/" + path.lstrip("/")
        self.state.config["WorkingDir"] = path
        told = f"WORKDIR {path}" if self._kit else f"{' '.join(self.state.shell)} #(nop) WORKDIR {path}"
        self.build.step(lambda: steps.folder(path, self.build.options.platform), ())
        key = self.key(told)
        if await self.cached(key, told):
            return

        created = self.build.options.created

        def work(root: StepRoot) -> None:
            _make_folders(root.merged, path, parse_time(created) if created else None)

        with self.build.store.lease() as lease:
            lease.add(self.state.chain)
            root = StepRoot(self.build.store, self.state.chain)
            self.build.running(root.id)
            layer = await self.in_root(root, work, lease)
            self.build.removed(root.id)
            self.commit(key, told, layer, root.id)

    async def in_root(
        self, root: StepRoot, work: Callable[[StepRoot], None], lease: Any, over: str | None = None
    ) -> Layer | None:
        """Do `work` on a mounted root in a thread; what it wrote as a layer over the root's chain, or over another."""

        def whole() -> Layer | None:
            try:
                root.mount()
                work(root)
                root.finish()
                if over is not None:
                    root.chain = over
                return root.layer(lease)
            finally:
                root.discard()

        try:
            return await in_thread(whole)
        except OSError as error:
            shown = f"{error.filename}: " if error.filename else ""
            raise SystemFailure(f"{shown}{(error.strerror or str(error)).lower()}") from None

    async def _run(self, instruction: Instruction) -> None:
        from longshore.engine.build.running import Command

        await Command(self, instruction).run()

    async def _copy(self, instruction: Instruction) -> None:
        from longshore.engine.build.transfer import transfer

        await transfer(self, instruction)

    async def _add(self, instruction: Instruction) -> None:
        from longshore.engine.build.transfer import transfer

        await transfer(self, instruction)


def _make_folders(root: Path, path: str, moment: int | None) -> None:
    """Make a folder with those above it; new ones get the time `moment` (nanoseconds). In a thread."""
    missing: list[str] = []
    above = path
    while moment is not None and above != "/":
        try:
            with rooted.opened(root, above, os.O_PATH):
                break
        except OSError:
            missing.append(above)
            above = posixpath.dirname(above)
    os.close(rooted.make_dirs(root, path))
    for made in missing:
        with rooted.opened(root, made, os.O_RDONLY | os.O_DIRECTORY) as fd:
            os.utime(fd, ns=(moment or 0, moment or 0))


def exposed(word: str) -> list[str]:
    """The ports of an EXPOSE word: "80", "53/udp", "8000-8002". Raises InvalidParameter."""
    found = _PORT.fullmatch(word)
    if not found:
        raise InvalidParameter(f"invalid containerPort: {word}")
    first, last = int(found[1]), int(found[2] or found[1])
    protocol = (found[3] or "tcp").lower()
    if protocol not in ("tcp", "udp", "sctp"):
        raise InvalidParameter(f"invalid proto: {protocol}")
    if not 0 < first <= last <= 65535:
        raise InvalidParameter(f"invalid containerPort: {word}")
    return [f"{number}/{protocol}" for number in range(first, last + 1)]
