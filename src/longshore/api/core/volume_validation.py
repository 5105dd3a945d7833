"""Checks of volumes in pods and of the sources that PersistentVolumes share with them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from longshore.api.core.environment_validation import backsteps, field_selector, local_path, resource_field
from longshore.api.validation.errors import Errors, quote
from longshore.api.validation.names import config_key, dns1123_label, dns1123_subdomain, in_range

Object = dict[str, Any]
_MODE = "must be a number between 0 and 0777 (octal), both inclusive"
_PATH_TYPES = ("", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket")
_DRIVER = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"


def pod_volumes(errors: Errors, volumes: list[Object], path: str, pod: str = "") -> dict[str, Object]:
    """The volumes of a pod of that name; the answer maps the names of good ones to them."""
    known: dict[str, Object] = {}
    for index, volume in enumerate(volumes):
        here = f"{path}[{index}]"
        found = Errors()
        source(found, volume, here, pod=True)
        if "ephemeral" in volume:
            claim_name(found, volume.get("name", ""), here, pod)
        name = volume.get("name", "")
        if not name:
            found.required(f"{here}.name")
        else:
            problems = dns1123_label(name)
            for message in problems:
                found.invalid(f"{here}.name", name, message)
            if not problems and name in known:
                found.duplicate(f"{here}.name", name)
        if found:
            errors.extend(found)
        else:
            known[name] = volume
    return known


def claim_name(errors: Errors, volume: str, path: str, pod: str) -> None:
    """The name that the claim of a pod's ephemeral volume gets."""
    if pod and volume:
        name = f"{pod}-{volume}"
        for message in dns1123_subdomain(name):
            errors.invalid(f"{path}.name", volume, f"PVC name {quote(name)}: {message}")


def mode(errors: Errors, value: int | None, path: str) -> None:
    """A file mode."""
    if value is not None and not 0 <= value <= 0o777:
        errors.invalid(path, value, _MODE)


def _items(errors: Errors, items: list[Object], path: str) -> None:
    for index, item in enumerate(items):
        here = f"{path}.items[{index}]"
        if not item.get("key"):
            errors.required(f"{here}.key")
        if not item.get("path"):
            errors.required(f"{here}.path")
        else:
            _local_name(errors, item["path"], f"{here}.path")
        mode(errors, item.get("mode"), f"{here}.mode")


def _local_name(errors: Errors, value: str, path: str) -> None:
    """A relative path that does not climb and does not begin with '..'."""
    local_path(errors, value, path)
    if value.startswith("..") and not value.startswith("../"):
        errors.invalid(path, value, "must not start with '..'")


def empty_dir(errors: Errors, value: Object, path: str) -> None:
    limit = value.get("sizeLimit")
    if limit is not None and limit.startswith("-"):
        errors.forbidden(f"{path}.sizeLimit", "SizeLimit field must be a valid resource quantity")


def host_path(errors: Errors, value: Object, path: str) -> None:
    if not value.get("path"):
        errors.required(f"{path}.path")
        return
    backsteps(errors, value["path"], f"{path}.path")
    kind = value.get("type")
    if kind is not None and kind not in _PATH_TYPES:
        errors.unsupported(f"{path}.type", kind, _PATH_TYPES)


def git_repo(errors: Errors, value: Object, path: str) -> None:
    if not value.get("repository"):
        errors.required(f"{path}.repository")
    local_path(errors, value.get("directory", ""), f"{path}.directory")


def gce(errors: Errors, value: Object, path: str) -> None:
    if not value.get("pdName"):
        errors.required(f"{path}.pdName")
    if not 0 <= value.get("partition", 0) <= 255:
        errors.invalid(f"{path}.partition", value["partition"], in_range(1, 255))


def aws(errors: Errors, value: Object, path: str) -> None:
    if not value.get("volumeID"):
        errors.required(f"{path}.volumeID")
    if not 0 <= value.get("partition", 0) <= 255:
        errors.invalid(f"{path}.partition", value["partition"], in_range(1, 255))


def secret(errors: Errors, value: Object, path: str) -> None:
    if not value.get("secretName"):
        errors.required(f"{path}.secretName")
    mode(errors, value.get("defaultMode"), f"{path}.defaultMode")
    _items(errors, value.get("items") or [], path)


def config_map(errors: Errors, value: Object, path: str) -> None:
    if not value.get("name"):
        errors.required(f"{path}.name")
    mode(errors, value.get("defaultMode"), f"{path}.defaultMode")
    _items(errors, value.get("items") or [], path)


