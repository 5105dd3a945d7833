"""The engine as a client of registries that refuse, lie, cut, redirect and wait."""

from __future__ import annotations

import asyncio
import base64
from typing import Any
from urllib.parse import parse_qs

import pytest

from longshore.engine.errors import EngineError, InvalidParameter, NotFound
from longshore.engine.images.distribution import OCI_INDEX
from longshore.engine.images.refusals import registry_error
from longshore.engine.images.store import ImageStore
from longshore.engine.images.tokens import CLIENT
from longshore.machinery.http import Request, Response

from .scripted import Scripted, answer, digest_of

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longshore.engine.images.pull.SECOND", 0.001)


def nothing_left(store: ImageStore) -> None:
    assert store.list() == [] and list((store.root / "overlay2").iterdir()) == []
    assert list(store.blobs.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "body", "challenge", "text"),
    [
        (401, b"", "", "unauthorized: authentication required"),
        (401, b'{"error":"x"}', "", "unauthorized: authentication required"),
        (401, b'{"details":"incorrect username or password"}', "", "unauthorized: incorrect username or password"),
        (403, b'{"errors":[{"Code":"DENIED","Message":"no"}]}', "", "denied: no"),
        (403, b'{"errors":[{"code":"DENIED"}]}', "", "denied: requested access to the resource is denied"),
        (
            403,
            b"no way",
            "",
            "error parsing HTTP 403 response body: invalid character 'o' in literal null (expecting 'u'): \"no way\"",
        ),
        (403, b"", "", 'error parsing HTTP 403 response body: unexpected end of JSON input: ""'),
        (404, b"{}", "", 'error parsing HTTP 404 response body: no error details found in HTTP response body: "{}"'),
        (400, b'{"errors":[{"code":"ODD","message":"m"}]}', "", "unknown: m"),
        (429, b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}', "", "toomanyrequests: slow down"),
        (
            401,
            b'{"errors":[{"code":"UNAUTHORIZED"}]}',
            'Bearer realm="r",error="insufficient_scope"',
            "errors:\ndenied: requested access to the resource is denied\nunauthorized: authentication required\n",
        ),
        (503, b"<html>", "", "received unexpected HTTP status: 503 Service Unavailable"),
    ],
)
def test_words_of_refusals(status: int, body: bytes, challenge: str, text: str) -> None:
    assert registry_error(status, "Service Unavailable", body, [challenge] if challenge else []).message == text


async def test_a_token_that_ends_is_renewed_in_the_middle_of_a_pull(store: ImageStore) -> None:
    async with Scripted() as registry:
        good = {"token": 0}
        given: list[str] = []

        def hook(request: Request) -> Response | None:
            if request.path == "/token":
                good["token"] += 1
                given.append(request.param("scope"))
                return answer(200, {"token": f"t{good['token']}", "expires_in": 300})
            if request.path == registry.layer_path and good["token"] == 1:
                good["token"] = 2
            if request.headers.get("authorization") != f"Bearer t{good['token']}":
                challenge = f'Bearer realm="http://{registry.host}/token",service="s",error="invalid_token"'
                return answer(401, {"errors": [{"code": "UNAUTHORIZED"}]}, WWW_Authenticate=challenge)
            return None

        registry.hook = hook
        good["token"] = 0
        image = await store.pull(f"{registry.host}/app:1", auth={"username": "u", "password": "p"})
        assert store.resolve(f"{registry.host}/app:1").id == image.id
        assert given == ["repository:app:pull"] * 2
        basic = "Basic " + base64.b64encode(b"u:p").decode()
        assert [fields["authorization"] for fields in registry.seen(" /token")] == [basic, basic]


