from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.engine.runtime import capabilities, seccomp
from longshore.engine.runtime import spec as oci
from longshore.engine.runtime.users import UnknownUser, User, resolve_user
from longshore.machinery import rooted


def test_capabilities() -> None:
    assert set(capabilities.tweak(capabilities.DEFAULT, ["net_admin"], ["MKNOD"])) >= {"CAP_NET_ADMIN", "CAP_KILL"}
    assert "CAP_MKNOD" not in capabilities.tweak(capabilities.DEFAULT, [], ["MKNOD"])
    assert capabilities.tweak(capabilities.DEFAULT, ["CHOWN"], ["ALL"]) == ["CAP_CHOWN"]
    assert capabilities.tweak(capabilities.DEFAULT, ["ALL"], []) == list(capabilities.available())
    with pytest.raises(capabilities.UnknownCapability, match='unknown capability: "CAP_FOO"'):
        capabilities.normalize(["foo"])


def test_the_default_profile_follows_the_capabilities() -> None:
    plain = seccomp.default_profile(capabilities.DEFAULT)
    allowed = set(plain["syscalls"][0]["names"])
    assert {"read", "execve", "chroot"} <= allowed and not {
        "mount",
        "bpf",
        "reboot",
        "kexec_load",
        "init_module",
    } & allowed
    assert any(rule["names"] == ["clone3"] and rule["errnoRet"] == 38 for rule in plain["syscalls"])
    admin = seccomp.default_profile([*capabilities.DEFAULT, "CAP_SYS_ADMIN"])
    assert {"mount", "clone3", "setns"} <= set(admin["syscalls"][0]["names"])


@pytest.mark.parametrize(
    "settings, known", [("# CONFIG_X86_X32_ABI is not set", False), ("CONFIG_X86_X32_ABI=y", True), ("", True)]
)
def test_an_architecture_that_the_kernel_lacks(monkeypatch: pytest.MonkeyPatch, settings: str, known: bool) -> None:
    monkeypatch.setattr(seccomp, "_kernel_settings", lambda: f"CONFIG_X=y\n{settings}\nCONFIG_Z=y\n")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    seccomp._architectures.cache_clear()
    try:
        found = seccomp._architectures()
    finally:
        seccomp._architectures.cache_clear()
    assert "SCMP_ARCH_X86" in found and ("SCMP_ARCH_X32" in found) is known


def test_a_profile_of_the_user() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"name": "old", "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "99.0"}},
        ],
    }
    made = seccomp.load_profile(json.dumps(profile), ["CAP_CHOWN"])
    assert made is not None and [rule["names"] for rule in made["syscalls"]] == [["read"], ["old"]]
    assert seccomp.load_profile("{}", []) is None
    with pytest.raises(seccomp.BadProfile, match="Decoding seccomp profile failed"):
        seccomp.load_profile("{bad", [])


def test_default_spec(tmp_path: Path) -> None:
    spec = oci.default_spec(rootfs=tmp_path, args=["sh"])
    assert "/proc/kcore" in spec["linux"]["maskedPaths"] and "/proc/sys" in spec["linux"]["readonlyPaths"]
    assert spec["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert set(spec["process"]["capabilities"]["bounding"]) <= set(capabilities.available())
    oci.make_privileged(spec)
    assert "seccomp" not in spec["linux"] and spec["linux"]["maskedPaths"] == []


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nuser:x:7:8::/home/user:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nmain:x:8:\nextra:x:9:user\n")
    return tmp_path


def test_users(home: Path) -> None:
    assert resolve_user(home, "") == User(0, 0, (), "/root")
    assert resolve_user(home, "user") == User(7, 8, (9,), "/home/user")
    assert resolve_user(home, "7:extra") == User(7, 9, (), "/home/user")
    assert resolve_user(home, "55:66", ["main", "3"]) == User(55, 66, (3, 8), "/")
    for wrong, text in (
        ("nobody", "unable to find user nobody"),
        ("0:nogrp", "unable to find group nogrp"),
        ("4294967296", "must be in range"),
    ):
        with pytest.raises(UnknownUser, match=text):
            resolve_user(home, wrong)


def test_a_passwd_that_points_out_is_read_inside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("evil:x:1:1::/:/bin/sh\n")
    inside = tmp_path / "root"
    (inside / "etc").mkdir(parents=True)
    os.symlink("/../../secret", inside / "etc/passwd")
    with pytest.raises(UnknownUser):
        resolve_user(inside, "evil")
    os.mkfifo(inside / "etc/group")
    assert resolve_user(inside, "5").uid == 5


@given(st.lists(st.sampled_from(["a", "b", "..", ".", "link", "up"]), min_size=1, max_size=8))
def test_paths_never_leave_their_root(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    base = tmp_path_factory.mktemp("rooted")
    root = base / "root"
    (root / "a" / "b").mkdir(parents=True)
    os.symlink("/a", root / "link")
    os.symlink("../../../..", root / "up")
    path = "/".join(parts)
    try:
        real = rooted.real_path(root, path)
    except OSError:
        return
    assert real.startswith("/") and (root / real.lstrip("/")).exists()


def test_make_dirs_stays_inside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    os.symlink("/../outside", root / "way")
    os.close(rooted.make_dirs(root, "way/x/y"))
    assert (root / "outside/x/y").is_dir() and not (tmp_path / "outside").exists()
    os.symlink("round", root / "about")
    os.symlink("about", root / "round")
    with pytest.raises(OSError):
        rooted.make_dirs(root, "round/x")
    os.close(rooted.make_dirs(root, "p/q/r"))
    assert (root / "p/q/r").is_dir()
