"""The flags of audit, with upstream's names and defaults.

Source: k8s.io/apiserver/pkg/server/options/audit.go.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from longshore.master.apiserver.configfile import ConfigurationError
from longshore.master.apiserver.flagtypes import boolean, seconds

MODES = ("batch", "blocking", "blocking-strict")
FORMATS = ("legacy", "json")


@dataclass(slots=True)
class Batch:
    """How events go to a backend. Times in seconds, sizes in events."""

    mode: str = "batch"
    buffer: int = 10000
    size: int = 400
    wait: float = 30.0
    throttle: bool = True
    rate: float = 10.0
    burst: int = 15
    concurrent: bool = True  # whether a batch waits for the one before it


@dataclass(slots=True)
class Truncate:
    """Sizes in octets; nothing is cut when not enabled."""

    enabled: bool = False
    batch: int = 10 << 20
    event: int = 100 << 10


@dataclass(slots=True)
class Log:
    """The log file. age in days, size in megabytes; 0: no limit."""

    file: Path | None = None
    age: int = 366
    backups: int = 100
    size: int = 100
    format: str = "json"
    compress: bool = False
    batch: Batch = field(default_factory=lambda: Batch("blocking", size=1, throttle=False, concurrent=False))
    truncate: Truncate = field(default_factory=Truncate)


@dataclass(slots=True)
class Webhook:
    """The webhook: a kubeconfig."""

    file: Path | None = None
    first_wait: float = 10.0
    batch: Batch = field(default_factory=Batch)
    truncate: Truncate = field(default_factory=Truncate)


@dataclass(slots=True)
class Options:
    policy: Path | None = None
    log: Log = field(default_factory=Log)
    webhook: Webhook = field(default_factory=Webhook)


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add, given = parser.add_argument, Options()
    add("--audit-policy-file", type=Path, help="an audit.k8s.io Policy; without it nothing is written")
    add("--audit-log-path", type=Path, help="- for the standard output")
    add("--audit-log-maxage", type=int, default=given.log.age, help="days")
    add("--audit-log-maxbackup", type=int, default=given.log.backups)
    add("--audit-log-maxsize", type=int, default=given.log.size, help="megabytes; 0: never rotate")
    add("--audit-log-format", default=given.log.format, help=",".join(FORMATS))
    add("--audit-log-compress", type=boolean, nargs="?", const=True, default=False)
    add("--audit-log-version", default="audit.k8s.io/v1")
    add("--audit-webhook-config-file", type=Path, help="a kubeconfig")
    add("--audit-webhook-initial-backoff", type=seconds, default=given.webhook.first_wait)
    add("--audit-webhook-version", default="audit.k8s.io/v1")
    for name, batch, cut in (
        ("log", given.log.batch, given.log.truncate),
        ("webhook", given.webhook.batch, given.webhook.truncate),
    ):
        add(f"--audit-{name}-mode", default=batch.mode, help=",".join(MODES))
        add(f"--audit-{name}-batch-buffer-size", type=int, default=batch.buffer)
        add(f"--audit-{name}-batch-max-size", type=int, default=batch.size)
        add(f"--audit-{name}-batch-max-wait", type=seconds, default=batch.wait if name == "webhook" else 0)
        add(f"--audit-{name}-batch-throttle-enable", type=boolean, nargs="?", const=True, default=batch.throttle)
        add(f"--audit-{name}-batch-throttle-qps", type=float, default=batch.rate)
        add(f"--audit-{name}-batch-throttle-burst", type=int, default=batch.burst)
        add(f"--audit-{name}-truncate-enabled", type=boolean, nargs="?", const=True, default=False)
        add(f"--audit-{name}-truncate-max-batch-size", type=int, default=cut.batch)
        add(f"--audit-{name}-truncate-max-event-size", type=int, default=cut.event)


def options(args: argparse.Namespace) -> Options:
    """What the flags say. ConfigurationError in upstream's words."""
    log = Log(
        args.audit_log_path, args.audit_log_maxage, args.audit_log_maxbackup, args.audit_log_maxsize,
        args.audit_log_format, args.audit_log_compress, _batch(args, "log", concurrent=False), _truncate(args, "log"),
    )  # fmt: skip
    webhook = Webhook(
        args.audit_webhook_config_file, args.audit_webhook_initial_backoff,
        _batch(args, "webhook", concurrent=True), _truncate(args, "webhook"),
    )  # fmt: skip
    if log.file is not None:
        _check("log", log.batch, log.truncate, args.audit_log_version)
        if log.format not in FORMATS:
            raise ConfigurationError(
                f'invalid audit log format {log.format}, allowed formats are "{",".join(FORMATS)}"'
            )
        for flag, value in (("maxage", log.age), ("maxbackup", log.backups), ("maxsize", log.size)):
            if value < 0:
                raise ConfigurationError(f"--audit-log-{flag} {value} can't be a negative number")
    if webhook.file is not None:
        _check("webhook", webhook.batch, webhook.truncate, args.audit_webhook_version)
    return Options(args.audit_policy_file, log, webhook)


def _batch(args: argparse.Namespace, name: str, *, concurrent: bool) -> Batch:
    of = vars(args)
    prefix = f"audit_{name}_batch_"
    return Batch(
        of[f"audit_{name}_mode"], of[prefix + "buffer_size"], of[prefix + "max_size"], of[prefix + "max_wait"],
        of[prefix + "throttle_enable"], of[prefix + "throttle_qps"], of[prefix + "throttle_burst"], concurrent,
    )  # fmt: skip


def _truncate(args: argparse.Namespace, name: str) -> Truncate:
    of, prefix = vars(args), f"audit_{name}_truncate_"
    return Truncate(of[prefix + "enabled"], of[prefix + "max_batch_size"], of[prefix + "max_event_size"])


def _check(name: str, batch: Batch, cut: Truncate, version: str) -> None:
    if batch.mode not in MODES:
        raise ConfigurationError(f'invalid audit {name} mode {batch.mode}, allowed modes are "{",".join(MODES)}"')
    if batch.mode == "batch":
        checks: list[tuple[str, float]] = [("buffer size", batch.buffer), ("max batch size", batch.size)]
        if batch.throttle:
            checks += [("throttle QPS", batch.rate), ("throttle burst", batch.burst)]
        for what, value in checks:
            if value <= 0:
                raise ConfigurationError(f"invalid audit batch {name} {what} {value:g}, must be a positive number")
    if cut.event <= 0:
        raise ConfigurationError(f"invalid audit truncate {name} max event size {cut.event}, must be a positive number")
    if cut.batch < cut.event:
        raise ConfigurationError(
            f"invalid audit truncate {name} max batch size {cut.batch}, must be greater than max event size ({cut.event})"
        )
    if version != "audit.k8s.io/v1":
        raise ConfigurationError('invalid group version, allowed versions are ["audit.k8s.io/v1"]')