async def test_a_token_server_that_refuses(store: ImageStore) -> None:
    async with Scripted() as registry:

        def hook(request: Request) -> Response | None:
            if request.path == "/token":
                return answer(401, {"errors": [{"code": "UNAUTHORIZED", "message": "incorrect username or password"}]})
            return answer(401, b"", WWW_Authenticate=f'Bearer realm="http://{registry.host}/token",service="s"')

        registry.hook = hook
        with pytest.raises(EngineError) as caught:
            await store.pull(f"{registry.host}/app:1", auth={"username": "u", "password": "no"})
        url = f"http://{registry.host}/v2/app/manifests/1"
        assert caught.value.message == f'Head "{url}": unauthorized: incorrect username or password'
        with pytest.raises(EngineError) as caught:
            await store.registries.login({"username": "u", "password": "no", "serveraddress": registry.host})
        assert caught.value.message == f'Get "http://{registry.host}/v2/": unauthorized: incorrect username or password'
        assert caught.value.status == 401


async def test_login_gives_an_identity_token_which_gets_tokens(store: ImageStore) -> None:
    async with Scripted() as registry:
        forms: list[dict[str, list[str]]] = []

        async def hook(request: Request) -> Response | None:
            if request.path == "/token":
                if request.method == "POST":
                    forms.append(parse_qs((await request.read(9999)).decode()))
                    return answer(200, {"access_token": "t", "refresh_token": "next"})
                assert request.param("offline_token") == "true" and request.param("client_id") == "docker"
                return answer(200, {"token": "t", "refresh_token": "long"})
            if request.headers.get("authorization") != "Bearer t":
                realm = f'Bearer realm="http://{registry.host}/token",service="s"'
                return answer(401, {"errors": [{"code": "UNAUTHORIZED"}]}, WWW_Authenticate=realm)
            return None

        registry.hook = hook
        identity = await store.registries.login({"username": "u", "password": "p", "serveraddress": registry.host})
        assert identity == "long"
        await store.pull(f"{registry.host}/app:1", auth={"identitytoken": identity})
        assert forms[0]["grant_type"] == ["refresh_token"] and forms[0]["refresh_token"] == ["long"]


async def test_the_registry_learns_who_asks(store: ImageStore) -> None:
    async with Scripted() as registry:
        CLIENT.set("Docker-Client/28.2.2 (linux)")
        await store.pull(f"{registry.host}/app:1")
        agents = {fields["user-agent"] for _, fields in registry.asked}
    assert agents == {r"docker/28.5.2 longshore UpstreamClient(Docker-Client/28.2.2 \(linux\))"}


async def test_a_limit_of_requests(store: ImageStore) -> None:
    """With Retry-After a layer waits as long as it is told; without, the refusal is the answer."""
    full = {"errors": [{"code": "TOOMANYREQUESTS", "message": "You have reached your pull rate limit."}]}
    async with Scripted() as registry:
        left = [2]

        def hook(request: Request) -> Response | None:
            if request.path == registry.layer_path and left[0]:
                left[0] -= 1
                return answer(429, full, Retry_After="7")
            return None

        registry.hook = hook
        said: list[str] = []
        await store.pull(f"{registry.host}/app:1", progress=lambda message: said.append(message.get("status", "")))
        assert said.count("Retrying in 7 seconds") == 2 and said.count("Retrying in 1 second") == 2
        registry.hook = lambda request: answer(429, full) if "/manifests/" in request.path else None
        with pytest.raises(EngineError, match=r"^toomanyrequests: You have reached your pull rate limit\.$"):
            await store.pull(f"{registry.host}/app:2")


async def test_a_server_error_is_tried_again(store: ImageStore) -> None:
    async with Scripted() as registry:
        left = [4]

        def hook(request: Request) -> Response | None:
            if request.path == registry.layer_path and left[0]:
                left[0] -= 1
                return answer(503, b"later")
            return None

        registry.hook = hook
        await store.pull(f"{registry.host}/app:1")
        await store.remove(f"{registry.host}/app:1")
        left[0] = 5
        with pytest.raises(EngineError, match="received unexpected HTTP status: 503 Service Unavailable"):
            await store.pull(f"{registry.host}/app:1")
        nothing_left(store)


