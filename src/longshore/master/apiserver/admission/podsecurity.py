"""PodSecurity: a namespace's labels say which Pod Security Standard its pods must, should or are recorded not to keep.

Source: staging/src/k8s.io/pod-security-admission/admission.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from longshore.api.validation.names import dns1123_label, dns1123_subdomain
from longshore.machinery.errors import Cause, invalid
from longshore.master.apiserver.admission.base import Object, Plugin, object_name, refuse
from longshore.master.apiserver.admission.configuration import PluginConfiguration
from longshore.master.apiserver.admission.podsecurity_checks import violations
from longshore.master.apiserver.configfile import ConfigurationError
from longshore.master.apiserver.context import AdmissionRequest

LABEL = "pod-security.kubernetes.io/"
LEVELS = ("privileged", "baseline", "restricted")
LATEST = 36
_TEMPLATES = {
    ("apps", "deployments"): ("spec", "template"),
    ("apps", "replicasets"): ("spec", "template"),
    ("apps", "statefulsets"): ("spec", "template"),
    ("apps", "daemonsets"): ("spec", "template"),
    ("batch", "jobs"): ("spec", "template"),
    ("batch", "cronjobs"): ("spec", "jobTemplate", "spec", "template"),
    ("", "replicationcontrollers"): ("spec", "template"),
    ("", "podtemplates"): ("template",),
}


class Policy(NamedTuple):
    """A level and a version: the label's text and the minor number."""

    level: str
    version: str
    minor: int

    def __str__(self) -> str:
        return f"{self.level}:{self.version}"


MODES = ("enforce", "audit", "warn")
_PRIVILEGED = Policy("privileged", "latest", LATEST)
_OPEN = dict.fromkeys(MODES, _PRIVILEGED)


def policies(labels: dict[str, str], defaults: dict[str, Policy] = _OPEN) -> tuple[dict[str, Policy], list[Cause]]:
    """The policies of a namespace by mode (enforce, audit, warn), and what is wrong with its labels.

    defaults: what holds where labels say nothing.
    """
    out: dict[str, Policy] = {}
    wrong: list[Cause] = []
    for mode in MODES:
        default = defaults[mode]
        level, version = labels.get(LABEL + mode), labels.get(f"{LABEL}{mode}-version", default.version)
        if level is not None and level not in LEVELS:
            wrong.append(
                Cause(
                    "FieldValueInvalid",
                    f'Invalid value: "{level}": must be one of privileged, baseline, restricted',
                    f"metadata.labels[{LABEL}{mode}]",
                )
            )
            # What cannot be read is taken for the strictest.
            level = "restricted" if mode == "enforce" else "privileged"
        match = re.fullmatch(r"v1\.(0|[1-9][0-9]*)", version)
        if version != "latest" and match is None:
            wrong.append(
                Cause(
                    "FieldValueInvalid",
                    f'Invalid value: "{version}": must be "latest" or "v1.x"',
                    f"metadata.labels[{LABEL}{mode}-version]",
                )
            )
        minor = min(int(match[1]), LATEST) if match else LATEST
        out[mode] = Policy(level or default.level, version if match else "latest", minor)
    enforce, warn = out["enforce"], out["warn"]
    if (
        LABEL + "warn" not in labels
        and labels.get(LABEL + "enforce") in LEVELS
        and LEVELS.index(enforce.level) > LEVELS.index(warn.level)
    ):
        # Without a warning level of its own, a namespace warns about what it would refuse.
        out["warn"] = warn._replace(level=enforce.level) if f"{LABEL}warn-version" in labels else enforce
    return out, wrong


