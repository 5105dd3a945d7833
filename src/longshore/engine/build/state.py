"""What a stage knows while it is built: the image so far, its configuration, its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from longshore.engine.images.model import Image

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    from longshore.engine.build.cache import BuildCache
    from longshore.engine.build.context import Context
    from longshore.engine.build.instructions import Program
    from longshore.engine.build.mounts import Wanted
    from longshore.engine.build.options import BuildOptions
    from longshore.engine.build.step import Runner
    from longshore.engine.images.store import ImageStore


class Host(Protocol):
    """The build that a stage's instructions belong to: the classic one, or a stage of BuildKit's."""

    store: ImageStore
    cache: BuildCache
    runner: Runner
    options: BuildOptions
    program: Program
    context: Context
    buildkit: bool

    def hit(self) -> None:
        """The step came from the cache."""

    def running(self, step: str) -> None: ...
    def removed(self, step: str) -> None: ...
    def output(self, number: int, data: bytes) -> None: ...
    async def image(self, name: str) -> Image: ...
    def stage_image(self, name: str) -> Image | None: ...
    async def folder(self, name: str) -> Path | None:
        """The files of a context with that name, None where there is none."""
        ...

    async def known(self, key: str, told: str, state: StageState) -> Image | None:
        """A step's image from a cache, brought here from elsewhere where it must be. told: the history's words for it."""
        ...

    def used(self, key: str, image: Image, told: str) -> None:
        """A step with this key made, or was found as, an image."""

    def step(self, op: Callable[[], Mapping[str, Any]], origins: Sequence[str], wanted: Sequence[Wanted] = ()) -> None:
        """What the step is as an operation (buildkit.steps), for who wants to know. origins: where its further inputs come
        from: names after `from`, "" for the main context, URLs. wanted: its mounts."""

    def source(self, identifier: str, attributes: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """What is to be fetched in place of a source, and its attributes, as the client's policies want it.

        Raises EngineError for one that is denied.
        """
        ...

    async def secret(self, name: str) -> bytes | None: ...
    async def agent(self, name: str, path: Path) -> asyncio.Server | None: ...


# Arguments that need no ARG and are not recorded in the history.
PREDEFINED = {
    name
    for upper in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (upper, upper.lower())
}
DEFAULT_SHELL = ["/bin/sh", "-c"]


class Arguments:
    """Build arguments: what was given, what the file declares, what of it was used."""

    def __init__(self, given: Mapping[str, str | None]) -> None:
        self.given = dict(given)
        self.meta: dict[str, str | None] = {}
        self.used: set[str] = set()

    def declare_meta(self, name: str, default: str | None) -> None:
        """An ARG before the first FROM."""
        self.used.add(name)
        self.meta[name] = default

    def meta_values(self) -> dict[str, str]:
        """What FROM may use."""
        found: dict[str, str] = {}
        for name, default in self.meta.items():
            value = self.given.get(name) if self.given.get(name) is not None else default
            if value is not None:
                found[name] = value
        return found

    def declared(self, name: str, default: str | None) -> str | None:
        """The value that an ARG of a stage has; None: none."""
        self.used.add(name)
        if self.given.get(name) is not None:
            return self.given[name]
        if default is not None:
            return default
        return self.meta_values().get(name) if name in self.meta else None

    def unused(self) -> list[str]:
        return sorted(name for name in self.given if name not in self.used and name not in PREDEFINED)


@dataclass
class StageState:
    """One stage under way. image: the image so far (None: from scratch, nothing yet); config: its run configuration."""

    arguments: Arguments
    name: str = ""
    image: Image | None = None
    config: dict[str, Any] = field(default_factory=dict)
    author: str = ""
    args: dict[str, str] = field(default_factory=dict)
    cmd_set: bool = False
    started: bool = False

    @property
    def chain(self) -> str:
        return self.image.chain if self.image else ""

    @property
    def shell(self) -> list[str]:
        return list(self.config.get("Shell") or DEFAULT_SHELL)

    @property
    def env(self) -> list[str]:
        return list(self.config.get("Env") or [])

    def env_values(self) -> dict[str, str]:
        return dict(entry.partition("=")[::2] for entry in self.env)

    def variables(self) -> dict[str, str]:
        """What expansion sees: arguments, and over them the environment."""
        given = {
            name: value for name, value in self.arguments.given.items() if name in PREDEFINED and value is not None
        }
        return {**given, **self.args, **self.env_values()}

    def set_env(self, name: str, value: str) -> None:
        env = self.env
        for position, entry in enumerate(env):
            if entry.partition("=")[0] == name:
                env[position] = f"{name}={value}"
                break
        else:
            env.append(f"{name}={value}")
        self.config["Env"] = env

    def run_arguments(self, *, proxies: bool = False) -> list[str]:
        """The arguments that a RUN gets besides the environment, in the order of their declarations.

        proxies: predefined ones that the file declares are told as others are.
        """
        env = self.env_values()
        names = [name for name in self.args if name not in env and (proxies or name not in PREDEFINED)]
        return [f"{name}={self.args[name]}" for name in names]

    def hidden_arguments(self) -> list[str]:
        """Predefined arguments (proxies): given to RUN, kept out of the history and of the cache key."""
        env = self.env_values()
        return [
            f"{name}={value}"
            for name, value in sorted(self.arguments.given.items())
            if name in PREDEFINED and value is not None and name not in env
        ]
