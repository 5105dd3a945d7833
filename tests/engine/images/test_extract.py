"""Unpacking never leaves its folder, whatever the archive says; layers come out as overlayfs wants them."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from longshore.engine.images import layers as layers_module
from longshore.engine.images.extract import OPAQUE_XATTR, ExtractError, Extractor
from longshore.engine.images.pack import Change, Packer, hash_tree
from longshore.engine.images.store import ImageStore
from longshore.wire.tar import TarReader

from .conftest import imported, tar_of

pytestmark = pytest.mark.root


def extract(folder: Path, data: bytes, **options: Any) -> None:
    folder.mkdir(exist_ok=True)
    stream = io.BytesIO(data)
    with Extractor(folder, **options) as extractor:
        extractor.extract(TarReader(stream.read))


def info(kind: bytes, name: str = "", **values: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in values.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize(
    "files",
    [
        {"../out": b"x"},
        {"a/../../out": b"x"},
        {"h": ("hard", "../victim")},
        {"h": ("hard", "../../../../../../../../etc/passwd")},
    ],
)
def test_names_that_climb_are_refused(tmp_path: Path, files: dict[str, Any]) -> None:
    (tmp_path / "victim").write_text("safe")
    with pytest.raises(ExtractError):
        extract(tmp_path / "root", tar_of(files))
    assert not (tmp_path / "out").exists() and (tmp_path / "victim").stat().st_nlink == 1


@pytest.mark.parametrize("target", ["/", "..", "../..", "/etc", "../outside"])
def test_links_act_as_in_a_chroot(tmp_path: Path, target: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    before = sorted(os.listdir("/etc"))
    data = tar_of(
        {
            "etc": ("dir", 0o755),
            "outside": ("dir", 0o755),
            "link": ("link", target),
            "link/file": b"x",
            "link/d": ("dir", 0o700),
        }
    )
    extract(tmp_path / "root", data)
    assert list(outside.iterdir()) == [] and sorted(os.listdir("/etc")) == before and not (tmp_path / "file").exists()


def test_a_link_is_replaced_never_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("safe")
    victim.chmod(0o600)
    extract(tmp_path / "root", tar_of({"x": ("link", str(victim))})[:512] + tar_of({"x": b"evil"}))
    assert victim.read_text() == "safe" and (tmp_path / "root" / "x").read_text() == "evil"
    # A folder entry over a link to a folder outside changes neither its mode nor its owner.
    inside = tmp_path / "two"
    os.mkdir(tmp_path / "dir", 0o700)
    extract(inside, tar_of({"d": ("link", str(tmp_path / "dir"))})[:512] + tar_of({"d": ("dir", 0o777)}))
    assert stat.S_IMODE((tmp_path / "dir").stat().st_mode) == 0o700 and not (inside / "d").is_symlink()


def test_absolute_names_are_below_the_root(tmp_path: Path) -> None:
    extract(tmp_path / "root", tar_of({"/abs/f": b"x", "//./b": b"y"}))
    assert (tmp_path / "root/abs/f").read_bytes() == b"x" and (tmp_path / "root/b").exists()


def test_attributes(tmp_path: Path) -> None:
    files = {
        "f": info(tarfile.REGTYPE, "f", mode=0o4755, uid=5, gid=6, mtime=1000, pax_headers={"SCHILY.xattr.user.k": "v", "SCHILY.xattr.trusted.overlay.opaque": "y"}),
        "d": info(tarfile.DIRTYPE, "d", mode=0o1777, mtime=2000),
        "d/in": b"x",
        "p": info(tarfile.FIFOTYPE, "p", mode=0o600),
        "n": info(tarfile.CHRTYPE, "n", mode=0o666, devmajor=1, devminor=3),
        "hard": ("hard", "f"),
    }  # fmt: skip
    root = tmp_path / "root"
    extract(root, tar_of(files))
    found = (root / "f").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime, found.st_nlink) == (
        0o4755,
        5,
        6,
        1000,
        2,
    )
    assert os.listxattr(root / "f") == ["user.k"]
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o1777 and (root / "d").stat().st_mtime == 2000
    assert (root / "p").is_fifo() and (root / "n").stat().st_rdev == os.makedev(1, 3)


def test_a_later_file_replaces_a_folder_in_a_layer(tmp_path: Path) -> None:
    root = tmp_path / "root"
    extract(root, tar_of({"a/b": b"1"})[:1024] + tar_of({"a": b"2"}))
    assert (root / "a").read_bytes() == b"2"


def test_whiteouts_become_overlayfs(tmp_path: Path) -> None:
    root = tmp_path / "root"
    extract(
        root,
        tar_of(
            {
                ".wh.gone": b"",
                "d": ("dir", 0o755),
                "d/.wh..wh..opq": b"",
                ".wh..wh.plnk": b"",
                ".wh.again": b"",
                "again": ("dir", 0o755),
            }
        ),
    )
    gone = (root / "gone").lstat()
    assert stat.S_ISCHR(gone.st_mode) and gone.st_rdev == 0
    assert os.getxattr(root / "d", OPAQUE_XATTR) == b"y" and os.getxattr(root / "again", OPAQUE_XATTR) == b"y"
    assert sorted(os.listdir(root)) == ["again", "d", "gone"]
    names = tarfile.open(fileobj=io.BytesIO(b"".join(Packer(root)))).getnames()  # noqa: SIM115
    assert names == ["again", "again/.wh..wh..opq", "d", "d/.wh..wh..opq", ".wh.gone"]


def test_packing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    extract(one, tar_of({"a/b": b"1" * 600000, "l": ("link", "a"), "h": ("hard", "a/b"), "ü" * 90: b"x"}))
    packed = b"".join(Packer(one))
    extract(two, packed)
    assert hash_tree(two)[0] == "sha256:" + hashlib.sha256(packed).hexdigest() == hash_tree(one)[0]


def test_bombs_stop_before_the_disk_is_full(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        extract(tmp_path / "root", tar_of({"f": bytes(1 << 20)}), limit=1 << 19)


async def test_a_broken_layer_leaves_nothing(store: ImageStore) -> None:
    from longshore.engine.errors import EngineError

    for body in ({"../x": b"1"}, {"h": ("hard", "nothing")}):
        with pytest.raises((EngineError, OSError)):
            await imported(store, "bad:1", body)
    assert list((store.root / "overlay2").iterdir()) == [] and store.images() == []


async def test_changes_as_docker_diff(store: ImageStore) -> None:
    await imported(store, "b:1", {"etc/a": b"1", "etc/b": b"2", "keep/x": b"3"})
    root = store.prepare("c" * 64, "b:1")
    merged = root.mount()
    (merged / "etc/a").write_text("changed")
    (merged / "etc/b").unlink()
    (merged / "new").mkdir()
    (merged / "new/f").write_text("n")
    root.unmount()
    assert store.changes("c" * 64) == [
        Change(0, "/etc"),
        Change(0, "/etc/a"),
        Change(2, "/etc/b"),
        Change(1, "/new"),
        Change(1, "/new/f"),
    ]
    image = await store.commit("c" * 64, {"Cmd": ["x"]}, comment="why")
    store.release("c" * 64)
    again = store.prepare("d" * 64, image)
    merged = again.mount()
    assert sorted(p.name for p in (merged / "etc").iterdir()) == ["a"] and (merged / "etc/a").read_text() == "changed"
    store.release("d" * 64)


async def test_hundreds_of_layers_mount(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """More layers than a page of mount options can name by path."""
    from longshore.engine.images.model import encode

    image = await imported(store, "b:0", {"f0": b"0"})
    chain, diffs = image.chain, list(image.diff_ids)
    for number in range(1, 125):
        folder = store.layers.new_folder()
        (folder / "diff" / f"f{number}").write_text(str(number))
        tree = hash_tree(folder / "diff")
        chain = store.layers.adopt_tree(folder, chain, tree).chain
        diffs.append(tree.diff)
    many = store.add(encode({"rootfs": {"type": "layers", "diff_ids": diffs}, "config": {}}), chain)
    root = store.prepare("e" * 64, many)
    assert len(list(root.mount().iterdir())) == 125
    assert layers_module.chain_id("", "x") == "x"
