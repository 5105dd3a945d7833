"""Between the event loop and the threads that hash, unpack and compress: bounded in both directions."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from longshore.machinery.heap import trim

T = TypeVar("T")

# Hashing and unpacking release the GIL; more threads than this gain nothing on small machines and cost memory.
_executor: ThreadPoolExecutor | None = None
_BATCH = 1 << 20
_RELIEF = 32 << 20
_passed = 0


def passed(count: int) -> None:
    """So many octets went through this process: from time to time the allocator gives back what it holds for the next.

    Pieces of a quarter of a megabyte between small objects that stay leave holes, which glibc keeps: a pull of a few hundred
    megabytes cost as many tens of them. In a thread.
    """
    global _passed
    _passed += count
    if _passed >= _RELIEF:
        _passed = 0
        trim()


def executor() -> ThreadPoolExecutor:
    """The threads for bulk work on images (made at first use)."""
    global _executor
    if _executor is None:
        _executor = ThreadPoolExecutor(max_workers=8, thread_name_prefix="images")
    return _executor


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Run a blocking function in a bulk thread."""
    return await asyncio.get_running_loop().run_in_executor(executor(), function, *arguments)


async def pieces(source: Iterator[bytes]) -> AsyncIterator[bytes]:
    """A blocking iterator's items, each made in a thread; closed when the consumer stops early."""
    loop = asyncio.get_running_loop()

    def step() -> bytes | None:
        data = next(source, None)
        passed(len(data) if data is not None else _RELIEF)
        return data

    try:
        while (data := await loop.run_in_executor(executor(), step)) is not None:
            yield data
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            await asyncio.shield(loop.run_in_executor(executor(), close))


class Feed:
    """A stream filled by the event loop and read by a thread: read() blocks until there is something.

    limit: bytes held before put() waits.
    """

    def __init__(self, limit: int = 4 << 20) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._held: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._gone = False
        self._error: BaseException | None = None
        self._condition = threading.Condition()
        self._room = asyncio.Event()
        self.total = 0

    async def put(self, data: bytes) -> None:
        """Hand over a piece; waits while too much is held. Does nothing once the reader has gone."""
        if self._gone or not data:
            return
        with self._condition:
            self._held.append(data)
            self._size += len(data)
            self.total += len(data)
            full = self._size > self._limit
            if full:
                self._room.clear()
            self._condition.notify()
        if full:
            await self._room.wait()

    def end(self, error: BaseException | None = None) -> None:
        """No more follows; with an error, the reader's next read() raises it."""
        with self._condition:
            self._ended, self._error = True, error
            self._condition.notify()

    def read(self, limit: int) -> bytes:
        """A piece (its length is the writer's, not `limit`), b"" at the end. In a thread."""
        with self._condition:
            while not self._held:
                if self._error is not None:
                    raise self._error
                if self._ended:
                    return b""
                self._condition.wait()
            data = self._held.popleft()
            was_full = self._size > self._limit
            self._size -= len(data)
            if was_full and self._size <= self._limit:
                self._loop.call_soon_threadsafe(self._room.set)
        return data

    def gone(self) -> None:
        """The reader has stopped: what still comes is dropped. On the loop."""
        self._gone = True
        with self._condition:
            self._held.clear()
            self._size = 0
        self._room.set()


async def consume(source: AsyncIterable[bytes], work: Callable[[Callable[[int], bytes]], T]) -> T:
    """Run `work(read)` in a thread over an asynchronous stream; its result or error.

    What the work leaves unread is read and dropped, so that the sender can finish its request.
    """
    feed = Feed()

    async def fill() -> None:
        try:
            # A thread that is woken for every packet spends its time waking: pieces are gathered.
            held: list[bytes] = []
            size = 0
            async for data in source:
                held.append(bytes(data))
                size += len(data)
                if size >= _BATCH:
                    await feed.put(b"".join(held))
                    held, size = [], 0
            await feed.put(b"".join(held))
        except BaseException as error:
            feed.end(error if isinstance(error, Exception) else ConnectionAbortedError("canceled"))
            raise
        feed.end()

    filling = asyncio.ensure_future(fill())
    try:
        result = await in_thread(work, feed.read)
    except BaseException:
        feed.gone()
        if filling.done() and not filling.cancelled() and filling.exception() is not None:
            raise
        await _quietly(filling)
        raise
    feed.gone()
    await filling
    return result


async def _quietly(task: Awaitable[None]) -> None:
    try:
        await task
    except Exception:
        return
