"""A key management service, version 2: a plugin behind a unix socket enciphers a seed, the seed's keys the values.

Each value has a key of its own, derived from the seed (HKDF-SHA256) and 32 random octets. The plugin is asked for its state
once a minute, every ten seconds while it is not well; when its key changes a new seed is made. Values can be read for ever,
written for three minutes after the plugin was well for the last time.
Source: KEP-3299; k8s.io/kms/apis/v2; k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
import uuid
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from longshore.api.validation import names
from longshore.machinery.grpc import Client, RpcError
from longshore.wire.protobuf import Schema

from .ciphers import PREFIX, gcm
from .errors import KeyUnavailable, NeedsKey, TransformError

log = logging.getLogger("longshore.apiserver.encryption")
SERVICE = """
service KeyManagementService: Status, Decrypt, Encrypt
StatusRequest:
StatusResponse: 1 version string, 2 healthz string, 3 key_id string
DecryptRequest: 1 ciphertext bytes, 2 uid string, 3 key_id string, 4 annotations {string:bytes}
DecryptResponse: 1 plaintext bytes
EncryptRequest: 1 plaintext bytes, 2 uid string
EncryptResponse: 1 ciphertext bytes, 2 key_id string, 3 annotations {string:bytes}
"""
STORED = """
EncryptedObject: 1 encryptedData bytes, 2 keyID string, 3 encryptedDEKSource bytes, 4 annotations {string:bytes},
 5 encryptedDEKSourceType int32
"""
WELL_SECONDS, UNWELL_SECONDS, WRITE_SECONDS = 60.0, 10.0, 180.0
_AES_GCM_KEY, _SEED = 0, 1
_MAX_ANNOTATIONS, _MAX_SHORT = 32 << 10, 1 << 10


@cache
def service() -> Schema:
    """The plugin's messages."""
    return Schema("v2", SERVICE)


@cache
def stored() -> Schema:
    """The message that is stored for a value."""
    return Schema("kmsv2.v2", STORED)


class KeyManagement:
    """A provider by the name and socket of the configuration file. timeout: seconds for one call."""

    def __init__(self, name: str, socket: str, timeout: float) -> None:
        self.name = name
        self.prefix = b"%bkms:v2:%b:" % (PREFIX, name.encode())
        self._socket, self.timeout = socket, timeout
        self._client: Client | None = None
        self._version = ""
        # What is written with: the seed, the stored message without its data, until when (monotonic).
        self._seed = b""
        self._template: Any = None
        self._until = 0.0
        self._opened: dict[bytes, bytes] = {}
        self.problem = "not asked yet"
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Asks the plugin, and goes on asking. A plugin that is not there yet may come later."""
        self._client = Client(service().KeyManagementService, path=self._socket)
        await self._probe()
        self._task = asyncio.create_task(self._watch(), name=f"kms-{self.name}")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._client is not None:
            self._client.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(UNWELL_SECONDS if self.problem else WELL_SECONDS)
            await self._probe()

    async def _probe(self) -> None:
        """Asks for the plugin's state; makes a new seed when its key has changed."""
        problems = []
        try:
            status = await self._call("Status")
        except RpcError as error:
            problems.append(
                f"failed to perform status section of the healthz check for KMS Provider {self.name}, error: {error}"
            )
        else:
            problems = [
                f"kmsv2 Provider {self.name} is not healthy, error: {p}" for p in [*self._problems(status)]
            ] or await self._renew(status.key_id)
        self.problem = "; ".join(problems)
        if problems:
            log.warning("kms plugin failed health check probe: %s", self.problem)

    def _problems(self, status: Any) -> list[str]:
        out = []
        if status.healthz != "ok":
            out.append(f"got unexpected healthz status: {status.healthz}")
        self._version = self._version or status.version
        if status.version not in ("v2", "v2beta1"):
            out.append(f"expected KMSv2 API version v2, got {status.version}")
        elif status.version != self._version:
            out.append(
                "KMSv2 API version should not change after the initial status response version"
                f" {self._version}, got {status.version}"
            )
        if problem := _key_problem(status.key_id):
            out.append(f'got invalid KMSv2 KeyID hash "{_hash(status.key_id)}": {problem}')
        return out

    async def _renew(self, key: str) -> list[str]:
        until = time.monotonic() + WRITE_SECONDS
        if self._template is not None and self._template.keyID == key:
            self._until = until
            return []
        seed = os.urandom(32)
        try:
            reply = await self._call("Encrypt", plaintext=seed, uid=str(uuid.uuid4()))
        except RpcError as error:
            return [f"failed to encrypt DEK, error: {error}"]
        made = stored().EncryptedObject(
            keyID=reply.key_id, encryptedDEKSource=reply.ciphertext, annotations=dict(reply.annotations),
            encryptedDEKSourceType=_SEED,
        )  # fmt: skip
        problem = _problem(made)
        if problem:
            return [problem]
        if reply.key_id != key:
            return [f'failed to rotate DEK: statusKeyIDHash="{_hash(key)}", encryptKeyIDHash="{_hash(reply.key_id)}"']
        self._opened[_source(made)] = seed
        self._seed, self._template, self._until = seed, made, until
        return []

    async def _call(self, name: str, **fields: Any) -> Any:
        assert self._client is not None
        return await self._client.call(name, deadline=self.timeout, **fields)

    def mark(self) -> bytes:
        return self.prefix + (self._template.keyID.encode() if self._template is not None else b"")

    def mark_of(self, value: bytes) -> bytes:
        return self.prefix + str(_parsed(value).keyID).encode()

    def seal(self, value: bytes, key: bytes) -> bytes:
        if self._template is None:
            raise TransformError("got unexpected nil transformer")
        if time.monotonic() > self._until:
            raise TransformError(f'encryptedDEKSource with keyID hash "{_hash(self._template.keyID)}" expired')
        info = os.urandom(32)
        seal, _ = gcm(HKDFExpand(SHA256(), 32, info).derive(self._seed))
        out = type(self._template)()
        out.CopyFrom(self._template)
        out.encryptedData = info + seal(value, key)
        return bytes(out.SerializeToString())

    def open(self, value: bytes, key: bytes) -> bytes:
        """NeedsKey when the plugin has to be asked first."""
        found = _parsed(value)
        seed = self._opened.get(_source(found))
        if seed is None:
            raise NeedsKey(lambda: self.fetch(found))
        data = bytes(found.encryptedData)
        if found.encryptedDEKSourceType == _SEED:
            info, data = data[:32], data[32:]
            seed = HKDFExpand(SHA256(), 32, info).derive(seed)
        return AESGCM(seed).decrypt(data[:12], data[12:], key)

    async def fetch(self, value: Any) -> None:
        """Has the plugin open a stored value's seed. KeyUnavailable."""
        try:
            reply = await self._call(
                "Decrypt", ciphertext=value.encryptedDEKSource, uid=str(uuid.uuid4()), key_id=value.keyID,
                annotations=dict(value.annotations),
            )  # fmt: skip
        except RpcError as error:
            raise KeyUnavailable(f"failed to decrypt DEK, error: {error}") from None
        self._opened[_source(value)] = bytes(reply.plaintext)


