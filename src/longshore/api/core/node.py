"""Node."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import cidr, dns1123_subdomain, ip_family, label_value, qualified_name
from longshore.api.validation.quantities import amount
from longshore.machinery import quantity

_ROLE = "node-role.kubernetes.io/"


def _round_milli(amounts: dict[str, str] | None) -> None:
    for name, value in (amounts or {}).items():
        parsed = quantity.parse(value)
        if parsed.nanos % 10**6:
            assert amounts is not None
            amounts[name] = str(quantity.Quantity(parsed.milli_value * 10**6, parsed.format))


class Node(Strategy):
    """A machine that runs pods."""

    def default(self, obj: Object) -> None:
        status = obj["status"]
        _round_milli(status.get("capacity"))
        _round_milli(status.get("allocatable"))
        if status.get("capacity"):
            allocatable = dict(status.get("allocatable") or {})
            for name, value in status["capacity"].items():
                allocatable.setdefault(name, value)
            status["allocatable"] = allocatable
        spec = obj["spec"]
        first, ranges = spec.get("podCIDR"), spec.get("podCIDRs")
        if first and (not ranges or ranges[0] != first):
            spec["podCIDRs"] = [spec["podCIDR"]]
        elif spec.get("podCIDRs") and not spec.get("podCIDR"):
            spec["podCIDR"] = spec["podCIDRs"][0]

    def prepare_create(self, obj: Object) -> None:
        obj["spec"].pop("configSource", None)

    # A kubelet registers its node with a status.
    status = False

    def prepare_update(self, new: Object, old: Object) -> None:
        new["status"] = old["status"]

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        taints(errors, spec.get("taints") or [], "metadata.taints")
        status_resources(obj, errors)
        self._ranges(spec.get("podCIDRs") or [], errors)

    @staticmethod
    def _ranges(ranges: list[str], errors: Errors) -> None:
        if ranges:
            for index, text in enumerate(ranges):
                for message in cidr(text):
                    errors.invalid(f"spec.podCIDRs[{index}]", text, message)
            if len(ranges) > 1:
                bad = next((text for text in ranges if cidr(text)), None)
                if bad is not None:
                    errors.internal(
                        "spec.podCIDRs",
                        f"invalid PodCIDRs. failed to check with dual stack with error:invalid CIDR address: {bad}",
                    )
                families = {ip_family(text.split("/")[0]) for text in ranges}
                if len(ranges) > 2 or len(families) != 2:
                    errors.invalid("spec.podCIDRs", ranges, "may specify no more than one CIDR for each IP family")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        spec, before = new["spec"], old["spec"]
        status_resources(new, errors)
        self._ranges(spec.get("podCIDRs") or [], errors)
        seen: list[Any] = []
        for index, address in enumerate(new["status"].get("addresses") or ()):
            if address in seen:
                errors.duplicate(
                    f"status.addresses[{index}]",
                    {"Type": address.get("type", ""), "Address": address.get("address", "")},
                )
            seen.append(address)
        if before.get("podCIDRs"):
            if spec.get("podCIDRs") != before["podCIDRs"]:
                errors.forbidden("spec.podCIDRs", 'node updates may not change podCIDR except from "" to valid')
        if before.get("providerID") and before["providerID"] != spec.get("providerID", ""):
            errors.forbidden("spec.providerID", 'node updates may not change providerID except from "" to valid')
        # Upstream's strategy checks the whole node, and then the update with its taints again.
        for _ in range(2):
            taints(errors, spec.get("taints") or [], "metadata.taints")

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate_update(new, old, errors)

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        found = []
        if obj["spec"].get("configSource") is not None:
            found.append("spec.configSource: the field is ignored")
        if obj["spec"].get("externalID"):
            found.append("spec.externalID: this field is deprecated, and is unused by Kubernetes")
        return found

    def row(self, obj: Object, now: datetime) -> list[Any]:
        status = obj.get("status") or {}
        ready = next((c for c in status.get("conditions") or () if c.get("type") == "Ready"), None)
        shown = ["Unknown"] if ready is None else ["Ready" if ready.get("status") == "True" else "NotReady"]
        if obj["spec"].get("unschedulable"):
            shown.append("SchedulingDisabled")
        roles = set()
        for key, value in (obj["metadata"].get("labels") or {}).items():
            if key.startswith(_ROLE) and len(key) > len(_ROLE):
                roles.add(key[len(_ROLE) :])
            elif key == "kubernetes.io/role" and value:
                roles.add(value)
        addresses = status.get("addresses") or ()
        info = status.get("nodeInfo") or {}

        def address(kind: str) -> str:
            return str(next((a.get("address", "") for a in addresses if a.get("type") == kind), "<none>"))

        return [
            obj["metadata"]["name"],
            ",".join(shown),
            ",".join(sorted(roles)) or "<none>",
            age_of(obj, now),
            info.get("kubeletVersion", ""),
            address("InternalIP"),
            address("ExternalIP"),
            info.get("osImage") or "<unknown>",
            info.get("kernelVersion") or "<unknown>",
            info.get("containerRuntimeVersion") or "<unknown>",
        ]

    def selectable(self, obj: Object) -> dict[str, str]:
        return {"spec.unschedulable": "true" if obj["spec"].get("unschedulable") else "false"}


def status_resources(obj: Object, errors: Errors) -> None:
    """Capacity and allocatable."""
    status = obj["status"]
    for field in ("capacity", "allocatable"):
        for name in sorted(status.get(field) or ()):
            amount(errors, name, status[field][name], f"status.{field}.{name}")


def taints(errors: Errors, listed: list[Object], path: str) -> None:
    """Taints: well formed and unique by key and effect."""
    seen: set[tuple[str, str]] = set()
    for index, taint in enumerate(listed):
        here = f"{path}[{index}]"
        key, value, effect = taint.get("key", ""), taint.get("value", ""), taint.get("effect", "")
        for message in qualified_name(key):
            errors.invalid(f"{here}.key", key, message)
        if value:
            for message in label_value(value):
                errors.invalid(f"{here}.value", value, message)
        taint_effect(errors, effect, f"{here}.effect")
        if (key, effect) in seen:
            errors.duplicate(here, {"Key": key, "Value": value, "Effect": effect, "TimeAdded": taint.get("timeAdded")})
            errors[-1].detail = "taints must be unique by key and effect pair"
        seen.add((key, effect))


def taint_effect(errors: Errors, effect: str, path: str, *, allow_empty: bool = False) -> None:
    """The effect of a taint or toleration."""
    if not effect and not allow_empty:
        errors.required(path)
    elif effect not in ("NoSchedule", "PreferNoSchedule", "NoExecute") and effect:
        errors.unsupported(path, effect, ("NoSchedule", "PreferNoSchedule", "NoExecute"))


__all__ = ["Node", "dns1123_subdomain", "taint_effect", "taints"]
