"""RUN: a command in a container over the stage's layers; what it writes becomes a layer.

Source: moby builder/dockerfile/dispatchers.go, BuildKit frontend/dockerfile/dockerfile2llb (convert_run*.go).
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from longshore.engine.build import devices, mounts
from longshore.engine.build.buildkit import steps
from longshore.engine.build.context import new_folder
from longshore.engine.build.instructions import Instruction
from longshore.engine.build.step import Mount, RunStep, StepRoot
from longshore.engine.build.transfer import document_file
from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.engine.images.extract import remove_path
from longshore.engine.images.streams import in_thread

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.failures import FailedStep
    from longshore.engine.build.dispatch import Dispatcher
    from longshore.engine.build.dockerfile import Heredoc
    from longshore.engine.images.leases import Lease

# Where here-documents that are programs lie in a step.
_DOCUMENTS = "/dev/pipes"


class StepFailed(SystemFailure):
    """A command of RUN ended with a code other than 0. code: it. step: what a client may enter of it (BuildKit's)."""

    def __init__(self, message: str, code: int, step: FailedStep | None = None) -> None:
        super().__init__(message)
        self.code, self.step = code, step


class Command:
    """One RUN of a stage."""

    def __init__(self, dispatcher: Dispatcher, instruction: Instruction) -> None:
        self._dispatcher, self._instruction = dispatcher, instruction

    async def run(self) -> None:
        """Raises EngineError."""
        dispatcher, instruction = self._dispatcher, self._instruction
        build, state, options = dispatcher.build, dispatcher.state, dispatcher.build.options
        program = heredoc_program(instruction) if build.buildkit else None
        if program is not None:
            words = [f"{_DOCUMENTS}/{document_file(program.name)}"]
        elif instruction.heredocs and instruction.shell:
            words = [*state.shell, heredoc_script(instruction)]
        else:
            words = dispatcher.command(instruction)
        if not words and not build.buildkit:
            # As a container without a command: what the image says.
            words = [*(state.config.get("Entrypoint") or []), *(state.config.get("Cmd") or [])]
        arguments = state.run_arguments(proxies=not build.buildkit)
        if not build.buildkit:
            arguments.sort()
        told = " ".join(words)
        if arguments:
            told = f"|{len(arguments)} {' '.join(arguments)} {told}"
        if build.buildkit:
            told = f"RUN {told} # buildkit"
        wanted = [
            mounts.parse(dispatcher.expand(text, instruction), instruction)
            for text in instruction.lists.get("mount", ())
        ]
        network = instruction.flags.get("network") or options.network
        if network not in ("default", "none", "host") and build.buildkit:
            raise InvalidParameter(f'invalid network mode "{network}"')
        security = instruction.flags.get("security", "sandbox")
        if security not in ("sandbox", "insecure"):
            raise InvalidParameter(f'security "{security}" is not valid')
        insecure = security == "insecure"
        if insecure and "security.insecure" not in options.entitlements:
            raise InvalidParameter("security.insecure is not allowed")
        if network == "host" and build.buildkit and "network.host" not in options.entitlements:
            raise InvalidParameter("network.host is not allowed")
        given = await self._devices()
        cwd, user = state.config.get("WorkingDir") or "/", state.config.get("User") or ""
        build.step(
            lambda: steps.command(
                words, [*arguments, *state.env], cwd, user, wanted, platform=options.platform, network=network,
                insecure=insecure,
            ),
            [mount.origin for mount in wanted if mount.kind == "bind"],
            wanted,
        )  # fmt: skip
        content = program.content if program is not None else ""
        bound = [[mount.key(), await mounts.content(dispatcher, mount)] for mount in wanted]
        key = dispatcher.key(
            told, words, arguments, network, security, bound, content, given, options.hosts if build.buildkit else ()
        )
        if await dispatcher.cached(key, told):
            return
        if not state.image and not state.chain and not state.config.get("Env"):
            raise InvalidParameter("Please provide a source image with `from` prior to run")
        build.runner.check(options.limits)
        with build.store.lease() as lease:
            lease.add(state.chain)
            root = StepRoot(build.store, state.chain)
            build.running(root.id)
            stack = contextlib.AsyncExitStack()
            try:
                await in_thread(root.mount)
                prepared = [await mounts.prepare(dispatcher, mount, stack) for mount in wanted]
                held = [mount for mount in prepared if mount is not None]
                await in_thread(root.add_mount_points, [(mount.target, mount.folder) for mount in held])
                if program is not None:
                    held.append(self._document(program, stack))
                step = RunStep(
                    root.id,
                    root.merged,
                    words,
                    [*state.hidden_arguments(), *arguments, *state.env, *mounts.environment(wanted)],
                    cwd,
                    user=user,
                    network=network,
                    mounts=held,
                    hosts=options.hosts,
                    limits=options.limits,
                    privileged=insecure,
                    devices=given,
                    hostname=options.hostname,
                    overlay=root.root,
                )
                code = await build.runner.run(step, build.output)
                if code != 0:
                    await stack.aclose()
                    kept = await self._kept(root, step, lease) if build.buildkit else None
                    raise StepFailed(self._failure(words, code), code, kept)
                await stack.aclose()
                await in_thread(root.finish)
                layer = await in_thread(root.layer, lease)
            finally:
                await stack.aclose()
                await in_thread(root.discard)
            build.removed(root.id)
            dispatcher.commit(key, told, layer, root.id)

    async def _devices(self) -> list[str]:
        """The devices that a RUN gets. Raises EngineError."""
        wanted = [
            devices.parse(self._dispatcher.expand(text, self._instruction))
            for text in self._instruction.lists.get("device", ())
        ]
        if not wanted:
            return []
        folders = self._dispatcher.build.runner.device_folders
        return await in_thread(devices.resolve, wanted, folders, self._dispatcher.build.options.entitlements)

    async def _kept(self, root: StepRoot, step: RunStep, lease: Lease) -> FailedStep:
        """A failed step's files as layers, for a client that wants to look at them."""
        from longshore.engine.build.buildkit.failures import FailedStep

        await in_thread(root.finish)
        layer = await in_thread(root.layer, lease)
        after = layer.chain if layer is not None else root.chain
        return FailedStep(root.chain, after, step.argv, step.env, step.cwd, step.user, step.network)

    def _document(self, program: Heredoc, stack: contextlib.AsyncExitStack) -> Mount:
        """A here-document that is a program, as a file of the step."""
        folder = new_folder(self._dispatcher.build.store)
        stack.push_async_callback(in_thread, remove_path, folder)
        path = folder / document_file(program.name)
        path.write_text(program.content)
        folder.chmod(0o755)
        path.chmod(0o755)
        return Mount(str(folder), _DOCUMENTS, ("rbind", "ro"))

    def _failure(self, words: list[str], code: int) -> str:
        text = " ".join(words)
        if self._dispatcher.build.buildkit:
            return f'process "{text}" did not complete successfully: exit code: {code}'
        return f"The command '{text}' returned a non-zero code: {code}"


def heredoc_program(instruction: Instruction) -> Heredoc | None:
    """The here-document of a RUN that is a program: alone, and told by its first line who runs it."""
    heredocs = instruction.heredocs
    if len(heredocs) != 1 or not instruction.shell or not re.fullmatch(r"<<-?\S+", instruction.words[0].strip()):
        return None
    return heredocs[0] if heredocs[0].content.startswith("#!") else None


def heredoc_script(instruction: Instruction) -> str:
    """The shell script that a RUN with here-documents means."""
    words = instruction.words[0]
    heredocs = instruction.heredocs
    if len(heredocs) == 1 and re.fullmatch(r"<<-?\S+", words.strip()):
        # The document alone is the script.
        return heredocs[0].content
    script = words
    for heredoc in heredocs:
        script += "\n" + heredoc.content + heredoc.name
    return script
