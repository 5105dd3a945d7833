"""A registry's refusals: what its answer says, in the words of the Go client that dockerd uses.

Source: distribution registry/client/errors.go, registry/api/errcode; RFC 9110 section 11.6.1.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.errors import SystemFailure

if TYPE_CHECKING:
    from longshore.machinery.http import ClientResponse

#: The codes of the distribution protocol, and what each says where a registry adds no words of its own.
_MESSAGES = {
    "UNKNOWN": "unknown error",
    "UNSUPPORTED": "The operation is unsupported.",
    "UNAUTHORIZED": "authentication required",
    "DENIED": "requested access to the resource is denied",
    "UNAVAILABLE": "service unavailable",
    "TOOMANYREQUESTS": "too many requests",
    "DIGEST_INVALID": "provided digest did not match uploaded content",
    "SIZE_INVALID": "provided length did not match content length",
    "RANGE_INVALID": "invalid content range",
    "NAME_INVALID": "invalid repository name",
    "TAG_INVALID": "manifest tag did not match URI",
    "NAME_UNKNOWN": "repository name not known to registry",
    "MANIFEST_UNKNOWN": "manifest unknown",
    "MANIFEST_INVALID": "manifest invalid",
    "MANIFEST_UNVERIFIED": "manifest failed signature verification",
    "MANIFEST_BLOB_UNKNOWN": "blob unknown to registry",
    "BLOB_UNKNOWN": "blob unknown to registry",
    "BLOB_UPLOAD_UNKNOWN": "blob upload unknown to registry",
    "BLOB_UPLOAD_INVALID": "blob upload invalid",
    "PAGINATION_NUMBER_INVALID": "invalid number of results requested",
}
#: What the challenge of a refused token says (RFC 6750 section 3.1), as a code.
_CHALLENGES = {"invalid_token": "UNAUTHORIZED", "insufficient_scope": "DENIED"}
_DETAILS = {401: "UNAUTHORIZED", 429: "TOOMANYREQUESTS"}
_WAIT_LIMIT = 60.0


class RegistryError(SystemFailure):
    """A registry's refusal. code: its error code ("MANIFEST_UNKNOWN") or ""; http: the response's status; first: the words of
    the first error where there are several; wait: seconds after which it may be asked again, 0 where it does not say.
    """

    def __init__(self, message: str, code: str = "", http: int = 0, *, first: str = "", wait: float = 0.0) -> None:
        super().__init__(message)
        self.code, self.http, self.first, self.wait = code, http, first or message, wait


def refusal(response: ClientResponse, body: bytes) -> RegistryError:
    """The error of an answer whose body was read."""
    challenges = response.headers.getall("WWW-Authenticate")
    return registry_error(response.status, response.reason, body, challenges, response.headers.get("Retry-After"))


def registry_error(
    status: int, reason: str, body: bytes, challenges: list[str] | None = None, retry_after: str | None = None
) -> RegistryError:
    """The error that an answer carries. challenges: its WWW-Authenticate fields."""
    if not 400 <= status < 500:
        return RegistryError(f"received unexpected HTTP status: {status} {reason}", "", status)
    found: list[tuple[str, str]] = []
    for scheme, parameters in parse_challenges(challenges or []):
        code = _CHALLENGES.get(parameters.get("error", ""), "")
        if scheme == "bearer" and code:
            found.append((code, _words(code, parameters.get("error_description") or "")))
            break
    refusal = found[0][0] if found else ""
    text, listed = _read(status, body)
    if text and status == 401 and not found:
        listed, text = [("UNAUTHORIZED", _words("UNAUTHORIZED", ""))], ""
    words = [*(line for _, line in found), *([text] if text else [line for _, line in listed])]
    code = refusal or (listed[0][0] if listed else "")
    shown = words[0] if len(words) == 1 else "errors:\n" + "\n".join(words) + "\n"
    wait = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
    return RegistryError(shown, code, status, first=words[0], wait=min(wait, _WAIT_LIMIT))


def _read(status: int, body: bytes) -> tuple[str, list[tuple[str, str]]]:
    """What a body says: (code, words) of each error, or why it cannot be told."""
    from longshore.engine.containers import gojson

    shown = _quoted(body)
    try:
        decoded = orjson.loads(body)
    except ValueError:
        text = gojson.explain(body.decode("utf-8", "replace"))
        why = "unexpected end of JSON input" if text in ("EOF", "unexpected EOF") else text
        return f"error parsing HTTP {status} response body: {why}: {shown}", []
    details = _field(decoded, "details")
    if isinstance(details, str) and details:
        code = _DETAILS.get(status, "UNKNOWN")
        return "", [(code, _words(code, details))]
    errors = _field(decoded, "errors")
    listed: list[tuple[str, str]] = []
    for item in errors if isinstance(errors, list) else []:
        code = str(_field(item, "code") or "").upper()
        listed.append((code, _words(code, str(_field(item, "message") or ""))))
    if not listed:
        return f"error parsing HTTP {status} response body: no error details found in HTTP response body: {shown}", []
    return "", listed


def _words(code: str, message: str) -> str:
    known = code if code in _MESSAGES else "UNKNOWN"
    return f"{known.lower().replace('_', ' ')}: {message or _MESSAGES[known]}"


def _field(value: Any, name: str) -> Any:
    """A member of a JSON object; the case of its name does not matter to Go."""
    if not isinstance(value, dict):
        return None
    return value.get(name, next((value[key] for key in value if key.lower() == name), None))


def _quoted(body: bytes) -> str:
    """Go's %q, of the first part of a body."""
    text = body[:1024].decode("utf-8", "replace")
    return orjson.dumps(text).decode()


def parse_challenges(headers: list[str]) -> list[tuple[str, dict[str, str]]]:
    """WWW-Authenticate fields as (scheme in lower case, parameters). Source: RFC 9110 section 11.6.1."""
    found: list[tuple[str, dict[str, str]]] = []
    for header in headers:
        scheme, _, rest = header.strip().partition(" ")
        parameters = {
            key.lower(): re.sub(r"\\(.)", r"\1", quoted) if quoted or not plain else plain
            for key, quoted, plain in re.findall(r'([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))', rest)
        }
        found.append((scheme.lower(), parameters))
    return found
