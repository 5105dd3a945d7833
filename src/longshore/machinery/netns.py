"""Network namespaces: make and pin them, work in them, remove them.

A namespace lives while a process, a descriptor or a mount holds it; `create` pins it with a bind mount on a file, as
`ip netns` does. Other threads never notice: only the thread that does the work enters. Source: network_namespaces(7).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from longshore.machinery.threads import in_own_thread

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)

Namespace = str | os.PathLike[str] | int


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def create(path: Path, *, loopback: bool = True) -> None:
    """Make a namespace and pin it at `path` (made if missing). Blocking for about a millisecond.

    loopback: bring `lo` up. Raises OSError (EEXIST when a namespace is pinned there already).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and pinned(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    path.touch(mode=0o444)

    def work() -> None:
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        source = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        _check(_libc.mount(source.encode(), os.fsencode(path), b"none", _MS_BIND, None), str(path))
        if loopback:
            raise_loopback()

    in_own_thread(work, "netns")


def pin(source: Path, path: Path) -> None:
    """Pin a namespace that is pinned elsewhere at `path` as well (made if missing). Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o444)
    _check(_libc.mount(os.fsencode(source), os.fsencode(path), b"none", _MS_BIND, None), str(path))


def raise_loopback() -> None:
    """Bring `lo` up in the calling thread's namespace. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _up(sock, b"lo")


def _up(sock: socket.socket, name: bytes) -> None:
    """SIOCSIFFLAGS: netdevice(7)."""
    import fcntl
    import struct

    request = struct.pack("16sh22x", name, 0)
    (flags,) = struct.unpack_from("h", fcntl.ioctl(sock, 0x8913, request), 16)
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh22x", name, flags | 0x1))


def pinned(path: Path) -> bool:
    """Whether a namespace is mounted at the path."""
    try:
        return os.stat(path).st_dev != os.stat(path.parent).st_dev
    except OSError:
        return False


def delete(path: Path) -> None:
    """Unpin a namespace and remove the file; the namespace goes when its last process does."""
    while _libc.umount2(os.fsencode(path), _MNT_DETACH) == 0:
        continue
    path.unlink(missing_ok=True)


@contextmanager
def opened(namespace: Namespace) -> Iterator[int]:
    """A descriptor of the namespace, as netlink and setns take it."""
    if isinstance(namespace, int):
        yield namespace
        return
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def of_process(pid: int) -> Path:
    """The path of a process's network namespace."""
    return Path(f"/proc/{pid}/ns/net")


def call(namespace: Namespace, work: Callable[[], T]) -> T:
    """Run a function inside a namespace, in a thread of its own, and give its result. Blocking."""

    def enter() -> T:
        with opened(namespace) as fd:
            _check(_libc.setns(fd, CLONE_NEWNET), "setns")
        return work()

    return in_own_thread(enter, "netns")


def make_socket(namespace: Namespace | None, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket of another namespace (sockets stay in the namespace where they were made); None: of our own."""
    if namespace is None:
        return socket.socket(family, kind, protocol)
    return call(namespace, lambda: socket.socket(family, kind, protocol))


async def connect(namespace: Namespace, host: str, port: int) -> socket.socket:
    """A TCP connection made in another namespace, to the first address of `host` there that answers.

    Not blocking. Raises OSError, socket.gaierror where the name has no address there.
    """
    loop = asyncio.get_running_loop()

    def look_up() -> list[tuple[socket.socket, Any]]:
        return [
            (socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol), address)
            for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        ]

    sockets = await loop.run_in_executor(None, call, namespace, look_up)
    failure: OSError | None = None
    for sock, address in sockets:
        try:
            await loop.sock_connect(sock, address)
        except OSError as error:
            failure = error
            continue
        for other, _ in sockets:
            if other is not sock:
                other.close()
        return sock
    for sock, _ in sockets:
        sock.close()
    raise failure or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def write_sysctl(namespace: Namespace | None, name: str, value: str) -> None:
    """Set a net sysctl ("net/ipv4/ip_forward") of a namespace. Raises OSError."""

    def work() -> None:
        # /proc/sys/net shows the namespace of the thread that opens it, under thread-self's view of /proc.
        Path(f"/proc/sys/{name}").write_text(value)

    if namespace is None:
        work()
    else:
        call(namespace, work)
