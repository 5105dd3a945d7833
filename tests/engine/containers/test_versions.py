"""Create requests of older clients: settings that they cannot mean are passed over, refused, or put where they are now."""

from __future__ import annotations

from typing import Any

import pytest

from longshore.engine.containers import create, versions
from longshore.engine.errors import EngineError, InvalidParameter, SystemFailure

Json = dict[str, Any]
NEWEST = (1, 51)


def adapted(version: tuple[int, int], body: Json) -> tuple[Json, Json, Json, list[str]]:
    config, host, wanted = create.read_body({"Image": "busybox", **body})
    host["NetworkMode"] = host["NetworkMode"] or "bridge"
    return config, host, wanted, versions.adapt(config, host, wanted, version)


def host_of(version: tuple[int, int], host: Json) -> Json:
    return adapted(version, {"HostConfig": host})[1]


@pytest.mark.parametrize(
    ("setting", "value", "since", "before"),
    [
        ("AutoRemove", True, (1, 25), False),
        ("KernelMemoryTCP", 5, (1, 40), None),
        ("ConsoleSize", [1, 2], (1, 42), None),
        ("Annotations", {"a": "b"}, (1, 43), None),
    ],
)
def test_settings_count_from_their_version_on(setting: str, value: Any, since: tuple[int, int], before: Any) -> None:
    assert host_of(since, {setting: value})[setting] == value
    assert host_of((1, since[1] - 1), {setting: value}).get(setting) == before


def test_no_limit_of_processes_is_none() -> None:
    assert host_of(NEWEST, {"PidsLimit": -1})["PidsLimit"] is None
    assert host_of(NEWEST, {"PidsLimit": 7})["PidsLimit"] == 7


def test_ipc_was_shareable() -> None:
    assert host_of((1, 39), {})["IpcMode"] == "shareable"
    assert host_of((1, 39), {"IpcMode": "private"})["IpcMode"] == "private"
    assert host_of((1, 40), {})["IpcMode"] == ""


def test_health_checks_had_no_start_interval() -> None:
    body = {"Healthcheck": {"Test": ["CMD", "true"], "StartInterval": 10**9}}
    assert "StartInterval" not in adapted((1, 43), body)[0]["Healthcheck"]
    assert "StartInterval" in adapted((1, 44), body)[0]["Healthcheck"]


def test_options_of_another_type_of_mount_were_passed_over() -> None:
    mount = {"Type": "tmpfs", "Target": "/t", "VolumeOptions": {"NoCopy": True}}
    assert "VolumeOptions" not in host_of((1, 41), {"Mounts": [dict(mount)]})["Mounts"][0]
    assert "VolumeOptions" in host_of((1, 42), {"Mounts": [dict(mount)]})["Mounts"][0]
    bind = {"Type": "bind", "BindOptions": {"NonRecursive": True, "CreateMountpoint": True, "Propagation": "slave"}}
    assert host_of((1, 39), {"Mounts": [bind]})["Mounts"][0]["BindOptions"] == {"Propagation": "slave"}


@pytest.mark.parametrize(
    ("since", "mount", "text"),
    [
        ((1, 44), {"Type": "bind", "BindOptions": {"ReadOnlyForceRecursive": True}}, "BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer"),
        ((1, 45), {"Type": "volume", "VolumeOptions": {"Subpath": "a"}}, "VolumeOptions.Subpath needs API v1.45 or newer"),
        ((1, 48), {"Type": "image", "Source": "busybox"}, 'Mount type "Image" needs API v1.48 or newer'),
    ],
)  # fmt: skip
def test_what_would_be_lost_is_refused(since: tuple[int, int], mount: Json, text: str) -> None:
    host_of(since, {"Mounts": [mount]})
    with pytest.raises(InvalidParameter) as refused:
        host_of((1, since[1] - 1), {"Mounts": [mount]})
    assert refused.value.message == text


def endpoints(**settings: Json) -> Json:
    return {"NetworkingConfig": {"EndpointsConfig": settings}}


