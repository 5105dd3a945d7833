"""The tar reader against Python's writer, the writer against Python's reader, and both against hostile bytes."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.wire import tar

names = st.text(st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), min_size=1, max_size=80)
paths = st.lists(names.filter(lambda n: n not in (".", "..")), min_size=1, max_size=4).map("/".join)


def entries(data: bytes, piece: int = 100000) -> list[tuple[tar.Entry, bytes]]:
    stream = io.BytesIO(data)
    reader = tar.TarReader(lambda n: stream.read(min(n, piece)))
    found = []
    for entry in reader:
        content = b""
        while part := reader.read():
            content += part
        found.append((entry, content))
    return found


@given(
    paths,
    st.binary(max_size=3000),
    st.integers(0, 0o7777),
    st.integers(0, 2**33),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.sampled_from([1, 511, 100000]),
)
def test_reads_what_python_writes(path: str, content: bytes, mode: int, mtime: int, form: int, piece: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        info = tarfile.TarInfo(path)
        info.size, info.mode, info.mtime, info.uid, info.gid = len(content), mode, mtime, 3_000_000_000, 7
        archive.addfile(info, io.BytesIO(content))
    ((entry, found),) = entries(out.getvalue(), piece)
    assert (entry.name, entry.mode, entry.mtime, entry.uid, entry.gid) == (path, mode, mtime * 10**9, 3_000_000_000, 7)
    assert found == content and entry.size == len(content)


@given(
    paths, st.binary(max_size=1500), st.integers(0, 0o7777), st.integers(0, 2**40), st.integers(0, 2**40),
    st.dictionaries(st.sampled_from(["user.a", "security.capability"]), st.binary(max_size=40)),
)  # fmt: skip
def test_python_reads_what_we_write(
    path: str, content: bytes, mode: int, mtime: int, uid: int, xattrs: dict[str, bytes]
) -> None:
    entry = tar.Entry(path, tar.REGULAR, mode, uid, 5, len(content), mtime * 10**9, xattrs=xattrs)
    data = tar.header(entry) + content + tar.padding(len(content)) + tar.END
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (info,) = archive.getmembers()
        assert (info.name, info.mode, info.mtime, info.uid) == (path.rstrip("/"), mode, mtime, uid)
        assert archive.extractfile(info).read() == content  # type: ignore[union-attr]
    ((again, found),) = entries(data)
    assert again.xattrs == xattrs and found == content


def test_kinds_and_links() -> None:
    made = [
        tar.Entry("d/", tar.DIRECTORY, 0o755),
        tar.Entry("l" * 150, tar.SYMLINK, linkname="t" * 300),
        tar.Entry("c", tar.CHAR, devmajor=1, devminor=3),
        tar.Entry("h", tar.HARDLINK, linkname="c"),
    ]
    data = b"".join(map(tar.header, made)) + tar.END
    found = [entry for entry, _ in entries(data)]
    assert [(e.name, e.type, e.linkname, e.devmajor, e.devminor) for e in found] == [
        ("d/", tar.DIRECTORY, "", 0, 0),
        ("l" * 150, tar.SYMLINK, "t" * 300, 0, 0),
        ("c", tar.CHAR, "", 1, 3),
        ("h", tar.HARDLINK, "c", 0, 0),
    ]


@given(st.binary(max_size=3000))
def test_garbage_is_refused_or_empty(data: bytes) -> None:
    try:
        entries(data)
    except tar.TarError:
        pass


@given(st.integers(0, 4000), st.binary(min_size=1, max_size=40))
def test_damage_never_escapes_as_another_error(position: int, damage: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("x" * 200)
        info.size = 100
        info.pax_headers = {"SCHILY.xattr.user.a": "b", "comment": "c"}
        archive.addfile(info, io.BytesIO(bytes(100)))
    data = bytearray(out.getvalue())
    data[position : position + len(damage)] = damage
    try:
        entries(bytes(data))
    except tar.TarError:
        pass


def test_huge_headers_are_refused_before_they_are_read() -> None:
    head = tar.header(tar.Entry("x", size=1 << 30))
    block = bytearray(head[:512])
    block[156] = ord("L")
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(tar.TarError, match="header field too long"):
        entries(bytes(block) + bytes(1024))


def test_ends_inside_a_member() -> None:
    data = tar.header(tar.Entry("x", size=1000)) + bytes(10)
    with pytest.raises(tar.TarError, match="unexpected EOF"):
        entries(data)


def test_may_end_where_the_last_payload_does() -> None:
    data = tar.header(tar.Entry("x", size=3)) + b"abc"
    assert entries(data) == entries(data + bytes(509)) == entries(data + bytes(509 + 1024))


def test_sparse_of_gnu_pax() -> None:
    body = b"2\n0\n4\n100\n4\n".ljust(512, b"\0") + b"aaaabbbb"
    records = b"".join(
        tar.pax_record(key, value)
        for key, value in (
            ("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.name", b"real"), ("GNU.sparse.realsize", b"104"),
        )
    )  # fmt: skip
    pax = bytearray(tar.header(tar.Entry("p", size=len(records))))
    pax[156] = ord("x")
    pax[148:156] = b"        "
    pax[148:156] = b"%06o\0 " % sum(pax)
    data = bytes(pax) + records + tar.padding(len(records))
    data += tar.header(tar.Entry("GNUSparseFile.0/real", size=len(body))) + body + tar.padding(len(body)) + tar.END
    ((entry, content),) = entries(data)
    assert entry.name == "real" and entry.size == 104 and entry.sparse == [(0, 4), (100, 4)] and content == b"aaaabbbb"
