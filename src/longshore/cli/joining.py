"""How a machine without credentials comes to know a cluster, and to be known by it.

A bootstrap token proves both ways: the cluster's public `cluster-info` is signed with it, and the API server takes it as
the identity that may ask for a node's certificates. Source: kubernetes.io "Authenticating with Bootstrap Tokens", "TLS
bootstrapping"; the public key hash is kubeadm's.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from longshore.cli.main import UserError
from longshore.client import config as client_config
from longshore.client import signing
from longshore.client.resources import CONFIG_MAPS, NODES, Resource
from longshore.client.rest import Client, is_not_found
from longshore.machinery import pki
from longshore.machinery.errors import StatusError
from longshore.machinery.http import ClientError
from longshore.machinery.paths import Layout

TOKEN = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})")
GROUP = "system:bootstrappers:longshore:default-node-token"
FACTS = "longshore-config"
INFO_NAMESPACE, INFO, SIGNATURE = "kube-public", "cluster-info", "jws-kubeconfig-"
CLIENT_SIGNER, KUBELET_SIGNER, SERVING_SIGNER = signing.CLIENT, signing.KUBELET_CLIENT, signing.KUBELET_SERVING


@dataclass(frozen=True, slots=True)
class NodePart:
    """What runs on a node beside the kubelet: its user, and the right by which a node may have a certificate of that.

    optional: the node goes without the part where the right is not given.
    """

    user: str
    right: str = "nodeparts"
    optional: bool = False


#: By the kubeconfig's name. Ingress reads every Secret: its certificate has a right of its own, to be withheld alone.
PARTS = {
    "proxy": NodePart("system:kube-proxy"),
    "dns": NodePart("system:coredns"),
    "logs": NodePart("longshore:logs"),
    "ingress": NodePart("longshore:ingress", "nodeingress", optional=True),
}
SECONDS = 60.0
SELF_ACCESS = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", False)
#: How often, and how far apart, a token that was made a moment ago is looked for.
ATTEMPTS, ATTEMPT_SECONDS = 10, 0.2
Object = dict[str, Any]


def public_key_hash(certificate: bytes) -> str:
    """A CA's pin, "sha256:<hex>": the hash of its public key (SubjectPublicKeyInfo, DER). Raises ValueError."""
    import hashlib

    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    key = x509.load_pem_x509_certificate(certificate).public_key()
    info = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"sha256:{hashlib.sha256(info).hexdigest()}"


