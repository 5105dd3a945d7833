"""userns-remap: what settings mean, and dockerd's texts for those that mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshore.engine import remapping
from longshore.engine.configuration import ConfigurationError
from longshore.machinery import users
from longshore.machinery.users import Owners

needs_kernel = pytest.mark.skipif(not users.supported(), reason="this kernel has no user namespaces for overlayfs")


@pytest.fixture(autouse=True)
def ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SUBUID", "SUBGID"):
        file = tmp_path / name
        file.write_text("# ranges\nnobody:100000:1000\nbroken\ndaemon:5:0\n65534:300000:10\n")
        monkeypatch.setattr(remapping, name, file)


@needs_kernel
@pytest.mark.parametrize("setting", ["nobody:nogroup", "65534", "65534:65534", "nobody:0"])
def test_ranges_of_a_user_follow_each_other(setting: str) -> None:
    mapped = ((0, 100000, 1000), (1000, 300000, 10))
    assert remapping.resolve(setting) == (mapped, mapped)


def test_no_remapping() -> None:
    assert remapping.resolve("") is None
    assert remapping.resolve("root") is None


@needs_kernel
@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("a:b:c", 'Invalid user/group specification in --userns-remap: "a:b:c"'),
        ("no-such-user", 'Error during uid lookup for "no-such-user"'),
        ("54321", "Uid 54321 has no entry in /etc/passwd"),
        ("nobody:no-such-group", 'Error during groupname lookup for "no-such-group"'),
        ("nobody:54321", "Gid 54321 has no entry in /etc/passwd"),
        ("nobody", 'Error during gid lookup for "nobody"'),
        ("daemon", 'error creating ID mappings: no subuid ranges found for user "daemon"'),
    ],
)
def test_settings_that_mean_nothing(setting: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        remapping.resolve(setting)
    assert text in str(caught.value)


def test_ids_there_and_back() -> None:
    owners = Owners(Path("/none"), ((0, 100000, 1000), (1000, 300000, 10)), ((0, 200000, 5),))
    assert owners.root == (100000, 200000)
    assert owners.outside(1001, 4) == (300001, 200004)
    assert owners.inside(300001, 200004) == (1001, 4)
    assert owners.inside(0, 0) == (65534, 65534)
    with pytest.raises(ValueError, match="container ID 5 cannot be mapped to a host ID"):
        owners.outside(0, 5)


def test_a_new_range_lies_after_those_it_would_meet() -> None:
    assert remapping._free_range([]) == 100_000
    assert remapping._free_range([(165_000, 10), (100_000, 65_536)]) == 165_536
