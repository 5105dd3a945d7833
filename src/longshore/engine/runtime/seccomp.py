"""Seccomp filters: the default profile (data/seccomp.json) and profiles that a user hands in.

The default's table is the one in Docker's documentation ("Seccomp security profiles for Docker"): a list of allowed
calls, further ones per capability, per machine and per kernel version, and three rules on arguments (the namespaces of
clone, the address families of socket, the personas of personality).
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import platform
import re
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import orjson

# CLONE_NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWCGROUP
_NAMESPACE_FLAGS = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x02000000
_AF_ALG, _AF_VSOCK = 38, 40
_GO_MACHINE = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "x86"}


class BadProfile(ValueError):
    """A seccomp profile that cannot be used; the text is dockerd's."""


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = orjson.loads((Path(__file__).parent / "data" / "seccomp.json").read_bytes())
    return table


@cache
def _kernel() -> tuple[int, int]:
    major, minor = platform.release().split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


@cache
def _architectures() -> list[str]:
    """Those of the table that this kernel runs: x32 is left out where the kernel says that it was built without.

    Nothing could run as x32 there, and half of the work of making a filter is that architecture's.
    """
    named: list[str] = _table()["architectures"].get(platform.machine(), [])
    without = re.search(r"^# CONFIG_X86_X32(_ABI)? is not set$", _kernel_settings(), re.MULTILINE)
    return [name for name in named if name != "SCMP_ARCH_X32" or not without]


def _kernel_settings() -> str:
    """What the kernel was built with; "" where nobody says."""
    for path in ("/proc/config.gz", f"/boot/config-{platform.release()}"):
        with contextlib.suppress(OSError):
            data = Path(path).read_bytes()
            return (gzip.decompress(data) if path.endswith(".gz") else data).decode(errors="replace")
    return ""


def _version(text: str) -> tuple[int, int]:
    try:
        major, minor = text.split(".")
        return int(major), int(minor)
    except ValueError:
        raise BadProfile(f"invalid kernel version: {text!r}") from None


def _allow(names: Iterable[str], *args: dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": list(names), "action": "SCMP_ACT_ALLOW"}
    if args:
        rule["args"] = list(args)
    return rule


@lru_cache(maxsize=32)
def _default(capabilities: frozenset[str]) -> dict[str, Any]:
    table, machine = _table(), platform.machine()
    names: list[str] = table["allow"].split()
    for version, text in table["kernel"].items():
        if _kernel() >= _version(version):
            names += text.split()
    names += table["machines"].get(machine, "").split()
    for capability, text in table["capabilities"].items():
        if capability in capabilities:
            names += text.split()
    rules = [
        _allow(dict.fromkeys(names)),
        _allow(["socket"], {"index": 0, "value": _AF_ALG, "op": "SCMP_CMP_LT"}),
        _allow(["socket"], {"index": 0, "value": _AF_ALG + 1, "op": "SCMP_CMP_EQ"}),
        _allow(["socket"], {"index": 0, "value": _AF_VSOCK, "op": "SCMP_CMP_GT"}),
    ]
    rules += [_allow(["personality"], {"index": 0, "value": v, "op": "SCMP_CMP_EQ"}) for v in table["personality"]]
    if "CAP_SYS_ADMIN" not in capabilities:
        flags = 1 if machine == "s390x" else 0
        rules.append(
            _allow(
                ["clone"],
                {"index": flags, "value": _NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"},
            )
        )
        # clone3's flags lie in memory where a filter cannot look: ENOSYS makes libc fall back to clone.
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "architectures": _architectures(),
        "syscalls": rules,
    }


def default_profile(capabilities: Iterable[str]) -> dict[str, Any]:
    """The OCI `linux.seccomp` object for a container with this bounding set. Treat it as read-only: it is shared."""
    return _default(frozenset(capabilities))


def _explain(text: str | bytes) -> str:
    from longshore.engine.containers.gojson import explain

    return explain(text.decode(errors="replace") if isinstance(text, bytes) else text)


def load_profile(text: str | bytes, capabilities: Iterable[str]) -> dict[str, Any] | None:
    """Turn a profile in Docker's JSON form (archMap, includes, excludes) into the OCI object; None: no filter.

    Raises BadProfile.
    """
    try:
        profile = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadProfile(f"Decoding seccomp profile failed: {_explain(text)}") from None
    if not isinstance(profile, dict):
        raise BadProfile("Decoding seccomp profile failed: not a JSON object")
    have, machine = set(capabilities), platform.machine()
    arch = _GO_MACHINE.get(machine, machine)
    calls = profile.get("syscalls") or []
    if not profile.get("defaultAction") and not calls:
        return None
    if profile.get("architectures") and profile.get("archMap"):
        raise BadProfile(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, use either 'architectures' or 'archMap'"
        )
    result: dict[str, Any] = {
        k: profile[k]
        for k in ("defaultAction", "defaultErrnoRet", "architectures", "flags")
        if profile.get(k) is not None
    }
    native = (_table()["architectures"].get(machine) or [""])[0]
    for entry in profile.get("archMap") or []:
        if entry.get("architecture") == native:
            result["architectures"] = [native, *(entry.get("subArchitectures") or [])]
            break
    rules: list[dict[str, Any]] = []
    for call in calls:
        names = call.get("names") or []
        if call.get("name"):
            if names:
                raise BadProfile(
                    "both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'"
                )
            names = [call["name"]]
        includes, excludes = call.get("includes") or {}, call.get("excludes") or {}
        if arch in (excludes.get("arches") or ()) or have.intersection(excludes.get("caps") or ()):
            continue
        if excludes.get("minKernel") and _kernel() >= _version(excludes["minKernel"]):
            continue
        if includes.get("arches") and arch not in includes["arches"]:
            continue
        if not have.issuperset(includes.get("caps") or ()):
            continue
        if includes.get("minKernel") and _kernel() < _version(includes["minKernel"]):
            continue
        rule = {"names": names, "action": call.get("action", "")}
        if call.get("errnoRet") is not None:
            rule["errnoRet"] = call["errnoRet"]
        if call.get("args"):
            rule["args"] = [arg for arg in call["args"] if arg]
        rules.append(rule)
    result["syscalls"] = rules
    return result
