"""The endpoints of OCI distribution 1.1. Source: distribution-spec spec.md, "API" and "Endpoints"."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import quote

import orjson
from prometheus_client import CollectorRegistry, Counter, Histogram

from longshore.machinery.http import BodyTooLarge, Request, Response
from longshore.registry import manifests, mirror, page, tokens
from longshore.registry.auth import Access
from longshore.registry.blobs import BlobEndpoints, Quota
from longshore.registry.errors import RegistryError
from longshore.registry.storage import Manifest, Storage, digest_of, is_digest
from longshore.registry.upstream import Upstream
from longshore.registry.urls import VERSION, base_url

log = logging.getLogger("longshore.registry")

MANIFEST_LIMIT = 4 << 20
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_ROUTE = re.compile(
    r"/v2/(?P<name>.+?)/(?:(?P<manifests>manifests)/(?P<reference>[^/]+)|(?P<uploads>blobs/uploads)/?(?P<upload>[^/]*)"
    r"|(?P<blobs>blobs)/(?P<digest>[^/]+)|(?P<tags>tags)/list|(?P<referrers>referrers)/(?P<subject>[^/]+))",
    re.DOTALL,
)
_PAGE = 1000

Answer = Response | None


class Service:
    """Answers requests from a storage.

    access: who may do what. quotas: how much repositories may hold, the first that fits a name counts. read_only: pushes and
    deletes are refused (UNSUPPORTED). upstream: another registry that this one mirrors; it is read-only then. metrics: figures
    are kept there. sparse: a manifest may name content that is not here.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        access: Access | None = None,
        read_only: bool = False,
        blob_limit: int | None = None,
        quotas: Sequence[Quota] = (),
        upstream: Upstream | None = None,
        metrics: CollectorRegistry | None = None,
        sparse: bool = False,
    ) -> None:
        self.upstream = upstream
        self.sparse = sparse
        self.storage = storage
        self.access = access or Access()
        self.read_only = read_only or upstream is not None
        self.metrics = metrics or CollectorRegistry()
        self.blobs = BlobEndpoints(
            storage, self.access, upstream=upstream, limit=blob_limit, quotas=quotas, metrics=self.metrics
        )
        self._requests = Counter(
            "registry_http_requests",
            "Requests by route, method and code.",
            ["handler", "method", "code"],
            registry=self.metrics,
        )
        self._duration = Histogram(
            "registry_http_request_duration_seconds", "Time to answer.", ["handler"], registry=self.metrics
        )

    # -- routing -------------------------------------------------------------------------------------------------

    async def handle(self, request: Request) -> Answer:
        """One request; refusals become the protocol's error bodies."""
        started = asyncio.get_running_loop().time()
        label = "other"
        status = 200
        try:
            label, answer = self._route(request)
            response = await answer
            if response is not None:
                status = response.status
        except RegistryError as error:
            response = error.response()
            status = response.status
        except BodyTooLarge:
            response = RegistryError("SIZE_INVALID", "the body is too large", status=413).response()
            status = 413
        except ConnectionError:
            return None
        except OSError as error:
            # A full or broken disk: nothing has its good name yet, so that nothing half-written is served.
            log.error("%s %s: %s", request.method, request.path, error)
            response = RegistryError("UNKNOWN", (error.strerror or str(error)).lower()).response()
            status = response.status
        self._requests.labels(label, request.method, str(status)).inc()
        self._duration.labels(label).observe(asyncio.get_running_loop().time() - started)
        if response is not None and request.path.startswith("/v2"):
            response.headers = (*response.headers, VERSION)
        return response

    def _route(self, request: Request) -> tuple[str, Awaitable[Answer]]:
        path = request.path
        if path in ("/v2/", "/v2"):
            return "base", self._base(request)
        if path == "/v2/_catalog":
            return "catalog", self._catalog(request)
        if path == "/metrics":
            return "metrics", self._metrics(request)
        if path == "/token" and self.access.token_realm == "own":
            return "token", self._token(request)
        if path in ("/", "/index.html") or path.startswith("/repository/"):
            return "page", page.handle(self, request)
        found = _ROUTE.fullmatch(path)
        if not found:
            raise RegistryError("UNSUPPORTED", status=404, message="404 page not found")
        name = found["name"]
        if not _NAME.fullmatch(name) or len(name) > 255:
            raise RegistryError("NAME_INVALID", {"name": name[:300]})
        table: dict[str, Callable[[Request, str, Any], Awaitable[Answer]]]
        if found["manifests"]:
            label, argument = "manifest", found["reference"]
            table = {
                "GET": self._get_manifest,
                "HEAD": self._get_manifest,
                "PUT": self._put_manifest,
                "DELETE": self._delete_manifest,
            }
        elif found["uploads"]:
            label, argument = "blob-upload", found["upload"]
            if argument:
                table = {
                    "GET": self.blobs.status,
                    "PATCH": self.blobs.append,
                    "PUT": self.blobs.finish,
                    "DELETE": self.blobs.cancel,
                }
            else:
                table = {"POST": self.blobs.begin}
        elif found["blobs"]:
            label, argument = "blob", found["digest"]
            table = {"GET": self.blobs.get, "HEAD": self.blobs.get, "DELETE": self.blobs.delete}
        elif found["tags"]:
            label, argument = "tags", None
            table = {"GET": self._tags}
        else:
            label, argument = "referrers", found["subject"]
            table = {"GET": self._referrers}
        handler = table.get(request.method)
        if handler is None:
            raise RegistryError("UNSUPPORTED", headers=(("Allow", ", ".join(table)),))
        return label, self._guarded(handler, request, name, argument)

    async def _guarded(
        self, handler: Callable[[Request, str, Any], Awaitable[Answer]], request: Request, name: str, argument: Any
    ) -> Answer:
        actions = {"GET": ("pull",), "HEAD": ("pull",), "DELETE": ("delete",)}.get(request.method, ("pull", "push"))
        if "/blobs/uploads" in request.path and request.method in ("GET", "DELETE"):
            actions = ("pull", "push")
        await self.access.check(request, name, actions, base_url(request))
        if self.read_only and request.method not in ("GET", "HEAD"):
            raise RegistryError("UNSUPPORTED", "the registry is read-only")
        return await handler(request, name, argument)

    # -- the registry itself -------------------------------------------------------------------------------------

    async def _base(self, request: Request) -> Answer:
        await self.access.check(request, "", (), base_url(request))
        if request.method not in ("GET", "HEAD"):
            raise RegistryError("UNSUPPORTED")
        return Response(200, b"{}", content_type="application/json")

    async def _token(self, request: Request) -> Answer:
        return Response.json(await tokens.issue(self.access, request))

    async def _metrics(self, request: Request) -> Answer:
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return Response(200, generate_latest(self.metrics), content_type=CONTENT_TYPE_LATEST)

    @staticmethod
    def _limit(request: Request) -> int:
        text = request.param("n")
        if not text:
            return _PAGE
        if not text.isdigit():
            raise RegistryError("PAGINATION_NUMBER_INVALID", {"n": text[:100]})
        return min(int(text), 10 * _PAGE)

    async def _catalog(self, request: Request) -> Answer:
        if request.method != "GET":
            raise RegistryError("UNSUPPORTED")
        user = await self.access.check(request, "", (), base_url(request))
        limit = self._limit(request)
        found = self.storage.repositories(request.param("last"), limit + 1)
        headers: list[tuple[str, str]] = []
        if len(found) > limit:
            found = found[:limit]
            if found:
                link = f'</v2/_catalog?last={quote(found[-1], safe="")}&n={limit}>; rel="next"'
                headers.append(("Link", link))
        shown = [name for name in found if self.access.open or self.access.allowed(user, name, "pull")]
        return Response.json({"repositories": shown}, headers=headers)

    async def _tags(self, request: Request, name: str, _: Any) -> Answer:
        if not self.storage.exists(name):
            raise RegistryError("NAME_UNKNOWN", {"name": name})
        limit = self._limit(request)
        found = self.storage.tags(name, request.param("last"), limit + 1)
        headers: list[tuple[str, str]] = []
        if len(found) > limit:
            found = found[:limit]
            if found:
                link = f'</v2/{name}/tags/list?last={quote(found[-1], safe="")}&n={limit}>; rel="next"'
                headers.append(("Link", link))
        return Response.json({"name": name, "tags": found}, headers=headers)

    async def _referrers(self, request: Request, name: str, subject: str) -> Answer:
        if not is_digest(subject):
            raise RegistryError("DIGEST_INVALID", {"digest": subject[:200]})
        wanted = request.param("artifactType")
        entries: list[dict[str, Any]] = []
        for digest, media, artifact, notes, size in self.storage.referrers(name, subject):
            if wanted and artifact != wanted:
                continue
            entry: dict[str, Any] = {"mediaType": media, "digest": digest, "size": size}
            if artifact:
                entry["artifactType"] = artifact
            if notes:
                entry["annotations"] = orjson.loads(notes)
            entries.append(entry)
        body = orjson.dumps({"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": entries})
        headers = [("OCI-Filters-Applied", "artifactType")] if wanted else []
        return Response(200, body, headers, manifests.OCI_INDEX)

    # -- manifests -----------------------------------------------------------------------------------------------

    @staticmethod
    def _reference(reference: str) -> None:
        if ":" in reference:
            if not is_digest(reference):
                raise RegistryError("DIGEST_INVALID", {"digest": reference[:200]})
        elif not _TAG.fullmatch(reference):
            raise RegistryError("TAG_INVALID", {"tag": reference[:200]}, message="manifest tag is invalid")

    async def _get_manifest(self, request: Request, name: str, reference: str) -> Answer:
        if ":" not in reference and not _TAG.fullmatch(reference):
            raise RegistryError("MANIFEST_UNKNOWN", {"Tag": reference[:200]})
        self._reference(reference)
        found = self.storage.manifest(name, reference)
        if self.upstream is not None and (found is None or ":" not in reference):
            found = await mirror.manifest(self, self.upstream, name, reference, found)
        if found is None:
            raise RegistryError("MANIFEST_UNKNOWN", {"Tag" if ":" not in reference else "Digest": reference})
        if found.media in manifests.INDEXES and ":" not in reference:
            found = self._for_old_client(request, name, found)
        etag = f'"{found.digest}"'
        headers = [("Docker-Content-Digest", found.digest), ("ETag", etag)]
        if etag in (request.headers.get("If-None-Match") or ""):
            return Response(304, b"", headers)
        if request.method == "HEAD":
            await self._head(request, headers, len(found.body), found.media)
            return None
        return Response(200, found.body, headers, found.media)

    def _for_old_client(self, request: Request, name: str, found: Manifest) -> Manifest:
        """A client that knows image manifests but no index gets linux/amd64's, as from the reference registry."""
        accepts = {
            part.partition(";")[0].strip() for value in request.headers.getall("Accept") for part in value.split(",")
        }
        if not accepts or accepts & {"*/*", "application/*", found.media} or not accepts & set(manifests.KNOWN):
            return found
        for entry in orjson.loads(found.body).get("manifests") or []:
            of = entry.get("platform") or {}
            if of.get("os") == "linux" and of.get("architecture") == "amd64":
                return self.storage.manifest(name, entry["digest"]) or found
        return found

    @staticmethod
    async def _head(request: Request, headers: list[tuple[str, str]], size: int, media: str) -> None:
        await request.start(200, [*headers, ("Content-Type", media), ("Content-Length", str(size)), VERSION])

    async def _put_manifest(self, request: Request, name: str, reference: str) -> Answer:
        self._reference(reference)
        body = await request.read(MANIFEST_LIMIT)
        content_type = (request.headers.get("Content-Type") or "").partition(";")[0].strip()
        facts = manifests.read(body, content_type)
        by_digest = ":" in reference
        digest = digest_of(body, reference.partition(":")[0] if by_digest else "sha256")
        if by_digest and digest != reference:
            raise RegistryError("DIGEST_INVALID", {"Digest": reference})
        tags = [] if not by_digest else request.query.get("tag", [])
        for tag in tags:
            self._reference(tag)
        missing = self.storage.put_manifest(
            name,
            tags if by_digest else [reference],
            Manifest(digest, facts.media, body),
            blobs=facts.blobs,
            manifests=facts.manifests,
            subject=facts.subject,
            artifact=facts.artifact,
            annotations=orjson.dumps(facts.annotations) if facts.annotations else b"",
            sparse=self.sparse,
        )
        if missing:
            raise RegistryError("MANIFEST_BLOB_UNKNOWN", {"Digest": missing}, status=404)
        headers = [("Location", f"/v2/{name}/manifests/{digest}"), ("Docker-Content-Digest", digest)]
        headers += [("OCI-Tag", tag) for tag in tags]
        if facts.subject:
            headers.append(("OCI-Subject", facts.subject))
        return Response(201, b"", headers)

    async def _delete_manifest(self, request: Request, name: str, reference: str) -> Answer:
        self._reference(reference)
        done = (
            self.storage.delete_manifest(name, reference)
            if ":" in reference
            else self.storage.delete_tag(name, reference)
        )
        if not done:
            raise RegistryError("MANIFEST_UNKNOWN", {"Reference": reference})
        return Response(202)

    def close(self) -> None:
        self.blobs.uploads.close()
        self.storage.close()
