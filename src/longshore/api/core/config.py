"""ConfigMap, Secret and ServiceAccount."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Any

import orjson

from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import config_key

MAX_SIZE = 1024 * 1024
_FROZEN = "field is immutable when `immutable` is set"


def _size(encoded: str | None) -> int:
    if not encoded:
        return 0
    return len(encoded) * 3 // 4 - encoded.count("=", -2)


class ConfigMap(Strategy):
    """Plain configuration."""

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
        total = 0
        for key in sorted(data):
            for message in config_key(key):
                errors.invalid(f"data[{key}]", key, message)
            if key in binary:
                errors.invalid(f"data[{key}]", key, "duplicate of key present in binaryData")
            total += len(data[key].encode())
        for key in sorted(binary):
            for message in config_key(key):
                errors.invalid(f"binaryData[{key}]", key, message)
            total += _size(binary[key])
        if total > MAX_SIZE:
            errors.too_long("[]", MAX_SIZE)

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        if old.get("immutable"):
            if not new.get("immutable"):
                errors.forbidden("immutable", _FROZEN)
            if (new.get("data") or {}) != (old.get("data") or {}):
                errors.forbidden("data", _FROZEN)
            if (new.get("binaryData") or {}) != (old.get("binaryData") or {}):
                errors.forbidden("binaryData", _FROZEN)
        self.validate(new, errors)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [
            obj["metadata"]["name"],
            len(obj.get("data") or ()) + len(obj.get("binaryData") or ()),
            age_of(obj, now),
        ]


# Secret type -> keys that must be there.
_REQUIRED = {
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}


class Secret(Strategy):
    """Configuration that is not to be shown."""

    def default(self, obj: Object) -> None:
        obj.setdefault("type", "Opaque")
        # Written by clients in plain text; the server only ever shows data.
        plain = obj.pop("stringData", None)
        if plain:
            data = obj.get("data") or {}
            for key, text in plain.items():
                data[key] = base64.b64encode(text.encode()).decode()
            obj["data"] = data

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        data = obj.get("data") or {}
        total = 0
        for key in sorted(data):
            for message in config_key(key):
                errors.invalid(f"data[{key}]", key, message)
            total += _size(data[key])
        if total > MAX_SIZE:
            errors.too_long("data", MAX_SIZE)
        kind = obj.get("type", "")
        if kind == "kubernetes.io/service-account-token":
            if not obj["metadata"].get("annotations", {}).get("kubernetes.io/service-account.name"):
                errors.required("metadata.annotations[kubernetes.io/service-account.name]")
        elif kind == "kubernetes.io/basic-auth":
            if "username" not in data and "password" not in data:
                errors.required("data[username]")
                errors.required("data[password]")
        elif kind in _REQUIRED:
            for key in _REQUIRED[kind]:
                if key not in data:
                    errors.required(f"data[{key}]")
                elif key.startswith(".docker"):
                    text = base64.b64decode(data[key]) if data[key] else b""
                    try:
                        orjson.loads(text)
                    except orjson.JSONDecodeError:
                        from longshore.api.decoding import syntax_error

                        errors.invalid(f"data[{key}]", "<secret contents redacted>", syntax_error(text))
                elif key == "ssh-privatekey" and not data[key]:
                    errors.required(f"data[{key}]")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        if new.get("type") != old.get("type"):
            errors.invalid("type", new.get("type"), "field is immutable")
        if old.get("immutable"):
            if not new.get("immutable"):
                errors.forbidden("immutable", _FROZEN)
            if not _same(new.get("data"), old.get("data")):
                errors.forbidden("data", _FROZEN)
        self.validate(new, errors)

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        found = []
        if obj.get("type") == "kubernetes.io/tls":
            problem = _pair_problem(
                (obj.get("data") or {}).get("tls.crt", ""), (obj.get("data") or {}).get("tls.key", "")
            )
            if problem:
                found.append(problem)
        return found

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], obj.get("type", ""), len(obj.get("data") or ()), age_of(obj, now)]

    def selectable(self, obj: Object) -> dict[str, str]:
        return {"type": obj.get("type", "")}


def _pair_problem(certificate: str, key: str) -> str:
    """What Go's tls.X509KeyPair says about a pair that cannot be one (the plain cases)."""
    try:
        cert_text, key_text = base64.b64decode(certificate), base64.b64decode(key)
    except binascii.Error:
        return ""
    if b"-----BEGIN CERTIFICATE-----" not in cert_text:
        return "tls: failed to find any PEM data in certificate input"
    if b"-----BEGIN" not in key_text:
        return "tls: failed to find any PEM data in key input"
    return ""


def _same(new: dict[str, str] | None, old: dict[str, str] | None) -> bool:
    return (new or {}) == (old or {})


class ServiceAccount(Strategy):
    """An identity for pods."""

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], age_of(obj, now)]

    def prepare_create(self, obj: Object) -> None:
        # Upstream's internal form keeps at least an empty list where one was sent.
        if obj.get("secrets") == []:
            del obj["secrets"]

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        if "kubernetes.io/enforce-mountable-secrets" in obj["metadata"].get("annotations", {}) and not (
            old and "kubernetes.io/enforce-mountable-secrets" in old["metadata"].get("annotations", {})
        ):
            return [
                "metadata.annotations[kubernetes.io/enforce-mountable-secrets]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
            ]
        return []
