"""Which registries there are and how each is reached: mirrors, insecure ones, certificates, limits.

Source: moby registry/config.go and docs "Verify repository client with certificates".
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.images import hosts
from longshore.engine.images.references import DEFAULT_DOMAIN

if TYPE_CHECKING:
    from longshore.engine.errors import EngineError
    from longshore.engine.images.distribution import Session
    from longshore.machinery.http import Client

HUB_HOST = "registry-1.docker.io"
INDEX_SERVER = "https://index.docker.io/v1/"
CERTIFICATES = Path("/etc/docker/certs.d")
#: An endpoint that took longer than this to fail (seconds) is not asked again for the next while: a pod's image would
#: be looked for at every start, each time until a lookup or a connection times out. A quick refusal costs nothing.
SLOW_FAILURE = 0.5
UNREACHABLE_SECONDS = 10.0
#: glibc waits ten seconds for a resolver that does not answer; see resolv.conf(5).
RESOLVER_OPTIONS = "timeout:1 attempts:2"
_LOOPBACK = ipaddress.ip_network("127.0.0.0/8")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One base URL ("https://host:port") of a registry. verify: check its certificate; mirror: of another registry,
    asked first; ca, clients: what a hosts.toml names for its TLS."""

    url: str
    verify: bool = True
    mirror: bool = False
    ca: tuple[str, ...] = ()
    clients: tuple[tuple[str, str], ...] = ()