def iscsi(errors: Errors, value: Object, path: str) -> None:
    if not value.get("targetPortal"):
        errors.required(f"{path}.targetPortal")
    iqn = value.get("iqn", "")
    if not iqn:
        errors.required(f"{path}.iqn")
    elif not iqn.startswith(("iqn", "eui", "naa")):
        errors.invalid(f"{path}.iqn", iqn, "must be valid format starting with iqn, eui, or naa")
    elif (
        (iqn.startswith("iqn") and not re.search(r"iqn\.\d{4}-\d{2}\.([0-9A-Za-z\-.]+)(:[^,;*&$|\s]+)$", iqn))
        or (iqn.startswith("eui") and not re.fullmatch(r"eui.[0-9A-Za-z]{16}", iqn))
        or (iqn.startswith("naa") and not re.fullmatch(r"naa.[0-9A-Za-z]{32}", iqn))
    ):
        errors.invalid(f"{path}.iqn", iqn, "must be valid format")
    if not 0 <= value.get("lun", 0) <= 255:
        errors.invalid(f"{path}.lun", value["lun"], in_range(0, 255))
    if (value.get("chapAuthDiscovery") or value.get("chapAuthSession")) and value.get("secretRef") is None:
        errors.required(f"{path}.secretRef")
    name = value.get("initiatorName")
    if name is not None and not name.startswith(("iqn", "eui", "naa")):
        errors.invalid(f"{path}.initiatorname", name, "must be valid format")


def nfs(errors: Errors, value: Object, path: str) -> None:
    if not value.get("server"):
        errors.required(f"{path}.server")
    if not value.get("path"):
        errors.required(f"{path}.path")
    if not value.get("path", "").startswith("/"):
        errors.invalid(f"{path}.path", value.get("path", ""), "must be an absolute path")


def glusterfs(errors: Errors, value: Object, path: str) -> None:
    for field in ("endpoints", "path"):
        if not value.get(field):
            errors.required(f"{path}.{field}")


def claim(errors: Errors, value: Object, path: str) -> None:
    if not value.get("claimName"):
        errors.required(f"{path}.claimName")


def rbd(errors: Errors, value: Object, path: str) -> None:
    if not value.get("monitors"):
        errors.required(f"{path}.monitors")
    if not value.get("image"):
        errors.required(f"{path}.image")


def cephfs(errors: Errors, value: Object, path: str) -> None:
    if not value.get("monitors"):
        errors.required(f"{path}.monitors")


def cinder(errors: Errors, value: Object, path: str) -> None:
    if not value.get("volumeID"):
        errors.required(f"{path}.volumeID")


def flex(errors: Errors, value: Object, path: str) -> None:
    if not value.get("driver"):
        errors.required(f"{path}.driver")
    for key in value.get("options") or ():
        domain = key.split("/")[0] if "/" in key else ""
        if domain == "kubernetes.io" or domain.endswith((".kubernetes.io", ".k8s.io")) or domain == "k8s.io":
            errors.invalid(f"{path}.options[{key}]", key, "kubernetes.io and k8s.io namespaces are reserved")


def flocker(errors: Errors, value: Object, path: str) -> None:
    name, uid = value.get("datasetName", ""), value.get("datasetUUID", "")
    if not name and not uid:
        errors.required(path, "one of datasetName and datasetUUID is required")
    if name and uid:
        errors.invalid(path, "resource", "datasetName and datasetUUID can not be specified simultaneously")
    if "/" in name:
        errors.invalid(f"{path}.datasetName", name, "must not contain '/'")


def fibre_channel(errors: Errors, value: Object, path: str) -> None:
    names, ids = value.get("targetWWNs"), value.get("wwids")
    if not names and not ids:
        errors.required(f"{path}.targetWWNs", "must specify either targetWWNs or wwids, but not both")
    if names and ids:
        errors.invalid(f"{path}.targetWWNs", names, "targetWWNs and wwids can not be specified simultaneously")
    if names:
        lun = value.get("lun")
        if lun is None:
            errors.required(f"{path}.lun", "lun is required if targetWWNs is specified")
        elif not 0 <= lun <= 255:
            errors.invalid(f"{path}.lun", lun, in_range(0, 255))


def azure_file(errors: Errors, value: Object, path: str) -> None:
    for field in ("secretName", "shareName"):
        if not value.get(field):
            errors.required(f"{path}.{field}")


def vsphere(errors: Errors, value: Object, path: str) -> None:
    if not value.get("volumePath"):
        errors.required(f"{path}.volumePath")


def azure_disk(errors: Errors, value: Object, path: str) -> None:
    for field in ("diskName", "diskURI"):
        if not value.get(field):
            errors.required(f"{path}.{field}")
    caching, kind, uri = value.get("cachingMode"), value.get("kind"), value.get("diskURI", "")
    if caching is not None and caching not in ("None", "ReadOnly", "ReadWrite"):
        errors.unsupported(f"{path}.cachingMode", caching, ("None", "ReadOnly", "ReadWrite"))
    if kind is not None and kind not in ("Dedicated", "Managed", "Shared"):
        errors.unsupported(f"{path}.kind", kind, ("Dedicated", "Managed", "Shared"))
    if kind == "Managed" and not uri.startswith("/subscriptions/"):
        errors.unsupported(
            f"{path}.diskURI",
            uri,
            ("/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",),
        )
    elif kind not in (None, "Managed") and not uri.startswith("https://"):
        errors.unsupported(
            f"{path}.diskURI", uri, ("https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd",)
        )


