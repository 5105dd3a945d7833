"""A streamed answer of the Docker API ends with what went wrong, whatever it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from longshore.engine.dockerapi.images import stream
from longshore.engine.errors import SystemFailure


class Writer:
    def __init__(self) -> None:
        self.lines: list[Any] = []

    def write(self, data: bytes) -> None:
        self.lines.append(orjson.loads(data))

    async def drain(self) -> None:
        """There is no back-pressure here."""


def call(writer: Writer) -> Any:
    async def start(status: int) -> Writer:
        assert status == 200
        return writer

    return SimpleNamespace(start=start, request=SimpleNamespace(method="POST", path="/build"))


@pytest.mark.parametrize(
    ("error", "words"),
    [(SystemFailure("no space left on device"), "no space left on device"), (KeyError("x"), "internal error")],
)
async def test_an_error_after_the_first_message_is_a_message(error: Exception, words: str) -> None:
    writer = Writer()

    async def work(say: Any) -> None:
        say({"stream": "Step 1/1"})
        raise error

    assert await stream(call(writer), work) is None
    assert writer.lines == [{"stream": "Step 1/1"}, {"errorDetail": {"message": words}, "error": words}]


async def test_an_error_before_the_first_message_is_the_answer() -> None:
    async def work(_: Any) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await stream(call(Writer()), work)
