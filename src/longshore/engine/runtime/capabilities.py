"""Linux capabilities: names, what this machine can give, and Docker's way to add and drop them.

Source: capabilities(7); the default set of Docker's documentation ("Runtime privilege and Linux capabilities").
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

# In the order of their numbers in linux/capability.h.
NAMES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
]

DEFAULT = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
]


class UnknownCapability(ValueError):
    """A name that is no capability, or one that cannot be given on this machine; the text is dockerd's."""


@cache
def available() -> tuple[str, ...]:
    """The capabilities in our own bounding set: no container can get more."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            bits = int(line.split()[1], 16)
            return tuple(name for number, name in enumerate(NAMES) if bits >> number & 1)
    return tuple(NAMES)


def normalize(names: Iterable[str]) -> list[str]:
    """Upper case with the CAP_ prefix; "ALL" stays. Raises UnknownCapability."""
    result = []
    for name in names:
        upper = name.upper()
        if upper == "ALL":
            result.append(upper)
            continue
        if not upper.startswith("CAP_"):
            upper = "CAP_" + upper
        if upper not in NAMES:
            raise UnknownCapability(f'unknown capability: "{upper}"')
        if upper not in available():
            raise UnknownCapability(
                f'capability not supported by your kernel or not available in the current environment: "{upper}"'
            )
        result.append(upper)
    return result


def tweak(basics: Iterable[str], add: Iterable[str], drop: Iterable[str]) -> list[str]:
    """Docker's rule for --cap-add and --cap-drop on top of a basic set, cut to what this machine can give."""
    added, dropped = normalize(add), normalize(drop)
    if "ALL" in added:
        names: list[str] = [name for name in available() if name not in dropped]
    elif "ALL" in dropped:
        names = [name for name in added if name != "ALL"]
    else:
        names = [name for name in basics if name not in dropped]
        names += [name for name in added if name not in names]
    return [name for name in names if name in available()]
