"""The engine's errors: what went wrong, in upstream's words, with the HTTP status that the Docker API gives it.

The class names are those of moby's errdefs; the CRI face maps the same classes to gRPC codes.
"""

from __future__ import annotations


class EngineError(Exception):
    """An error that is told to the client as it stands. `status`: the Docker API's HTTP status; `message`: the text."""

    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class SystemFailure(EngineError):
    """Something of ours or the machine's failed (500)."""


class InvalidParameter(EngineError):
    status = 400


class Unauthorized(EngineError):
    status = 401


class Forbidden(EngineError):
    status = 403


class NotFound(EngineError):
    status = 404


class Conflict(EngineError):
    status = 409


class NotModified(EngineError):
    status = 304


class NotImplementedUpstream(EngineError):
    """What this engine does not offer (501)."""

    status = 501


class Unavailable(EngineError):
    status = 503
