"""The CRI table: complete, and encoded as the proto says."""

from __future__ import annotations

from longshore.wire.cri import cri


def test_complete() -> None:
    assert len(cri.RuntimeService.methods) == 37 and len(cri.ImageService.methods) == 6
    assert cri.RuntimeService.name == "runtime.v1.RuntimeService"
    assert cri.RuntimeService.methods["GetContainerEvents"].server_streaming
    for service in cri.services.values():
        for method in service.methods.values():
            assert method.path.startswith("/runtime.v1.")


def test_wire_bytes() -> None:
    spec = cri.ImageSpec(image="a", user_specified_image="b", annotations={"k": "v"})
    assert spec.SerializeToString(deterministic=True) == bytes.fromhex("0a016112060a016b12017692010162")
    port = cri.PortMapping(protocol=cri.UDP, container_port=53, host_port=-1)
    assert port.SerializeToString() == b"\x08\x01\x10\x35\x18" + b"\xff" * 9 + b"\x01"
    unset = cri.LinuxContainerSecurityContext()
    assert not unset.HasField("run_as_user")
    unset.run_as_user.value = 0
    assert unset.HasField("run_as_user")
