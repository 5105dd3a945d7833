"""Dockerfile text, words and ignore patterns: the pure parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.engine.build import dockerfile, instructions
from longshore.engine.build.dispatch import exposed, go_duration
from longshore.engine.build.dockerfile import DockerfileError
from longshore.engine.build.ignore import Ignore, parse
from longshore.engine.build.instructions import duration, suggest
from longshore.engine.build.shell import ExpansionError, expand, expand_words
from longshore.engine.errors import EngineError

VALUES = {"A": "x", "E": "", "P": "/a/b.tar.gz", "S": "one two"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("$A", "x"), ("${A}y", "xy"), ("${U:-d}", "d"), ("${E:-d}", "d"), ("${E-d}", ""), ("${A:+q}", "q"), ("${U+q}", ""),
        ("'$A'", "$A"), ('"$A b"', "x b"), ("\\$A", "$A"), ("${P##*/}", "b.tar.gz"), ("${P#*/}", "a/b.tar.gz"),
        ("${P%.*}", "/a/b.tar"), ("${P%%.*}", "/a/b"), ("${P/a/z}", "/z/b.tar.gz"), ("${P//a/z}", "/z/b.tzr.gz"),
        ("${U:-${A}}", "x"), ('"a\\"b"', 'a"b'), ("$", "$"), ("a$", "a$"), ('"\\n"', "\\n"), ("${A?no}", "x"),
    ],
)  # fmt: skip
def test_expansion(text: str, wanted: str) -> None:
    assert expand(text, VALUES) == wanted


@pytest.mark.parametrize("text", ["${A", "${U:?no}", "'a", '"a', "${}", "${A:x}", "${A!}"])
def test_broken_words(text: str) -> None:
    with pytest.raises(ExpansionError):
        expand(text, VALUES)


@given(st.text(alphabet="$A{}:-+?#%/'\"\\ab* ", max_size=30))
def test_expansion_never_fails_otherwise(text: str) -> None:
    try:
        expand(text, VALUES)
        expand_words(text, VALUES)
    except ExpansionError:
        pass


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    try:
        instructions.parse(dockerfile.parse(data))
    except DockerfileError:
        pass


@given(
    st.lists(
        st.sampled_from(
            [
                "FROM a AS b",
                "RUN x \\",
                "COPY --from=b <<E /",
                "E",
                "# c",
                "",
                'CMD ["a"]',
                "ENV a=b",
                "ARG",
                "ONBUILD RUN y",
                "HEALTHCHECK CMD z",
                "  && w",
            ]
        ),
        max_size=12,
    )
)
def test_any_lines_parse_or_are_refused(lines: list[str]) -> None:
    try:
        instructions.parse(dockerfile.parse("\n".join(lines).encode()))
    except DockerfileError:
        pass


def test_continuation_comments_and_directives() -> None:
    file = dockerfile.parse(
        b"# syntax=docker/dockerfile:1\n# escape=`\nFROM a\nRUN echo a `\n  # c\n\n  && b\nCOPY C:\\x /y\n"
    )
    assert file.escape == "`" and file.directives["syntax"] == "docker/dockerfile:1"
    assert [(n.original, n.start, n.end) for n in file.nodes] == [
        ("FROM a", 3, 3), ("RUN echo a   && b", 4, 7), ("COPY C:\\x /y", 8, 8),
    ]  # fmt: skip


def test_heredocs() -> None:
    file = dockerfile.parse(b'FROM a\nRUN <<A cat <<-"B"\n1\nA\n\t2\n\tB\nRUN x\n')
    first = file.nodes[1].heredocs
    assert [(h.name, h.content, h.expand, h.chomp) for h in first] == [
        ("A", "1\n", True, False),
        ("B", "2\n", False, True),
    ]
    assert file.nodes[2].start == 7
    with pytest.raises(DockerfileError, match="unterminated heredoc"):
        dockerfile.parse(b"FROM a\nRUN <<A\n1\n")


def test_stages() -> None:
    program = instructions.parse(dockerfile.parse(b"ARG V=1\nFROM x:$V AS Build\nRUN a\nFROM build\n"))
    assert [s.name for s in program.stages] == ["build", ""] and program.stage("BUILD") == 0 and program.stage("1") == 1
    assert program.stage("no") is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("SHELL x", "dockerfile parse error on line 2: SHELL requires the arguments to be in JSON form"),
        (
            "ONBUILD ONBUILD RUN x",
            "dockerfile parse error on line 2: Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
        ),
        ("HEALTHCHECK --interval=5 CMD x", 'dockerfile parse error on line 2: time: missing unit in duration "5"'),
        ("FROM a b", "dockerfile parse error on line 2: FROM requires either one or three arguments"),
        ("COPY --from=a --from=b x y", "dockerfile parse error on line 2: duplicate flag specified: from"),
        (
            "ENV a=b c",
            'failed to parse Dockerfile: Syntax error - can\'t find = in "c". Must be of the form: name=value',
        ),
    ],
)
def test_texts(line: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        instructions.parse(dockerfile.parse(f"FROM a\n{line}\n".encode()))
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("patterns", "path", "out"),
    [
        (["*.log", "!k.log"], "a.log", True), (["*.log", "!k.log"], "k.log", False), (["*.log"], "d/a.log", False),
        (["**/*.log"], "d/e/a.log", True), (["d"], "d/e", True), (["/d/"], "d/x", True), (["d/*", "!d/k"], "d/k", False),
        (["?.c"], "a.c", True), (["[a-c].x"], "b.x", True), (["[^a].x"], "a.x", False), (["**"], "any/thing", True),
    ],
)  # fmt: skip
def test_ignore(patterns: list[str], path: str, out: bool) -> None:
    assert Ignore(patterns).matches(path) is out


def test_small_things() -> None:
    assert parse(b"\xef\xbb\xbf# c\n\n a \n") == ["a"]
    assert (
        duration("1m30s") == 90 * 10**9 and go_duration(90 * 10**9) == "1m30s" and go_duration(1500 * 10**6) == "1.5s"
    )
    assert suggest("FORM", ["FROM", "RUN"]) == " (did you mean FROM?)" and suggest("zzzz", ["FROM"]) == ""
    assert exposed("8000-8001/UDP") == ["8000/udp", "8001/udp"]
    with pytest.raises(EngineError, match="invalid containerPort: x"):
        exposed("x")
