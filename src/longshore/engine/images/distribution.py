"""A client of the OCI distribution protocol: authentication, manifests, blobs, uploads.

Source: OCI distribution-spec 1.1; Docker's token authentication (distribution/docs/spec/auth). Error texts are those of
the Go client that dockerd uses.
"""

from __future__ import annotations

import base64
import contextlib
import re
import time
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

import orjson

from longshore.engine.errors import EngineError, NotFound, SystemFailure, Unauthorized
from longshore.engine.images.refusals import RegistryError, parse_challenges, refusal
from longshore.engine.images.tokens import Tokens, user_agent
from longshore.machinery.http.errors import ClientError
from longshore.machinery.http.message import BodyTooLarge

if TYPE_CHECKING:
    from longshore.engine.images.registries import Endpoint, Registries
    from longshore.machinery.http import ClientResponse

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
INDEXES = {DOCKER_LIST, OCI_INDEX}
ACCEPT = ", ".join((DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX))
MANIFEST_LIMIT = 4 << 20
_REDIRECTS = 10


def _resolver() -> str:
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.split()
                if len(words) > 1 and words[0] == "nameserver":
                    return f"[{words[1]}]:53" if ":" in words[1] else f"{words[1]}:53"
    except OSError:
        pass
    return "[::1]:53"


def connection_text(method: str, url: str, error: BaseException) -> str:
    """A failed request in Go's words: 'Get "http://host/": dial tcp ...'."""
    text = str(error.args[-1]) if error.args else str(error)
    if isinstance(error, TimeoutError):
        text = "context deadline exceeded"
    found = re.fullmatch(r"dial tcp: lookup (\S+): no such host", text)
    if found:
        text = f"dial tcp: lookup {found[1]} on {_resolver()}: no such host"
    return f'{method.capitalize()} "{url}": {text}'


async def whole(response: ClientResponse, limit: int = MANIFEST_LIMIT) -> bytes:
    """An answer's body. Raises SystemFailure for one that is longer than `limit` bytes or cut."""
    try:
        return await response.read(limit)
    except BodyTooLarge:
        raise SystemFailure(f"the registry's answer is longer than {limit} bytes") from None
    except (ClientError, TimeoutError) as error:
        raise SystemFailure(str(error) or "unexpected EOF") from None


