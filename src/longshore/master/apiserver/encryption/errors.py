"""What goes wrong with encryption."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from longshore.machinery.errors import StatusError, internal_error
from longshore.master.apiserver.configfile import ConfigurationError


class EncryptionError(ConfigurationError):
    """The configuration is not one."""


class TransformError(StatusError):
    """A value cannot be enciphered or read; clients are told as upstream's server tells them."""

    def __init__(self, text: str) -> None:
        made = internal_error(text)
        super().__init__(made.code, made.reason, made.message, made.details)


class KeyUnavailable(Exception):
    """A key management service does not open a key."""


class NeedsKey(Exception):
    """A key management service has to open a value's key first: await `fetch()` (KeyUnavailable), then open again."""

    def __init__(self, fetch: Callable[[], Awaitable[None]]) -> None:
        self.fetch = fetch
