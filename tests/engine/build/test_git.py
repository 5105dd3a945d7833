"""Git repositories as contexts and as sources of ADD."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from longshore.engine.build import git
from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.machinery.http import Request, Response, Server

from .kit import Kit

BACKEND = "/usr/lib/git-core/git-http-backend"
needs_git = pytest.mark.skipif(
    not (shutil.which("git") and Path(BACKEND).exists()), reason="git with its http backend is not installed"
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("https://host/r.git", git.GitReference("https://host/r.git")),
        ("https://host/r.git#v1:sub/x", git.GitReference("https://host/r.git", "v1", "sub/x")),
        ("https://host/r.git?branch=b&subdir=s", git.GitReference("https://host/r.git", "refs/heads/b", "s")),
        ("https://host/r.git?tag=t&commit=ab", git.GitReference("https://host/r.git", "refs/tags/t", checksum="ab")),
        ("https://host/r.git?keep-git-dir&submodules=false", git.GitReference("https://host/r.git", keep=True, submodules=False)),
        ("git://host/r#:x", git.GitReference("git://host/r", "", "x")),
        ("ssh://u@host:22/r", git.GitReference("ssh://u@host:22/r")),
        ("git@host:o/r.git#m", git.GitReference("git@host:o/r.git", "m")),
        ("github.com/o/r#m", git.GitReference("https://github.com/o/r", "m")),
        ("https://host/r.tar.gz", None), ("./x.git", None), ("file:///r.git", None), ("f", None), ("ext::sh", None),
    ],
)  # fmt: skip
def test_references(text: str, wanted: git.GitReference | None) -> None:
    assert git.parse(text) == wanted


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("ref=a&ref=b", 'query "ref" has multiple values'),
        ("ref=", 'query "ref" has no value'),
        ("what=1", 'unexpected query "what"'),
        ("tag=a&branch=b", "branch conflicts with tag"),
        ("ref=b#a", 'ref conflicts: "a" vs "b"'),
        ("mtime=now", 'invalid mtime value: "now" (must be "checkout" or "commit")'),
        ("submodules=x", 'invalid submodules value: "x"'),
    ],
)
def test_wrong_queries(query: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        git.parse(f"https://host/r.git?{query}")
    assert caught.value.message == message


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[tuple[str, list[str]]]:
    """A git server with r.git (two commits, a tag on the first); its address, and the commits."""
    work = tmp_path / "work"
    settings = {"GIT_CONFIG_GLOBAL": "/dev/null", "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    settings |= {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in (("NAME", "n"), ("EMAIL", "e"), ("DATE", "2020-01-02T03:04:05Z"))}  # fmt: skip

    def run(*words: str, where: Path = work) -> str:
        return subprocess.run(
            ["git", *words], cwd=where, env=settings, check=True, capture_output=True, text=True
        ).stdout.strip()

    work.mkdir()
    run("init", "-q", "-b", "main")
    commits: list[str] = []
    for number, tag in ((1, "v1"), (2, "")):
        (work / "sub").mkdir(exist_ok=True)
        (work / "f").write_text(f"{number}\n")
        (work / "sub" / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
        (work / "Dockerfile").write_text("FROM scratch\nCOPY f /f\n")
        run("add", "-A")
        run("commit", "-qm", str(number))
        commits.append(run("rev-parse", "HEAD"))
        if tag:
            run("tag", tag)
    run("clone", "-q", "--bare", str(work), str(tmp_path / "r.git"), where=tmp_path)
    run("update-server-info", where=tmp_path / "r.git")

    async def answer(request: Request) -> Response:
        if (request.headers.get("Authorization") or "") == "" and "/private/" in request.path:
            return Response(401, b"", [("WWW-Authenticate", 'Basic realm="x"')])
        path, _, query = request.target.replace("/private", "").partition("?")
        if path.startswith("/plain/"):
            file = tmp_path / path.removeprefix("/plain/")
            return Response(200, file.read_bytes()) if file.is_file() else Response(404)
        environment = {
            **settings, "GIT_PROJECT_ROOT": str(tmp_path), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path, "QUERY_STRING": query,
            "REQUEST_METHOD": request.method, "CONTENT_TYPE": request.headers.get("Content-Type") or "",
            "GIT_PROTOCOL": request.headers.get("Git-Protocol") or "",
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding") or "",
        }  # fmt: skip
        body = await request.read(1 << 20)
        done = await asyncio.to_thread(subprocess.run, [BACKEND], input=body, env=environment, capture_output=True)
        head, _, data = done.stdout.partition(b"\r\n\r\n")
        fields = [tuple(line.split(": ", 1)) for line in head.decode().split("\r\n")]
        status = next((int(value.split()[0]) for key, value in fields if key == "Status"), 200)
        return Response(status, data, [field for field in fields if field[0] != "Status"])  # type: ignore[misc]

    server = Server(answer)
    port = await server.listen_tcp("127.0.0.1", 0)
    yield f"http://127.0.0.1:{port}", commits
    await server.close()


@needs_git
async def test_checkouts(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, commits = hub

    async def get(text: str, **options: bool) -> tuple[str, Path]:
        folder = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        folder.mkdir()
        reference = git.parse(address + text)
        assert reference is not None
        return await git.checkout(reference, folder, **options), folder  # type: ignore[arg-type]

    commit, folder = await get("/r.git")
    assert commit == commits[1] and (folder / "f").read_text() == "2\n" and not (folder / ".git").exists()
    commit, folder = await get("/r.git#v1", keep=True)
    assert commit == commits[0] and (folder / "f").read_text() == "1\n" and (folder / ".git").is_dir()
    assert (await get(f"/r.git#{commits[0]}"))[0] == commits[0]
    assert (await get(f"/r.git?branch=main&commit={commits[1][:8]}"))[0] == commits[1]
    assert (await get("/plain/r.git"))[0] == commits[1]
    assert (await get("/plain/r.git#v1"))[0] == commits[0]
    _, folder = await get("/r.git?ref=v1&mtime=commit")
    assert int((folder / "f").stat().st_mtime) == 1577934245
    with pytest.raises(SystemFailure, match=r"expected checksum to match 0000, got"):
        await get("/r.git?checksum=0000")
    with pytest.raises(SystemFailure, match="repository does not contain ref nothing"):
        await get("/r.git#nothing")
    with pytest.raises(SystemFailure, match="failed to fetch remote"):
        await get("/other.git")


@needs_git
async def test_a_token_is_given_to_its_host_only(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, commits = hub
    host = address.partition("://")[2]
    reference = git.parse(f"{address}/private/r.git")
    assert reference is not None

    async def secret(name: str) -> bytes | None:
        return b"hush" if name == f"GIT_AUTH_TOKEN.{host}" else None

    (tmp_path / "one").mkdir()
    assert await git.checkout(reference, tmp_path / "one", secret=secret) == commits[1]

    async def none(name: str) -> bytes | None:
        return b"hush" if name == "GIT_AUTH_TOKEN.elsewhere" else None

    (tmp_path / "two").mkdir()
    with pytest.raises(SystemFailure):
        await git.checkout(reference, tmp_path / "two", secret=none)


@needs_git
@pytest.mark.root
async def test_builds_from_a_repository(kit: Kit, hub: tuple[str, list[str]]) -> None:
    address, commits = hub
    await kit.build("", name="r1", context=f"{address}/r.git")
    await kit.build("", name="r2", context=f"{address}/r.git#v1:sub", exporter="tar")
    assert b"Dockerfile" in (kit.path / "out").read_bytes()
    text = f"FROM scratch\nADD {address}/r.git#v1 /a/\nADD --keep-git-dir=true {address}/r.git#main:sub /b\n"
    await kit.build(text, exporter="tar")
    names = (kit.path / "out").read_bytes()
    assert b"a/f\0" in names and b"b/Dockerfile" in names
    good = f"FROM scratch\nADD --checksum={commits[0]} {address}/r.git#v1 /\n"
    await kit.build(good, exporter="cacheonly")
    with pytest.raises(Exception, match="expected checksum to match"):
        await kit.build(good.replace("#v1", ""), exporter="cacheonly")
    context = {"context:src": f"{address}/r.git"}
    await kit.build("FROM scratch\nCOPY --from=src f /f\n", exporter="tar", **context)
    assert b"f\0" in (kit.path / "out").read_bytes()