def photon(errors: Errors, value: Object, path: str) -> None:
    if not value.get("pdID"):
        errors.required(f"{path}.pdID")


def portworx(errors: Errors, value: Object, path: str) -> None:
    if not value.get("volumeID"):
        errors.required(f"{path}.volumeID")


def quobyte(errors: Errors, value: Object, path: str) -> None:
    if not value.get("registry"):
        errors.required(f"{path}.registry", "must be a host:port pair or multiple pairs separated by commas")
    if not value.get("volume"):
        errors.required(f"{path}.volume")


def scale_io(errors: Errors, value: Object, path: str) -> None:
    for field in ("gateway", "system", "volumeName"):
        if not value.get(field):
            errors.required(f"{path}.{field}")


def storage_os(errors: Errors, value: Object, path: str) -> None:
    if not value.get("volumeName"):
        errors.required(f"{path}.volumeName")
    else:
        for message in dns1123_label(value["volumeName"]):
            errors.invalid(f"{path}.volumeName", value["volumeName"], message)


def local(errors: Errors, value: Object, path: str) -> None:
    if not value.get("path"):
        errors.required(f"{path}.path")
    else:
        backsteps(errors, value["path"], f"{path}.path")


def csi_driver(errors: Errors, name: str, path: str) -> None:
    """A CSI driver's name."""
    if not name:
        errors.required(path)
    if len(name) > 63:
        errors.too_long(path, 63)
    for message in dns1123_subdomain(name.lower()) if name else ():
        errors.invalid(path, name, message)


def csi(errors: Errors, value: Object, path: str) -> None:
    csi_driver(errors, value.get("driver", ""), f"{path}.driver")
    reference = value.get("nodePublishSecretRef")
    if reference is not None and not reference.get("name"):
        errors.required(f"{path}.nodePublishSecretRef.name")
    elif reference is not None:
        for message in dns1123_subdomain(reference["name"]):
            errors.invalid(f"{path}.name", reference["name"], message)


def csi_persistent(errors: Errors, value: Object, path: str) -> None:
    csi_driver(errors, value.get("driver", ""), f"{path}.driver")
    if not value.get("volumeHandle"):
        errors.required(f"{path}.volumeHandle")
    for field in (
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ):
        reference = value.get(field)
        if reference is not None:
            for part in ("name", "namespace"):
                if not reference.get(part):
                    errors.required(f"{path}.{field}.{part}")


def downward(errors: Errors, value: Object, path: str) -> None:
    mode(errors, value.get("defaultMode"), f"{path}.defaultMode")
    for item in value.get("items") or ():
        _downward_file(errors, item, path)


