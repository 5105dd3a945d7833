"""daemon.json: what is read, what is refused, and what containers get of it."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from longshore.engine import configuration
from longshore.engine.configuration import Configuration, ConfigurationError, load, parse
from longshore.engine.reloading import merged


def host(**given: Any) -> dict[str, Any]:
    empty = {"LogConfig": None, "ShmSize": 0, "CgroupnsMode": "", "IpcMode": "", "Runtime": "", "Ulimits": None}
    return {**empty, **given}


def test_settings_are_read_under_dockerds_names() -> None:
    found = parse(
        b"""{"registry-mirrors": ["http://127.0.0.1:5000/"], "insecure-registries": ["10.0.0.0/8", "box:5000"],
        "max-concurrent-downloads": 7, "log-driver": "local", "log-opts": {"max-size": "1m"}, "labels": ["a=b"],
        "default-shm-size": "128M", "launcher": false, "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 64, "Soft": 32}}}"""
    )
    assert found.registry_mirrors == ("http://127.0.0.1:5000",) and not found.launcher
    registries = found.registries()
    assert registries.downloads == 7
    assert registries.is_insecure("10.1.2.3:5000") and registries.is_insecure("box:5000")
    assert not registries.is_insecure("other:5000")
    filled = host()
    found.fill(filled)
    assert filled["LogConfig"] == {"Type": "local", "Config": {"max-size": "1m"}}
    assert filled["ShmSize"] == 128 << 20
    assert filled["Ulimits"] == [{"Name": "nofile", "Hard": 64, "Soft": 32}]


def test_what_a_container_says_wins() -> None:
    found = parse(
        b"""{"log-opts": {"max-size": "1m", "max-file": "3"}, "init": true, "default-shm-size": 4096,
        "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 64, "Soft": 32}}}"""
    )
    own = [{"Name": "nofile", "Hard": 8, "Soft": 8}]
    filled = host(LogConfig={"Type": "", "Config": {"max-file": "9"}}, ShmSize=1, Init=False, Ulimits=own)
    found.fill(filled)
    assert filled["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "9"}}
    assert (filled["ShmSize"], filled["Init"], filled["Ulimits"]) == (1, False, own)
    # Another driver than the engine's own gets none of its options.
    filled = host(LogConfig={"Type": "none", "Config": {}})
    found.fill(filled)
    assert filled["LogConfig"] == {"Type": "none", "Config": {}}
    assert filled["Init"] is True


def test_no_file_is_no_settings(tmp_path: Path) -> None:
    assert load(tmp_path / "daemon.json") == Configuration()
    assert parse(b'{"max-concurrent-uploads": null, "labels": null}') == Configuration()
    (tmp_path / "daemon.json").write_text(" \n")
    assert load(tmp_path / "daemon.json") == Configuration()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{", "Expecting"),
        (b"[]", "it is no JSON object"),
        (b'{"registry-mirors": []}', "the following directives don't match any configuration option: registry-mirors"),
        (b'{"registry-mirrors": ["ftp://x"]}', 'invalid mirror: unsupported scheme "ftp"'),
        (b'{"registry-mirrors": ["http://u:p@x"]}', "invalid mirror: username/password not allowed in URI"),
        (b'{"max-concurrent-downloads": -1}', "invalid max"),
        (b'{"default-shm-size": "many"}', "default-shm-size"),
        (b'{"host-gateway-ips": ["10.0.0.1", "10.0.0.2"]}', "only one IPv4 and one IPv6 address"),
        (b'{"fixed-cidr-v6": "10.0.0.0/24"}', "invalid CIDR address: 10.0.0.0/24"),
        (b'{"init": "yes"}', "init: true or false is wanted"),
        (b'{"default-ulimits": {"nofile": {"Hard": 1}}}', "default-ulimits"),
        (b'{"runtimes": {"runc": {"path": "x"}}}', "runtime name 'runc' is reserved"),
        (b'{"runtimes": {"a": {}}}', "runtime a: either a runtimeType or a path must be configured"),
        (
            b'{"runtimes": {"a": {"path": "x", "options": {"a": 1}}}}',
            "runtime a: options cannot be used with a path runtime",
        ),
        (b'{"runtimes": {"a": {"runtimeType": "io.other.v1"}}}', "runtimeType io.other.v1 is not supported"),
        (
            b'{"default-ipc-mode": "host"}',
            'IPC mode "host" is not supported as default value; use "shareable" or "private"',
        ),
        (b'{"default-cgroupns-mode": "x"}', 'invalid default cgroup namespace (x): use "host" or "private"'),
        (b'{"features": {"cdi": "yes"}}', "features: true or false is wanted"),
    ],
)
def test_what_dockerd_refuses_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(ConfigurationError, match="unable to configure the Docker daemon with file") as caught:
        parse(text)
    assert why in str(caught.value)


