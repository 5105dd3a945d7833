"""What a kind adds to the common behaviour of resources: a class per kind, found by `longshore.api.kinds`.

A strategy holds no state; its methods take whole objects (dicts) in the preferred version's form and change them in place
where they say so. `Errors` collects in upstream's order.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from longshore.api import times
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_subdomain

Object = dict[str, Any]


class Strategy:
    """The behaviour of a kind without any of its own; kinds override what differs."""

    # Whether metadata.generation counts changes of everything but metadata and status.
    generation: ClassVar[bool] = False
    # Whether status is only written through the status subresource.
    status: ClassVar[bool] = True
    # Whether an update may name no resourceVersion, and whether an update may create.
    unconditional_update: ClassVar[bool] = True
    create_on_update: ClassVar[bool] = False
    # Whether the kind's own checks leave metadata out, so that only what all kinds have in common is checked, and last.
    loose_metadata: ClassVar[bool] = False
    # Whether finalizers without a domain must be Kubernetes' own.
    standard_finalizers: ClassVar[bool] = True

    def name_check(self, name: str) -> list[str]:
        """Complaints about metadata.name."""
        return dns1123_subdomain(name)

    def default(self, obj: Object) -> None:
        """Fill in defaults, in place."""

    def default_version(self, obj: Object, version: str) -> None:
        """Fill in the defaults of a version that may not be the preferred one, in place."""
        self.default(obj)

    def prepare_create(self, obj: Object) -> None:
        """What the server sets or takes away at creation, in place (after the common part)."""

    def prepare_update(self, new: Object, old: Object) -> None:
        """What the server keeps from the old object at an update, in place (after the common part)."""

    def prepare_status(self, new: Object, old: Object) -> None:
        """The same for an update of the status subresource."""

    def prepare_subresource(self, new: Object, old: Object, subresource: str) -> None:
        """The same for the other subresources that update the object."""

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        """Check everything but metadata; old is given when this runs for an update."""

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        """Check an update, metadata excepted; as a rule upstream checks the whole new object again."""
        self.validate(new, errors, old)

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        """Check an update of the status subresource."""

    def validate_subresource(self, new: Object, old: Object, subresource: str, errors: Errors) -> None:
        """Check an update of another subresource."""

    def validate_meta(self, obj: Object, errors: Errors, namespaced: bool) -> None:
        """Check metadata at creation."""
        metadata.create(errors, obj["metadata"], namespaced, self.name_check)
        if self.standard_finalizers:
            metadata.standard_finalizers(errors, obj["metadata"])

    def validate_meta_update(self, new: Object, old: Object, errors: Errors, namespaced: bool) -> None:
        """The strategy's own checks of metadata at an update; only asked when the common ones found something."""
        metadata.update(errors, new["metadata"], old["metadata"])
        if self.standard_finalizers:
            metadata.standard_finalizers(errors, new["metadata"])
        metadata.create(errors, new["metadata"], namespaced, self.name_check)

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        """Warnings about a good object."""
        return []

    def row(self, obj: Object, now: datetime) -> list[Any]:
        """The cells of a table's row."""
        return [obj["metadata"]["name"], created_at(obj)]

    def selectable(self, obj: Object) -> dict[str, str]:
        """What field selectors may ask for besides metadata.name and metadata.namespace."""
        return {}

    def convert(self, obj: Object, source: str, target: str) -> Object:
        """obj of apiVersion source as apiVersion target (both with their group)."""
        return obj


def created_at(obj: Object) -> str:
    """The cell Created At."""
    return str(obj["metadata"].get("creationTimestamp", ""))


def age(stamp: str | None, now: datetime) -> str:
    """A time as tables show it: how long ago ("5m2s"), "<unknown>" when there is none."""
    if not stamp:
        return "<unknown>"
    try:
        return human_duration((now - times.parse(stamp)).total_seconds())
    except times.TimeError:
        return "<unknown>"


def human_duration(seconds: float) -> str:
    """A span as kubectl shows it (apimachinery pkg/util/duration, HumanDuration)."""
    total = int(seconds)
    if seconds < -1:
        return "<invalid>"
    if seconds < 0:
        return "0s"
    if total < 120:
        return f"{total}s"
    minutes = total // 60
    if minutes < 10:
        rest = total % 60
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours = total // 3600
    if hours < 8:
        rest = minutes % 60
        return f"{hours}h{rest}m" if rest else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    days = hours // 24
    if hours < 192:
        rest = hours % 24
        return f"{days}d{rest}h" if rest else f"{days}d"
    if hours < 24 * 365 * 2:
        return f"{days}d"
    years = hours // 24 // 365
    if hours < 24 * 365 * 8:
        rest = days % 365
        return f"{years}y{rest}d" if rest else f"{years}y"
    return f"{years}y"


def age_of(obj: Object, now: datetime) -> str:
    """The cell Age."""
    return age(obj["metadata"].get("creationTimestamp"), now)


def utc_now() -> datetime:
    """The present time."""
    return datetime.now(UTC)
