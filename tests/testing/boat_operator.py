"""An operator as people write them with kopf: boats get a crate of equipment, a status and a change log."""

import kopf
import kubernetes


@kopf.on.startup()
def configure(settings: kopf.OperatorSettings, **_: object) -> None:
    settings.persistence.finalizer = "boats.example.org/operator"


@kopf.on.create("example.org", "v1", "boats")
def launched(
    body: kopf.Body, spec: kopf.Spec, name: str, namespace: str, patch: kopf.Patch, **_: object
) -> dict[str, int]:
    crate = {"metadata": {"name": f"{name}-crate"}, "data": {"oars": str(2 * spec["seats"])}}
    kopf.adopt(crate)
    kubernetes.client.CoreV1Api(kubernetes.config.new_client_from_config()).create_namespaced_config_map(
        namespace, crate
    )
    patch.status["phase"] = "Afloat"
    kopf.info(body, reason="Launched", message="off she goes")
    return {"oars": 2 * spec["seats"]}


@kopf.on.field("example.org", "v1", "boats", field="spec.seats")
def refitted(old: object, new: object, patch: kopf.Patch, **_: object) -> None:
    if old is not None:
        patch.status["refit"] = f"{old} to {new}"


@kopf.on.delete("example.org", "v1", "boats")
def sunk(name: str, namespace: str, **_: object) -> None:
    api = kubernetes.client.CoreV1Api(kubernetes.config.new_client_from_config())
    api.create_namespaced_config_map(namespace, {"metadata": {"name": f"{name}-wreck"}})