class Settings:
    """PodSecurityConfiguration: the policies of namespaces without labels, and who is exempt."""

    def __init__(self, given: Object | None = None) -> None:
        defaults, exempt = (given or {}).get("defaults") or {}, (given or {}).get("exemptions") or {}
        problems = []
        for mode in MODES:
            level, version = defaults.get(mode) or "privileged", defaults.get(f"{mode}-version") or "latest"
            if level not in LEVELS:
                shown = "must be one of privileged, baseline, restricted"
                problems.append(f'defaults.{mode}: Invalid value: "{level}": {shown}')
            if version != "latest" and not re.fullmatch(r"v1\.(0|[1-9][0-9]*)", version):
                problems.append(f'defaults.{mode}-version: Invalid value: "{version}": must be "latest" or "v1.x"')
        for field, check in (
            ("namespaces", dns1123_label),
            ("runtimeClasses", dns1123_subdomain),
            ("usernames", _named),
        ):
            seen: set[str] = set()
            for i, name in enumerate(exempt.get(field) or ()):
                if wrong := check(name):
                    problems.append(f'exemptions.{field}[{i}]: Invalid value: "{name}": {", ".join(wrong)}')
                elif name in seen:
                    problems.append(f'exemptions.{field}[{i}]: Duplicate value: "{name}"')
                seen.add(name)
        if problems:
            raise ConfigurationError(problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]")
        labels = {LABEL + k: v for k, v in defaults.items() if v}
        self.defaults = policies(labels | {LABEL + "warn": defaults.get("warn") or "privileged"})[0]
        self.open = all(p.level == "privileged" for p in self.defaults.values())
        self.namespaces = frozenset(exempt.get("namespaces") or ())
        self.users = frozenset(exempt.get("usernames") or ())
        self.classes = frozenset(exempt.get("runtimeClasses") or ())

    @staticmethod
    def read(configuration: PluginConfiguration) -> Settings:
        """From the admission configuration file. ConfigurationError."""
        versions = [f"pod-security.admission.config.k8s.io/{v}" for v in ("v1", "v1beta1", "v1alpha1")]
        return Settings(configuration.of("PodSecurity", "PodSecurityConfiguration", versions))


def _named(name: str) -> list[str]:
    return [] if name else ["username must not be empty"]


def told(policy: Policy, meta: Object, spec: Object) -> str:
    """The violations as one text, "" when there are none."""
    if policy.level == "privileged":
        return ""
    found = violations(policy.level, policy.minor, meta, spec)
    return ", ".join(f"{reason} ({detail})" if detail else reason for reason, detail in found)


class PodSecurity(Plugin):
    """Pods are refused; templates are only warned about; namespaces tell what they would refuse."""

    name = "PodSecurity"
    resources = frozenset((("", "pods"), ("", "namespaces"), *_TEMPLATES))
    subresources = frozenset(("", "ephemeralcontainers"))

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()

    async def validate(self, a: AdmissionRequest) -> None:
        if a.object is None:
            return
        key = (a.attributes.group, a.attributes.resource)
        if key == ("", "namespaces"):
            self._namespace(a)
            return
        namespace = a.api.peek("", "namespaces", "", a.attributes.namespace)
        labels = ((namespace or {}).get("metadata") or {}).get("labels") or {}
        settings = self._settings
        for who, exempt in (
            ("namespace", a.attributes.namespace in settings.namespaces), ("user", a.attributes.user.name in settings.users),
        ):  # fmt: skip
            if exempt:
                a.annotations[LABEL + "exempt"] = who
                return
        if settings.open and not any(label.startswith(LABEL) for label in labels):
            return
        chosen, _ = policies(labels, settings.defaults)
        if key == ("", "pods"):
            if a.operation == "UPDATE" and not _significant(a.object, a.old or {}):
                return
            self._evaluate(a, chosen, a.object.get("metadata") or {}, a.object["spec"], enforce=True)
        else:
            template = a.object
            for part in _TEMPLATES[key]:
                template = (template or {}).get(part) or {}
            if template.get("spec"):
                self._evaluate(a, chosen, template.get("metadata") or {}, template["spec"], enforce=False)

    def _evaluate(
        self, a: AdmissionRequest, chosen: dict[str, Policy], meta: Object, spec: Object, *, enforce: bool
    ) -> None:
        if spec.get("runtimeClassName") in self._settings.classes:
            a.annotations[LABEL + "exempt"] = "runtimeClass"
            return
        a.annotations["pod-security.kubernetes.io/enforce-policy"] = str(chosen["enforce"])
        if enforce:
            text = told(chosen["enforce"], meta, spec)
            if text:
                raise refuse(a, f'violates PodSecurity "{chosen["enforce"]}": {text}')
        audit = told(chosen["audit"], meta, spec)
        if audit:
            a.annotations["pod-security.kubernetes.io/audit-violations"] = (
                f'would violate PodSecurity "{chosen["audit"]}": {audit}'
            )
        if not (enforce and chosen["warn"] == chosen["enforce"]):
            warn = told(chosen["warn"], meta, spec)
            if warn:
                a.warnings.append(f'would violate PodSecurity "{chosen["warn"]}": {warn}')

    def _namespace(self, a: AdmissionRequest) -> None:
        assert a.object is not None
        labels = a.object["metadata"].get("labels") or {}
        defaults = self._settings.defaults
        chosen, wrong = policies(labels, defaults)
        if wrong:
            before = policies(((a.old or {}).get("metadata") or {}).get("labels") or {})[1] if a.old else []
            if a.operation == "CREATE" or [c.text() for c in wrong] != [c.text() for c in before]:
                raise invalid("", "Namespace", object_name(a), wrong)
            return
        if object_name(a) in self._settings.namespaces:
            a.warnings.extend(_ignored(object_name(a), chosen, labels, defaults))
            return
        if a.operation != "UPDATE" or a.old is None:
            return
        old = policies((a.old.get("metadata") or {}).get("labels") or {}, defaults)[0]["enforce"]
        new = chosen["enforce"]
        if (
            new == old
            or new.level == "privileged"
            or (LEVELS.index(new.level) < LEVELS.index(old.level) and new.minor == old.minor)
        ):
            return
        pods = a.api.list("", "pods", object_name(a))
        pods = [p for p in pods if p["spec"].get("runtimeClassName") not in self._settings.classes]
        a.warnings.extend(_existing(object_name(a), new, pods))


