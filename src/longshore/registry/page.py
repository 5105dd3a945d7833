"""The page that a person sees: repositories, and the tags of one with what they are."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import orjson

from longshore.machinery.http import Request, Response
from longshore.registry import manifests
from longshore.registry.errors import RegistryError
from longshore.registry.urls import base_url

if TYPE_CHECKING:
    from longshore.registry.service import Service

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2733}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.35rem .8rem .35rem 0;"
    "border-bottom:1px solid #dde3ea}code{font-size:.9em;word-break:break-all}a{color:#0b57a4}"
)


def _page(title: str, body: str) -> Response:
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )
    headers = (
        ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
        ("X-Frame-Options", "DENY"),
    )
    return Response(200, text.encode(), headers, "text/html; charset=utf-8")


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def _describe(media: str, body: bytes) -> tuple[str, str]:
    """(platforms or artifact type, size) of a manifest for a person."""
    manifest: dict[str, Any] = orjson.loads(body)
    if media in manifests.INDEXES:
        platforms = [
            f"{(entry.get('platform') or {}).get('os', '?')}/{(entry.get('platform') or {}).get('architecture', '?')}"
            for entry in manifest.get("manifests") or []
        ]
        return ", ".join(platforms), ""
    total = sum(int(layer.get("size") or 0) for layer in manifest.get("layers") or [])
    return str(manifest.get("artifactType") or "image"), _size(total)


async def handle(service: Service, request: Request) -> Response | None:
    """GET / and /repository/NAME. Raises RegistryError."""
    if request.method not in ("GET", "HEAD"):
        raise RegistryError("UNSUPPORTED")
    base = base_url(request)
    host = html.escape(base.partition("://")[2])
    if request.path in ("/", "/index.html"):
        user = await service.access.check(request, "", (), base)
        rows = [
            f'<tr><td><a href="/repository/{html.escape(name)}">{html.escape(name)}</a></td>'
            f"<td>{len(service.storage.tags(name, '', 10000))}</td></tr>"
            for name in service.storage.repositories("", 1000)
            if service.access.open or service.access.allowed(user, name, "pull")
        ]
        table = f"<table><tr><th>Repository</th><th>Tags</th></tr>{''.join(rows)}</table>"
        empty = f"<p>Nothing here yet. <code>docker push {host}/NAME:TAG</code> brings the first image.</p>"
        return _page(host, f"<h1>{host}</h1>{table if rows else empty}")
    name = request.path.removeprefix("/repository/")
    await service.access.check(request, name, ("pull",), base)
    tags = service.storage.tags(name, "", 1000)
    if not tags:
        raise RegistryError("NAME_UNKNOWN", {"name": name[:300]})
    rows = []
    for tag in tags:
        manifest = service.storage.manifest(name, tag)
        if manifest is None:
            continue
        what, size = _describe(manifest.media, manifest.body)
        rows.append(
            f"<tr><td>{html.escape(tag)}</td><td>{html.escape(what)}</td><td>{size}</td>"
            f"<td><code>{manifest.digest[:19]}</code></td></tr>"
        )
    shown = html.escape(name)
    body = (
        f'<p><a href="/">{host}</a></p><h1>{shown}</h1><p><code>docker pull {host}/{shown}:{html.escape(tags[0])}</code></p>'
        f"<table><tr><th>Tag</th><th>What</th><th>Size</th><th>Digest</th></tr>{''.join(rows)}</table>"
    )
    return _page(f"{name} at {host}", body)
