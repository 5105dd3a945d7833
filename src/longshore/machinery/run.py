"""How every process of Longshore runs: uvloop, logging to stderr, an orderly end on SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from longshore.machinery.heap import keep_small


class _Format(logging.Formatter):
    """One line a record: time in UTC with milliseconds, level's letter, room, message."""

    default_msec_format = "%s.%03dZ"
    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname).1s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")


def set_up_logging(level: int = logging.INFO) -> None:
    """Send all records of `level` and above to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Format())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def run_part(main: Callable[[], Coroutine[Any, Any, None]], *, level: int = logging.INFO) -> int:
    """Run a part until it ends or is told to.

    main: makes the part's coroutine; SIGTERM and SIGINT cancel it, so that its `finally` clauses clean up.
    Returns the process's exit code: 0 after an orderly end, 1 when the part failed.
    """
    import uvloop

    set_up_logging(level)

    async def supervised() -> int:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(main())
        told = False

        def stop() -> None:
            nonlocal told
            told = True
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        # What start-up has made stays: keep the collector from walking it again and again.
        loop.call_later(5, freeze)
        keep_small(loop)
        try:
            await task
        except asyncio.CancelledError:
            return 0 if told else 1
        except Exception:
            logging.getLogger("longshore").exception("the part failed")
            return 1
        return 0

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(supervised())


def freeze() -> None:
    """Spare the collector what start-up has made, and let it look for cycles less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # what calls make is freed by reference counting
