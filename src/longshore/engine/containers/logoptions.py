"""Options of the log drivers that send lines elsewhere, checked in dockerd's words.

Source: Docker documentation of the fluentd, syslog and journald drivers; moby daemon/logger.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from longshore.wire.syslog import FACILITIES

from .logdrivers import parse_size

#: Drivers whose lines leave the machine's files.
REMOTE = ("fluentd", "syslog", "journald", "gelf", "splunk", "awslogs", "gcplogs")
_CACHE = {"cache-disabled", "cache-max-file", "cache-max-size", "cache-compress"}
_ATTRIBUTES = {"labels", "labels-regex", "env", "env-regex", "tag"}
_FLUENTD = {
    "fluentd-address", "fluentd-async", "fluentd-async-connect", "fluentd-async-reconnect-interval", "fluentd-buffer-limit",
    "fluentd-max-retries", "fluentd-request-ack", "fluentd-retry-wait", "fluentd-sub-second-precision",
    "fluentd-read-timeout", "fluentd-write-timeout",
}  # fmt: skip
_SYSLOG = {
    "syslog-address", "syslog-facility", "syslog-tls-ca-cert", "syslog-tls-cert", "syslog-tls-key", "syslog-tls-skip-verify",
    "syslog-format",
}  # fmt: skip
_GELF = {
    "gelf-address", "gelf-compression-level", "gelf-compression-type", "gelf-tcp-max-reconnect", "gelf-tcp-reconnect-delay",
}  # fmt: skip
_SPLUNK = {
    "splunk-url", "splunk-token", "splunk-source", "splunk-sourcetype", "splunk-index", "splunk-capath", "splunk-caname",
    "splunk-insecureskipverify", "splunk-format", "splunk-verify-connection", "splunk-gzip", "splunk-gzip-level",
    "splunk-index-acknowledgment",
}  # fmt: skip
_AWSLOGS = {
    "awslogs-group", "awslogs-stream", "awslogs-create-group", "awslogs-create-stream", "awslogs-region",
    "awslogs-endpoint", "awslogs-datetime-format", "awslogs-multiline-pattern", "awslogs-credentials-endpoint",
    "awslogs-force-flush-interval-seconds", "awslogs-max-buffered-events", "awslogs-format",
}  # fmt: skip
#: The options that each driver knows.
KNOWN: dict[str, set[str]] = {
    "json-file": {"max-file", "max-size", "compress", *_ATTRIBUTES},
    "local": {"max-file", "max-size", "compress"},
    "fluentd": _FLUENTD | _ATTRIBUTES,
    "syslog": _SYSLOG | _ATTRIBUTES,
    "journald": set(_ATTRIBUTES),
    "gelf": _GELF | _ATTRIBUTES,
    "splunk": _SPLUNK | _ATTRIBUTES,
    "awslogs": _AWSLOGS | {"tag"},
    "gcplogs": {"gcp-project", "gcp-log-cmd", "gcp-meta-zone", "gcp-meta-name", "gcp-meta-id", *_ATTRIBUTES},
}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class OptionError(ValueError):
    """An option is wrong; the text is dockerd's."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where lines go. scheme: tcp, tls, udp, unix or unixgram; path of a socket, or host and port."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        """As Go's errors show it after "dial"."""
        if self.path:
            return f"{self.scheme} {self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'tcp' if self.scheme == 'tls' else self.scheme} {host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Fluentd:
    """Parsed options of the fluentd driver; times in seconds."""

    address: Address
    asynchronous: bool
    retry_wait: float
    max_retries: int
    acknowledge: bool
    precise: bool
    write_timeout: float


@dataclass(frozen=True, slots=True)
class Syslog:
    """Parsed options of the syslog driver. address None: the machine's own socket. form: "", rfc3164, rfc5424, rfc5424micro."""

    address: Address | None
    facility: int
    form: str
    ca: str
    certificate: str
    key: str
    skip_verify: bool