@pytest.mark.parametrize("unified", [False, True])
def test_cgroup_namespaces_of_privileged_containers(unified: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With control groups of version 1 a privileged container has the host's, whatever the default is."""
    monkeypatch.setattr(configuration.cgroups, "unified", lambda: unified)
    found = parse(b'{"default-cgroupns-mode": "private"}')
    for privileged, mode in ((False, "private"), (True, "private" if unified else "")):
        filled = host(Privileged=privileged)
        found.fill(filled)
        assert filled["CgroupnsMode"] == mode


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"default-runtime": "nobody"}', "specified default runtime 'nobody' does not exist"),
        (b'{"authorization-plugins": ["guard"]}', 'failed to validate authorization plugin: plugin "guard" not found'),
        (b'{"bridge": "br0", "bip": "10.0.0.1/24"}', "You specified -b & --bip, mutually exclusive options."),
    ],
)
def test_what_stops_the_start(text: bytes, why: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(why)):
        parse(text)


def test_labels_of_selinux_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it on the host dockerd says so and goes on; with it, no container may be less confined than was asked."""
    monkeypatch.setattr(configuration, "SELINUX", tmp_path / "enforce")
    parse(b'{"selinux-enabled": true}')
    assert "Docker could not enable SELinux on the host system" in caplog.text
    (tmp_path / "enforce").touch()
    with pytest.raises(ConfigurationError, match="selinux-enabled is not supported by this engine"):
        parse(b'{"selinux-enabled": true}')


def test_settings_of_a_reload() -> None:
    """What a file no longer says stays, but for what dockerd sets back."""
    old = parse(
        b'{"labels": ["a=b"], "max-concurrent-downloads": 7, "features": {"x": true}, "default-ipc-mode": "shareable"}'
    )
    new = merged(old, configuration._values(b'{"debug": true, "dns": ["10.0.0.1"]}', Path("daemon.json")))
    assert (new.labels, new.ipc_mode, new.debug) == (("a=b",), "shareable", True)
    assert (new.downloads, dict(new.features), new.dns) == (3, {}, ())
    assert parse(b'{"max-concurrent-uploads": 0}').uploads == 5


def test_what_has_no_use_here_is_told_and_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert parse(b'{"storage-driver": "overlay2", "selinux-enabled": false}') == Configuration()
    assert "storage-driver is not used" in caplog.text


def test_what_builds_may_be_allowed() -> None:
    assert Configuration().builder.entitlements == {"network.host", "device"}
    text = b'{"builder": {"gc": {"enabled": true}, "Entitlements": {"network-host": false, "security-insecure": true}}}'
    assert parse(text).builder.entitlements == {"security.insecure", "device"}
    with pytest.raises(ConfigurationError, match="builder: true or false is wanted"):
        parse(b'{"builder": {"entitlements": {"security-insecure": "yes"}}}')


def test_rules_for_the_build_cache(tmp_path: Path) -> None:
    from longshore.engine.build.settings import HOUR, Rule

    usual = Configuration().builder.policy(tmp_path)
    assert [rule.everything for rule in usual] == [False, False, False, True]
    assert usual[0].filters == ("type==source.local", "type==exec.cachemount", "type==source.git.checkout")
    assert usual[0].keep == 48 * HOUR and usual[1].keep == 60 * 24 * HOUR
    assert parse(b'{"builder": {"gc": {"enabled": false}}}').builder.policy(tmp_path) == ()
    kept = parse(b'{"builder": {"gc": {"defaultKeepStorage": "20GB"}}}').builder.policy(tmp_path)
    assert kept[2] == Rule(reserved=20 << 30) and kept[0].most == round((20 << 30) / 100 * 13.817580227)
    text = """{"builder": {"history": {"maxEntries": 3, "maxAge": "1h"}, "gc": {"enabled": true, "policy": [
        {"keepStorage": "1KB", "filter": ["unused-for=2h", "type=exec.cachemount"]},
        {"reservedSpace": "1MB", "maxUsedSpace": 5000, "minFreeSpace": "2g", "all": true}]}}}"""
    settings = parse(text.encode()).builder
    assert settings.policy(tmp_path) == (
        Rule(filters=("type==exec.cachemount",), keep=2 * HOUR, reserved=1024),
        Rule(everything=True, reserved=1 << 20, most=5000, free=2 << 30),
    )
    assert (settings.history, settings.history_age) == (3, HOUR)
    for wrong, why in (
        ('{"policy": [{"keepStorage": "lots"}]}', "failed to parse reservedSpace: invalid size: 'lots'"),
        ('{"policy": [{"filter": ["until=1h", "unused-for=2h"]}]}', "conflicting filters"),
        ('{"policy": [{"filter": ["type=a", "type=b"]}]}', "filters expect only one value"),
        ('{"policy": [{"filter": ["until=soon"]}]}', "invalid duration soon"),
    ):
        with pytest.raises(ConfigurationError, match=why):
            parse(f'{{"builder": {{"gc": {wrong}}}}}'.encode())
