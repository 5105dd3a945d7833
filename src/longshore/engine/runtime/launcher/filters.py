"""Seccomp filters as the kernel takes them, made from the OCI `linux.seccomp` object by libseccomp, as runc makes them.

Source: config-linux.md "Seccomp"; seccomp_init(3) and its relatives; runc's libcontainer/seccomp (also patchbpf, which
answers calls that are newer than the profile with ENOSYS).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import signal
import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from typing import Any

import orjson

from . import kernel

Profile = Mapping[str, Any]

_ACTIONS = {
    "SCMP_ACT_KILL": 0, "SCMP_ACT_KILL_THREAD": 0, "SCMP_ACT_KILL_PROCESS": 0x80000000, "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_TRACE": 0x7FF00000, "SCMP_ACT_LOG": 0x7FFC0000, "SCMP_ACT_ALLOW": 0x7FFF0000,
}  # fmt: skip
_WITH_NUMBER = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_ALLOWING = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")
_OPERATORS = {
    "SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}  # fmt: skip
_FLAGS = {"SECCOMP_FILTER_FLAG_TSYNC": 0, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4}
_CTL_NNP = 3
_X32, _X32_BIT = 0x4000003E, 0x40000000
_X86_64 = 0xC000003E

#: What the launcher's processes call between loading a filter and running the command.
_BETWEEN = (
    "capset", "clone", "setsid", "ioctl", "execve", "sendto", "exit_group", "brk", "mmap", "munmap", "write",
)  # fmt: skip


class Uncompilable(ValueError):
    """A profile that is not carried here; the text says why."""


class _Condition(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        raise Uncompilable("libseccomp.so.2 is not there") from None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    return library


def compiled(profile: Profile) -> tuple[bytes, int, bool]:
    """(filter, flags of seccomp(2), whether it may be loaded before the command is born). Raises Uncompilable.

    Made once a profile; that takes some milliseconds.
    """
    return _compiled(orjson.dumps(profile))


@lru_cache(maxsize=32)
def _compiled(text: bytes) -> tuple[bytes, int, bool]:
    profile = orjson.loads(text)
    if profile.keys() - {"defaultAction", "defaultErrnoRet", "architectures", "flags", "syscalls"}:
        raise Uncompilable("a seccomp profile with a listener or other fields")
    flags = 0
    for name in profile.get("flags") or ():
        if name not in _FLAGS:
            raise Uncompilable(f"seccomp flag {name}")
        flags |= _FLAGS[name]
    return newer_calls(profile) + _exported(profile), flags, _lets_pass(profile)


def _action(name: str, number: int | None) -> int:
    if name not in _ACTIONS:
        raise Uncompilable(f"seccomp action {name}")
    return _ACTIONS[name] | ((errno.EPERM if number is None else number) if name in _WITH_NUMBER else 0)


def _architectures(profile: Profile) -> Iterator[int]:
    for name in profile.get("architectures") or ():
        token = _library().seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
        if not token:
            raise Uncompilable(f"seccomp architecture {name}")
        yield token


def _exported(profile: Profile) -> bytes:
    library = _library()
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    if not context:
        raise Uncompilable("libseccomp refuses the default action")
    try:
        for token in _architectures(profile):
            result = library.seccomp_arch_add(context, ctypes.c_uint32(token))
            if result < 0 and result != -errno.EEXIST:
                raise Uncompilable(f"libseccomp refuses an architecture: {os.strerror(-result)}")
        library.seccomp_attr_set(context, _CTL_NNP, ctypes.c_uint32(0))
        for rule in profile.get("syscalls") or ():
            action = _action(rule["action"], rule.get("errnoRet"))
            if action != default:
                _add(library, context, rule, action)
        fd = os.memfd_create("filter", os.MFD_CLOEXEC)
        try:
            if library.seccomp_export_bpf(context, fd) != 0:
                raise Uncompilable("libseccomp could not write the filter")
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)
    finally:
        library.seccomp_release(context)


def _add(library: ctypes.CDLL, context: ctypes.c_void_p, rule: Mapping[str, Any], action: int) -> None:
    conditions = [
        _Condition(arg["index"], _operator(arg["op"]), arg["value"], arg.get("valueTwo") or 0)
        for arg in rule.get("args") or ()
    ]
    # Several conditions on one argument are alternatives; on several arguments they hold together.
    groups = [conditions]
    if len({c.arg for c in conditions}) < len(conditions):
        groups = [[c] for c in conditions]
    for name in rule["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:
            continue  # a call that this libseccomp does not know
        for group in groups:
            array = (_Condition * len(group))(*group)
            result = library.seccomp_rule_add_array(
                context, ctypes.c_uint32(action), ctypes.c_int(number), ctypes.c_uint(len(group)), array
            )
            if result < 0 and result != -errno.EEXIST:
                raise Uncompilable(f"libseccomp refuses a rule for {name}: {os.strerror(-result)}")


def _operator(name: str) -> int:
    if name not in _OPERATORS:
        raise Uncompilable(f"seccomp operator {name}")
    return _OPERATORS[name]


# ------------------------------------------------------------------------------------------- what is newer than the profile

_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x06


def newer_calls(profile: Profile) -> bytes:
    """Instructions before the filter: a call past the last one that the profile names is not there (ENOSYS), so that
    programs fall back to what came before it."""
    if profile["defaultAction"] in _ALLOWING or profile.get("defaultErrnoRet") == errno.ENOSYS:
        return b""
    names = {name for rule in profile.get("syscalls") or () for name in rule["names"]}
    last = {token: number for token in _architectures(profile) if (number := _last(token, names)) >= 0}
    if not last:
        return b""
    missing = struct.pack("=HBBI", _RETURN, 0, 0, 0x00050000 | errno.ENOSYS)
    blocks: list[bytes] = []
    for token in sorted(last.keys() - {_X32}):
        body = [struct.pack("=HBBI", _LOAD, 0, 0, 0)]
        if token == _X86_64:
            # x32 has the same architecture and a bit in the call's number.
            body.append(struct.pack("=HBBI", _JUMP_AT_LEAST, 2, 0, _X32_BIT))
            body += [_unless_greater(last[token], skip=3 if _X32 in last else 1), missing]
            body += [_unless_greater(last[_X32], skip=1), missing] if _X32 in last else []
        else:
            body += [_unless_greater(last[token], skip=1), missing]
        blocks.append(struct.pack("=HBBI", _JUMP_EQUAL, 0, len(body), token) + b"".join(body))
    return _chain(blocks)


def _unless_greater(number: int, *, skip: int) -> bytes:
    return struct.pack("=HBBI", _JUMP_GREATER, 0, skip, number)


def _chain(blocks: Iterable[bytes]) -> bytes:
    # Each block looks at the architecture anew, as the one before may have loaded the call's number.
    architecture = struct.pack("=HBBI", _LOAD, 0, 0, 4)
    return b"".join(architecture + block for block in blocks)


def _last(token: int, names: Iterable[str]) -> int:
    library = _library()
    return max(
        (library.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(token), name.encode()) for name in names), default=-1
    )


# ------------------------------------------------------------------------------------------- what the launcher itself needs


def _lets_pass(profile: Profile) -> bool:
    """Whether a filter allows all calls between its loading and the command."""
    return all(_allows(profile, name) for name in _BETWEEN)


def _allows(profile: Profile, name: str) -> bool:
    rules = [rule for rule in profile.get("syscalls") or () if name in rule["names"]]
    if any(rule["action"] not in _ALLOWING for rule in rules):
        return False
    if profile["defaultAction"] in _ALLOWING:
        return True
    return any(not rule.get("args") or (name == "clone" and _allows_clone(rule["args"])) for rule in rules)


def _allows_clone(conditions: list[Mapping[str, Any]]) -> bool:
    """Whether the one condition holds for the launcher's clone(): its flags are the first argument."""
    (first, *others) = conditions
    flags = kernel.CLONE_PARENT | signal.SIGCHLD
    masked = first["op"] == "SCMP_CMP_MASKED_EQ" and flags & first["value"] == (first.get("valueTwo") or 0)
    return not others and first["index"] == 0 and masked
