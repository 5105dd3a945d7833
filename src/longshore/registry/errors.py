"""The protocol's errors: code, message and status. Source: OCI distribution-spec 1.1 "Error Codes" and distribution/registry/api/errcode."""

from __future__ import annotations

from typing import Any

from longshore.machinery.http import Response

_ERRORS: dict[str, tuple[int, str]] = {
    "BLOB_UNKNOWN": (404, "blob unknown to registry"),
    "BLOB_UPLOAD_INVALID": (400, "blob upload invalid"),
    "BLOB_UPLOAD_UNKNOWN": (404, "blob upload unknown to registry"),
    "DENIED": (403, "requested access to the resource is denied"),
    "DIGEST_INVALID": (400, "provided digest did not match uploaded content"),
    "MANIFEST_BLOB_UNKNOWN": (404, "blob unknown to registry"),
    "MANIFEST_INVALID": (400, "manifest invalid"),
    "MANIFEST_UNKNOWN": (404, "manifest unknown"),
    "NAME_INVALID": (400, "invalid repository name"),
    "NAME_UNKNOWN": (404, "repository name not known to registry"),
    "PAGINATION_NUMBER_INVALID": (400, "invalid number of results requested"),
    "RANGE_INVALID": (416, "invalid content range"),
    "SIZE_INVALID": (400, "provided length did not match content length"),
    "TAG_INVALID": (400, "manifest tag did not match URI"),
    "TOOMANYREQUESTS": (429, "too many requests"),
    "UNAUTHORIZED": (401, "authentication required"),
    "UNAVAILABLE": (503, "service unavailable"),
    "UNKNOWN": (500, "unknown error"),
    "UNSUPPORTED": (405, "The operation is unsupported."),
}


class AnswerCut(RuntimeError):
    """An answer that had begun cannot be ended rightly: the connection is cut, so that the client sees it."""


class RegistryError(Exception):
    """An answer of the protocol that is a refusal.

    code: of the table above. detail: what the client is told besides. status: in place of the code's own.
    headers: further fields (WWW-Authenticate, Location of an upload).
    """

    def __init__(
        self,
        code: str,
        detail: Any = None,
        *,
        status: int = 0,
        message: str = "",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.code, self.detail, self.headers = code, detail, headers
        own_status, own_message = _ERRORS[code]
        self.status, self.message = status or own_status, message or own_message
        super().__init__(f"{code}: {self.message}")

    def response(self) -> Response:
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.detail is not None:
            error["detail"] = self.detail
        return Response.json({"errors": [error]}, self.status, self.headers)