class Session:
    """One repository of one registry, over one endpoint.

    auth: username, password, identitytoken, registrytoken. actions: "pull" or "pull,push". seen: tags and digests that the
    registry has said it has.
    """

    def __init__(
        self, registries: Registries, endpoint: Endpoint, path: str, auth: dict[str, str] | None, actions: str
    ) -> None:
        self._client = registries.client(endpoint)
        self._registries = registries
        self.endpoint = endpoint
        self.path, self.actions = path, actions
        self.auth = auth or {}
        self.challenges: list[tuple[str, dict[str, str]]] = []
        self.tokens = Tokens(self.auth, path, actions, self._send)
        self.seen: set[str] = set()

    def url(self, rest: str) -> str:
        return f"{self.endpoint.url}/v2/{self.path}/{rest}"

    async def ping(self) -> None:
        """GET /v2/: does a registry answer, and what does it want to know? Raises ConnectError, RegistryError."""
        response = await self._client.request("GET", f"{self.endpoint.url}/v2/", headers=[user_agent()], timeout=30)
        data = await response.read(MANIFEST_LIMIT)
        if response.status == 401:
            self.challenges = parse_challenges(response.headers.getall("WWW-Authenticate"))
        elif response.status >= 400 and response.status != 404:
            raise refusal(response, data)

    # -- authentication ------------------------------------------------------------------------------------------

    async def _authorization(self, what: str) -> str | None:
        for scheme, parameters in self.challenges:
            if scheme == "bearer":
                try:
                    return "Bearer " + await self.tokens.get(parameters)
                except RegistryError as error:
                    if not what or not self.path:
                        raise
                    # To the client that dockerd uses it is a failed request, whatever the token server said.
                    raise SystemFailure(what + error.message) from None
            if scheme == "basic":
                if not self.auth.get("username"):
                    raise Unauthorized(f"{what}no basic auth credentials")
                pair = f"{self.auth['username']}:{self.auth.get('password', '')}"
                return "Basic " + base64.b64encode(pair.encode()).decode()
        return None

    async def _send(
        self, method: str, url: str, headers: list[tuple[str, str]], body: bytes | None
    ) -> tuple[ClientResponse, bytes]:
        """A request to a token server. Raises SystemFailure without an answer."""
        try:
            response = await self._client_of(url).request(
                method, url, headers=[*headers, user_agent()], body=body, timeout=30
            )
            return response, await whole(response)
        except (ClientError, TimeoutError) as error:
            raise SystemFailure(connection_text(method, url, error)) from None

    def _client_of(self, url: str) -> Any:
        from longshore.engine.images.registries import Endpoint

        parts = urlsplit(url)
        return self._registries.client(Endpoint(f"{parts.scheme}://{parts.netloc}", self.endpoint.verify))

    # -- requests ------------------------------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: list[tuple[str, str]] | None = None,
        body: bytes | AsyncIterable[bytes] | None = None,
        timeout: float | None = None,
        good: tuple[int, ...] = (200,),
    ) -> ClientResponse:
        """An authorized request; redirects are followed, credentials stay with the registry's own host.

        Returns an answer whose status is in `good`; raises RegistryError for others, SystemFailure without an answer.
        """
        what = f'{method.capitalize()} "{url}": ' if method in ("GET", "HEAD") else ""
        renewed = False
        host = urlsplit(url).netloc
        for _ in range(_REDIRECTS):
            fields = [user_agent(), *(headers or ())]
            own = urlsplit(url).netloc == host
            if own:
                authorization = await self._authorization(what)
                if authorization:
                    fields.append(("Authorization", authorization))
            client = self._client if own else self._client_of(url)
            try:
                response = await client.request(method, url, headers=fields, body=body, timeout=timeout)
            except (ClientError, TimeoutError) as error:
                raise SystemFailure(connection_text(method, url, error)) from error
            if response.status in (301, 302, 303, 307, 308) and method in ("GET", "HEAD"):
                location = response.headers.get("Location") or ""
                await response.close()
                url = urljoin(url, location)
                continue
            if response.status == 401 and own and not renewed and not isinstance(body, AsyncIterable):
                # The token ended, or the challenge comes only here.
                challenges = parse_challenges(response.headers.getall("WWW-Authenticate"))
                if challenges and (challenges != self.challenges or any(s == "bearer" for s, _ in challenges)):
                    renewed = True
                    self.challenges = challenges
                    self.tokens.clear()
                    await response.close()
                    continue
            if response.status in good:
                return response
            data = await whole(response) if method != "HEAD" else b""
            raise refusal(response, data)
        raise SystemFailure(f'{method.capitalize()} "{url}": stopped after {_REDIRECTS} redirects')

    async def manifest(self, reference: str) -> tuple[bytes, str, str]:
        """(body, media type, digest) of a manifest by tag or digest; by digest it is verified.

        Raises RegistryError, blobs.DigestMismatch.
        """
        from longshore.engine.images.blobs import DigestMismatch, digest_of

        response = await self.request(
            "GET", self.url(f"manifests/{reference}"), headers=[("Accept", ACCEPT)], timeout=60
        )
        body = await whole(response)
        media = (response.headers.get("Content-Type") or "").partition(";")[0].strip()
        digest = digest_of(body)
        if ":" in reference and reference.startswith("sha256:") and digest != reference:
            raise DigestMismatch(f"manifest verification failed for digest {reference}")
        if not media or media in ("application/json", "text/plain"):
            try:
                media = orjson.loads(body).get("mediaType") or media
            except (ValueError, AttributeError):
                pass
        return body, media, digest

    async def head_manifest(self, reference: str) -> tuple[str, str, int] | None:
        """(digest, media type, size) without the body; None where the registry does not tell (or has none)."""
        try:
            response = await self.request(
                "HEAD", self.url(f"manifests/{reference}"), headers=[("Accept", ACCEPT)], timeout=30
            )
        except RegistryError:
            return None
        await whole(response)
        digest = response.headers.get("Docker-Content-Digest") or ""
        media = (response.headers.get("Content-Type") or "").partition(";")[0].strip()
        length = response.headers.get("Content-Length") or "0"
        return (digest, media, int(length) if length.isdigit() else 0) if digest else None

    async def put_manifest(self, reference: str, body: bytes, media: str) -> str:
        """Upload a manifest; its digest as the registry tells it."""
        from longshore.engine.images.blobs import digest_of

        response = await self.request(
            "PUT",
            self.url(f"manifests/{reference}"),
            headers=[("Content-Type", media)],
            body=body,
            timeout=60,
            good=(200, 201, 202),
        )
        await whole(response)
        return response.headers.get("Docker-Content-Digest") or digest_of(body)

    async def tags(self) -> list[str]:
        """All tags of the repository, page by page."""
        found: list[str] = []
        url = self.url("tags/list?n=1000")
        for _ in range(1000):
            response = await self.request("GET", url, timeout=60)
            try:
                found += [str(tag) for tag in orjson.loads(await whole(response)).get("tags") or []]
            except (ValueError, AttributeError, TypeError):
                raise SystemFailure("the registry's list of tags is no such list") from None
            link = re.search(r'<([^>]+)>;\s*rel="?next"?', response.headers.get("Link") or "")
            if not link:
                break
            url = urljoin(url, link[1])
        return found

    async def blob(self, digest: str, *, offset: int = 0) -> ClientResponse:
        """A blob's content, from `offset` on where the registry can (status 206)."""
        headers = [("Range", f"bytes={offset}-")] if offset else []
        return await self.request("GET", self.url(f"blobs/{digest}"), headers=headers, good=(200, 206))

    async def blob_size(self, digest: str) -> int | None:
        """The length of a blob that the registry has, None where it has not or does not tell: sending it shows why."""
        try:
            response = await self.request("HEAD", self.url(f"blobs/{digest}"), timeout=30)
        except RegistryError:
            return None
        await whole(response)
        return int(response.headers.get("Content-Length") or 0)

    async def start_upload(self, *, mount: str = "", source: str = "") -> str | None:
        """Begin an upload; where to send it. With mount (a digest) and source (a repository): None once mounted."""
        query = f"?mount={quote(mount, safe='')}&from={quote(source, safe='')}" if mount else ""
        url = self.url("blobs/uploads/") + query
        response = await self.request("POST", url, timeout=60, good=(201, 202))
        await whole(response)
        if response.status == 201:
            return None
        return urljoin(url, response.headers.get("Location") or "")

    async def send(self, location: str, body: bytes | AsyncIterable[bytes]) -> str:
        """Send content in one PATCH; where to go on."""
        response = await self.request(
            "PATCH",
            location,
            headers=[("Content-Type", "application/octet-stream")],
            body=body,
            good=(202, 204),
        )
        await whole(response)
        return urljoin(location, response.headers.get("Location") or "")

    async def finish_upload(self, location: str, digest: str) -> None:
        separator = "&" if "?" in location else "?"
        response = await self.request(
            "PUT", f"{location}{separator}digest={quote(digest, safe='')}", body=b"", timeout=300, good=(201, 204)
        )
        await whole(response)


