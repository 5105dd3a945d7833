"""Custom resources: from a CustomResourceDefinition to what the server serves; all of it pure functions.

Door: `compile_crd(crd) -> CustomResource` (the methods of `kinds.Resource`), `names.conditions(crd, others)` for the status,
and the checks of definitions themselves in `definitions`.
"""

from longshore.api.crd.names import conditions, is_established
from longshore.api.crd.resource import CustomResource


def compile_crd(crd: dict[str, object]) -> CustomResource:
    """The resource that a definition (apiextensions.k8s.io/v1, already validated) describes."""
    return CustomResource(crd)


__all__ = ["CustomResource", "compile_crd", "conditions", "is_established"]
