"""kubectl logs -f goes on over a rotation, and a log in bulk is what its lines say."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from longshore.node.kubelet import logs
from longshore.wire import crilog

NOW = 1_700_000_000 * 10**9


def lines(first: int, count: int) -> bytes:
    return b"".join(crilog.format_line(NOW + n, b"stdout", b"line %d" % n) for n in range(first, first + count))


async def test_following_goes_on_over_rotations(tmp_path):
    path = tmp_path / "0.log"
    path.write_bytes(lines(0, 1000))
    alive, wake = True, asyncio.Event()

    async def running() -> bool:
        return alive

    seen = b""

    async def follow() -> None:
        nonlocal seen
        async for piece in logs.read(path, logs.Options(follow=True), running=running, wake=wake):
            seen += piece

    task = asyncio.create_task(follow())
    for turn in range(1, 5):
        async with asyncio.timeout(10):
            while seen.count(b"\n") < turn * 1000:
                await asyncio.sleep(0.01)
        with path.open("ab") as out:
            out.write(lines(turn * 1000, 500))
        path.rename(tmp_path / f"0.log.{turn}")
        path.write_bytes(lines(turn * 1000 + 500, 500))
    async with asyncio.timeout(10):
        while seen.count(b"\n") < 5000:
            await asyncio.sleep(0.01)
        alive = False
        wake.set()
        await task
    assert seen == b"".join(b"line %d\n" % n for n in range(5000))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"stdout", b"stdout", b"stderr"]),
            st.booleans(),
            st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")),
        ),
        max_size=6,
    ),
    st.sampled_from([b"", b"stdout", b"stderr"]),
)
def test_a_block_reads_as_its_lines(records, stream):
    block = b"".join(crilog.format_line(NOW, where, text, full) for where, full, text in records)
    expected = b"".join(text + (b"\n" if full else b"") for where, full, text in records if stream in (b"", where))
    assert logs._render(block, logs.Options(stream=stream)) == expected


async def test_the_last_lines_are_those_of_the_moment_of_asking(tmp_path):
    path = tmp_path / "0.log"
    path.write_bytes(lines(0, 10))

    async def running() -> bool:
        return True

    seen = b""
    async for piece in logs.read(path, logs.Options(tail=2), running=running, wake=asyncio.Event()):
        seen += piece
        with path.open("ab") as out:
            out.write(lines(10, 5))
    assert seen == b"line 8\nline 9\n"