def _parsed(value: bytes) -> Any:
    found = stored().EncryptedObject.FromString(value)
    problem = _problem(found) or ("" if found.encryptedData else "encrypted data is empty")
    if problem:
        raise ValueError(problem)
    return found


def _source(value: Any) -> bytes:
    """What tells one seed from another."""
    parts = [b"%d" % value.encryptedDEKSourceType, bytes(value.encryptedDEKSource), value.keyID.encode()]
    parts += [p for k in sorted(value.annotations) for p in (k.encode(), bytes(value.annotations[k]))]
    return hashlib.sha256(b"".join(b"%d:%b" % (len(p), p) for p in parts)).digest()


def _problem(value: Any) -> str:
    """What is wrong with a message, without its data."""
    source = value.encryptedDEKSource
    if value.encryptedDEKSourceType not in (_AES_GCM_KEY, _SEED):
        return f"unknown encryptedDEKSourceType: {value.encryptedDEKSourceType}"
    if not source:
        return "failed to validate encrypted DEK source: encrypted DEK source is empty"
    if len(source) > _MAX_SHORT:
        return (
            f"failed to validate encrypted DEK source: encrypted DEK source is {len(source)} bytes, which exceeds the max"
            f" size of {_MAX_SHORT}"
        )
    if problem := _key_problem(value.keyID):
        return f"failed to validate key id: {problem}"
    size = sum(len(k) + len(v) for k, v in value.annotations.items())
    if size > _MAX_ANNOTATIONS:
        return (
            f"failed to validate annotations: total size of annotations is {size}, which exceeds the max size of"
            f" {_MAX_ANNOTATIONS}"
        )
    if any(names.fully_qualified_name(k) for k in value.annotations):
        return "failed to validate annotations: their keys have to be fully qualified domain names"
    return ""


def _key_problem(key: str) -> str:
    if not key:
        return "keyID is empty"
    return f"keyID is {len(key)} bytes, which exceeds the max size of {_MAX_SHORT}" if len(key) > _MAX_SHORT else ""


def _hash(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}" if key else ""