def signature(content: str, identity: str, secret: str) -> str:
    """The detached JWS (HS256) of a text under a bootstrap token."""

    def encode(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    header = encode(orjson.dumps({"alg": "HS256", "kid": identity}))
    mac = hmac.digest(secret.encode(), f"{header}.{encode(content.encode())}".encode(), "sha256")
    return f"{header}..{encode(mac)}"


async def discover(server: str, token: str, pins: Sequence[str], *, unsafe: bool = False) -> client_config.Config:
    """The cluster at `server` ("https://host:port"), trusted because the token signs it and a pin names its CA.

    pins: public key hashes of which the CA must have one; unsafe: none is needed. Raises UserError.
    """
    match = TOKEN.fullmatch(token)
    if match is None:
        raise UserError(f"the token is not of the form {TOKEN.pattern}")
    if not pins and not unsafe:
        raise UserError("--discovery-token-ca-cert-hash is needed, or --discovery-token-unsafe-skip-ca-verification")
    identity, secret = match.groups()
    content, said = await _cluster_info(client_config.Config(server=server, insecure=True), identity)
    if said is None:
        raise UserError(
            f"the cluster at {server} knows no valid token {identity!r}: `longshore token create` makes one"
        )
    if not hmac.compare_digest(said, signature(content, identity, secret)):
        raise UserError(f"the cluster at {server} is not the one that this token is of: its signature is wrong")
    ca = _authority(content)
    if pins and public_key_hash(ca) not in pins:
        raise UserError(f"the CA of the cluster at {server} has the public key {public_key_hash(ca)}, not a pinned one")
    trusted = client_config.Config(server=server, ca=ca, token=token)
    again, _ = await _cluster_info(trusted, identity)
    if again != content:
        raise UserError(f"the cluster at {server} says something else once its CA is trusted")
    return trusted


async def _cluster_info(config: client_config.Config, identity: str) -> tuple[str, str | None]:
    """The signed text, and the signature that is there for a token; waited for while the cluster makes it."""
    anonymous = client_config.Config(server=config.server, ca=config.ca, insecure=config.insecure)
    client = Client(anonymous, user_agent="longshore-join")
    try:
        for attempt in range(ATTEMPTS):
            try:
                found = await client.get(CONFIG_MAPS, INFO, INFO_NAMESPACE)
            except StatusError as error:
                raise UserError(f"{config.server}: {error.message}") from None
            except (OSError, ClientError) as error:
                raise UserError(f"{config.server}: {error}") from None
            data = found.get("data") or {}
            said = data.get(SIGNATURE + identity)
            if said is not None or attempt == ATTEMPTS - 1:
                return str(data.get("kubeconfig", "")), said
            await asyncio.sleep(ATTEMPT_SECONDS)
    finally:
        await client.close()
    raise AssertionError("not reached")


def _authority(content: str) -> bytes:
    try:
        document = yaml.safe_load(content)
        return base64.b64decode(document["clusters"][0]["cluster"]["certificate-authority-data"], validate=True)
    except (yaml.YAMLError, KeyError, IndexError, TypeError, ValueError):
        raise UserError("the cluster's cluster-info holds no CA certificate") from None


async def facts(config: client_config.Config) -> Object:
    """What the cluster is made of (its ranges, its domain). Raises UserError."""
    client = Client(config, user_agent="longshore-join")
    try:
        found = await client.get(CONFIG_MAPS, FACTS, "kube-system")
        answer: Object = orjson.loads(found["data"]["cluster"])
        return answer
    except (StatusError, KeyError, orjson.JSONDecodeError) as error:
        raise UserError(f"the cluster does not tell what it is made of: {error}") from None
    finally:
        await client.close()


async def is_taken(config: client_config.Config, name: str) -> bool:
    """Whether a node of this name is there and Ready."""
    client = Client(config, user_agent="longshore-join")
    try:
        node = await client.get(NODES, name)
    except StatusError as error:
        if is_not_found(error):
            return False
        raise UserError(error.message) from None
    finally:
        await client.close()
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


async def certificate(
    config: client_config.Config,
    common_name: str,
    *,
    signer: str,
    organizations: Sequence[str] = (),
    names: Sequence[str] = (),
) -> pki.KeyPair:
    """A certificate that the cluster signs for a new key of ours, once its approver has agreed. Raises UserError."""
    client = Client(config, user_agent="longshore-join")
    try:
        return await signing.certificate(
            client, common_name, signer=signer, organizations=organizations, names=names, patience=SECONDS
        )
    except signing.Refused as error:
        raise UserError(str(error)) from None
    except StatusError as error:
        raise UserError(f"certificate of {common_name}: {error.message}") from None
    except TimeoutError:
        raise UserError(f"certificate of {common_name}: nobody has approved the request within {SECONDS:g} s") from None
    finally:
        await client.close()


async def may_have(config: client_config.Config, part: NodePart) -> bool:
    """Whether the node may have a part's certificate; one that it must have is just asked for. Raises UserError."""
    if not part.optional:
        return True
    wanted = {
        "group": "certificates.k8s.io",
        "resource": "certificatesigningrequests",
        "subresource": part.right,
        "verb": "create",
    }
    client = Client(config, user_agent="longshore-join")
    try:
        review = await client.create(SELF_ACCESS, {"spec": {"resourceAttributes": wanted}})
    except StatusError as error:
        raise UserError(error.message) from None
    finally:
        await client.close()
    return bool((review.get("status") or {}).get("allowed"))


def node_identity(layout: Layout, name: str) -> client_config.Config:
    """Who the node of this machine is: by the certificate that its kubelet has renewed since, where it has."""
    config = client_config.load(layout.kubeconfig(f"kubelet-{name}"))
    renewed = layout.node(name).kubelet / "pki" / "kubelet-client-current.pem"
    if renewed.exists():
        config.certificate = config.key = renewed.read_bytes()
    return config


def keep_kubeconfig(path: Path, config: client_config.Config, user: str, pair: pki.KeyPair) -> None:
    """A kubeconfig of this certificate."""
    content = pki.kubeconfig(config.server, config.ca or b"", user=user, client=pair)
    pki.write_kubeconfig(path, content)
