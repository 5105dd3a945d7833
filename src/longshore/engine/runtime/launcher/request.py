"""What the engine asks of the launcher for one exec, and its form between the two.

Both are the same Python, and the one who reads trusts the one who writes, so that marshal's form will do.
"""

from __future__ import annotations

import marshal


class NotCarried(ValueError):
    """What this exec asks for is the OCI runtime's to do; the text says what."""


class Request:
    """One exec, in the terms of the kernel.

    args, env, cwd: of the command; env is in order and without duplicates. uid, gid, groups, umask: numbers inside the
    container. namespaces: CLONE_NEW* of what to join. cgroups: folders to join; on one that has no place for processes
    of its own any more (unified) the group of the first process is joined. capabilities: masks (bounding, effective, permitted, inheritable, ambient), bit N
    for capability N. limits: (resource, soft, hard). oom_score: None: unchanged. keyring: name of
    the session keyring. filter: a seccomp filter, b"" for none; filter_flags: of seccomp(2); filter_early: whether it
    allows what comes between the loading and the command, so that it may be loaded before the command is born.
    terminal: whether the command gets one, of size (rows, columns); (0, 0): the kernel's.
    """

    __slots__ = (
        "args", "capabilities", "cgroups", "cwd", "env", "filter", "filter_early", "filter_flags", "gid", "groups",
        "keyring", "limits", "namespaces", "no_new_privileges", "oom_score", "size", "terminal", "uid", "umask",
    )  # fmt: skip

    args: list[str]
    env: list[tuple[str, str]]
    cwd: str
    uid: int
    gid: int
    groups: list[int]
    umask: int
    namespaces: int
    cgroups: list[str]
    capabilities: list[int]
    no_new_privileges: bool
    limits: list[tuple[int, int, int]]
    oom_score: int | None
    keyring: str
    filter: bytes
    filter_flags: int
    filter_early: bool
    terminal: bool
    size: tuple[int, int]

    def dumps(self) -> bytes:
        """The request as bytes."""
        return marshal.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def loads(cls, data: bytes) -> Request:
        """The request that `dumps` made these bytes of."""
        request = cls()
        for name, value in marshal.loads(data).items():
            setattr(request, name, value)
        return request