def test_one_network_before_1_44() -> None:
    with pytest.raises(InvalidParameter) as refused:
        adapted((1, 43), endpoints(b={}, a={}))
    assert refused.value.message == "Container cannot be created with multiple network endpoints: a, b"
    assert set(adapted((1, 44), endpoints(b={}, a={}))[2]) == {"a", "b"}


def test_the_container_s_mac_address_is_its_main_endpoint_s() -> None:
    mac = "02:42:ac:11:00:33"
    config, _, wanted, warnings = adapted((1, 43), {"MacAddress": mac})
    assert wanted == {"bridge": {"MacAddress": mac}} and "MacAddress" not in config and warnings == []
    _, _, wanted, warnings = adapted((1, 43), {"MacAddress": mac, **endpoints(other={})})
    assert wanted == {"other": {"MacAddress": mac}}
    _, _, wanted, warnings = adapted((1, 43), endpoints(bridge={"MacAddress": mac}))
    assert wanted == {"bridge": {}}
    _, _, wanted, warnings = adapted((1, 44), {"MacAddress": mac})
    assert wanted == {"bridge": {"MacAddress": mac}} and "is now deprecated" in warnings[0]


@pytest.mark.parametrize(
    ("version", "body", "text"),
    [
        ((1, 43), {"HostConfig": {"NetworkMode": "host"}}, "conflicting options: mac-address and the network mode"),
        (NEWEST, endpoints(bridge={"MacAddress": "02:42:ac:11:00:34"}), "the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty"),
        (NEWEST, endpoints(other={}), "unable to migrate container-wide MAC address to a specific network: HostConfig.NetworkMode must match the identity of a network in NetworkSettings.Networks"),
    ],
)  # fmt: skip
def test_mac_addresses_that_cannot_be(version: tuple[int, int], body: Json, text: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        adapted(version, {"MacAddress": "02:42:ac:11:00:33", **body})
    assert refused.value.message == text


SYSCTLS = "com.docker.network.endpoint.sysctls"


def test_sysctls_of_eth0_go_to_the_main_endpoint() -> None:
    given = {"net.ipv4.conf.eth0.forwarding": "1", "net.ipv4.ip_forward": "0"}
    body = {
        "HostConfig": {"Sysctls": given},
        **endpoints(bridge={"DriverOpts": {SYSCTLS: "net.ipv4.conf.IFNAME.mtu=9"}}),
    }
    _, host, wanted, warnings = adapted((1, 47), body)
    assert host["Sysctls"] == {"net.ipv4.ip_forward": "0"}
    moved = "net.ipv4.conf.IFNAME.forwarding=1"
    assert wanted["bridge"]["DriverOpts"] == {SYSCTLS: f"{moved},net.ipv4.conf.IFNAME.mtu=9"}
    assert warnings == [f'Migrated sysctl "net.ipv4.conf.eth0.forwarding" to DriverOpts{{"{SYSCTLS}":"{moved}"}}.']


@pytest.mark.parametrize(
    ("version", "name", "error"),
    [
        (NEWEST, "net.ipv4.conf.eth0.forwarding", SystemFailure),
        ((1, 47), "net.ipv4.conf.eth1.forwarding", SystemFailure),
    ],
)
def test_sysctls_of_an_interface_that_cannot_be(version: tuple[int, int], name: str, error: type[EngineError]) -> None:
    with pytest.raises(error) as refused:
        host_of(version, {"Sysctls": {name: "1"}})
    assert SYSCTLS in refused.value.message
    host_of(version, {"Sysctls": {name: "1"}, "NetworkMode": "host"})


def test_the_driver_of_volumes_does_not_reach_mounts() -> None:
    def warned(version: tuple[int, int], mount: Json) -> bool:
        return bool(adapted(version, {"HostConfig": {"VolumeDriver": "local", "Mounts": [mount]}})[3])

    assert warned((1, 48), {"Type": "volume"}) and not warned((1, 47), {"Type": "volume"})
    assert not warned((1, 48), {"Type": "bind"})
    assert not warned((1, 48), {"Type": "volume", "VolumeOptions": {"DriverConfig": {"Name": "local"}}})