async def open_session(
    registries: Registries,
    domain: str,
    path: str,
    *,
    auth: dict[str, str] | None,
    actions: str,
    pull: bool,
    wanted: str = "",
) -> Session:
    """A session with the first endpoint that speaks the protocol. Raises EngineError."""
    failure: EngineError | None = None
    for endpoint in registries.endpoints(domain, pull=pull):
        # A mirror is never shown Docker Hub's credentials.
        session = Session(registries, endpoint, path, None if endpoint.mirror else auth, actions)
        try:
            problem = await _greet(registries, session)
            if problem is not None:
                if failure is None or endpoint.url.startswith("http:"):
                    failure = problem
                registries.forget(domain)
                continue
        except RegistryError as error:
            failure = error
            continue
        registries.answered(endpoint)
        if endpoint.mirror and not await _has(session, pull, wanted):
            continue
        return session
    raise failure or SystemFailure(f"no endpoint for {domain}")


async def _greet(registries: Registries, session: Session) -> EngineError | None:
    """Ask whether the session's endpoint answers. Why it does not; raises RegistryError for one that refuses."""
    endpoint = session.endpoint
    lock = registries.asking(endpoint)
    if lock.locked():
        # Only a failure is shared: who is answered learns the challenge for itself, and need not wait for others.
        async with lock:
            pass
    problem = registries.unreachable(endpoint)
    if problem is not None:
        return problem
    begin = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        if not lock.locked():
            await stack.enter_async_context(lock)
        try:
            await session.ping()
        except (ClientError, TimeoutError, BodyTooLarge) as error:
            problem = SystemFailure(connection_text("GET", f"{endpoint.url}/v2/", error))
            registries.failed(endpoint, problem, time.monotonic() - begin)
    return problem


async def _has(session: Session, pull: bool, wanted: str) -> bool:
    """Does a mirror know the wanted tag or digest ("": the repository at all)? One that does not is passed over."""
    if not pull:
        return True
    try:
        if wanted:
            accept = [("Accept", ACCEPT)]
            response = await session.request("HEAD", session.url(f"manifests/{wanted}"), headers=accept, timeout=30)
            session.seen.add(wanted)
        else:
            response = await session.request("GET", session.url("tags/list?n=1"), timeout=30)
        await whole(response)
    except EngineError:
        return False
    return True


def not_found(error: RegistryError, reference: Any) -> EngineError:
    """A refused pull in dockerd's words. Source: moby distribution/errors.go."""
    if error.code == "DENIED":
        text = (
            f"pull access denied for {reference.familiar_name}, repository does not exist or may require 'docker login'"
        )
        return NotFound(f"{text}: {error.first}")
    if error.code == "MANIFEST_UNKNOWN" or (error.http == 404 and not error.code):
        return NotFound(f"manifest for {reference.familiar} not found: {error.first}")
    if error.code == "NAME_UNKNOWN":
        return NotFound(f"repository {reference.familiar_name} not found: {error.first}")
    return error


async def login(registries: Registries, auth: dict[str, str]) -> str:
    """See Registries.login."""
    from longshore.engine.images.references import DEFAULT_DOMAIN

    address = auth.get("serveraddress", "").partition("://")[2] or auth.get("serveraddress", "")
    domain = address.partition("/")[0]
    if domain in ("", "index.docker.io", DEFAULT_DOMAIN):
        domain = DEFAULT_DOMAIN
    session = await open_session(registries, domain, "", auth=auth, actions="", pull=False)
    session.tokens.offline = True
    url = f"{session.endpoint.url}/v2/"
    refused = f"login attempt to {url} failed with status: 401 Unauthorized"
    try:
        response = await session.request("GET", url, timeout=30)
    except RegistryError as error:
        if error.http == 401:
            text = (
                refused
                if any(scheme == "basic" for scheme, _ in session.challenges)
                else f'Get "{url}": {error.message}'
            )
            raise Unauthorized(text) from None
        raise
    await whole(response)
    return session.tokens.identity