async def test_credentials_stay_with_the_registry(store: ImageStore) -> None:
    async with Scripted() as registry, Scripted() as elsewhere:

        def hook(request: Request) -> Response | None:
            if not request.headers.get("authorization"):
                return answer(401, b"", WWW_Authenticate='Basic realm="r"')
            if request.path == registry.layer_path:
                return answer(307, b"", Location=f"http://{elsewhere.host}/kept?signature=1")
            return None

        registry.hook = hook
        elsewhere.hook = lambda request: answer(200, registry.layer) if request.path == "/kept" else None
        await store.pull(f"{registry.host}/app:1", auth={"username": "u", "password": "p"})
        (fields,) = elsewhere.seen("/kept")
        assert "authorization" not in fields


@pytest.mark.parametrize("what", ["another", "short", "long"])
async def test_a_blob_that_is_not_what_it_should_be(store: ImageStore, what: str) -> None:
    async with Scripted() as registry:
        made = {
            "another": bytes(len(registry.layer)),
            "short": registry.layer[:-1],
            "long": registry.layer + b"x",
        }[what]
        registry.hook = lambda request: answer(200, made) if request.path == registry.layer_path else None
        wanted = (
            "unexpected EOF"
            if what == "short"
            else f"filesystem layer verification failed for digest {digest_of(registry.layer)}"
        )
        with pytest.raises(EngineError, match=wanted):
            await store.pull(f"{registry.host}/app:1")
        nothing_left(store)
        # Nothing of it stays in the way of the right one.
        registry.hook = None
        await store.pull(f"{registry.host}/app:1")


@pytest.mark.parametrize(
    ("changes", "media", "text"),
    [
        ({"manifests": []}, "", "invalid manifest: both an index and an image manifest"),
        ({}, OCI_INDEX, "mediaType in manifest should be '.*index.*' not '.*manifest.v2"),
        ({"mediaType": OCI_INDEX}, "", "mediaType in manifest should be '.*manifest.v2.*' not '.*index"),
    ],
)
async def test_a_document_that_reads_as_two(store: ImageStore, changes: dict[str, Any], media: str, text: str) -> None:
    """CVE-2021-41190: what is an image to one client and an index to another is neither."""
    async with Scripted() as registry:
        registry.manifest.update(changes)
        registry.media = media or registry.media
        with pytest.raises(EngineError, match=text):
            await store.pull(f"{registry.host}/app:1")
        nothing_left(store)


async def test_a_manifest_that_is_not_what_was_asked_for(store: ImageStore) -> None:
    async with Scripted() as registry:
        wanted = digest_of(b"another")
        with pytest.raises(EngineError, match=f"manifest verification failed for digest {wanted}"):
            await store.pull(f"{registry.host}/app@{wanted}")
        registry.manifest["filling"] = "x" * (5 << 20)
        with pytest.raises(EngineError, match="the registry's answer is longer than 4194304 bytes"):
            await store.pull(f"{registry.host}/app:1")
        nothing_left(store)


@pytest.mark.parametrize(
    ("layer", "config", "text"),
    [
        (
            "",
            "application/vnd.docker.plugin.v1+json",
            r'Encountered remote ".*plugin.v1\+json"\(plugin\) when fetching',
        ),
        ("", "application/vnd.cncf.helm.config.v1+json", r'Encountered remote ".*"\(unknown\) when fetching'),
        (
            "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
            "",
            r"unsupported media type application/vnd.cncf.helm.chart.content.v1.tar\+gzip",
        ),
        ("application/vnd.docker.ai.gguf.v3", "", "AI models are not yet supported by the Engine"),
    ],
)
async def test_what_is_no_image(store: ImageStore, layer: str, config: str, text: str) -> None:
    async with Scripted(layer_media=layer, config_media=config) as registry:
        with pytest.raises(InvalidParameter, match=text):
            await store.pull(f"{registry.host}/app:1")
        nothing_left(store)


