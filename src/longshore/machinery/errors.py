"""API errors as Kubernetes clients see them: the Status object with upstream's reasons and messages.

Source: k8s.io/apimachinery/pkg/api/errors, apiserver's negotiation errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Cause:
    """One entry of details.causes. `message` is the text without its field."""

    reason: str
    message: str
    field: str = ""

    def text(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message

    def as_dict(self) -> dict[str, str]:
        out = {"reason": self.reason, "message": self.message}
        if self.field:
            out["field"] = self.field
        return {k: v for k, v in out.items() if v}


class StatusError(Exception):
    """An error with an HTTP code and a Status object.

    code: the HTTP status. reason: metav1.StatusReason. details: the Status object's details, or None.
    """

    def __init__(self, code: int, reason: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def status(self) -> dict[str, Any]:
        """The Status object, ready to be sent."""
        out: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        if self.message:
            out["message"] = self.message
        if self.reason:
            out["reason"] = self.reason
        if self.details is not None:
            out["details"] = self.details
        out["code"] = self.code
        return out

    @property
    def retry_after(self) -> int | None:
        """Seconds for the Retry-After field, where the error says so."""
        value = (self.details or {}).get("retryAfterSeconds")
        return int(value) if value else None


def qualified(group: str, name: str) -> str:
    """`name`, or `name.group` outside the core group (schema.GroupResource.String)."""
    return f"{name}.{group}" if group else name


def _details(group: str, kind: str, name: str = "", **more: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if name:
        out["name"] = name
    if group:
        out["group"] = group
    if kind:
        out["kind"] = kind
    out.update({k: v for k, v in more.items() if v})
    return out


def not_found(group: str, resource: str, name: str) -> StatusError:
    message = f'{qualified(group, resource)} "{name}" not found'
    return StatusError(404, "NotFound", message, _details(group, resource, name))


def route_not_found() -> StatusError:
    """No such path, or no such kind, on a server that speaks Status."""
    return StatusError(404, "NotFound", "the server could not find the requested resource", {})


def already_exists(group: str, resource: str, name: str) -> StatusError:
    message = f'{qualified(group, resource)} "{name}" already exists'
    return StatusError(409, "AlreadyExists", message, _details(group, resource, name))


def generate_name_conflict(group: str, resource: str, name: str, retry_after: int = 1) -> StatusError:
    message = f'{qualified(group, resource)} "{name}" already exists, the server was not able to generate a unique name for the object'
    return StatusError(409, "AlreadyExists", message, _details(group, resource, name, retryAfterSeconds=retry_after))


def conflict(group: str, resource: str, name: str, why: str) -> StatusError:
    message = f'Operation cannot be fulfilled on {qualified(group, resource)} "{name}": {why}'
    return StatusError(409, "Conflict", message, _details(group, resource, name))


def modified(group: str, resource: str, name: str) -> StatusError:
    """The conflict of optimistic locking."""
    why = "the object has been modified; please apply your changes to the latest version and try again"
    return conflict(group, resource, name, why)


def apply_conflict(causes: Sequence[Cause], message: str) -> StatusError:
    """Server-side apply: fields that others own."""
    return StatusError(409, "Conflict", message, {"causes": [c.as_dict() for c in causes]})


def invalid(group: str, kind: str, name: str, causes: Sequence[Cause]) -> StatusError:
    """Validation failed. `kind` is the Kind ("Pod"); equal messages are said once (field.ErrorList.ToAggregate)."""
    message = f'{qualified(group, kind)} "{name}" is invalid'
    texts = list(dict.fromkeys(c.text() for c in causes))
    if len(texts) == 1:
        message += f": {texts[0]}"
    elif texts:
        message += f": [{', '.join(texts)}]"
    return StatusError(422, "Invalid", message, _details(group, kind, name, causes=[c.as_dict() for c in causes]))


def forbidden(group: str, resource: str, name: str, why: str) -> StatusError:
    if not resource and not group:
        message = f"forbidden: {why}"
    elif not name:
        message = f"{qualified(group, resource)} is forbidden: {why}"
    else:
        message = f'{qualified(group, resource)} "{name}" is forbidden: {why}'
    return StatusError(403, "Forbidden", message, _details(group, resource, name))


def bad_request(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


def unauthorized(message: str = "Unauthorized") -> StatusError:
    return StatusError(401, "Unauthorized", message)


def too_many_requests(
    message: str = "Too many requests, please try again later.", retry_after: int = 1, causes: Sequence[Cause] = ()
) -> StatusError:
    details: dict[str, Any] = {}
    if causes:
        details["causes"] = [c.as_dict() for c in causes]
    if retry_after:
        details["retryAfterSeconds"] = retry_after
    return StatusError(429, "TooManyRequests", message, details)


def gone(message: str) -> StatusError:
    return StatusError(410, "Gone", message)


def expired(message: str) -> StatusError:
    """A resource version or continue token that is compacted away."""
    return StatusError(410, "Expired", message)


def timeout(message: str, retry_after: int = 0) -> StatusError:
    details = {"retryAfterSeconds": retry_after} if retry_after else {}
    return StatusError(504, "Timeout", f"Timeout: {message}", details)


def server_timeout(group: str, resource: str, operation: str, retry_after: int = 1) -> StatusError:
    message = f"The {operation} operation against {qualified(group, resource)} could not be completed at this time, please try again."
    return StatusError(
        500, "ServerTimeout", message, _details(group, resource, operation, retryAfterSeconds=retry_after)
    )


def method_not_supported(group: str, resource: str, action: str) -> StatusError:
    message = f'{action} is not supported on resources of kind "{qualified(group, resource)}"'
    return StatusError(405, "MethodNotAllowed", message, _details(group, resource))


def method_not_allowed() -> StatusError:
    """A path that exists, but not for this method."""
    return StatusError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def not_acceptable(accepted: Sequence[str]) -> StatusError:
    return StatusError(406, "NotAcceptable", f"only the following media types are accepted: {', '.join(accepted)}")


def unsupported_media_type(accepted: Sequence[str]) -> StatusError:
    message = f"the body of the request was in an unknown format - accepted media types include: {', '.join(accepted)}"
    return StatusError(415, "UnsupportedMediaType", message)


def internal_error(why: str) -> StatusError:
    return StatusError(500, "InternalError", f"Internal error occurred: {why}", {"causes": [{"message": why}]})


def service_unavailable(message: str) -> StatusError:
    return StatusError(503, "ServiceUnavailable", message)


def request_entity_too_large(message: str) -> StatusError:
    return StatusError(413, "RequestEntityTooLarge", f"Request entity too large: {message}")


def generic_server_response(
    code: int, verb: str, group: str, resource: str, name: str, body: str, *, retry_after: int = 0
) -> StatusError:
    """What a client makes of an answer without a Status (NewGenericServerResponse)."""
    texts = {
        400: ("BadRequest", "the server rejected our request for an unknown reason"),
        401: ("Unauthorized", "the server has asked for the client to provide credentials"),
        403: ("Forbidden", body or "the server does not allow access to the requested resource"),
        404: ("NotFound", "the server could not find the requested resource"),
        405: ("MethodNotAllowed", "the server does not allow this method on the requested resource"),
        406: ("NotAcceptable", "the server was unable to respond with a content type that the client supports"),
        409: (
            "AlreadyExists" if verb == "POST" else "Conflict",
            "the server reported a conflict",
        ),
        413: ("RequestEntityTooLarge", "the request is too large"),
        415: ("UnsupportedMediaType", "the server was unable to accept the request's content type"),
        422: ("Invalid", "the server rejected our request due to an error in our request"),
        429: ("TooManyRequests", "the server has received too many requests and has asked us to try again later"),
        503: ("ServiceUnavailable", "the server is currently unable to handle the request"),
        504: (
            "Timeout",
            "the server was unable to return a response in the time allotted, but may still be processing the request",
        ),
    }
    reason, message = texts.get(
        code, ("Unknown", f"the server responded with the status code {code} but did not return more information")
    )
    if code >= 500 and code not in (503, 504):
        reason, message = (
            "InternalError",
            f'an error on the server ("{body}") has prevented the request from succeeding',
        )
    if name and resource:
        message = f"{message} ({verb.lower()} {qualified(group, resource)} {name})"
    elif resource:
        message = f"{message} ({verb.lower()} {qualified(group, resource)})"
    details = _details(group, resource, name, retryAfterSeconds=retry_after)
    if body and code >= 500:
        details["causes"] = [{"reason": "UnexpectedServerResponse", "message": body}]
    return StatusError(code, reason, message, details)
