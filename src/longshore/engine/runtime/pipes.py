"""Stdio of an exec that the engine itself holds: pipes, or the engine's end of a terminal."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from .attachment import STDERR, STDOUT, Attachment

_PIECE = 65536


class Ends:
    """The ends that the command gets of its stdio, and ours of them. Descriptors of ours do not block."""

    def __init__(self, *, stdin: bool, output: bool) -> None:
        """stdin, output: which to make; what is not made is /dev/null."""
        self.theirs: dict[int, int] = {}
        self.input = -1
        self.outputs: dict[int, int] = {}
        if stdin:
            self.theirs[0], self.input = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self.input, False)
        for stream in (STDOUT, STDERR) if output else ():
            self.outputs[stream], self.theirs[stream] = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self.outputs[stream], False)

    def given(self) -> None:
        """Close the command's ends: it has them."""
        for fd in self.theirs.values():
            os.close(fd)
        self.theirs.clear()

    def close(self) -> None:
        """Close everything."""
        self.given()
        for fd in (self.input, *self.outputs.values()):
            if fd >= 0:
                os.close(fd)


class PipeAttachment(Attachment):
    """The stdio of one exec; for a terminal one descriptor carries all of it."""

    def __init__(self, outputs: dict[int, int], input: int, *, terminal: bool, on_close: Callable[[], None]) -> None:
        """outputs: stream to descriptor. input: -1 for none. on_close: called when output is read no more before the end."""
        super().__init__()
        self._outputs = outputs
        self._input = input
        self._terminal = terminal
        self._on_close = on_close
        self._ended = False

    async def read(self) -> tuple[int, bytes] | None:
        while not self._closed and self._outputs:
            ended = self._ended
            for stream, fd in list(self._outputs.items()):
                try:
                    data = os.read(fd, _PIECE)
                except (BlockingIOError, InterruptedError):
                    continue
                except OSError:  # EIO: nobody has the terminal's other end any more
                    data = b""
                if data:
                    return stream, data
                self._drop(stream)
            # What the command wrote is in the pipes when its end is seen; what its children write later is not waited for.
            if ended:
                return None
            if self._outputs:
                await self._readable(*self._outputs.values())
        while not (self._closed or self._ended):
            await self._readable()
        return None

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self._closed or self._input < 0:
                raise BrokenPipeError(errno.EPIPE, "attachment is closed")
            try:
                view = view[os.write(self._input, view) :]
            except (BlockingIOError, InterruptedError):
                await self._writable(self._input)
            except OSError:
                raise BrokenPipeError(errno.EPIPE, "process has ended") from None

    def ended(self) -> None:
        """The command has ended: what is in the pipes is the rest."""
        self._ended = True
        self._wake()
        if self._closed:
            self.close_input()

    def close_input(self) -> None:
        if self._input >= 0 and not self._terminal:
            self._wake()
            os.close(self._input)
            self._input = -1

    def close(self, *, keep_input: bool | None = None) -> None:
        if self._closed:
            return
        self._closed = True
        self._wake()
        if not keep_input or self._ended:
            self.close_input()
        for stream in list(self._outputs):
            self._drop(stream)
        if not self._ended:
            self._on_close()

    def _drop(self, stream: int) -> None:
        fd = self._outputs.pop(stream)
        self._wake()
        if fd == self._input:
            self._input = -1
        os.close(fd)
