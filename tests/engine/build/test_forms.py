"""Every form of the Dockerfile that BuildKit's frontend knows, by what it leaves in the image."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from longshore.engine.build.buildkit.session import _walk
from longshore.engine.build.modes import parse_mode
from longshore.engine.errors import InvalidParameter
from longshore.machinery.grpc import RpcError
from longshore.machinery.http import Request, Response, Server

from .kit import Kit

QUIET = {"force-network-mode": "none"}


@dataclass
class File:
    info: tarfile.TarInfo
    data: bytes


async def files(kit: Kit, text: str, **attributes: str) -> dict[str, File]:
    """What a build leaves, by name."""
    await kit.build(text, exporter="tar", **QUIET, **attributes)
    found: dict[str, File] = {}
    with tarfile.open(fileobj=io.BytesIO((kit.path / "out").read_bytes())) as archive:
        for entry in archive:
            data = (archive.extractfile(entry) or io.BytesIO()).read() if entry.isfile() else b""
            found[entry.name] = File(entry, data)
    return found


def plain(found: dict[str, File]) -> list[str]:
    return sorted(name for name, file in found.items() if not file.info.isdir())


@pytest.fixture
def tree(kit: Kit) -> Kit:
    for name in ("x/a.txt", "x/y/b.txt", "x/y/c.md", "z/d.txt", "top.txt"):
        path = kit.context / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return kit


@pytest.mark.root
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("COPY x/a.txt top.txt /o/", ["o/a.txt", "o/top.txt"]),
        ("COPY x /o", ["o/a.txt", "o/y/b.txt", "o/y/c.md"]),
        ("COPY */*.txt /o/", ["o/a.txt", "o/d.txt"]),
        ("COPY --parents x/a.txt z /o/", ["o/x/a.txt", "o/z/d.txt"]),
        ("COPY --parents x/./y/b.txt /o/", ["o/y/b.txt"]),
        ("COPY --parents ./x/**/*.txt /o/", ["o/x/a.txt", "o/x/y/b.txt"]),
        ("COPY --exclude=y/*.md --exclude=a.* x /o", ["o/y/b.txt"]),
        ("COPY --exclude=**/*.md x /o", ["o/a.txt", "o/y/b.txt"]),
        ("COPY --link x/a.txt /o/n", ["o/n"]),
        ('COPY ["x/a.txt", "/with blank"]', ["with blank"]),
        ("COPY <<one <<two /o/\n1\none\n2\ntwo", ["o/one", "o/two"]),
        ("ARG w=x\nCOPY ${w}/a.txt /${w:+set}", ["set"]),
    ],
)
async def test_copy(tree: Kit, line: str, wanted: list[str]) -> None:
    found = await files(tree, f"FROM scratch\n{line}\n")
    assert [name for name in plain(found) if name.endswith(tuple(wanted)) or name.startswith("o/")] == wanted


@pytest.mark.root
async def test_owners_and_modes(tree: Kit) -> None:
    os.chmod(tree.context / "top.txt", 0o640)
    text = (
        "FROM busybox\nCOPY --chown=user:7 top.txt /a\nCOPY --chown=9 --chmod=4755 top.txt /b\n"
        "COPY --chmod=u=rwX,go=rX x /d\nCOPY --chmod=a+x top.txt /e\nCOPY --link --chown=user --chmod=0 top.txt /f\n"
        "COPY --from=busybox --chmod=700 /etc/passwd /p\nUSER 5\nCOPY top.txt /u\n"
    )
    found = await files(tree, text)
    shown = {
        name: (found[name].info.uid, found[name].info.gid, f"{found[name].info.mode:o}")
        for name in ("a", "b", "d/a.txt", "e", "f", "p", "u")
    }
    assert shown == {
        "a": (5, 7, "640"), "b": (9, 9, "4755"), "d/a.txt": (0, 0, "644"), "e": (0, 0, "751"), "f": (5, 6, "0"),
        "p": (0, 0, "700"), "u": (0, 0, "640"),
    }  # fmt: skip
    with pytest.raises(RpcError, match="invalid mode 'u~x'"):
        await files(tree, "FROM scratch\nCOPY --chmod=u~x top.txt /\n")


@pytest.mark.parametrize(
    ("text", "before", "folder", "after"),
    [
        ("755", 0o600, False, 0o755), ("u+x", 0o644, False, 0o744), ("go-r", 0o644, False, 0o600), ("a=r", 0o777, False, 0o444),
        ("+X", 0o600, True, 0o711), ("+X", 0o600, False, 0o600), ("+X", 0o700, False, 0o711), ("g=u", 0o740, False, 0o770),
        ("u+s,g+s,+t", 0o755, False, 0o7755), ("u=rw,go=", 0o777, False, 0o600),
    ],
)  # fmt: skip
def test_modes(text: str, before: int, folder: bool, after: int) -> None:
    assert parse_mode(text)(before, folder) == after


def test_wrong_modes() -> None:
    for text in ("8", "77777", "u+", "x", "u+q", ""):
        if text == "u+":
            assert parse_mode(text)(0o644, False) == 0o644
            continue
        with pytest.raises(InvalidParameter):
            parse_mode(text)


@pytest.fixture
async def web() -> AsyncIterator[tuple[str, dict[str, bytes]]]:
    """A web server; its address, and what it has."""
    content: dict[str, bytes] = {}

    async def answer(request: Request) -> Response:
        data = content.get(request.path)
        headers = [("Last-Modified", "Thu, 02 Jan 2020 03:04:05 GMT")]
        return Response(200, data, headers) if data is not None else Response(404, b"")

    server = Server(answer)
    port = await server.listen_tcp("127.0.0.1", 0)
    yield f"http://127.0.0.1:{port}", content
    await server.close()


def packed(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.root
async def test_add(tree: Kit, web: tuple[str, dict[str, bytes]]) -> None:
    address, content = web
    (tree.context / "t.tgz").write_bytes(packed(inner=b"1"))
    content["/r.tgz"], content["/f"] = packed(far=b"2"), b"plain"
    right = "sha256:" + hashlib.sha256(b"plain").hexdigest()
    text = (
        f"FROM scratch\nADD t.tgz /auto/\nADD --unpack=false t.tgz /kept.tgz\nADD {address}/r.tgz /r/\n"
        f"ADD --unpack=true {address}/r.tgz /u/\nADD --checksum={right} --chmod=640 {address}/f /f\nADD x /x\n"
    )
    found = await files(tree, text)
    assert {"auto/inner", "kept.tgz", "r/r.tgz", "u/far", "f", "x/a.txt"} <= set(found)
    assert (
        found["f"].info.mode == 0o640
        and int(found["f"].info.mtime) == 1577934245
        and found["r/r.tgz"].info.mode == 0o600
    )
    for line, message in (
        (f"ADD --checksum=sha256:{'0' * 64} {address}/f /f", "digest mismatch"),
        (f"ADD --checksum={right} top.txt /f", "checksum can't be specified for non-HTTP"),
        (f"ADD {address}/nothing /f", "404"),
    ):
        with pytest.raises(RpcError, match=message):
            await files(tree, f"FROM scratch\n{line}\n")


@pytest.mark.root
async def test_a_file_that_is_the_same_is_asked_after_only(kit: Kit) -> None:
    content, asked = [b"one"], list[str]()

    def answer(request: Request) -> Response:
        asked.append(request.method)
        tag = f'"{hashlib.sha256(content[0]).hexdigest()}"'
        headers = [("ETag", tag), ("Content-Disposition", 'attachment; filename="named"')]
        if request.headers.get("If-None-Match") == tag and request.method == "GET":
            return Response(304, b"", headers)
        return Response(200, b"" if request.method == "HEAD" else content[0], headers)

    server = Server(answer)
    url = f"http://127.0.0.1:{await server.listen_tcp('127.0.0.1', 0)}/f"
    text = f"FROM scratch\nADD {url} /d/\n"
    assert [m.data for m in (await files(kit, text)).values() if m.data] == [b"one"]
    assert [m.data for m in (await files(kit, text)).values() if m.data] == [b"one"]
    assert asked == ["GET", "HEAD"] and kit.names[-2].endswith("*")
    content[0] = b"two"
    found = await files(kit, text)
    assert found["d/named"].data == b"two" and asked == ["GET", "HEAD", "HEAD", "GET"]
    content[0] = b"one"
    await server.close()


@pytest.mark.root
async def test_run(kit: Kit) -> None:
    text = (
        'FROM busybox\nSHELL ["/bin/ash", "-ec"]\nRUN <<E\necho $0 > /one\necho two >> /one\nE\n'
        "RUN <<'A' cat > /two <<B\n$x\nA\nb\nB\n"
        'RUN ["/bin/sh", "-c", "echo $HOME > /three"]\n'
        "RUN --network=none ip link | grep -c : > /four\n"
        "RUN --mount=type=tmpfs,target=/t,size=1m echo x > /t/x && df /t | tail -1 | awk '{print $2}' > /five\n"
        "RUN --mount=type=cache,target=/c,sharing=locked,uid=5 echo x >> /c/n; stat -c %u /c > /six\n"
        "RUN --mount=type=bind,from=busybox,source=/etc,target=/m,rw echo y > /m/passwd && cat /m/passwd > /seven\n"
        'RUN --mount=type=secret,id=known,env=S,target=/s test "$S" = hush && cat /s > /eight\n'
        "RUN hostname > /nine\n"
    )
    found = await files(kit, text, **{"hostname": "named"})
    shown = {n: found[n].data.decode() for n in ("one", "two", "three", "five", "six", "seven", "eight", "nine")}
    assert shown["three"] == "/root\n" and shown["five"] == "1024\n" and shown["six"] == "5\n"
    assert shown["seven"] == "y\n" and shown["eight"] == "hush" and shown["nine"] == "named\n"
    assert shown["one"].endswith("two\n") and "s" not in plain(found) and found["etc/passwd"].data.startswith(b"root")


@pytest.mark.root
async def test_here_documents(kit: Kit) -> None:
    text = (
        "FROM busybox AS base\nARG name=world\nCOPY <<E /q\n'${name}' \"${name}\" \\$ \\\\\nE\n"
        "COPY <<\"E\" /raw\n'${name}' \\$\nE\nRUN <<E\n#!/bin/sh -e\necho second > /made\nE\n"
        "RUN <<-E\n\t#!/bin/cat\n\tthird\nE\nONBUILD RUN <<E\n  echo $name > /trigger\n  echo 2 >> /trigger\nE\n"
        "ARG TARGETSTAGE\nRUN echo $TARGETSTAGE > /stage\nFROM base AS final\n"
    )
    found = await files(kit, text)
    assert found["q"].data == b"'world' \"world\" $ \\\n" and found["raw"].data == b"'${name}' \\$\n"
    assert found["made"].data == b"second\n" and b"third" in kit.logs
    assert found["trigger"].data == b"\n2\n" and found["stage"].data == b"final\n"
    assert not [name for name in found if name.startswith("dev/")]


@pytest.mark.root
async def test_what_is_bound_belongs_to_a_step(kit: Kit) -> None:
    """A command is run again when the files that it sees by a bind mount have changed, and only then."""
    text = (
        "FROM busybox AS other\nCOPY f g /\nFROM busybox\nRUN --mount=type=bind,source=f,target=/in cat /in\n"
        "RUN --mount=type=bind,from=other,source=/f,target=/in cat /in\n"
        "RUN --mount=type=bind,from=other,target=/all cat /all/f /all/g\n"
    )
    (kit.context / "f").write_text("1")
    (kit.context / "g").write_text("2")
    await kit.build(text, name="bound", **QUIET)
    assert kit.logs == b"1112"
    await kit.build(text, name="bound", **QUIET)
    assert kit.logs == b""
    (kit.context / "g").write_text("3")
    await kit.build(text, name="bound", **QUIET)
    assert kit.logs == b"13"
    (kit.context / "f").write_text("4")
    await kit.build(text, name="bound", **QUIET)
    assert kit.logs == b"4443"
    with pytest.raises(RpcError, match='failed to calculate checksum of ref: "no": not found'):
        await kit.build("FROM busybox\nRUN --mount=source=no,target=/in true\n", **QUIET)


@pytest.mark.root
async def test_names_of_steps_have_values(kit: Kit) -> None:
    text = (
        "FROM busybox\nARG A=1\nENV B=2 S=plain\nRUN echo $A ${B} '$A' \\$A $C ${C:-d} > /x\n"
        "RUN --mount=type=secret,id=known,env=S test $S = hush\n"
    )
    await kit.build(text, name="x", **QUIET)
    names = [name for name in kit.names if "RUN" in name]
    assert names == [
        "[stage-0 2/3] RUN echo 1 2 '$A' \\$A $C ${C:-d} > /x",
        "[stage-0 3/3] RUN --mount=type=secret,id=known,env=S test **** = hush",
    ]


@pytest.mark.root
async def test_small_differences_of_buildkit(kit: Kit) -> None:
    for name in "ab":
        (kit.context / f"{name}.tgz").write_bytes(packed(**{name: b"1"}))
    assert plain(await files(kit, "FROM scratch\nADD *.tgz /d\n")) == ["d/a", "d/b"]
    with pytest.raises(RpcError, match="must be a directory and end with a /"):
        await files(kit, "FROM scratch\nADD a.tgz b.tgz /d\n")
    await kit.build("FROM scratch\nCOPY a.tgz /\nEXPOSE 127.0.0.1:80:81 [::1]:8080:82 5000:83/udp 84\n", name="ports")
    assert sorted(kit.store.resolve("ports").run_config["ExposedPorts"]) == ["81/tcp", "82/tcp", "83/udp", "84/tcp"]
    found = await files(kit, "FROM busybox\nWORKDIR /w/x\n", **{"build-arg:SOURCE_DATE_EPOCH": "86400"})
    assert found["w/x"].info.mtime == 86400
    # A cache mount with a mode begins empty where nothing is to come from the cache.
    text = "FROM busybox\nARG N\nRUN --mount=type=cache,target=/c{0} touch /c/$N && ls /c | wc -l > /n\n"
    for form, counts in ((",mode=0773", [b"1\n", b"1\n", b"2\n"]), (",id=other", [b"1\n", b"2\n", b"3\n"])):
        for number, (wanted, more) in enumerate(zip(counts, ({}, {"no-cache": ""}, {}), strict=True)):
            found = await files(kit, text.format(form), **{"build-arg:N": str(number)}, **more)
            assert found["n"].data == wanted


@pytest.mark.root
async def test_where_things_come_from_has_no_variables(kit: Kit) -> None:
    for line, message in (
        ("COPY --from=${x} /a /b", "variable expansion is not supported for --from, define a new stage with FROM"),
        ("RUN --mount=from=$x,target=/m true", "'from' doesn't support variable expansion, define alias stage instead"),
    ):
        with pytest.raises(RpcError, match=message):
            await kit.build(f"FROM busybox\nARG x=busybox\n{line}\n", **QUIET)


def test_hard_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("data")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    shown = [(told.path, told.linkname, told.size) for _, told in _walk(tmp_path)]
    assert shown == [("a", "", 4), ("b", "a", 0)]


@pytest.mark.root
async def test_names_of_here_documents_lead_nowhere(kit: Kit) -> None:
    """A name is a file of the step: it never reaches a file of the host."""
    outside = kit.path / "outside"
    for name in (str(outside), f"{'../' * 12}{outside}", "a/b"):
        for line in (f"COPY <<{name} /x/", f"RUN <<{name}"):
            with pytest.raises(RpcError, match="failed to create file"):
                await files(kit, f"FROM busybox\n{line}\n#!/bin/sh\n{name}\n")
    assert not outside.exists()
    assert "x/up" in await files(kit, "FROM scratch\nCOPY <<../up /x/\nhi\n../up\n")


@pytest.mark.root
async def test_configuration(kit: Kit) -> None:
    await kit.build("FROM scratch\nONBUILD ENV T=1\nONBUILD COPY Dockerfile /d\n", name="trigger")
    text = (
        "# escape=`\nFROM trigger\nARG N=1\nENV A=${N:?needed} B=${U:-d} C=${A#x} `\n  D=\"q $A\"\nLABEL l=$A 'm'='n o'\n"
        'USER 5:6\nWORKDIR /w\nWORKDIR r\nEXPOSE 80 90-91/udp\nVOLUME /v "/x"\nSTOPSIGNAL 9\n'
        "HEALTHCHECK --interval=2s --timeout=1s --start-period=3s --start-interval=1s --retries=4 CMD true\n"
        'ENTRYPOINT ["/e"]\nCMD c $A\n'
    )
    await kit.build(text, name="conf", **QUIET)
    config: dict[str, Any] = kit.store.resolve("conf").run_config
    env = dict(entry.split("=", 1) for entry in config["Env"])
    assert {k: env[k] for k in "ABCDT"} == {"A": "1", "B": "d", "C": "", "D": "q ", "T": "1"}
    assert config["Labels"] == {"l": "1", "m": "n o"} and config["User"] == "5:6" and config["WorkingDir"] == "/w/r"
    assert set(config["ExposedPorts"]) == {"80/tcp", "90/udp", "91/udp"} and set(config["Volumes"]) == {"/v", "/x"}
    assert config["StopSignal"] == "9" and config["Entrypoint"] == ["/e"] and config["Cmd"] == ["/bin/sh", "-c", "c $A"]
    assert config["Healthcheck"] == {
        "Test": ["CMD-SHELL", "true"], "Interval": 2 * 10**9, "Timeout": 10**9, "StartPeriod": 3 * 10**9,
        "StartInterval": 10**9, "Retries": 4,
    }  # fmt: skip


@pytest.mark.root
async def test_the_same_bytes_at_a_given_time(kit: Kit) -> None:
    epoch = {"build-arg:SOURCE_DATE_EPOCH": "1577934245"}
    text = "FROM scratch\nCOPY Dockerfile /d\nENV A=1\n"
    await kit.build(text, name="x", **epoch)
    image = kit.store.resolve("x")
    assert image.config["created"] == "2020-01-02T03:04:05Z"
    await kit.store.remove("x")
    os.utime(kit.context / "Dockerfile", (5, 5))
    await kit.build(text, name="x", **{"no-cache": ""}, **epoch)
    assert [h["created"] for h in kit.store.resolve("x").config["history"]] == ["2020-01-02T03:04:05Z"] * 2


@pytest.mark.root
async def test_only_some_stages_are_built_anew(kit: Kit) -> None:
    text = (
        "FROM busybox AS one\nRUN echo 1 > /x\nFROM busybox AS two\nRUN echo 2 > /y\nFROM one\nCOPY --from=two /y /y\n"
    )
    await kit.build(text, name="x", **QUIET)
    await kit.build(text, name="x", **{"no-cache": "two"}, **QUIET)
    cached = [name for name in kit.names if name.startswith(("[one 2/", "[two 2/"))]
    assert sorted(cached) == ["[one 2/2] RUN echo 1 > /x*", "[two 2/2] RUN echo 2 > /y"]
