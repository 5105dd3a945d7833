"""Where the API server is and who we are: kubeconfig files, in-cluster service accounts.

Sources: kubernetes.io "Organizing Cluster Access Using kubeconfig Files"; client-go tools/clientcmd.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_REREAD_SECONDS = 60.0


class ConfigError(Exception):
    """The kubeconfig is missing, not YAML, or names something that it does not hold."""


@dataclass(slots=True)
class Config:
    """One way to reach one API server.

    server: URL without a trailing slash, e.g. https://127.0.0.1:6443. ca, certificate, key: PEM bytes or None.
    token_file is read again at most once a minute, so that a rotated token is picked up. source: the kubeconfig that it
    was read from; a client of it is known by a new certificate as soon as one is there.
    """

    server: str
    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    token: str = ""
    token_file: Path | None = None
    username: str = ""
    password: str = ""
    insecure: bool = False
    server_name: str = ""
    namespace: str = "default"
    impersonate: str = ""
    source: Path | None = None
    _token_read: float = field(default=-1e9, repr=False)

    def ssl_context(self) -> ssl.SSLContext | None:
        """A client context for `server`, or None when it is plain http. Raises ConfigError on bad PEM."""
        if not self.server.startswith("https:"):
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["http/1.1"])
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        try:
            if self.ca is not None:
                context.load_verify_locations(cadata=self.ca.decode("ascii"))
            elif not self.insecure:
                context.load_default_certs()
            if self.certificate is not None and self.key is not None:
                load_pair(context, self.certificate, self.key)
        except (ssl.SSLError, UnicodeDecodeError, ValueError) as error:
            raise ConfigError(f"certificates of {self.server}: {error}") from error
        return context

    def authorization(self) -> str | None:
        """The Authorization header to send now, or None where the certificate (or nothing) says who we are."""
        if self.token_file is not None and time.monotonic() - self._token_read > TOKEN_REREAD_SECONDS:
            self._token_read = time.monotonic()
            try:
                self.token = self.token_file.read_text().strip()
            except OSError as error:
                if not self.token:
                    raise ConfigError(f"{self.token_file}: {error.strerror}") from error
        if self.token:
            return "Bearer " + self.token
        if self.username:
            pair = f"{self.username}:{self.password}".encode()
            return "Basic " + base64.b64encode(pair).decode("ascii")
        return None


def load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Give a context a certificate and its key (PEM). ssl reads them only from files: here from one that is on no disk."""
    fd = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
    try:
        os.write(fd, certificate.rstrip() + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def load(path: str | os.PathLike[str] | None = None, context: str | None = None) -> Config:
    """Read a kubeconfig.

    path: the file; None means $KUBECONFIG (first existing entry), ~/.kube/config, then the pod's service account.
    context: which context; None means current-context. Raises ConfigError.
    """
    if path is None:
        names = [name for name in os.environ.get("KUBECONFIG", "").split(":") if name]
        places = [Path(name) for name in names] or [Path.home() / ".kube" / "config"]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            return in_cluster()
        path = place
    file = Path(path)
    try:
        document = yaml.load(file.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML: {error}") from error
    found = parse(document, base=file.parent, context=context)
    found.source = file
    return found


def parse(document: Any, *, base: Path, context: str | None = None) -> Config:
    """Turn a decoded kubeconfig into a Config. base: the folder that relative file names start from."""
    if not isinstance(document, dict):
        raise ConfigError("a kubeconfig is a YAML mapping")
    name = context or document.get("current-context") or ""
    if not name:
        raise ConfigError("no current-context")
    chosen = _named(document, "contexts", name, "context")
    cluster = _named(document, "clusters", chosen.get("cluster", ""), "cluster")
    user = _named(document, "users", chosen.get("user", ""), "user") if chosen.get("user") else {}
    if not isinstance(cluster.get("server"), str):
        raise ConfigError(f"cluster {chosen.get('cluster')!r} has no server")
    if "exec" in user or "auth-provider" in user:
        raise ConfigError("credential plugins (exec, auth-provider) are not supported: use a certificate or a token")
    token_file = user.get("tokenFile")
    return Config(
        server=cluster["server"].rstrip("/"),
        ca=_data(cluster, "certificate-authority", base),
        certificate=_data(user, "client-certificate", base),
        key=_data(user, "client-key", base),
        token=user.get("token", ""),
        token_file=base / token_file if token_file else None,
        username=user.get("username", ""),
        password=user.get("password", ""),
        insecure=bool(cluster.get("insecure-skip-tls-verify", False)),
        server_name=cluster.get("tls-server-name", ""),
        namespace=chosen.get("namespace") or "default",
        impersonate=user.get("as", ""),
    )


def in_cluster(folder: Path = SERVICE_ACCOUNT, environ: Callable[[str], str | None] = os.environ.get) -> Config:
    """The Config of a pod's own service account. Raises ConfigError outside a pod."""
    host, port = environ("KUBERNETES_SERVICE_HOST"), environ("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise ConfigError("no kubeconfig, and not in a pod (KUBERNETES_SERVICE_HOST is not set)")
    try:
        ca = (folder / "ca.crt").read_bytes()
        namespace = (folder / "namespace").read_text().strip()
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    if ":" in host:
        host = f"[{host}]"
    return Config(f"https://{host}:{port}", ca=ca, token_file=folder / "token", namespace=namespace or "default")


def _named(document: dict[str, Any], section: str, name: str, key: str) -> dict[str, Any]:
    for entry in document.get(section) or []:
        if isinstance(entry, dict) and entry.get("name") == name:
            body = entry.get(key) or {}
            if isinstance(body, dict):
                return body
    raise ConfigError(f"{key} {name!r} is not in the kubeconfig")


def _data(section: dict[str, Any], key: str, base: Path) -> bytes | None:
    inline = section.get(key + "-data")
    if inline:
        try:
            return base64.b64decode(str(inline), validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise ConfigError(f"{key}-data is not base64") from error
    name = section.get(key)
    if not name:
        return None
    try:
        return (base / str(name)).read_bytes()
    except OSError as error:
        raise ConfigError(f"{base / name}: {error.strerror}") from error
