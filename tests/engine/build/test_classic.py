"""POST /build from a context to an image, with the real runtime."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from longshore.engine.build.classic import Builder
from longshore.engine.build.options import parse_options
from longshore.engine.build.runner import RuncRunner
from longshore.engine.build.running import StepFailed
from longshore.engine.errors import EngineError
from longshore.engine.images.store import ImageStore

from ..images.conftest import busybox, imported, once, tar_of

pytestmark = pytest.mark.root


class Bench:
    def __init__(self, store: ImageStore, path: Path) -> None:
        self.store = store
        self.builder = Builder(store, RuncRunner(path / "run"))
        self.said: list[dict[str, Any]] = []

    async def __call__(self, text: str, files: dict[str, Any] | None = None, **query: str) -> str:
        self.said = []
        body = tar_of({"Dockerfile": text.encode(), **(files or {})})
        options = parse_options({"networkmode": ["none"], **{key: [value] for key, value in query.items()}})
        return await self.builder.build(once(body), options, self.said.append)

    @property
    def text(self) -> str:
        return "".join(m.get("stream", "") for m in self.said)

    def file(self, image: str, path: str) -> Path:
        for folder in self.store.layer_dirs(image):
            if (folder / path).exists() or (folder / path).is_symlink():
                return folder / path
        raise AssertionError(f"{path} is in no layer of {image}")


@pytest.fixture
async def build(store: ImageStore, tmp_path: Path) -> Bench:
    await busybox(store)
    return Bench(store, tmp_path)


async def test_all_steps(build: Bench) -> None:
    text = 'FROM busybox\nENV A=1\nWORKDIR /w\nCOPY f /w/\nRUN echo hello && echo err >&2\nCMD ["cat","/w/f"]\n'
    made = await build(text, {"f": b"data\n"}, t="b-ok")
    said = build.text
    for piece in (
        "Step 1/6 : FROM busybox\n ---> ",
        "Step 5/6 : RUN echo hello && echo err >&2\n ---> Running in ",
        "hello\n",
        "\x1b[91merr\n\x1b[0m",
        f"Successfully built {made[7:19]}\nSuccessfully tagged b-ok:latest\n",
    ):
        assert piece in said
    assert {"aux": {"ID": made}} in build.said
    image = build.store.resolve("b-ok")
    assert image.run_config["Cmd"] == ["cat", "/w/f"] and image.run_config["WorkingDir"] == "/w"
    assert build.file("b-ok", "w/f").read_text() == "data\n"
    assert len(image.diff_ids) == 3
    steps = build.store.history("b-ok")
    assert [s["CreatedBy"].partition("file:")[0] for s in steps] == [
        '/bin/sh -c #(nop)  CMD ["cat" "/w/f"]',
        "/bin/sh -c echo hello && echo err >&2",
        "/bin/sh -c #(nop) COPY ",
        "/bin/sh -c #(nop) WORKDIR /w",
        "/bin/sh -c #(nop)  ENV A=1",
        "",
    ]
    assert all(s["Id"].startswith("sha256:") for s in steps)
    again = await build(text, {"f": b"data\n"}, t="b-cached")
    assert again == made and build.text.count(" ---> Using cache\n") == 5
    changed = await build(text, {"f": b"other\n"})
    assert changed != made and build.text.count(" ---> Using cache\n") == 2
    await build(text, {"f": b"data\n"}, nocache="1")
    assert " ---> Using cache\n" not in build.text


async def test_stages_and_arguments(build: Bench) -> None:
    await build(
        "ARG BASE=busybox\nFROM $BASE AS one\nARG V=def\nARG W\nRUN echo v=$V w=$W > /one\n"
        "FROM one AS two\nRUN cat /one\nFROM scratch\nCOPY --from=one /one /x\nCOPY --from=0 /one /y/\n",
        t="multi",
        buildargs='{"V":"given","NOPE":"x"}',
    )
    assert "v=given w=\n" in build.text and "[Warning] One or more build-args [NOPE] were not consumed\n" in build.text
    assert build.file("multi", "x").read_text() == "v=given w=\n"
    assert build.file("multi", "y/one").exists()
    await build("FROM busybox AS one\nRUN true\nFROM busybox\nRUN false\n", target="one")
    assert "Step 2/2 : RUN true" in build.text
    with pytest.raises(EngineError, match='target stage "nope" could not be found'):
        await build("FROM busybox AS one\n", target="nope")


async def test_failures(build: Bench) -> None:
    with pytest.raises(StepFailed) as failed:
        await build("FROM busybox\nRUN echo before; exit 7\n")
    assert failed.value.code == 7 and "before\n" in build.text
    assert failed.value.message == "The command '/bin/sh -c echo before; exit 7' returned a non-zero code: 7"
    with pytest.raises(EngineError) as caught:
        await build('FROM busybox\nRUN ["nosuch"]\n')
    assert caught.value.message.endswith(
        'runc create failed: unable to start container process: exec: "nosuch": executable file not found in $PATH'
    )
    with pytest.raises(StepFailed, match="returned a non-zero code: 127"):
        await build("FROM busybox\nRUN nosuch\n")
    assert "\x1b[91m/bin/sh: nosuch: not found\n\x1b[0m" in build.text
    assert list((build.store.root / "builds").iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "COPY nope /x",
            "COPY failed: file not found in build context or excluded by .dockerignore: stat nope: file does not exist",
        ),
        ("COPY n* /x", "COPY failed: no source files were specified"),
        ("COPY ../x /x", "COPY failed: forbidden path outside the build context: ../x ()"),
        (
            "COPY a b /x",
            "When using COPY with more than one source file, the destination must be a directory and end with a /",
        ),
        ("STOPSIGNAL FOO", "invalid signal: FOO"),
        ("EXPOSE 99999", "invalid containerPort: 99999"),
        ("USER nobodyhere\nRUN true", "unable to find user nobodyhere: no matching entries in passwd file"),
    ],
)
async def test_step_errors(build: Bench, line: str, message: str) -> None:
    with pytest.raises(EngineError) as caught:
        await build(f"FROM busybox\n{line}\n", {"a": b"1", "b": b"2"})
    assert caught.value.message == message
    assert "Step 2/" in build.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM busybox\nFOO bar\n", "dockerfile parse error on line 2: unknown instruction: FOO (did you mean FROM?)"),
        ("RUN x\n", "no build stage in current context"),
        ("", "the Dockerfile (Dockerfile) cannot be empty"),
        ("# hi\n", "failed to parse Dockerfile: file with no instructions"),
        (
            "FROM busybox\nCOPY a\n",
            "dockerfile parse error on line 2: COPY requires at least two arguments, but only one was provided. "
            "Destination could not be determined",
        ),
        (
            "FROM busybox\nCOPY --foo=1 f /\n",
            "dockerfile parse error on line 2: unknown flag: --foo (did you mean from?)",
        ),
        (
            "FROM busybox\nONBUILD FROM x\n",
            "dockerfile parse error on line 2: FROM isn't allowed as an ONBUILD trigger",
        ),
        (
            "FROM busybox\nHEALTHCHECK FOO\n",
            'dockerfile parse error on line 2: Unknown type "FOO" in HEALTHCHECK (try CMD)',
        ),
        ("FROM busybox\nENV A\n", "failed to parse Dockerfile: ENV must have two arguments"),
    ],
)
async def test_parse_errors(build: Bench, text: str, message: str) -> None:
    with pytest.raises(EngineError) as caught:
        await build(text)
    assert caught.value.message == message and caught.value.status == 400 and build.said == []


async def test_configuration_of_every_kind(build: Bench) -> None:
    await build(
        'FROM busybox\nMAINTAINER me\nLABEL a=b c="d e"\nEXPOSE 80 53/udp\nENV X=1 Y="2 3"\nUSER 5:6\nVOLUME /v /w\n'
        'WORKDIR rel\nSTOPSIGNAL SIGINT\nHEALTHCHECK --interval=5s --retries=2 CMD true\nSHELL ["/bin/ash","-c"]\n'
        'ENTRYPOINT ["/e"]\nCMD a b\n',
        t="meta",
        labels='{"z":"$q y"}',
    )
    config = build.store.config("meta")["config"]
    assert config["Labels"] == {"a": "b", "c": "d e", "z": "$q y"}
    assert config["ExposedPorts"] == {"80/tcp": {}, "53/udp": {}} and config["Env"][-2:] == ["X=1", "Y=2 3"]
    assert config["Healthcheck"] == {"Test": ["CMD-SHELL", "true"], "Interval": 5 * 10**9, "Retries": 2}
    assert (
        config["Cmd"] == ["/bin/ash", "-c", "a b"] and config["Entrypoint"] == ["/e"] and config["WorkingDir"] == "/rel"
    )
    told = [s["CreatedBy"] for s in build.store.history("meta")]
    assert "/bin/sh -c #(nop)  HEALTHCHECK &{[CMD-SHELL true] 5s 0s 0s 0s 2}" in told
    assert "/bin/ash -c #(nop)  SHELL [/bin/ash -c]" in told and "/bin/sh -c #(nop)  EXPOSE 53/udp 80" in told
    assert build.store.inspect("meta")["Author"] == "me"


async def test_onbuild(build: Bench) -> None:
    await build("FROM busybox\nONBUILD RUN echo trig\n", t="base")
    await build("FROM base\nENV Z=1\n", t="use")
    assert "# Executing 1 build trigger\n" in build.text and "trig\n" in build.text
    assert not build.store.config("use")["config"].get("OnBuild")


async def test_run_leaves_no_mount_points(build: Bench) -> None:
    await build("FROM busybox\nRUN echo 1 > /etc/new\nRUN rm /etc/new && mkdir -p /etc/sub\n", t="clean")
    top, below, *_ = build.store.layer_dirs("clean")
    assert sorted(p.name for p in below.iterdir()) == ["etc"] and [p.name for p in (below / "etc").iterdir()] == ["new"]
    assert sorted(p.name for p in (top / "etc").iterdir()) == ["new", "sub"]


async def test_copy_forms(build: Bench) -> None:
    files = {
        "d/one": b"1",
        "d/e/two": b"2",
        "d/link": ("link", "one"),
        "a.log": b"x",
        "b.log": b"y",
        ".dockerignore": b"Dockerfile\n",
    }
    await build(
        "FROM busybox\nCOPY d /t/\nCOPY d/one /single\nCOPY *.log /logs/\nCOPY --chown=user:6 d/one /owned\n"
        "WORKDIR /deep/er\nCOPY d/e/two .\nCOPY . /all\nCOPY d/link /followed\n",
        files,
        t="copy",
    )
    assert build.file("copy", "t/e/two").read_bytes() == b"2" and build.file("copy", "t/link").is_symlink()
    assert build.file("copy", "logs/b.log").exists() and build.file("copy", "deep/er/two").exists()
    info = build.file("copy", "owned").stat()
    assert (info.st_uid, info.st_gid) == (5, 6)
    assert build.file("copy", "all/d/one").exists()
    with pytest.raises(AssertionError):
        build.file("copy", "all/Dockerfile")
    assert not build.file("copy", "followed").is_symlink()


async def test_add_unpacks_archives(build: Bench) -> None:
    inner = tar_of({"in/side": b"x"})
    await build(
        "FROM busybox\nADD a.tar.gz /un/\nCOPY a.tar.gz /as-is\nADD plain /p\n",
        {"a.tar.gz": gzip.compress(inner), "plain": b"t"},
        t="add",
    )
    assert build.file("add", "un/in/side").read_bytes() == b"x"
    assert build.file("add", "as-is").read_bytes()[:2] == b"\x1f\x8b" and build.file("add", "p").read_bytes() == b"t"


async def test_add_of_a_url(build: Bench) -> None:
    from longshore.machinery.http import Request, Response, Server

    def answer(request: Request) -> Response:
        return Response(200, b"fetched") if request.path == "/dir/name" else Response(404)

    server = Server(answer)
    port = await server.listen_tcp("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}/dir/name"
    await build(f"FROM busybox\nADD {url} /into/\nADD {url} /as\n", t="url")
    found = build.file("url", "into/name")
    assert found.read_bytes() == b"fetched" and found.stat().st_mode & 0o777 == 0o600
    assert build.file("url", "as").read_bytes() == b"fetched"
    with pytest.raises(EngineError, match="with status 404"):
        await build(f"FROM busybox\nADD {url}x /x\n")
    await server.close()


async def test_steps_of_named_images_only(build: Bench) -> None:
    """`cache_from`: steps come from the images that are named, also from one that was loaded and knows no parents."""
    text = "FROM busybox\nENV A=1\nRUN echo 1 > /one\nRUN echo 2 > /two\n"
    first = await build(text, t="cf:1")
    await build(text, cachefrom='["cf:1"]')
    assert build.text.count("Using cache") == 3
    await build(text, t="other", cachefrom='["nosuchtag"]')
    assert build.text.count("Using cache") == 0
    parent = build.store.resolve("cf:1").parent
    saved = b"".join(await build.store.save(["cf:1"]))
    for name in ("cf:1", "other"):
        await build.store.remove(name)
    assert build.store.get(parent) is None
    await build.store.load(once(saved))
    assert build.store.resolve("cf:1").parent == ""
    assert await build(text, t="again", cachefrom='["cf:1"]') == first
    assert build.text.count("Using cache") == 3
    found = build.store.resolve("again")
    assert found.parent and build.store.resolve(found.parent).parent
    # Another way than the image's: made anew from there on.
    await build(text.replace("echo 2", "echo 3"), cachefrom='["cf:1"]')
    assert build.text.count("Using cache") == 2


async def test_steps_get_nothing_of_the_engine(build: Bench) -> None:
    """No descriptor leaks into a step, a working folder under /proc leads nowhere (CVE-2024-21626), links at /etc neither."""
    await build("FROM busybox\nRUN ls /proc/self/fd | tr '\\n' ' '; echo; id -u; grep CapEff /proc/self/status\n")
    assert "0 1 2 3 \n0\n" in build.text and "00000000a80425fb" in build.text
    for number in range(3, 12):
        try:
            await build(f"FROM busybox\nWORKDIR /proc/self/fd/{number}\nRUN ls ../../../ && ls -d ../../../home/\n")
        except EngineError:
            continue
        raise AssertionError("a step saw the host")


async def test_mount_points_that_are_links(build: Bench, tmp_path: Path) -> None:
    await imported(
        build.store,
        "links:1",
        {"bin": ("dir", 0o755), "etc": ("link", str(tmp_path)), "dev": ("link", "/"), "proc": ("link", "/etc")},
    )
    with pytest.raises(EngineError):
        await build('FROM links:1\nRUN ["/bin/true"]\n')
    assert sorted(path.name for path in tmp_path.iterdir() if path.name in ("hosts", "hostname", "resolv.conf")) == []


async def test_context_cannot_reach_out(build: Bench) -> None:
    with pytest.raises(EngineError, match="file does not exist"):
        await build("FROM busybox\nCOPY out /x\n", {"out": ("link", "/etc/hostname-of-the-host")})
    # A link to an absolute path means that path inside the context.
    await build("FROM busybox\nCOPY out /x\n", {"out": ("link", "/f"), "f": b"inside"}, t="in")
    assert build.file("in", "x").read_bytes() == b"inside"


async def test_heredocs(build: Bench) -> None:
    await build('FROM busybox\nRUN <<EOF\necho a > /a\necho $0\nEOF\nCOPY <<-"X" /y\n\thi $V\n\tX\n', t="here")
    assert build.file("here", "a").read_text() == "a\n" and build.file("here", "y").read_text() == "hi $V\n"


async def test_pull_of_the_base(build: Bench, registry: Any) -> None:
    host = await registry()
    build.store.tag("busybox", f"{host}/base:1")
    await build.store.push(f"{host}/base:1")
    await build.store.remove(f"{host}/base:1")
    await build(f"FROM {host}/base:1\nENV A=1\n")
    assert "Successfully built" in build.text


async def test_bodies_that_are_no_context(build: Bench) -> None:
    with pytest.raises(EngineError, match="unexpected EOF") as caught:
        await build.builder.build(once(b"FROM busybox\n"), parse_options({}), build.said.append)
    assert caught.value.status == 500
    with pytest.raises(EngineError, match="Cannot locate specified Dockerfile: nope"):
        await build("FROM busybox\n", None, **{"dockerfile": "nope"})


def test_options() -> None:
    with pytest.raises(EngineError, match='invalid version "7"'):
        parse_options({"version": ["7"]})
    with pytest.raises(EngineError, match="must be lowercase") as caught:
        parse_options({"t": ["UP:x"]})
    assert caught.value.status == 500
    assert parse_options({"t": ["a", "a:latest"]}).tags[0].familiar == "a:latest"
    assert len(parse_options({"t": ["a", "a:latest"]}).tags) == 1


async def test_as_dockerds_builder_takes_it(build: Bench) -> None:
    for text, words in (
        ("FROM busybox\nCOPY --from=0 a /\n", "invalid from flag value 0: refers to current build stage"),
        ("FROM busybox\nENV foo=\nVOLUME $foo\n", "VOLUME specified can not be an empty string"),
        ("FROM busybox\nRUN touch /foo\nVOLUME /foo\n", "cannot mount volume over existing file, file exists /foo"),
        ("FROM busybox\nADD a.tar /\n", "unexpected EOF"),
    ):
        with pytest.raises(EngineError) as caught:
            await build(text, {"a.tar": tar_of({"x": b"y"})[:1535]})
        assert words in caught.value.message
    events: list[tuple[str, str, str]] = []
    build.store.on_event = lambda *event: events.append(event)
    made = await build(
        'FROM busybox\nENTRYPOINT ["/bin/true"]\nCMD []\nRUN []\nARG http_proxy\nRUN echo\n',
        buildargs='{"http_proxy":"p"}',
    )
    assert [event for event in events if event[0] == "create"] == [("create", made, made)]
    assert build.store.inspect(made)["Config"]["Cmd"] is None
    assert build.store.history(made)[0]["CreatedBy"] == "|1 http_proxy=p /bin/sh -c echo"