def parse_bool(text: str) -> bool:
    """Go's strconv.ParseBool. Raises OptionError."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise OptionError(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def parse_duration(text: str) -> float:
    """Go's time.ParseDuration in seconds. Raises OptionError."""
    body = text.lstrip("+-")
    if body == "0":
        return 0.0
    total, position = 0.0, 0
    for match in _DURATION.finditer(body):
        if match.start() != position:
            break
        total += float(match[1]) * _UNITS[match[2]]
        position = match.end()
    if not body or position != len(body):
        if re.fullmatch(r"\d+(\.\d*)?", body):
            raise OptionError(f'time: missing unit in duration "{text}"')
        raise OptionError(f'time: invalid duration "{text}"')
    return -total if text.startswith("-") else total


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise OptionError(str(error)) from None


def fluentd(options: Mapping[str, str]) -> Fluentd:
    """Raises OptionError."""
    given = options.get("fluentd-address", "")
    try:
        address = _fluentd_address(given)
    except ValueError as error:
        raise OptionError(f"invalid fluentd-address ({given}): {error}") from None
    if options.get("fluentd-buffer-limit"):
        _size(options["fluentd-buffer-limit"])
    retries = options.get("fluentd-max-retries", "")
    if retries and not retries.isdigit():
        raise OptionError(f'strconv.ParseUint: parsing "{retries}": invalid syntax')
    if options.get("fluentd-async") and options.get("fluentd-async-connect"):
        raise OptionError("conflicting options: cannot specify both 'fluentd-async' and 'fluentd-async-connect'")

    def flag(name: str) -> bool:
        return parse_bool(options[name]) if options.get(name) else False

    def duration(name: str, default: float) -> float:
        return parse_duration(options[name]) if options.get(name) else default

    interval = options.get("fluentd-async-reconnect-interval", "")
    if interval:
        seconds = parse_duration(interval)
        if seconds and not 0.1 <= seconds <= 10:
            raise OptionError(
                f"invalid value for fluentd-async-reconnect-interval: value ({interval}) must be between 100ms and 10s"
            )
    duration("fluentd-read-timeout", 0.0)
    return Fluentd(
        address,
        flag("fluentd-async") or flag("fluentd-async-connect"),
        duration("fluentd-retry-wait", 1.0),
        int(retries) if retries else 2**31 - 1,
        flag("fluentd-request-ack"),
        flag("fluentd-sub-second-precision"),
        duration("fluentd-write-timeout", 0.0),
    )


def _fluentd_address(text: str) -> Address:
    if not text:
        return Address("tcp", "127.0.0.1", 24224)
    parts = urlsplit(text if "://" in text else f"tcp://{text}")
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise ValueError("path is empty")
        return Address("unix", path=parts.path)
    if parts.scheme not in ("tcp", "tls"):
        raise ValueError(f"unsupported scheme: '{parts.scheme}'")
    if parts.path:
        raise ValueError("should not contain a path element")
    return Address(parts.scheme, parts.hostname or "127.0.0.1", _port(parts.netloc, 24224))