def _downward_file(errors: Errors, item: Object, path: str) -> None:
    if not item.get("path"):
        errors.required(f"{path}.path")
    _local_name(errors, item.get("path", ""), f"{path}.path")
    if item.get("fieldRef") is not None:
        field_selector(errors, item["fieldRef"], f"{path}.fieldRef", volume=True)
        if item.get("resourceFieldRef") is not None:
            errors.invalid(path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
    elif item.get("resourceFieldRef") is not None:
        resource_field(errors, item["resourceFieldRef"], f"{path}.resourceFieldRef", volume=True)
    else:
        errors.required(path, "one of fieldRef and resourceFieldRef is required")
    mode(errors, item.get("mode"), f"{path}.mode")


def projected(errors: Errors, value: Object, path: str) -> None:
    mode(errors, value.get("defaultMode"), f"{path}.defaultMode")
    paths: set[str] = set()

    def once(text: str, shown: str) -> None:
        if text:
            if text in paths:
                errors.invalid(path, shown, "conflicting duplicate paths")
            paths.add(text)

    for index, part in enumerate(value.get("sources") or ()):
        here = f"{path}.sources[{index}]"
        count = 0
        for kind in (
            "secret",
            "configMap",
            "downwardAPI",
            "serviceAccountToken",
            "clusterTrustBundle",
            "podCertificate",
        ):
            given = part.get(kind)
            if given is None:
                continue
            count += 1
            place = f"{here}.{kind}"
            if kind in ("secret", "configMap"):
                if not given.get("name"):
                    errors.required(f"{place}.name")
                _items(errors, given.get("items") or [], place)
                for item in given.get("items") or ():
                    once(item.get("path", ""), given.get("name", ""))
            elif kind == "downwardAPI":
                for item in given.get("items") or ():
                    _downward_file(errors, item, place)
                    once(item.get("path", ""), item.get("path", ""))
            elif kind == "serviceAccountToken":
                _token(errors, given, place, f"{path}.path")
        if count > 1:
            errors.forbidden(here, "may not specify more than 1 volume type per source")


def _token(errors: Errors, value: Object, path: str, place: str) -> None:
    seconds = value.get("expirationSeconds", 3600)
    if seconds < 600:
        errors.invalid(f"{path}.expirationSeconds", seconds, "may not specify a duration less than 10 minutes")
    if seconds > 1 << 32:
        errors.invalid(f"{path}.expirationSeconds", seconds, "may not specify a duration larger than 2^32 seconds")
    if not value.get("path"):
        errors.required(place)
    else:
        _local_name(errors, value["path"], place)


def ephemeral(errors: Errors, value: Object, path: str) -> None:
    template = value.get("volumeClaimTemplate")
    if template is None:
        errors.required(f"{path}.volumeClaimTemplate")
        return
    from longshore.api.core.volumes import claim_spec
    from longshore.api.validation import metadata

    metadata.annotation_map(
        errors, template["metadata"].get("annotations") or {}, f"{path}.volumeClaimTemplate.metadata.annotations"
    )
    metadata.labels(errors, template["metadata"].get("labels") or {}, f"{path}.volumeClaimTemplate.metadata.labels")
    claim_spec(errors, template["spec"], f"{path}.volumeClaimTemplate.spec")


def image(errors: Errors, value: Object, path: str) -> None:
    if not value.get("reference"):
        errors.required(f"{path}.reference")
    policy = value.get("pullPolicy", "")
    if policy not in ("Always", "IfNotPresent", "Never"):
        if policy:
            errors.unsupported(f"{path}.pullPolicy", policy, ("Always", "IfNotPresent", "Never"))
        else:
            errors.required(f"{path}.pullPolicy")


# In the order in which upstream looks for them.
_POD_SOURCES: dict[str, Callable[[Errors, Object, str], None]] = {
    "emptyDir": empty_dir, "hostPath": host_path, "gitRepo": git_repo, "gcePersistentDisk": gce, "awsElasticBlockStore": aws, "secret": secret,
    "nfs": nfs, "iscsi": iscsi, "glusterfs": glusterfs, "flocker": flocker, "persistentVolumeClaim": claim, "rbd": rbd, "cinder": cinder,
    "cephfs": cephfs, "quobyte": quobyte, "downwardAPI": downward, "fc": fibre_channel, "flexVolume": flex, "configMap": config_map,
    "azureFile": azure_file, "vsphereVolume": vsphere, "photonPersistentDisk": photon, "portworxVolume": portworx, "azureDisk": azure_disk,
    "storageos": storage_os, "projected": projected, "scaleIO": scale_io, "csi": csi, "ephemeral": ephemeral, "image": image,
}  # fmt: skip
_PERSISTENT_SOURCES: dict[str, Callable[[Errors, Object, str], None]] = {
    "hostPath": host_path, "gcePersistentDisk": gce, "awsElasticBlockStore": aws, "glusterfs": glusterfs, "flocker": flocker, "nfs": nfs,
    "rbd": rbd, "quobyte": quobyte, "cephfs": cephfs, "iscsi": iscsi, "cinder": cinder, "fc": fibre_channel, "flexVolume": flex,
    "azureFile": azure_file, "vsphereVolume": vsphere, "photonPersistentDisk": photon, "portworxVolume": portworx, "azureDisk": azure_disk,
    "scaleIO": scale_io, "local": local, "storageos": storage_os, "csi": csi_persistent,
}  # fmt: skip
PERSISTENT_SOURCES = tuple(_PERSISTENT_SOURCES)


def source(errors: Errors, volume: Object, path: str, *, pod: bool) -> None:
    """Exactly one source, and a good one."""
    count = 0
    for kind, check in (_POD_SOURCES if pod else _PERSISTENT_SOURCES).items():
        value = volume.get(kind)
        if value is None:
            continue
        if count:
            errors.forbidden(f"{path}.{kind}", "may not specify more than 1 volume type")
            continue
        count += 1
        check(errors, value, f"{path}.{kind}")
        long = len(volume.get("name", "") + ":" + value.get("targetPortal", "")) > 64
        if pod and kind == "iscsi" and long and value.get("initiatorName"):
            errors.invalid(
                f"{path}.name",
                volume.get("name", ""),
                "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.",
            )
    if not count:
        errors.required(path, "must specify a volume type")


__all__ = ["PERSISTENT_SOURCES", "config_key", "csi_driver", "mode", "pod_volumes", "source"]
