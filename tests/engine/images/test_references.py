from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.engine.images import references
from longshore.engine.images.references import InvalidReference, parse, parse_any

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1", "docker.io/library/busybox:1", "busybox:1"),
        ("user/app", "docker.io/user/app", "user/app"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox", "busybox"),
        ("localhost/x", "localhost/x", "localhost/x"),
        ("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y"),
        ("a.b/c/d", "a.b/c/d", "a.b/c/d"),
        (f"x@sha256:{HEX}", f"docker.io/library/x@sha256:{HEX}", f"x@sha256:{HEX}"),
        (f"x:1@sha256:{HEX}", f"docker.io/library/x:1@sha256:{HEX}", f"x:1@sha256:{HEX}"),
        ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
        ("UPPER/x", "UPPER/x", "UPPER/x"),
    ],
)
def test_normal_form(text: str, full: str, familiar: str) -> None:
    parsed = parse(text)
    assert str(parsed) == full and parsed.familiar == familiar and references.parse_stored(full) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("UP", "invalid reference format: repository name (library/UP) must be lowercase"),
        ("a/Up:x", "invalid reference format: repository name (a/Up) must be lowercase"),
        ("", "invalid reference format"),
        ("x:", "invalid reference format"),
        ("x:!", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("-x", "invalid reference format"),
        ("x@sha256:12", "invalid reference format"),
        (f"x@sha256:{'a' * 40}", "invalid checksum digest length"),
        (f"x@md5x:{'a' * 40}", "unsupported digest algorithm"),
        (HEX, f"invalid repository name ({HEX}), cannot specify 64-byte hexadecimal strings"),
        ("a" * 300, "repository name must not be more than 255 characters"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse(text)
    assert caught.value.message == message


def test_any() -> None:
    assert parse_any(HEX) == f"sha256:{HEX}" and parse_any(f"sha256:{HEX}") == f"sha256:{HEX}"


@given(st.text(max_size=60))
def test_whatever_parses_reads_back_the_same(text: str) -> None:
    try:
        parsed = parse(text)
    except InvalidReference:
        return
    assert references.parse_stored(str(parsed)) == parsed and parse(parsed.familiar) == parsed
