"""SBOM attestations, with a scanner made here that follows BuildKit's protocol."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from longshore.engine.build.buildkit.scanning import enabled
from longshore.machinery.grpc import RpcError

from .kit import Kit

pytestmark = pytest.mark.root
Start = Callable[..., Awaitable[str]]
QUIET = {"force-network-mode": "none"}
SCANNER = r"""FROM busybox
COPY <<"EOF" /scan.sh
set -e
said() {
  printf '{"_type":"t","predicateType":"https://spdx.dev/Document","predicate":{"name":"%s","files":"%s"}}' \
    "$1" "$(ls "$2" | tr '\n' ' ')" > "$BUILDKIT_SCAN_DESTINATION/$1.spdx.json"
}
said "$(basename "$BUILDKIT_SCAN_SOURCE")" "$BUILDKIT_SCAN_SOURCE"
touch "$BUILDKIT_SCAN_SOURCE/x" 2>/dev/null && exit 9
for extra in ${BUILDKIT_SCAN_SOURCE_EXTRAS:+"$BUILDKIT_SCAN_SOURCE_EXTRAS"/*}; do said "$(basename "$extra")" "$extra"; done
if [ "$BUILDKIT_SCAN_MORE" = link ]; then ln -s /etc/passwd "$BUILDKIT_SCAN_DESTINATION/l"; fi
if [ "$BUILDKIT_SCAN_MORE" = other ]; then echo '{"predicateType": "p"}' > "$BUILDKIT_SCAN_DESTINATION/o"; fi
if [ "$BUILDKIT_SCAN_MORE" = bad ]; then echo '{' > "$BUILDKIT_SCAN_DESTINATION/b"; fi
test "$BUILDKIT_SCAN_MORE" != fail
EOF
CMD ["sh", "/scan.sh"]
"""
TEXT = """ARG BUILDKIT_SBOM_SCAN_CONTEXT=true
FROM scratch AS file
ARG BUILDKIT_SBOM_SCAN_STAGE=true
COPY Dockerfile /file
FROM scratch AS unused
ARG BUILDKIT_SBOM_SCAN_STAGE=true
RUN does not run
FROM scratch
COPY --from=file /file /out
"""


async def told(kit: Kit, text: str, **attributes: str) -> dict[str, Any]:
    """What is attested beside a result's files, by name."""
    await kit.build(text, exporter="tar", **QUIET, **attributes)
    with tarfile.open(fileobj=io.BytesIO((kit.path / "out").read_bytes())) as archive:
        files = {m.name: archive.extractfile(m) for m in archive if m.name.endswith(".json")}
        return {name: json.loads(file.read()) for name, file in files.items() if file is not None}


async def test_a_result_is_scanned(kit: Kit) -> None:
    await kit.build(SCANNER, name="scanner", **QUIET)
    found = await told(kit, "FROM scratch\nCOPY Dockerfile /f\n", **{"attest:sbom": "generator=scanner"})
    assert list(found) == ["sbom.spdx.json"] and "[linux/amd64] generating sbom using scanner" in kit.names
    statement = found["sbom.spdx.json"]
    assert statement["predicate"] == {"name": "sbom", "files": "f "}
    assert statement["predicateType"] == "https://spdx.dev/Document" and [s["name"] for s in statement["subject"]] == [
        "f"
    ]
    (kit.context / "unused").write_text("x")
    given = {"attest:sbom": "generator=scanner", "attest:provenance": "mode=min"}
    found = await told(kit, TEXT, **given)
    names = {name: statement["predicate"].get("files") for name, statement in found.items()}
    assert names == {
        "sbom.spdx.json": "out ", "sbom-context.spdx.json": "Dockerfile unused ", "sbom-file.spdx.json": "file ",
        "provenance.json": None,
    }  # fmt: skip
    off = {"build-arg:BUILDKIT_SBOM_SCAN_STAGE": "false", "build-arg:BUILDKIT_SBOM_SCAN_CONTEXT": "other"}
    assert list(await told(kit, TEXT, **{"attest:sbom": "generator=scanner"}, **off)) == ["sbom.spdx.json"]


async def test_a_pushed_image_has_its_sbom(kit: Kit, registry: Start) -> None:
    host = await registry()
    await kit.build(SCANNER, name=f"{host}/scanner:1", opt__push="true", **QUIET)
    await kit.store.remove(f"{host}/scanner:1")
    given = {"attest:sbom": f"generator={host}/scanner:1", "attest:provenance": "inline-only=true", **QUIET}
    await kit.build("FROM scratch\nCOPY Dockerfile /f\n", name=f"{host}/app:1", opt__push="true", **given)
    assert f"[internal] load metadata for {host}/scanner:1" in kit.names
    session = await kit.store.registries.session(host, "app", auth=None, actions="pull")
    image, attested = json.loads((await session.manifest("1"))[0])["manifests"]
    layers = json.loads((await session.manifest(attested["digest"]))[0])["layers"]
    kinds = [layer["annotations"]["in-toto.io/predicate-type"] for layer in layers]
    assert kinds == ["https://spdx.dev/Document", "https://slsa.dev/provenance/v1"]
    statement = json.loads(await (await session.blob(layers[0]["digest"])).read(1 << 20))
    assert statement["subject"] == [{"name": "_", "digest": {"sha256": image["digest"][7:]}}]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("fail", 'process "sh /scan.sh" did not complete successfully: exit code: 1'),
        ("link", "open l: too many levels of symbolic links"),
        ("other", "bundle entry p does not match required predicate type https://spdx.dev/Document"),
        ("bad", "cannot decode in-toto statement"),
    ],
)
async def test_a_scanner_that_is_wrong(kit: Kit, more: str, message: str) -> None:
    await kit.build(SCANNER, name="scanner", **QUIET)
    with pytest.raises(RpcError, match=message):
        await told(kit, "FROM busybox\n", **{"attest:sbom": f"generator=scanner,MORE={more}"})


async def test_a_scanner_that_is_not_there(kit: Kit) -> None:
    with pytest.raises(RpcError, match=r"failed to resolve source metadata for 127\.0\.0\.1:9/s:latest"):
        await told(kit, "FROM busybox\n", **{"attest:sbom": "generator=127.0.0.1:9/s"})
    await kit.build("FROM scratch\nCOPY Dockerfile /f\n", name="mute")
    with pytest.raises(RpcError, match=r"scanner docker\.io/library/mute:latest does not have cmd"):
        await told(kit, "FROM busybox\n", **{"attest:sbom": "generator=mute"})


def test_stages_to_scan() -> None:
    assert enabled("true", "a") and enabled("b,a", "a") and not enabled("false", "a") and not enabled(None, "a")
