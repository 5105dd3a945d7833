"""JSON web tokens: signing service account tokens, checking signatures, the key sets for others to check them.

`cryptography` and PyJWT are imported when the first token is met. Source: RFC 7515, 7517, 7519.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

MAX_TOKEN = 64 * 1024
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class TokenError(Exception):
    """A token of the kind asked for that is not good; the text says why."""


def _unpad(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def peek(token: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(header, claims) without any check; None when the text is no token."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > MAX_TOKEN:
        return None
    found: list[dict[str, Any]] = []
    for part in parts[:2]:
        try:
            value = orjson.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        except ValueError:
            return None
        if not isinstance(value, dict):
            return None
        found.append(value)
    return found[0], found[1]


class Key:
    """A public key (and the private one where it is there)."""

    def __init__(self, public: Any, private: Any = None, id: str = "") -> None:
        from cryptography.hazmat.primitives import serialization as s
        from cryptography.hazmat.primitives.asymmetric import ec, rsa

        self.public = public
        self.private = private
        der = public.public_bytes(s.Encoding.DER, s.PublicFormat.SubjectPublicKeyInfo)
        self.id = id or _unpad(hashlib.sha256(der).digest())
        if isinstance(public, ec.EllipticCurvePublicKey):
            self.algorithm = _CURVES[public.curve.name]
        elif isinstance(public, rsa.RSAPublicKey):
            self.algorithm = "RS256"
        else:
            raise ValueError("only RSA and ECDSA keys sign service account tokens")

    def jwk(self) -> dict[str, Any]:
        """The public key as a member of a key set."""
        import jwt

        found: dict[str, Any] = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.public, as_dict=True)
        out: dict[str, Any] = {"use": "sig", "kid": self.id, "alg": self.algorithm}
        return out | {str(k): found[k] for k in ("kty", "crv", "x", "y", "n", "e") if k in found}


def load_keys(path: Path) -> list[Key]:
    """All keys of a PEM file: private keys, public keys, certificates."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization as s

    out = []
    for block in _blocks(path.read_bytes()):
        if b"PRIVATE KEY" in block[:40]:
            private = s.load_pem_private_key(block, None)
            out.append(Key(private.public_key(), private))
        elif b"CERTIFICATE" in block[:40]:
            out.append(Key(x509.load_pem_x509_certificate(block).public_key()))
        elif b"PUBLIC KEY" in block[:40]:
            out.append(Key(s.load_pem_public_key(block)))
    if not out:
        raise ValueError(f"data in {path} does not contain any valid RSA or ECDSA public keys")
    return out


def _blocks(data: bytes) -> list[bytes]:
    blocks: list[bytes] = []
    lines: list[bytes] = []
    for line in data.splitlines():
        if line.startswith(b"-----BEGIN"):
            lines = []
        lines.append(line)
        if line.startswith(b"-----END"):
            blocks.append(b"\n".join(lines) + b"\n")
    return blocks


def sign(key: Key, claims: dict[str, Any]) -> str:
    """A signed token."""
    import jwt

    token: str = jwt.encode(claims, key.private, algorithm=key.algorithm, headers={"kid": key.id, "typ": None})
    return token


def check_signature(token: str, header: dict[str, Any], keys: Sequence[Key]) -> None:
    """TokenError, in go-jose's words, when none of the keys signed the token."""
    import jwt

    algorithm, id = header.get("alg"), header.get("kid")
    fitting = [k for k in keys if id is None or k.id == id] or list(keys)
    for key in fitting:
        allowed = (
            [key.algorithm] if key.algorithm != "RS256" else ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
        )
        if algorithm not in allowed:
            continue
        try:
            jwt.api_jws.PyJWS().decode(token, key.public, algorithms=allowed)
            return
        except jwt.exceptions.PyJWTError:
            continue
    raise TokenError("go-jose/go-jose: error in cryptographic primitive")


def check_times(claims: dict[str, Any], what: str, leeway: float = 60.0) -> None:
    """TokenError when a token is too old or not valid yet."""
    now = time.time()
    expiry, start = claims.get("exp"), claims.get("nbf")
    if isinstance(expiry, int | float) and now > expiry + leeway:
        raise TokenError(f"{what} has expired")
    if isinstance(start, int | float) and now < start - leeway:
        raise TokenError(f"{what} is not valid yet")


def audiences(claims: dict[str, Any]) -> list[str]:
    found = claims.get("aud")
    if isinstance(found, str):
        return [found]
    return [a for a in found if isinstance(a, str)] if isinstance(found, list) else []
