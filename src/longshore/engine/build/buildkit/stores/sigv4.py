"""AWS Signature Version 4: the headers that sign a request. Source: AWS documentation, "Signature Version 4"."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, urlsplit

UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Credentials:
    key: str
    secret: str
    token: str = ""


def sign(
    credentials: Credentials,
    method: str,
    url: str,
    *,
    region: str,
    headers: Sequence[tuple[str, str]] = (),
    payload: str = EMPTY,
    service: str = "s3",
    now: datetime | None = None,
) -> list[tuple[str, str]]:
    """The request's headers with those of the signature. payload: the body's sha256 in hexadecimal."""
    moment = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    parts = urlsplit(url)
    signed = [*headers, ("x-amz-content-sha256", payload), ("x-amz-date", moment)]
    if credentials.token:
        signed.append(("x-amz-security-token", credentials.token))
    fields = sorted([(name.lower(), value.strip()) for name, value in signed] + [("host", parts.netloc)])
    names = ";".join(name for name, _ in fields)
    query = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in parse_qsl(parts.query, True)
    )
    request = "\n".join(
        [
            method,
            parts.path or "/",
            "&".join(f"{name}={value}" for name, value in query),
            *(f"{name}:{value}" for name, value in fields),
            "",
            names,
            payload,
        ]
    )
    scope = f"{moment[:8]}/{region}/{service}/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = b"AWS4" + credentials.secret.encode()
    for word in (moment[:8], region, service, "aws4_request"):
        key = hmac.digest(key, word.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    value = f"AWS4-HMAC-SHA256 Credential={credentials.key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return [*signed, ("Authorization", value)]
