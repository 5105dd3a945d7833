from __future__ import annotations

import asyncio
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from longshore.engine.runtime import logs
from longshore.wire.crilog import Line, format_line


def write(path: Path, *entries: tuple[int, str, str, bool], append: bool = False) -> None:
    with open(path, "ab" if append else "wb") as file:
        for time, stream, text, full in entries:
            file.write(format_line(time, stream.encode(), text.encode(), full))


async def collect(path: Path, **options: object) -> list[Line]:
    return [line async for batch in logs.read(path, **options) for line in batch]  # type: ignore[arg-type]


async def test_partial_records_are_joined_a_stream_at_a_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(
        log, (1, "stdout", "a", False), (2, "stderr", "x", True), (3, "stdout", "b", True), (4, "stdout", "end", False)
    )
    assert await collect(log) == [
        Line(2, b"stderr", True, b"x"),
        Line(1, b"stdout", True, b"ab"),
        Line(4, b"stdout", False, b"end"),
    ]


async def test_bounds(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, *((n, "stdout", str(n), True) for n in range(10)))
    assert [line.time for line in await collect(log, since=3, until=6)] == [3, 4, 5, 6]
    assert [line.time for line in await collect(log, tail=2)] == [8, 9]
    assert await collect(log, tail=0) == []
    assert len(await collect(log, tail=99)) == 10
    assert await collect(tmp_path / "absent") == []


@given(
    st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.text("ab ", max_size=9), st.booleans())),
    st.integers(0, 30),
    st.integers(1, 4),
)
def test_tail_is_a_suffix_of_everything(tmp_path_factory, entries, count, kept) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("log")
    log = folder / "log"
    entries = [(n, stream, text, full) for n, (stream, text, full) in enumerate(entries)]
    step = max(len(entries) // kept, 1)
    for start in range(0, len(entries), step):
        if start:
            logs.rotate(log, 100)
        write(log, *entries[start : start + step])
    everything = asyncio.run(collect(log))
    some = asyncio.run(collect(log, tail=count))
    assert len(some) <= max(count, 0) + 2 or len(some) <= len(everything)
    if all(full for *_, full in entries):
        assert some == (everything[-count:] if count else [])


async def test_follow_across_rotation_to_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, (1, "stdout", "one", True))
    ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    seen: list[bytes] = []

    async def follow() -> None:
        async for batch in logs.read(log, follow=True, ended=ended):
            seen.extend(line.message for line in batch)

    task = asyncio.create_task(follow())

    async def until(text: bytes) -> None:
        async with asyncio.timeout(5):
            while text not in seen:
                await asyncio.sleep(0.005)

    await until(b"one")
    write(log, (2, "stdout", "two", True), append=True)
    await until(b"two")
    logs.rotate(log, 3)
    write(log, (3, "stdout", "three", True))
    await until(b"three")
    write(log, (4, "stdout", "four", False), append=True)
    ended.set_result(None)
    await asyncio.wait_for(task, 5)
    assert seen == [b"one", b"two", b"three", b"four"]


def test_rotation_keeps_so_many_files(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for n in range(6):
        log.write_text(str(n))
        logs.rotate(log, 3)
    assert [f.read_text() for f in logs.files(log)] == ["4", "5"]