def _port(netloc: str, default: int) -> int:
    text = netloc.rpartition("@")[2].rpartition("]")[2].rpartition(":")[2] if ":" in netloc.rpartition("]")[2] else ""
    if not text:
        return default
    if not text.isdigit():
        raise ValueError(f'invalid port: strconv.ParseUint: parsing "{text}": invalid syntax')
    if int(text) > 65535:
        raise ValueError(f'invalid port: strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


def syslog(options: Mapping[str, str]) -> Syslog:
    """Raises OptionError."""
    facility = options.get("syslog-facility", "") or "daemon"
    names = {name: number for number, name in enumerate(FACILITIES) if number <= 11 or number >= 16}
    if facility in names:
        number = names[facility]
    elif facility.isdigit() and int(facility) <= 23:
        number = int(facility)
    else:
        raise OptionError("invalid syslog facility")
    form = options.get("syslog-format", "")
    if form not in ("", "rfc3164", "rfc5424", "rfc5424micro"):
        raise OptionError("Invalid syslog format")
    return Syslog(
        _syslog_address(options.get("syslog-address", "")),
        number,
        form,
        options.get("syslog-tls-ca-cert", ""),
        options.get("syslog-tls-cert", ""),
        options.get("syslog-tls-key", ""),
        "syslog-tls-skip-verify" in options,
    )


def _syslog_address(text: str) -> Address | None:
    if not text:
        return None
    scheme, mark, _ = text.partition("://")
    if not mark or scheme not in ("tcp", "tcp+tls", "udp", "unix", "unixgram"):
        raise OptionError(f"syslog-address should be in form proto://address, got {text}")
    parts = urlsplit(text)
    if scheme in ("unix", "unixgram"):
        if not Path(parts.path).exists():
            raise OptionError(f"stat {parts.path}: no such file or directory")
        return Address(scheme, path=parts.path)
    try:
        return Address(
            "tls" if scheme == "tcp+tls" else scheme, parts.hostname or "localhost", _port(parts.netloc, 514)
        )
    except ValueError as error:
        raise OptionError(str(error)) from None


def check(driver: str, options: Mapping[str, str]) -> None:
    """Check a driver's options. Raises OptionError."""
    if driver == "none":
        return
    mode = options.get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise OptionError(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in options:
        if mode != "non-blocking":
            raise OptionError("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
        try:
            parse_size(options["max-buffer-size"])
        except ValueError as error:
            raise OptionError(f"error parsing option max-buffer-size: {error}") from None
    allowed = KNOWN[driver] | _CACHE | {"mode", "max-buffer-size"}
    for name in options:
        if name not in allowed:
            raise OptionError(f"unknown log opt '{name}' for {driver} log driver")
    if options.get("cache-disabled"):
        parse_bool(options["cache-disabled"])
    if driver == "fluentd":
        fluentd(options)
    elif driver == "syslog":
        syslog(options)
    elif driver == "gelf":
        from . import gelf

        gelf.parse(options)
    elif driver == "awslogs":
        _check_awslogs(options)


def _check_awslogs(options: Mapping[str, str]) -> None:
    if not options.get("awslogs-group"):
        raise OptionError("must specify a value for log opt 'awslogs-group'")
    for name in ("awslogs-create-group", "awslogs-create-stream"):
        if options.get(name):
            try:
                parse_bool(options[name])
            except OptionError as error:
                raise OptionError(f"must specify valid value for log opt '{name}': {error}") from None
    for name in ("awslogs-force-flush-interval-seconds", "awslogs-max-buffered-events"):
        value = options.get(name, "")
        if value and not (value.isdigit() and int(value) > 0):
            raise OptionError(f"must specify a positive integer for log opt '{name}': {value}")


def unreachable(driver: str, options: Mapping[str, str]) -> str:
    """Why a container with a driver whose service this engine has no client of cannot start."""
    if driver == "splunk":
        for name in ("splunk-url", "splunk-token"):
            if name not in options:
                return f"splunk: {name} is expected"
        return "splunk: this engine has no client of Splunk's event collector"
    if driver == "gcplogs":
        if not options.get("gcp-project"):
            return (
                "No project was specified and couldn't read project from the metadata server. Please specify a project"
            )
        return "this engine has no client of Google Cloud Logging"
    if not options.get("awslogs-region") and not os.environ.get("AWS_REGION"):
        return "failed to create cloudwatchlogs client: cannot determine region"
    return "this engine has no client of Amazon CloudWatch Logs"


def cache_disabled(driver: str, options: Mapping[str, str]) -> bool:
    """Whether `docker logs` was told to have nothing to read."""
    return driver in REMOTE and bool(options.get("cache-disabled")) and parse_bool(options["cache-disabled"])
