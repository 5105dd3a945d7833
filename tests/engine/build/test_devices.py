"""RUN --device: CDI devices, who may have them, and what a command gets."""

from __future__ import annotations

import pytest

from longshore.engine.build.devices import Wanted, parse
from longshore.engine.errors import InvalidParameter
from longshore.machinery.grpc import RpcError

from .kit import Kit

QUIET = {"force-network-mode": "none"}
SPEC = """{"cdiVersion": "0.6.0", "kind": "vendor.com/gpu", "devices": [
  {"name": "one", "containerEdits": {"env": ["FOO=injected"], "deviceNodes": [{"path": "/dev/given", "hostPath": "/dev/zero"}]}},
  {"name": "free", "annotations": {"org.mobyproject.buildkit.device.autoallow": "true"}, "containerEdits": {"env": ["BAR=free"]}}]}
"""


@pytest.mark.root
async def test_a_command_gets_devices(kit: Kit) -> None:
    folder = kit.path / "cdi"
    folder.mkdir()
    (folder / "vendor.json").write_text(SPEC)
    kit.services.builder.runner.device_folders = [folder]
    text = "FROM busybox\nRUN --device=vendor.com/gpu=one,required --device=vendor.com/other=x env; head -c 2 /dev/given | wc -c\n"
    with pytest.raises(RpcError, match=r"device vendor\.com/gpu=one is requested by the build but not allowed"):
        await kit.build(text, **QUIET)
    for allowed in ("device", "device=vendor.com/gpu=one"):
        kit.entitlements = [allowed]
        await kit.build(text, **{"no-cache": ""}, **QUIET)
        assert b"FOO=injected" in kit.logs and b"\n2\n" in kit.logs
    kit.entitlements = []
    await kit.build("FROM busybox\nRUN --device=name=vendor.com/gpu=free env\n", **QUIET)
    assert b"BAR=free" in kit.logs
    with pytest.raises(RpcError, match=r'required device "vendor\.com/gpu=two" is not registered'):
        await kit.build("FROM busybox\nRUN --device=vendor.com/gpu=two,required=true env\n", **QUIET)
    kit.services.allowed.discard("device")
    kit.entitlements = ["device"]
    with pytest.raises(RpcError, match="granting entitlement device is not allowed by build daemon configuration"):
        await kit.build(text, **QUIET)


def test_forms() -> None:
    assert parse("a/b=c") == Wanted("a/b=c") and parse("required,name=a/b") == Wanted("a/b", True)
    for text, message in (
        ("a/b=c,x", "invalid field 'x' must be a key=value pair"),
        ("a/b=c,x=1", "unexpected key 'x' in 'x=1'"),
        ("name=a,name=b", "device name already set to a"),
        ("a/b,required=maybe", "invalid value for required: maybe"),
    ):
        with pytest.raises(InvalidParameter, match=message):
            parse(text)
