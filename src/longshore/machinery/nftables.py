"""nftables through libnftables in this process: rule text in, text or JSON out, and notice of others' changes.

A run is one atomic transaction of the kernel. An `Nftables` belongs to the network namespace in which it was made and
keeps to it, whichever thread uses it. Calls are synchronous and leave the interpreter's lock: a small change takes the
kernel a millisecond or two, a ruleset of many thousand elements seconds (put those into a thread). Source:
libnftables(3), libnftables-json(5), linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import orjson

from longshore.machinery import netns

logger = logging.getLogger("longshore.nftables")

_STATELESS, _HANDLE, _JSON, _ECHO, _TERSE = 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 11
_NUMERIC = 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10
_library: ctypes.CDLL | None = None


class NftablesError(Exception):
    """The kernel or the parser refused a transaction: nothing of it is in force. The text is libnftables' own."""

    @property
    def missing(self) -> bool:
        """Something that was named is not there."""
        return "No such file or directory" in str(self) or "does not exist" in str(self)

    @property
    def exists(self) -> bool:
        return "File exists" in str(self)


class NftablesUnavailable(Exception):
    """libnftables is not installed, or the kernel has no nf_tables for us."""


def _load() -> ctypes.CDLL:
    global _library
    if _library is None:
        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            raise NftablesUnavailable(f"libnftables cannot be loaded (Debian: libnftables1): {error}") from None
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_free.argtypes = [ctypes.c_void_p]
        library.nft_ctx_buffer_output.argtypes = [ctypes.c_void_p]
        library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
        library.nft_ctx_get_output_buffer.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_ctx_set_dry_run.argtypes = [ctypes.c_void_p, ctypes.c_bool]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        _library = library
    return _library


def _sockets() -> dict[str, int]:
    """The sockets of this process: "socket:[inode]" to descriptor."""
    found: dict[str, int] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found[target] = int(name)
    return found


class Nftables:
    """A conversation with the nf_tables of one network namespace.

    namespace: path or descriptor of it; None: the caller's own. Raises NftablesUnavailable, PermissionError.
    """

    def __init__(self, namespace: netns.Namespace | None = None) -> None:
        self._library = _load()
        # libnftables ends the process when it may not open its socket: ask in a way that raises.
        netns.make_socket(namespace, socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12).close()
        self.port = 0
        self._context = self._make() if namespace is None else netns.call(namespace, self._make)
        if not self._context:
            raise NftablesUnavailable("libnftables gives no context")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)
        self._lock = threading.Lock()

    def _make(self) -> Any:
        """Make the context; learn its socket's netlink port, by which the kernel names who made a change."""
        before = _sockets()
        context = self._library.nft_ctx_new(0)
        for name, fd in _sockets().items():
            if name in before:
                continue
            try:
                copy = socket.socket(fileno=os.dup(fd))
            except OSError:
                continue
            with copy:
                if copy.family == socket.AF_NETLINK and copy.proto == 12:
                    if not copy.getsockname()[0]:
                        copy.bind((0, 0))  # libnftables leaves it to the first send
                    self.port = copy.getsockname()[0]
        return context

    def run(self, text: str) -> str:
        """Carry out commands as one transaction. Returns what they print. Raises NftablesError."""
        return self._run(text, _NUMERIC | _STATELESS)

    def check(self, text: str) -> None:
        """Have commands checked without carrying them out. Raises NftablesError."""
        with self._lock:
            self._library.nft_ctx_set_dry_run(self._handle(), True)
        try:
            self.run(text)
        finally:
            with self._lock:
                self._library.nft_ctx_set_dry_run(self._handle(), False)

    def json(self, text: str, *, terse: bool = False, handles: bool = False) -> list[dict[str, Any]]:
        """Carry out a list command; its objects as libnftables-json(5) describes them, without the metainfo.

        terse: without the elements of sets and maps.
        """
        flags = _NUMERIC | _JSON | (_TERSE if terse else 0) | (_HANDLE if handles else 0)
        answer = self._run(text, flags)
        found: list[dict[str, Any]] = orjson.loads(answer)["nftables"] if answer else []
        return [item for item in found if "metainfo" not in item]

    def tables(self) -> set[tuple[str, str]]:
        """(family, name) of every table."""
        return {
            (item["table"]["family"], item["table"]["name"]) for item in self.json("list tables") if "table" in item
        }

    def _handle(self) -> Any:
        if not self._context:
            raise NftablesUnavailable("this conversation is closed")
        return self._context

    def _run(self, text: str, flags: int) -> str:
        with self._lock:
            context = self._handle()
            self._library.nft_ctx_output_set_flags(context, flags)
            failed = self._library.nft_run_cmd_from_buffer(context, text.encode())
            output: bytes = self._library.nft_ctx_get_output_buffer(context) or b""
            said: bytes = self._library.nft_ctx_get_error_buffer(context) or b""
        if failed:
            raise NftablesError(said.decode(errors="replace").strip()[:4000] or "nftables: the command failed")
        return output.decode(errors="replace")

    def close(self) -> None:
        with self._lock:
            if self._context:
                self._library.nft_ctx_free(self._context)
                self._context = None

    def __enter__(self) -> Nftables:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_SUBSYSTEM = 10
_NEWGEN = 15
_REMOVALS = {2, 5, 8, 11, 14, 20}  # DELTABLE, DELCHAIN, DELRULE, DELSET, DELSETELEM, DELOBJ
_CHANGES = {0, 3, 6, 9, 12, 18} | _REMOVALS


class ChangeMonitor:
    """Tells when someone else has changed one of these tables (`nft flush ruleset`, another program).

    tables: names, of any family. changed(): called on the running loop when a transaction of others has touched one of
    them. lost(): called when notices were lost, so that nobody knows. own_ports: netlink ports (`Nftables.port`) whose
    changes are not told.
    """

    def __init__(
        self,
        tables: set[str],
        changed: Callable[[], None],
        *,
        lost: Callable[[], None] | None = None,
        own_ports: set[int],
        namespace: netns.Namespace | None = None,
        removals_only: bool = False,
    ) -> None:
        self._tables = {name.encode() for name in tables}
        self._changed = changed
        self._lost = lost or changed
        self._own_ports = own_ports
        self._kinds = _REMOVALS if removals_only else _CHANGES
        self._socket = netns.make_socket(
            namespace, socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 12
        )
        try:
            # SO_RCVBUFFORCE: a big transaction of our own may tell of every element.
            self._socket.setsockopt(socket.SOL_SOCKET, 33, 8 * 2**20)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
        self._socket.bind((0, 0))
        self._socket.setsockopt(270, 1, 7)  # SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        touched = lost = False
        while True:
            try:
                data = self._socket.recv(1 << 17)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    lost = True
                    continue
                logger.warning("notices of nftables changes ended: %s", error)
                self.close()
                break
            touched = self._foreign(data) or touched
        if touched:
            self._changed()
        elif lost:
            self._lost()

    def _foreign(self, data: bytes) -> bool:
        offset = 0
        found = False
        while offset + 20 <= len(data):
            length, kind, _, _, port = struct.unpack_from("=IHHII", data, offset)
            if length < 16:
                break
            if kind >> 8 == _SUBSYSTEM and (kind & 0xFF) in self._kinds and port not in self._own_ports:
                # In every one of these messages attribute 1 is the table's name, and comes first.
                size, attribute = struct.unpack_from("=HH", data, offset + 20)
                if attribute & 0x3FFF == 1 and data[offset + 24 : offset + 20 + size].rstrip(b"\0") in self._tables:
                    found = True
            offset += (length + 3) & ~3
        return found

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