async def test_an_encrypted_layer(store: ImageStore) -> None:
    async with Scripted(layer_media="application/vnd.oci.image.layer.v1.tar+gzip+encrypted") as registry:
        registry.layer = bytes(range(256)) * 40
        registry.manifest["layers"][0] |= {"digest": digest_of(registry.layer), "size": len(registry.layer)}
        with pytest.raises(EngineError, match="failed to register layer: "):
            await store.pull(f"{registry.host}/app:1")
        assert store.list() == [] and list((store.root / "overlay2").iterdir()) == []


async def test_the_format_before_schema_2(store: ImageStore) -> None:
    async with Scripted() as registry:
        registry.manifest = {"schemaVersion": 1, "name": "app", "tag": "1", "fsLayers": [], "history": []}
        registry.media = "application/vnd.docker.distribution.manifest.v1+prettyjws"
        with pytest.raises(
            InvalidParameter, match=rf"Suggest the author of {registry.host}/app:1 to upgrade the image"
        ):
            await store.pull(f"{registry.host}/app:1")


async def test_who_may_not_pull_is_told_so(store: ImageStore) -> None:
    async with Scripted() as registry:
        both = [{"code": "DENIED", "message": "no"}, {"code": "UNAUTHORIZED", "message": "authentication required"}]
        registry.hook = lambda request: answer(403, {"errors": both}) if "/manifests/" in request.path else None
        with pytest.raises(NotFound) as caught:
            await store.pull(f"{registry.host}/app:1")
        assert caught.value.message == (
            f"pull access denied for {registry.host}/app, repository does not exist or may require 'docker login': denied: no"
        )


async def test_a_registry_that_says_nothing_can_be_left(store: ImageStore) -> None:
    """A layer that comes an octet at a time: who cancels waits for nothing, and the next pull begins where it stopped."""
    async with Scripted(files={"f": b"".join(digest_of(bytes([n])).encode() for n in range(200))}) as registry:
        begun = asyncio.Event()

        async def hook(request: Request) -> Response | None:
            if request.path != registry.layer_path or request.headers.get("range"):
                return None
            writer = await request.start(200, [("Content-Length", str(len(registry.layer)))])
            for place in range(len(registry.layer)):
                writer.write(registry.layer[place : place + 1])
                await writer.drain()
                if place == 50:
                    begun.set()
                await asyncio.sleep(0.01)
            return None

        registry.hook = hook
        task = asyncio.create_task(store.pull(f"{registry.host}/app:1"))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert store.list() == [] and list((store.root / "overlay2").iterdir()) == []
        await store.pull(f"{registry.host}/app:1")
        assert any("range" in fields for fields in registry.seen(registry.layer_path))


async def test_hosts_that_fail_are_passed_over(store: ImageStore, tmp_path: Any) -> None:
    """hosts.toml: one host refuses connections, one has nothing, one has it; the registry itself is not asked."""
    async with Scripted() as empty, Scripted() as full, Scripted() as own:
        empty.hook = lambda request: (
            answer(404, {"errors": [{"code": "MANIFEST_UNKNOWN"}]}) if "app" in request.path else None
        )
        folder = tmp_path / "certs.d" / own.host
        folder.mkdir(parents=True)
        hosts = "\n".join(f'[host."http://{host}"]' for host in ("127.0.0.1:9", empty.host, full.host))
        (folder / "hosts.toml").write_text(f'server = "http://{own.host}"\n{hosts}\n')
        store.registries.hosts_folders = (tmp_path / "certs.d",)
        await store.pull(f"{own.host}/app:1", auth={"username": "u", "password": "p"})
        assert empty.asked and full.seen(full.layer_path) and not own.asked
        assert not any("authorization" in fields for _, fields in (*empty.asked, *full.asked))
