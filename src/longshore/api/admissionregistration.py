"""admissionregistration.k8s.io: webhook configurations; the policies are next door."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api.admissionmatching import (
    MATCH_VARIABLES,
    client_config,
    default_matching,
    match_conditions,
    rules,
    selectors,
)
from longshore.api.admissionpolicies import (
    MutatingAdmissionPolicy,
    MutatingAdmissionPolicyBinding,
    ValidatingAdmissionPolicy,
    ValidatingAdmissionPolicyBinding,
)
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1035_label, fully_qualified_name


class _WebhookConfiguration(Strategy):
    generation = True
    mutating = False

    def default(self, obj: Object) -> None:
        for hook in obj.get("webhooks") or ():
            hook.setdefault("failurePolicy", "Fail")
            default_matching(hook)
            hook.setdefault("timeoutSeconds", 10)
            if self.mutating:
                hook.setdefault("reinvocationPolicy", "Never")
            service = hook["clientConfig"].get("service")
            if service is not None:
                service.setdefault("port", 443)

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        names: set[str] = set()
        for index, hook in enumerate(obj.get("webhooks") or ()):
            path = f"webhooks[{index}]"
            self._hook(errors, hook, path)
            name = hook.get("name", "")
            if name in names:
                errors.duplicate(f"{path}.name", name)
            names.add(name)

    def _hook(self, errors: Errors, hook: Object, path: str) -> None:
        name = hook.get("name", "")
        if not name:
            errors.required(f"{path}.name")
        else:
            for message in fully_qualified_name(name):
                errors.invalid(f"{path}.name", name, message)
        for index, rule in enumerate(hook.get("rules") or ()):
            rules(errors, rule, f"{path}.rules[{index}]")
        for key, allowed in (("failurePolicy", ("Fail", "Ignore")), ("matchPolicy", ("Equivalent", "Exact"))):
            if hook.get(key) is not None and hook[key] not in allowed:
                errors.unsupported(f"{path}.{key}", hook[key], allowed)
        effects = hook.get("sideEffects")
        if effects is None:
            errors.required(f"{path}.sideEffects", "must specify one of None, NoneOnDryRun")
        elif effects not in ("None", "NoneOnDryRun"):
            errors.unsupported(f"{path}.sideEffects", effects, ("None", "NoneOnDryRun"))
        seconds = hook.get("timeoutSeconds")
        if seconds is not None and not 1 <= seconds <= 30:
            errors.invalid(f"{path}.timeoutSeconds", seconds, "the timeout value must be between 1 and 30 seconds")
        selectors(errors, hook, path)
        if self.mutating:
            again = hook.get("reinvocationPolicy")
            if again is not None and again not in ("IfNeeded", "Never"):
                errors.unsupported(f"{path}.reinvocationPolicy", again, ("IfNeeded", "Never"))
        client_config(errors, hook["clientConfig"], f"{path}.clientConfig")
        match_conditions(errors, hook.get("matchConditions") or [], f"{path}.matchConditions", MATCH_VARIABLES)
        self._versions(errors, hook.get("admissionReviewVersions") or [], f"{path}.admissionReviewVersions")

    @staticmethod
    def _versions(errors: Errors, versions: list[str], path: str) -> None:
        if not versions:
            errors.required(path, "must specify one of v1, v1beta1")
            return
        for index, version in enumerate(versions):
            if version in versions[:index]:
                errors.invalid(f"{path}[{index}]", version, "duplicate version")
                continue
            for message in dns1035_label(version):
                errors.invalid(f"{path}[{index}]", version, message)
        if not {"v1", "v1beta1"} & set(versions):
            errors.invalid(path, versions, "must include at least one of v1, v1beta1")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], len(obj.get("webhooks") or ()), age_of(obj, now)]


class MutatingWebhookConfiguration(_WebhookConfiguration):
    """Servers that may change what is written."""

    mutating = True


class ValidatingWebhookConfiguration(_WebhookConfiguration):
    """Servers that may refuse what is written."""


STRATEGIES = {
    "MutatingAdmissionPolicy": MutatingAdmissionPolicy,
    "MutatingAdmissionPolicyBinding": MutatingAdmissionPolicyBinding,
    "MutatingWebhookConfiguration": MutatingWebhookConfiguration,
    "ValidatingAdmissionPolicy": ValidatingAdmissionPolicy,
    "ValidatingAdmissionPolicyBinding": ValidatingAdmissionPolicyBinding,
    "ValidatingWebhookConfiguration": ValidatingWebhookConfiguration,
}
