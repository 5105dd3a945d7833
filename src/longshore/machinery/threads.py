"""Threads of one piece of work: what a thread changes of itself (its namespaces) ends with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_own_thread(work: Callable[[], T], name: str) -> T:
    """Run work in a thread that is thrown away, so that a namespace which it joins can never leak into other work.

    Blocks until it is done; returns what work returns and raises what it raises. name: the thread's.
    """
    found: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            found.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name=name)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return found[0]