@dataclass
class Registries:
    """Registry settings and the connections made with them.

    mirrors: base URLs asked before Docker Hub. insecure: hosts ("host:port") or networks ("10.0.0.0/8") that may be
    without a valid certificate or without TLS; loopback always may. downloads, uploads: layers at a time. hosts_folders:
    where hosts.toml files lie, read at each use. namespace: the network namespace to connect from (a node that is a
    namespace asks from the machine's own, whose loopback and resolver the user's references mean); None: this one.
    """

    mirrors: Sequence[str] = ()
    insecure: Sequence[str] = ()
    downloads: int = 3
    uploads: int = 5
    attempts: int = 5
    hosts_folders: Sequence[Path] = hosts.FOLDERS
    namespace: int | None = None
    _clients: dict[Endpoint, Client] = field(default_factory=dict)
    _schemes: dict[str, str] = field(default_factory=dict)
    _unreachable: dict[str, tuple[float, EngineError]] = field(default_factory=dict)
    _asking: dict[str, asyncio.Lock] = field(default_factory=dict)

    def asking(self, endpoint: Endpoint) -> asyncio.Lock:
        """Held by who finds out whether an endpoint answers: the others wait for what it learns."""
        if len(self._asking) > 1000:
            self._asking = {url: lock for url, lock in self._asking.items() if lock.locked()}
        return self._asking.setdefault(endpoint.url, asyncio.Lock())

    def unreachable(self, endpoint: Endpoint) -> EngineError | None:
        """With what the endpoint failed a few seconds ago, if that took long enough not to be tried again now."""
        found = self._unreachable.get(endpoint.url)
        if found is None:
            return None
        if time.monotonic() < found[0]:
            return found[1]
        del self._unreachable[endpoint.url]
        return None

    def failed(self, endpoint: Endpoint, error: EngineError, took: float) -> None:
        """No connection to the endpoint could be made within `took` seconds."""
        if took >= SLOW_FAILURE:
            now = time.monotonic()
            self._unreachable = {url: held for url, held in self._unreachable.items() if held[0] > now}
            self._unreachable[endpoint.url] = (now + UNREACHABLE_SECONDS, error)

    def is_insecure(self, host: str) -> bool:
        """May `host` ("name", "name:port") be used without a valid certificate, or without TLS?"""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and ":" in host else host
        name = name.strip("[]")
        if host in self.insecure or name in self.insecure or name == "localhost":
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        networks = [_LOOPBACK, ipaddress.ip_network("::1/128")]
        for text in self.insecure:
            try:
                networks.append(ipaddress.ip_network(text, strict=False))
            except ValueError:
                continue
        return any(address.version == network.version and address in network for network in networks)

    def endpoints(self, domain: str, *, pull: bool) -> list[Endpoint]:
        """The base URLs to try for a repository's domain, in order: hosts.toml, Docker Hub's mirrors, the registry."""
        found: list[Endpoint] = []
        named = hosts.find(domain, self.hosts_folders)
        if named is not None:
            needed = {"pull", "resolve"} if pull else {"push"}
            found = [
                Endpoint(host.url, host.verify, True, host.ca, host.clients)
                for host in named.hosts
                if needed <= host.capabilities
            ]
            if named.server is not None:
                server = named.server
                return [*found, Endpoint(server.url, server.verify, False, server.ca, server.clients)]
        if domain == DEFAULT_DOMAIN:
            if pull:
                for mirror in self.mirrors:
                    url = mirror.rstrip("/") if "//" in mirror else f"https://{mirror.rstrip('/')}"
                    host = url.partition("//")[2]
                    found.append(Endpoint(url, not self.is_insecure(host), True))
            return [*found, Endpoint(f"https://{HUB_HOST}")]
        if not self.is_insecure(domain):
            return [*found, Endpoint(f"https://{domain}")]
        known = self._schemes.get(domain)
        if known:
            return [*found, Endpoint(f"{known}://{domain}", False)]
        both = [Endpoint(f"https://{domain}", False), Endpoint(f"http://{domain}", False)]
        # On this machine plain HTTP is the rule, and asking for TLS first would only make a server wait for a request.
        return [*found, *(both[::-1] if _is_loopback(domain) else both)]

    def answered(self, endpoint: Endpoint) -> None:
        """Remember the scheme by which an insecure registry answered."""
        scheme, _, host = endpoint.url.partition("://")
        if not endpoint.verify and not endpoint.mirror:
            self._schemes[host] = scheme

    def forget(self, domain: str) -> None:
        self._schemes.pop(domain, None)

    def client(self, endpoint: Endpoint) -> Client:
        from longshore.machinery.http import Client

        os.environ.setdefault("RES_OPTIONS", RESOLVER_OPTIONS)
        host = endpoint.url.partition("://")[2]
        found = self._clients.get(endpoint)
        if found is None:
            context = _context(host, endpoint) if endpoint.url.startswith("https:") else None
            found = Client(
                ssl=context,
                headers=(("Accept-Encoding", "identity"),),
                connect_timeout=30.0 if endpoint.verify else 10.0,
                namespace=self.namespace,
            )
            self._clients[endpoint] = found
        return found

    async def session(
        self, domain: str, path: str, *, auth: dict[str, str] | None, actions: str, pull: bool = True, wanted: str = ""
    ) -> Session:
        """A session with the first endpoint that answers, a mirror only where it has the `wanted` tag or digest (""
        for any). Raises the last endpoint's error."""
        from longshore.engine.images.distribution import open_session

        return await open_session(self, domain, path, auth=auth, actions=actions, pull=pull, wanted=wanted)

    async def login(self, auth: dict[str, str]) -> str:
        """POST /auth: do the credentials hold at `serveraddress` ("": Docker Hub)? An identity token or "".

        Raises Unauthorized with dockerd's text, SystemFailure where the registry cannot be reached.
        """
        from longshore.engine.images.distribution import login

        return await login(self, auth)

    async def close(self) -> None:
        clients, self._clients = list(self._clients.values()), {}
        await asyncio.gather(*(client.close() for client in clients))


def _is_loopback(domain: str) -> bool:
    name = domain.rpartition(":")[0] or domain
    return name == "localhost" or name.startswith("127.") or name.strip("[]") == "::1"


def _context(host: str, endpoint: Endpoint) -> ssl.SSLContext:
    """TLS towards `host`, with what an administrator put into certs.d/HOST (ca.crt, client.cert and client.key) or into
    the endpoint's hosts.toml."""
    context = ssl.create_default_context()
    for authority in endpoint.ca:
        context.load_verify_locations(authority)
    for certificate, key in endpoint.clients:
        context.load_cert_chain(certificate, key)
    if not endpoint.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    folder = CERTIFICATES / host
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.suffix == ".crt":
                context.load_verify_locations(path)
            elif path.suffix == ".cert":
                context.load_cert_chain(path, path.with_suffix(".key"))
    context.set_alpn_protocols(["http/1.1"])
    return context


def decode_auth(header: str | None) -> dict[str, str]:
    """The X-Registry-Auth header: base64url JSON of username, password, identitytoken, registrytoken.

    What cannot be read is no authentication, as in dockerd.
    """
    import base64
    import binascii

    import orjson

    if not header:
        return {}
    try:
        loaded: Any = orjson.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except (binascii.Error, ValueError):
        return {}
    return {str(k): str(v) for k, v in loaded.items() if v} if isinstance(loaded, dict) else {}
