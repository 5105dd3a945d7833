"""Git repositories as build contexts and as sources of ADD: which text names one, and checking it out into a folder.

Source: BuildKit frontend/dockerfile/dfgitutil (the forms and their errors), source/git (what is fetched); git(1).
"""

from __future__ import annotations

import base64
import os
import posixpath
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.engine.images.extract import remove_path
from longshore.engine.images.streams import in_thread
from longshore.machinery import process, rooted

_PROTOCOLS = ("http", "https", "ssh", "git")
_SCHEME = re.compile(r"([a-zA-Z0-9]+)://")
_SCP = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*@)[A-Za-z0-9._-]+:[^:].*")
_COMMIT = re.compile(r"[a-f0-9]{40}|[a-f0-9]{64}")
_TIMEOUT = 600.0

Secret = Callable[[str], Awaitable[bytes | None]]


@dataclass(frozen=True, slots=True)
class GitReference:
    """A repository and what of it is meant. ref "": the default branch; folder: a path inside; checksum: the commit."""

    remote: str
    ref: str = ""
    folder: str = ""
    checksum: str = ""
    keep: bool | None = None
    submodules: bool = True
    commit_times: bool = False


def _boolean(name: str, text: str) -> bool:
    if text in ("", "1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise InvalidParameter(f'invalid {name} value: "{text}"')


def parse(text: str) -> GitReference | None:
    """The repository that a text names, None where it names none. Raises InvalidParameter for a wrong query.

    "https://host/repo.git#ref:folder", "https://host/repo.git?ref=..&subdir=..", "git://...", "ssh://...",
    "git@host:repo", "github.com/owner/repo".
    """
    if text.startswith(("./", "../", "/")):
        return None
    if text.startswith("github.com/"):
        text = f"https://{text}"
        path_must_end = False
    else:
        path_must_end = True
    scheme = _SCHEME.match(text)
    if scheme:
        if scheme[1].lower() not in _PROTOCOLS:
            return None
        parts = urlsplit(text)
        if path_must_end and parts.scheme in ("http", "https") and not parts.path.endswith(".git"):
            return None
        fragment, query = parts.fragment, parts.query
        remote = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
    elif _SCP.fullmatch(text):
        remote, _, fragment = text.partition("#")
        remote, _, query = remote.partition("?")
    else:
        return None
    ref, _, folder = fragment.partition(":")
    return _with_query(remote, ref, posixpath.join("/", folder).strip("/"), query)


def _with_query(remote: str, ref: str, folder: str, query: str) -> GitReference:
    values = parse_qs(query, keep_blank_values=True)
    single: dict[str, str] = {}
    flags = ("submodules", "keep-git-dir", "fetch-by-commit")
    for key, given in values.items():
        if len(given) > 1:
            raise InvalidParameter(f'query "{key}" has multiple values')
        if not given[0] and key not in flags:
            raise InvalidParameter(f'query "{key}" has no value')
        single[key] = given[0]
    for key in single:
        if key not in ("ref", "tag", "branch", "subdir", "checksum", "commit", "mtime", *flags):
            raise InvalidParameter(f'unexpected query "{key}"')
    named = single.get("ref", "")
    for key, prefix in (("tag", "refs/tags/"), ("branch", "refs/heads/")):
        if key in single:
            full = single[key] if single[key].startswith(prefix) else prefix + single[key]
            if named and named != full:
                raise InvalidParameter(
                    "branch conflicts with tag" if "tag" in single and key == "branch"
                    else f'ref conflicts: "{named}" vs "{full}"'
                )  # fmt: skip
            named = full
    if ref and named and ref != named:
        raise InvalidParameter(f'ref conflicts: "{ref}" vs "{named}"')
    inner = single.get("subdir", "")
    if folder and inner and folder != inner:
        raise InvalidParameter(f'subdir conflicts: "{folder}" vs "{inner}"')
    if single.get("mtime", "checkout") not in ("checkout", "commit"):
        raise InvalidParameter(f'invalid mtime value: "{single["mtime"]}" (must be "checkout" or "commit")')
    return GitReference(
        remote,
        ref or named,
        folder or inner.strip("/"),
        single.get("checksum") or single.get("commit") or "",
        _boolean("keep-git-dir", single["keep-git-dir"]) if "keep-git-dir" in single else None,
        _boolean("submodules", single["submodules"]) if "submodules" in single else True,
        single.get("mtime") == "commit",
    )


async def checkout(
    source: GitReference, folder: Path, *, keep: bool = False, secret: Secret | None = None, agent: Path | None = None
) -> str:
    """Bring a repository's files into `folder` (empty); the commit that they are of.

    keep: .git stays. secret: gives the client's GIT_AUTH_TOKEN and GIT_AUTH_HEADER. agent: an ssh agent's socket.
    Raises SystemFailure with git's words.
    """
    if source.remote.startswith("-") or source.ref.startswith("-"):
        raise InvalidParameter(f"invalid git reference {source.ref or source.remote}")
    git = _Git(folder, await _environment(source, secret, agent))
    keep = source.keep if source.keep is not None else keep
    await git.run("init", "--quiet", "--template=", ".")
    await git.run("remote", "add", "origin", source.remote)
    commit = await git.fetch(source)
    if source.checksum and not commit.startswith(source.checksum):
        raise SystemFailure(f"expected checksum to match {source.checksum}, got {commit}")
    if source.submodules and os.path.lexists(folder / ".gitmodules"):
        try:
            await git.run("submodule", "update", "--init", "--recursive", "--depth=1")
        except SystemFailure as error:
            raise SystemFailure(f"failed to update submodules for {source.remote}: {error.message}") from None
    when = int(await git.run("show", "-s", "--format=%ct", "HEAD")) if source.commit_times else 0
    if not keep:
        await in_thread(_forget, folder)
    if when:
        await in_thread(_set_times, folder, when)
    return commit


async def _environment(source: GitReference, secret: Secret | None, agent: Path | None) -> dict[str, str]:
    """git's whole environment: nothing of this machine's or its users' settings, only network protocols."""
    found = {
        "PATH": os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin"),
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": ":".join(_PROTOCOLS),
        "GIT_SSH_COMMAND": "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
        "LC_ALL": "C",
    }
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"):
        if name in os.environ:
            found[name] = os.environ[name]
    if agent is not None:
        found["SSH_AUTH_SOCK"] = str(agent)
    if secret is not None and source.remote.startswith(("http://", "https://")):
        host = urlsplit(source.remote).netloc.rpartition("@")[2]
        header = await _first(secret, f"GIT_AUTH_HEADER.{host}", "GIT_AUTH_HEADER")
        token = b"" if header else await _first(secret, f"GIT_AUTH_TOKEN.{host}", "GIT_AUTH_TOKEN")
        if token:
            header = b"basic " + base64.b64encode(b"x-access-token:" + token)
        if header:
            # By the environment: an argument could be read by everybody on the machine.
            scheme = urlsplit(source.remote).scheme
            found |= {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": f"http.{scheme}://{host}/.extraheader",
                "GIT_CONFIG_VALUE_0": "Authorization: " + header.decode("utf-8", "replace").strip(),
            }
    return found


async def _first(secret: Secret, *names: str) -> bytes:
    for name in names:
        value = await secret(name)
        if value:
            return value
    return b""


class _Git:
    """Runs git in one work tree."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment

    async def run(self, *arguments: str) -> str:
        """git's output, stripped. Raises SystemFailure with its complaint."""
        settings = (
            "protocol.allow=user",
            "advice.detachedHead=false",
            "core.fsmonitor=false",
            "core.hooksPath=/dev/null",
        )
        options = [word for setting in settings for word in ("-c", setting)]
        try:
            done = await process.run(
                ["git", "-C", str(self._folder), *options, *arguments],
                env={**self._environment, "GIT_PROTOCOL_FROM_USER": "1"},
                timeout=_TIMEOUT,
                check=False,
            )
        except FileNotFoundError:
            raise SystemFailure('exec: "git": executable file not found in $PATH') from None
        except TimeoutError:
            raise SystemFailure(f"git {arguments[0]}: context deadline exceeded") from None
        if done.returncode:
            raise SystemFailure(
                f"git stderr:\n{done.stderr.decode('utf-8', 'replace').strip()}: exit status {done.returncode}"
            )
        return done.stdout.decode("utf-8", "replace").strip()

    async def fetch(self, source: GitReference) -> str:
        """Fetch and check out what is meant, of its history no more than is needed; the commit."""
        failed = f"failed to fetch remote {source.remote}: "
        wanted = source.ref or "HEAD"
        try:
            await self._part(wanted, "--depth=1")
        except SystemFailure as error:
            if "does not support shallow" in error.message:  # a server of plain files
                await self._part(wanted)
            elif _is_absent(error.message):
                await self._whole(source, failed)
            else:
                raise SystemFailure(failed + error.message) from None
        return await self.run("rev-parse", "HEAD")

    async def _part(self, wanted: str, *options: str) -> None:
        await self.run("fetch", "--quiet", *options, "--no-tags", "--force", "origin", "--", wanted)
        await self.run("checkout", "--quiet", "--force", "--detach", "FETCH_HEAD")

    async def _whole(self, source: GitReference, failed: str) -> None:
        """A commit that the server does not give by its name: all branches and tags, then it is looked for."""
        try:
            await self.run("fetch", "--quiet", "--tags", "origin", "--", "+refs/heads/*:refs/remotes/origin/*")
        except SystemFailure as error:
            raise SystemFailure(failed + error.message) from None
        try:
            await self.run("checkout", "--quiet", "--force", "--detach", source.ref, "--")
        except SystemFailure:
            raise SystemFailure(f"repository does not contain ref {source.ref}") from None


def _is_absent(message: str) -> bool:
    return any(
        text in message
        for text in ("couldn't find remote ref", "not our ref", "unadvertised object", "no such remote ref")
    )


def _forget(folder: Path) -> None:
    """Take .git away, also that of submodules."""
    remove_path(folder / ".git")
    for above, folders, names in os.walk(folder):
        for name in (*folders, *names):
            if name == ".git":
                remove_path(Path(above) / name)


def _set_times(folder: Path, seconds: int) -> None:
    for above, folders, names in os.walk(folder):
        for name in (*folders, *names, "."):
            os.utime(os.path.join(above, name), (seconds, seconds), follow_symlinks=False)


async def inner(folder: Path, source: GitReference) -> Path:
    """The folder of a checked-out repository that is meant. Raises SystemFailure where it is none."""
    if not source.folder:
        return folder
    try:
        path = await in_thread(rooted.real_path, folder, source.folder)
    except OSError:
        raise SystemFailure(f"failed to read subdir {source.folder}: no such file or directory") from None
    found = folder / path.lstrip("/")
    if not found.is_dir():
        raise SystemFailure(f"git subpath resolved to non-directory {source.folder}")
    return found