def _ignored(
    namespace: str, chosen: dict[str, Policy], labels: dict[str, str], defaults: dict[str, Policy]
) -> list[str]:
    """The warning that an exempt namespace's labels mean nothing."""
    told = [
        f"{mode}={policy}"
        for mode, policy in chosen.items()
        if policy.level != "privileged" and (LABEL + mode in labels or f"{LABEL}{mode}-version" in labels)
    ]
    if not told or chosen == defaults:
        return []
    return [f'namespace "{namespace}" is exempt from Pod Security, and the policy ({", ".join(told)}) will be ignored']


def _existing(namespace: str, policy: Policy, pods: Iterable[Object]) -> list[str]:
    """Warnings about the pods that a new policy would refuse, grouped by what is wrong with them."""
    groups: dict[str, list[str]] = {}
    for pod in sorted(pods, key=lambda p: p["metadata"]["name"])[:3000]:
        reasons = ", ".join(
            reason for reason, _ in violations(policy.level, policy.minor, pod["metadata"], pod["spec"])
        )
        if reasons:
            groups.setdefault(reasons, []).append(pod["metadata"]["name"])
    if not groups:
        return []
    out = [f'existing pods in namespace "{namespace}" violate the new PodSecurity enforce level "{policy}"']
    for reasons, names in groups.items():
        more = f" (and {len(names) - 1} other pod{'s' if len(names) > 2 else ''})" if len(names) > 1 else ""
        out.append(f"{names[0]}{more}: {reasons}")
    return out


def _significant(new: Object, old: Object) -> bool:
    """Whether an update could change the verdict: images, tolerations and deadlines cannot."""
    prefix = "container.apparmor.security.beta.kubernetes.io/"

    def relevant(pod: Object) -> tuple[Object, Object]:
        spec = {
            k: v
            for k, v in (pod.get("spec") or {}).items()
            if k not in ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates")
        }
        for kind in ("containers", "initContainers", "ephemeralContainers"):
            if spec.get(kind):
                spec[kind] = [{k: v for k, v in c.items() if k != "image"} for c in spec[kind]]
        notes = {
            k: v for k, v in ((pod.get("metadata") or {}).get("annotations") or {}).items() if k.startswith(prefix)
        }
        return spec, notes

    return relevant(new) != relevant(old)
